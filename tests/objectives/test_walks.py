"""What a step asks of the whole model is asked once in a run, and its numbers are those of transformers' own way."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from finetune.objectives.trainer import StepMixin
from tests.end_to_end.small_runs import read_figures, read_json, read_weights, run_small

SETTINGS = {
    "training__max_steps": 3,
    "training__save_steps": 3,
    "training__gradient_accumulation_steps": 2,
    "data__train__limit": 12,
}


def read_operations(run: Path) -> float:
    return read_json(run / "checkpoints" / "checkpoint-3" / "trainer_state.json")["total_flos"]


@pytest.mark.parametrize("max_grad_norm", [0.01, 0.0], ids=["clipped", "measured alone"])
def test_a_run_is_that_of_transformers_own_way_to_the_bit(tmp_path, monkeypatch, max_grad_norm):
    settings = SETTINGS | {"training__max_grad_norm": max_grad_norm}
    ours = run_small(tmp_path / "ours", **settings)
    monkeypatch.delattr(StepMixin, "floating_point_ops")
    monkeypatch.setattr(StepMixin, "_list_trained", lambda self, model: model)
    theirs = run_small(tmp_path / "theirs", **settings)
    assert read_figures(ours) == read_figures(theirs)
    assert read_weights(ours) == read_weights(theirs)
    assert read_operations(ours) == read_operations(theirs) > 0


def test_weights_are_counted_once_and_what_is_trained_is_listed_in_the_models_order(tmp_path, monkeypatch):
    counted, norms = [], []
    count, measure = PreTrainedModel.num_parameters, torch.nn.utils.clip_grad_norm_

    def count_and_note(self: PreTrainedModel, *args: bool, **kwargs: bool) -> int:
        counted.append(kwargs)
        return count(self, *args, **kwargs)

    def measure_and_note(parameters: list[torch.nn.Parameter], *args: float, **kwargs: float) -> torch.Tensor:
        norms.append([id(one) for one in parameters])
        return measure(parameters, *args, **kwargs)

    models = []
    list_trained = StepMixin._list_trained
    monkeypatch.setattr(PreTrainedModel, "num_parameters", count_and_note)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", measure_and_note)
    monkeypatch.setattr(
        StepMixin, "_list_trained", lambda self, model: models.append(model) or list_trained(self, model)
    )
    run_small(tmp_path, **SETTINGS)
    assert counted.count({"exclude_embeddings": True}) == 1
    trained = [id(one) for one in models[0].parameters() if one.requires_grad]
    assert len(trained) == 28  # A and B of seven linears in two layers
    assert norms == [trained] * 3
