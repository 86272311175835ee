"""Runs on preferences begin as their reference, keep one base, resume to the last bit, and say how well they tell."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune.errors import PlaceError, RecipeError
from finetune.model.adapters import REFERENCE
from finetune.objectives.dpo import PreferenceTrainer
from tests.end_to_end.small_runs import (
    ROOT,
    read_figures,
    read_json,
    read_lines,
    read_weights,
    run_small,
    stopped_at_evaluation,
)

pytestmark = pytest.mark.usefixtures("tiny_base")

LN_2 = math.log(2)
PAIRS = {"path": "data/tiny_world/preferences.jsonl", "limit": 40}
HELD_OUT = {"path": "data/tiny_world/preferences_test.jsonl", "limit": 12}
PREFERENCES = {
    "adapter__lora_dropout": 0.0,
    "data__train": PAIRS,
    "data__eval": HELD_OUT,
    "training__learning_rate": 5e-3,
    "training__per_device_train_batch_size": 4,
    "training__per_device_eval_batch_size": 4,
    "evaluation__num_samples": 1,
}
DPO = PREFERENCES | {"objective": "dpo"}
KTO = PREFERENCES | {"objective": "kto", "evaluation__preferences": HELD_OUT}
ORPO = PREFERENCES | {"objective": "orpo"}
CACHED = {"training__precompute_ref_log_probs": True}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_base) -> str:
    """A run of supervised fine-tuning to go on from, made from the repository's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        run = run_small(tmp_path_factory.mktemp("trained"), name="trained", training__learning_rate=2e-2)
    return str(run)


@pytest.fixture
def reference_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache for the reference's log-probabilities."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "finetune_reference"


@pytest.fixture
def trainers(monkeypatch) -> list[PreferenceTrainer]:
    """The trainers that runs build, to look at afterwards."""
    built: list[PreferenceTrainer] = []
    build = PreferenceTrainer.__init__

    def keep(self: PreferenceTrainer, **kwargs: Any) -> None:
        build(self, **kwargs)
        built.append(self)

    monkeypatch.setattr(PreferenceTrainer, "__init__", keep)
    return built


@pytest.mark.parametrize(("settings", "first_loss"), [(DPO, LN_2), (KTO, 0.5)], ids=["dpo", "kto"])
def test_a_fresh_adapter_begins_as_its_reference(tmp_path, settings, first_loss):
    lines = read_lines(run_small(tmp_path, **settings))
    assert lines[1]["loss"] == pytest.approx(first_loss, abs=1e-5)
    assert lines[0]["eval_loss"] == pytest.approx(first_loss, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [DPO, pytest.param(KTO, marks=pytest.mark.slow)], ids=["dpo", "kto"])
@pytest.mark.slow
def test_with_the_cached_reference_the_run_begins_there_too(tmp_path, reference_cache, settings, dtype):
    lines = read_lines(run_small(tmp_path, **settings | CACHED, model__compute_dtype=dtype))
    live = read_lines(run_small(tmp_path, **settings, model__compute_dtype=dtype, name="live"))
    tolerance = 1e-5 if dtype == "float32" else 2e-3
    assert [line["loss"] for line in lines[1:]] == pytest.approx([line["loss"] for line in live[1:]], abs=tolerance)
    assert len(list(reference_cache.glob("*.safetensors"))) == 1


def test_the_reference_is_computed_once_for_all_runs_on_the_same_start(tmp_path, reference_cache, caplog):
    first = run_small(tmp_path, **DPO | CACHED)
    assert "from the cache" not in caplog.text
    second = run_small(tmp_path, **DPO | CACHED, name="second", training__beta=0.1)
    assert "from the cache" in caplog.text
    assert read_weights(first) == read_weights(second)


@pytest.mark.parametrize(
    "settings", [DPO, pytest.param(KTO, marks=pytest.mark.slow), DPO | CACHED], ids=["dpo", "kto", "cached"]
)
def test_a_trained_adapter_goes_on_from_where_it_is(tmp_path, reference_cache, trained, settings):
    run = run_small(tmp_path, **_without_adapter(settings), adapter={"init_from": trained})
    first_loss = 0.5 if settings is KTO else LN_2
    assert read_lines(run)[1]["loss"] == pytest.approx(first_loss, abs=1e-5)
    assert read_weights(run) != read_weights(Path(trained))
    summary = read_json(run / "summary.json")
    assert summary["preference_accuracy_base"] is not None
    assert not (run / "adapter" / REFERENCE).exists()


def _without_adapter(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings for a run whose whole `adapter` section is another one."""
    return {name: value for name, value in settings.items() if not name.startswith("adapter__")}


def _find_storages(model: nn.Module) -> Iterator[torch.UntypedStorage]:
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor.untyped_storage()


@pytest.mark.slow
def test_the_frozen_reference_shares_the_base_and_answers_as_the_trained_adapter(tmp_path, trained, trainers):
    run_small(tmp_path, **_without_adapter(DPO), adapter={"init_from": trained}, training__max_steps=1)
    run_small(tmp_path, **DPO, name="fresh", training__max_steps=1)
    continued, fresh = trainers
    alive = [{store.data_ptr(): store.nbytes() for store in _find_storages(one.model)} for one in (continued, fresh)]
    adapter_bytes = sum(
        parameter.nbytes for name, parameter in continued.model.named_parameters() if f".{REFERENCE}." in name
    )
    assert adapter_bytes > 0
    assert sum(alive[0].values()) - sum(alive[1].values()) == adapter_bytes
    # The frozen copy still answers as the adapter on the disk does, after a step of the policy.
    batch = next(iter(continued.get_eval_dataloader()))
    del batch["num_real_tokens"]
    with continued.as_in_training():
        found = continued.compute_ref_log_probs(continued.model, batch)
        continued.model.load_adapter(f"{trained}/adapter", adapter_name="saved")
        continued.model.set_adapter("saved")
        logps, tokens = continued.score_answers(batch)
    assert (torch.cat(found) / tokens).tolist() == pytest.approx((logps / tokens).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        DPO,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (KTO, DPO | CACHED, ORPO, DPO | {"adapter": "trained"})),
    ],
    ids=["dpo", "kto", "cached", "orpo", "continued"],
)
def test_every_objective_resumes_as_if_never_stopped(tmp_path, reference_cache, trained, settings):
    settings = settings | {"training__max_steps": 7, "training__eval_steps": 3}
    if settings.get("adapter") == "trained":
        settings = _without_adapter(settings) | {"adapter": {"init_from": trained}}
    whole = run_small(tmp_path / "whole", **settings)
    with stopped_at_evaluation(3):
        run_small(tmp_path / "stopped", **settings)
    stopped = run_small(tmp_path / "stopped", **settings, resume=True)
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)


def test_what_a_user_watches_stands_in_every_line(tmp_path):
    run = run_small(tmp_path, **DPO)
    watched = {"rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected", "tokens_per_second"}
    assert all(watched <= line.keys() for line in read_lines(run)[1:])
    summary = read_json(run / "summary.json")
    assert 0 <= summary["preference_accuracy_before"] <= 1
    assert summary["preference_margin"] > summary["preference_margin_before"]
    assert summary["pairs"] == 12


def test_a_first_loss_that_is_not_ln_2_stops_the_run(tmp_path, monkeypatch):
    build = PreferenceTrainer.__init__

    def spoil(self: PreferenceTrainer, **kwargs: Any) -> None:
        build(self, **kwargs)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)

    monkeypatch.setattr(PreferenceTrainer, "__init__", spoil)
    with pytest.raises(RecipeError, match=r"step 1: the loss is \d\.\d+, and 0\.6931 is due"):
        run_small(tmp_path, **DPO)


def test_full_fine_tuning_compares_with_the_cached_reference(tmp_path, reference_cache):
    run = run_small(tmp_path, **_without_adapter(DPO | CACHED), adapter={"method": "full"}, model__quantization="none")
    assert read_lines(run)[1]["loss"] == pytest.approx(LN_2, abs=1e-5)


def test_an_adapter_of_another_base_is_refused_with_both_named(tmp_path, trained):
    with pytest.raises(RecipeError, match=r"stands on another base[\s\S]*tiny_base"):
        run_small(
            tmp_path,
            **_without_adapter(DPO),
            adapter={"init_from": trained},
            model={"model_name_or_path": "data/tiny_base"},
        )


def test_an_adapter_asked_in_another_form_is_refused_with_its_template(tmp_path, trained):
    settings = _without_adapter(DPO) | {"adapter": {"init_from": trained}, "data__template": "mistral"}
    with pytest.raises(RecipeError, match=r"another prompt template[\s\S]*chat_template.jinja"):
        run_small(tmp_path, **settings)
    run_small(tmp_path, **settings | {"data__template": f"{trained}/adapter/chat_template.jinja"})


def test_an_adapter_that_is_not_there_is_told_with_its_setting(tmp_path):
    with pytest.raises(PlaceError, match=r"`adapter\.init_from`: outputs/nowhere"):
        run_small(tmp_path, **_without_adapter(DPO), adapter={"init_from": "outputs/nowhere"})
