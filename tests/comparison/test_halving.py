"""Short runs keep the best share of the choices, rung by rung, and a race goes on where it was left."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from finetune.comparison.halving import Halving
from finetune.recipe.comparison import Budget
from tests.comparison.made_up import make_points

POINTS = make_points(1, 2, 4, 8, 16, 32)
FIRST = {"lora-r1": 0.1, "lora-r2": 0.6, "lora-r4": 0.3, "lora-r8": 0.5, "lora-r16": 0.6, "lora-r32": 0.2}


def build(folder: Path, points=POINTS, *, score: str = "exact_match", **budget: Any) -> Halving:
    terms = {"minutes": 30.0, "probe_steps": (20, 60), "keep": 0.5} | budget
    return Halving(folder / "probes.journal", "lora", points, budget=Budget(**terms), score=score)


def names_of(points) -> list[str]:
    return [point.name for point in points]


def test_the_best_half_of_each_rung_goes_on(tmp_path: Path) -> None:
    race = build(tmp_path)
    assert names_of(race.decide(20, FIRST)) == ["lora-r2", "lora-r8", "lora-r16"]
    # Half of three, rounded up; the later rung counts, not the earlier one.
    assert names_of(race.decide(60, {"lora-r2": 0.6, "lora-r8": 0.9, "lora-r16": 0.7})) == ["lora-r8", "lora-r16"]
    race.finish()
    study = optuna.load_study(study_name="lora", storage=race._study._storage)
    states = [trial.state.name for trial in study.trials]
    assert states == ["PRUNED", "PRUNED", "PRUNED", "COMPLETE", "COMPLETE", "PRUNED"]
    assert study.best_trial.params == {"adapter.r": 8}
    assert study.trials[1].intermediate_values == {20: 0.6, 60: 0.6}


@pytest.mark.parametrize(("keep", "num"), [(0.34, 3), (1 / 3, 2), (0.1, 1), (0.9, 6), (1e-12, 1)])
def test_a_share_is_rounded_up_so_that_one_always_stays(tmp_path: Path, keep: float, num: int) -> None:
    assert len(build(tmp_path, keep=keep).decide(20, FIRST)) == num


def test_a_share_that_comes_out_even_is_not_rounded_up_for_its_last_binary_digit(tmp_path: Path) -> None:
    assert 0.28 * 25 > 7
    assert len(build(tmp_path, make_points(*range(1, 26)), keep=0.28).decide(20, {})) == 7


def test_of_losses_the_lowest_go_on_and_of_equals_the_first(tmp_path: Path) -> None:
    race = build(tmp_path, score="eval_loss", keep=0.2)
    assert names_of(race.decide(20, FIRST | {"lora-r32": 0.1})) == ["lora-r1", "lora-r32"]
    assert names_of(race.decide(60, {"lora-r1": 1.0, "lora-r32": 1.0})) == ["lora-r1"]


def test_what_the_budget_left_unmeasured_stands_behind_what_was_measured(tmp_path: Path) -> None:
    race = build(tmp_path)
    assert names_of(race.decide(20, {"lora-r8": 0.01, "lora-r32": 0.02})) == ["lora-r1", "lora-r8", "lora-r32"]
    # Nothing of the second rung was run: the first one's values decide.
    assert names_of(race.decide(60, {})) == ["lora-r8", "lora-r32"]
    race.finish()


def test_a_race_that_was_left_stays_as_it_was_decided_and_goes_on(tmp_path: Path) -> None:
    assert names_of(build(tmp_path).decide(20, FIRST)) == ["lora-r2", "lora-r8", "lora-r16"]
    again = build(tmp_path)
    assert names_of(again.points) == names_of(POINTS)
    other = dict.fromkeys(FIRST, 0.0) | {"lora-r1": 1.0}
    assert names_of(again.decide(20, other)) == ["lora-r2", "lora-r8", "lora-r16"]
    assert names_of(again.decide(60, {"lora-r2": 0.6, "lora-r8": 0.9, "lora-r16": 0.7})) == ["lora-r8", "lora-r16"]
    again.finish()
    last = build(tmp_path)
    last.decide(20, {})
    assert names_of(last.decide(60, {})) == ["lora-r8", "lora-r16"]
    last.finish()


def test_points_that_were_added_begin_a_new_race(tmp_path: Path) -> None:
    build(tmp_path, POINTS[:3], keep=0.3).decide(20, FIRST)
    race = build(tmp_path, POINTS, keep=0.3)
    assert names_of(race.decide(20, FIRST)) == ["lora-r2", "lora-r16"]


@pytest.mark.parametrize(
    "changed", [{"keep": 0.1}, {"score": "eval_loss"}, {"minutes": 60.0}, {"probe_steps": (20, 60, 180)}]
)
def test_a_race_on_other_terms_is_decided_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    build(tmp_path).decide(20, FIRST)
    assert build(tmp_path).has_decided(20)
    race = build(tmp_path, **changed)
    assert not race.has_decided(20)
    num = 1 if "keep" in changed else 3
    assert names_of(race.decide(20, {"lora-r32": 0.9})) == names_of([*POINTS[: num - 1], POINTS[-1]])
    assert build(tmp_path, **changed).has_decided(20)


def test_a_failed_short_run_does_not_go_on(tmp_path: Path) -> None:
    values = {name: value for name, value in FIRST.items() if name != "lora-r2"}
    assert names_of(build(tmp_path, keep=0.3).decide(20, values)) == ["lora-r8", "lora-r16"]
