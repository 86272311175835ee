"""The cache of reference log-probabilities: every part of its key counts, and a damaged file is computed anew."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.model.base import load_base
from finetune.model.continuing import find_trained_adapter
from finetune.prepare import prepare
from finetune.recipe.reading import build_recipe
from finetune.recipe.schema import Recipe
from finetune.reference import describe_reference
from finetune.run.reference_cache import read_reference, write_reference
from tests.end_to_end.small_runs import ROOT, build_values, run_small

PAIRS = {"path": "data/tiny_world/preferences.jsonl", "limit": 8}
REFERENCE = {"train.ref_chosen_logps": torch.tensor([-1.0, -2.5])}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch, tiny_base) -> None:
    monkeypatch.chdir(ROOT)


def build(tmp_path: Path, **settings: Any) -> Recipe:
    values = {
        "objective": "dpo",
        "adapter__lora_dropout": 0.0,
        "data__train": PAIRS,
        "training__precompute_ref_log_probs": True,
    } | settings
    if "adapter" in settings:
        del values["adapter__lora_dropout"]
    return build_recipe(build_values(tmp_path, **values))


def describe(recipe: Recipe) -> dict[str, object]:
    trained = recipe.adapter.init_from
    trained_dir = None if trained is None else find_trained_adapter(trained, recipe.model, recipe.seed)
    return describe_reference(recipe, load_base(recipe.model, seed=recipe.seed), prepare(recipe), trained_dir)


def change_config(path: Path, **fields: object) -> None:
    """Change a field of a config, beside weights that stay."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path) -> None:
    """Change one byte of the weights in a folder, whose names and sizes stay."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "changed",
    [
        {"data__train": PAIRS | {"limit": 7}},
        {"data__max_length": 60, "data__too_long": "truncate"},
        {"data__template": "mistral"},
        {"data__eval": {"path": "data/tiny_world/preferences_test.jsonl", "limit": 3}},
        {"seed": 4},
        {"model__quantization": "none"},
        {"model__quantization": "fp4"},
        {"model__double_quantization": False},
        {"model__compute_dtype": "bfloat16"},
        {"model__attention": "eager"},
        {"adapter__init_lora_weights": "pissa"},
        {"training__ld_alpha": 0.5},
    ],
    ids=lambda changed: " ".join(changed),
)
def test_each_part_of_the_key_is_another_entry(tmp_path, changed):
    before, after = describe(build(tmp_path)), describe(build(tmp_path, **changed))
    write_reference(tmp_path / "cache", before, REFERENCE)
    assert read_reference(tmp_path / "cache", before) is not None
    assert read_reference(tmp_path / "cache", after) is None


@pytest.mark.parametrize(
    "changed",
    [{"name": "another"}, {"training__learning_rate": 0.5}, {"training__beta": 0.7}, {"training__loss_type": "ipo"}],
    ids=lambda changed: " ".join(changed),
)
def test_what_the_numbers_do_not_depend_on_shares_the_entry(tmp_path, changed):
    assert describe(build(tmp_path)) == describe(build(tmp_path, **changed))


def test_other_weights_under_the_same_name_are_another_entry(tmp_path):
    folder = Path(shutil.copytree("data/tiny_base", tmp_path / "base"))
    _is_another(tmp_path, lambda: change_weights(folder), model={"model_name_or_path": str(folder), "device": "cpu"})


def test_the_same_weights_computed_otherwise_are_another_entry(tmp_path):
    folder = Path(shutil.copytree("data/tiny_base", tmp_path / "base"))
    of_base = {"model": {"model_name_or_path": str(folder), "device": "cpu"}}
    _is_another(tmp_path, lambda: change_config(folder / "config.json", rms_norm_eps=1e-3), **of_base)
    run = run_small(tmp_path, name="trained")
    config = run / "adapter" / "adapter_config.json"
    _is_another(tmp_path, lambda: change_config(config, lora_alpha=64), adapter={"init_from": str(run)})


@pytest.mark.slow
def test_another_trained_adapter_under_the_same_name_is_another_entry(tmp_path):
    def train(learning_rate: float) -> str:
        return str(run_small(tmp_path, name="trained", training__learning_rate=learning_rate, overwrite=True))

    _is_another(tmp_path, lambda: train(1e-2), adapter={"init_from": train(1e-3)})


def _is_another(tmp_path: Path, change: Callable[[], object], **settings: Any) -> None:
    recipe = build(tmp_path, **settings)
    before = describe(recipe)
    assert describe(recipe) == before
    change()
    assert describe(recipe) != before


def test_a_damaged_file_is_no_reference(tmp_path, caplog):
    parts = {"rows": "a"}
    write_reference(tmp_path, parts, REFERENCE)
    assert torch.equal(read_reference(tmp_path, parts)["train.ref_chosen_logps"], torch.tensor([-1.0, -2.5]))
    [path] = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    assert read_reference(tmp_path, parts) is None
    assert "computing the reference anew" in caplog.text


def test_a_file_of_which_one_number_is_another_is_no_reference(tmp_path, caplog):
    write_reference(tmp_path, {"rows": "a"}, REFERENCE)
    [path] = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last number: still a file that can be read
    path.write_bytes(content)
    assert read_reference(tmp_path, {"rows": "a"}) is None
    assert "does not hold what its own hash says: computing the reference anew" in caplog.text


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append(_name_of(descriptor)), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, target: (order.append("renamed"), replace(path, target)))
    write_reference(tmp_path / "cache", {"rows": "a"}, REFERENCE)
    [path] = (tmp_path / "cache").glob("*.safetensors")
    assert order == [f"{path.stem}.{os.getpid()}.part", "renamed", "cache"]


def _name_of(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


def test_a_cache_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    write_reference(tmp_path / "file", {"rows": "a"}, REFERENCE)
    assert "is not kept for other runs" in caplog.text
