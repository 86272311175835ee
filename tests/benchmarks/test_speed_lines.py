"""In which order the lines of the speed benchmark are prepared: bases that no time is left for are not drawn."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.speed import PEAK, measure_lines
from benchmarks.speed_grid import CUDA_SHAPES, build_lines
from benchmarks.speed_measuring import Place
from benchmarks.speed_store import Store

LINES = [line for line in build_lines(CUDA_SHAPES, "cuda") if line.group == "targets"]  # 7B, 13B, 70B
GIVEN = {"seeds": 1, "minutes": 10.0, "table": False, "data_dir": Path("nowhere"), "device": "cuda"}


@pytest.fixture
def prepare_all(monkeypatch, tmp_path) -> Callable[..., list[str]]:
    """Go through the lines with a store in which the 7B is measured; the bases asked for, none of which is there."""

    def go(deadline: float, **given: bool) -> list[str]:
        asked: list[str] = []
        monkeypatch.setattr(speed, "prepare_base", lambda shape, **_: asked.append(shape.name))
        store = Store(tmp_path / "store.jsonl")
        store.add(PEAK, PEAK, 0, {"flops_per_second": 1e12})
        for contender in LINES[0].contenders:
            store.add(LINES[0].name, contender.name, 0, {"process_seconds": 9.0, "held_out_loss": 2.0})
        place = Place("cuda", None, None, deadline)
        assert measure_lines(argparse.Namespace(**GIVEN | given), LINES, place, store) == []
        return asked

    return go


def test_what_is_measured_is_prepared_for_the_table_alone_and_behind_the_others(prepare_all):
    assert prepare_all(math.inf) == ["llama2_13b", "llama2_70b", "mistral_7b"]


@pytest.mark.parametrize(("deadline", "table"), [(0.0, False), (math.inf, True)], ids=["no time left", "table alone"])
def test_what_is_not_measured_is_not_prepared_and_named(prepare_all, capsys, deadline, table):
    assert prepare_all(deadline, table=table) == ["mistral_7b"]
    said = capsys.readouterr().out.splitlines()
    for line in LINES[1:]:
        assert f"not measured yet: {line.name}" in said
