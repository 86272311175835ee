"""Whole small runs in which one row, or one step, has a loss or a gradient that is not finite.

The row holds a word that no other one has; where the model meets its token, the test's hook spoils what the last layer
gives, on the way forward, on the way back, or in the loss alone.
"""

import errno
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.models.mistral.modeling_mistral import MistralModel

from finetune.errors import DivergedError, PlaceError
from finetune.export import export
from finetune.model.loading import load_for_inference
from finetune.objectives.supervised import SupervisedTrainer
from finetune.run.writing import write_text
from tests.end_to_end.small_runs import ROOT, TINY, read_figures, read_json, read_lines, read_weights, run_small

# Small words and one that the others do not share a piece with.
ANSWERS = ["one", "two", "three", "four", "Quixotic", "six", "seven", "eight"]
GUILTY_ROW = 5  # from 1
PLAIN = {"model__quantization": "none", "adapter": {"method": "lora", "r": 2, "target_modules": ["q_proj"]}}
Spoil = Callable[[str], None]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    # The first two are the longest by far: rows of like length are trained together, the longest first.
    asked = ["Say it, and then all of it once more, as slowly as can be." if n < 2 else "Say it." for n in range(8)]
    path.write_text(
        "".join(
            json.dumps({"instruction": f"{number} {how}", "output": answer}) + "\n"
            for number, (how, answer) in enumerate(zip(asked, ANSWERS, strict=True))
        )
    )
    return path


class _SpoiledOnTheWayBack(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: torch.Tensor, is_spoiled: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(is_spoiled)
        return hidden.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        (is_spoiled,) = context.saved_tensors
        return gradient.masked_fill(is_spoiled, math.nan), None


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Spoil the guilty row: its `forward`, its `gradient` alone, or the `loss` of its batch with a sound gradient."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    encode = lambda word: set(tokenizer(f" {word}", add_special_tokens=False)["input_ids"])  # noqa: E731
    others = set().union(*(encode(answer) for answer in ANSWERS if answer != ANSWERS[GUILTY_ROW - 1]))
    guilty = torch.tensor(sorted(encode(ANSWERS[GUILTY_ROW - 1]) - others))
    forward, compute_loss = MistralModel.forward, SupervisedTrainer.compute_loss

    def spoiled_forward(self: Any, input_ids: torch.Tensor, *args: Any, how: str, **kwargs: Any) -> Any:
        output = forward(self, input_ids, *args, **kwargs)
        is_guilty = torch.isin(input_ids, guilty).any(-1)[:, None, None]
        hidden = output.last_hidden_state
        if how == "forward":
            output.last_hidden_state = hidden.masked_fill(is_guilty, math.nan)
        else:
            output.last_hidden_state = _SpoiledOnTheWayBack.apply(hidden, is_guilty.expand_as(hidden))
        return output

    def spoiled_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        is_guilty = bool(torch.isin(inputs["input_ids"], guilty).any())
        return loss + math.inf if is_guilty and self.model.training else loss

    def install(how: str) -> None:
        if how == "loss":
            monkeypatch.setattr(SupervisedTrainer, "compute_loss", spoiled_loss)
        else:
            patched = lambda self, *args, **kwargs: spoiled_forward(self, *args, how=how, **kwargs)  # noqa: E731
            monkeypatch.setattr(MistralModel, "forward", patched)

    return install


def run_rows(output_dir: Path, rows: Path, **settings: Any) -> Path:
    return run_small(output_dir, **PLAIN | {"data__train": {"path": str(rows)}, "training__save_steps": 1} | settings)


@pytest.mark.parametrize(
    ("how", "logging_steps", "says"),
    [
        ("forward", 1, "the loss is not finite, so nothing of this step was kept"),
        ("gradient", 1, "the loss is finite and its gradient is not, so nothing of this step was kept"),
        ("gradient", 100, "the loss is finite and its gradient is not, so nothing of this step was kept"),
        ("loss", 100, "the loss is not finite, so nothing of this step was kept"),
    ],
    ids=["loss and gradient", "gradient", "gradient off a logging step", "loss off a logging step"],
)
def test_a_step_that_is_not_finite_stops_the_run_before_its_update_and_names_the_rows(
    tmp_path, rows, spoil, how, logging_steps, says
):
    spoil(how)
    with pytest.raises(DivergedError, match=says) as stopped:
        run_rows(tmp_path, rows, training__logging_steps=logging_steps)
    run, message = tmp_path / "small", str(stopped.value)
    found = [json.loads(line) for line in (run / "non_finite.jsonl").read_text().splitlines()]
    step = found[0]["step"]
    assert message.startswith(f"step {step}: ")
    assert len(message.splitlines()) <= 15
    assert f"{rows}:{GUILTY_ROW} (" in message
    assert "training.non_finite=skip" in message
    assert [row["row"] for row in found].count(GUILTY_ROW) == 1
    [guilty] = [row for row in found if row["row"] == GUILTY_ROW]
    assert guilty["source"] == str(rows)
    assert ANSWERS[GUILTY_ROW - 1] in guilty["text"]
    assert guilty["trained_tokens"] < guilty["tokens"]
    if how == "forward":  # the row can be told from its neighbour
        assert found[0] == guilty
        assert [row["loss"] == "nan" for row in found] == [True, False]
        assert "its loss alone is nan" in message
    assert len(found) == 2, "the step has two rows"
    # What was saved before stays, and nothing that looks finished.
    kept = sorted(path.name for path in (run / "checkpoints").glob("checkpoint-*"))
    assert kept == [f"checkpoint-{number}" for number in range(max(1, step - 2), step)]
    assert step == 1 or f"The last checkpoint is checkpoint-{step - 1}" in message
    assert read_json(run / "status.json")["status"] == "failed"
    assert "finite" in read_json(run / "status.json")["reason"]
    assert not (run / "adapter").exists()


def test_a_disk_that_does_not_take_the_rows_does_not_hide_that_the_run_diverged(
    tmp_path, rows, spoil, monkeypatch, caplog
):
    spoil("loss")

    def refuse(path: Path, text: str) -> None:
        raise PlaceError(f"{path} cannot be written") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("finetune.run.folder.writing.write_text", refuse_only("non_finite.jsonl", refuse))
    with pytest.raises(DivergedError, match="the loss is not finite") as stopped:
        run_rows(tmp_path, rows)
    assert stopped.value.exit_code == 5
    assert f"{rows}:{GUILTY_ROW} (" in str(stopped.value), "the row is named all the same"
    assert "non_finite.jsonl" not in str(stopped.value)
    assert "its rows are not kept" in caplog.text


def refuse_only(name: str, refuse: Callable[[Path, str], None]) -> Callable[[Path, str], None]:
    return lambda path, text: refuse(path, text) if path.name == name else write_text(path, text)


@pytest.mark.parametrize("how", ["forward", "gradient"])
def test_a_step_that_is_left_out_moves_nothing_and_the_run_goes_on(tmp_path, rows, spoil, caplog, how):
    spoil(how)
    settings = {"training__non_finite": "skip", "training__weight_decay": 0.5, "training__save_total_limit": 9}
    run = run_rows(tmp_path, rows, **settings)
    lines = {line["step"]: line for line in read_lines(run) if "loss" in line}
    [skipped] = [step for step, line in lines.items() if line.get("skipped")]
    assert lines[skipped]["loss"] is None
    assert all(math.isfinite(line["loss"]) for step, line in lines.items() if step != skipped)
    assert read_json(run / "summary.json")["skipped_steps"] == 1
    assert math.isfinite(read_json(run / "summary.json")["train_loss"])
    assert f"step {skipped}: " in caplog.text
    assert "left out (1 of at most 10)" in caplog.text
    # Neither a moment nor weight decay touches a weight; the schedule goes on.
    weights = [load_file(path / "adapter_model.safetensors") for path in _find_checkpoints(run)]
    if skipped > 1:
        assert all(torch.equal(weights[skipped - 2][name], weights[skipped - 1][name]) for name in weights[0])
    assert len({line["learning_rate"] for line in lines.values()}) == len(lines)
    for states in weights:
        assert all(torch.isfinite(tensor).all() for tensor in states.values())


def test_a_step_that_is_left_out_does_not_end_the_pruning_of_ranks(tmp_path, rows, spoil):
    spoil("forward")
    schedule = {"total_step": 4, "tinit": 0, "tfinal": 1, "deltaT": 1, "init_r": 4, "target_r": 2}
    adalora = {"method": "adalora", "target_modules": ["q_proj"], **schedule}
    run = run_rows(tmp_path, rows, training__non_finite="skip", adapter=adalora)
    assert read_json(run / "summary.json")["skipped_steps"] == 1


def test_the_mean_loss_of_a_line_is_that_of_the_steps_that_were_trained(tmp_path, rows, spoil):
    spoil("forward")
    settings = {"training__non_finite": "skip", "training__save_steps": 100}
    single = [line for line in read_lines(run_rows(tmp_path / "one", rows, **settings)) if "loss" in line]
    double = run_rows(tmp_path / "two", rows, **settings, training__logging_steps=2)
    pairs = [single[:2], single[2:]]
    means = []
    for pair in pairs:
        trained = [line["loss"] for line in pair if not line.get("skipped")]
        means.append(sum(trained) / len(trained))
    lines = [line for line in read_lines(double) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(means)
    assert [line.get("skipped", 0) for line in lines] == [sum(line.get("skipped", 0) for line in p) for p in pairs]
    trained = [line["loss"] for line in single if line["loss"] is not None]
    triple = run_rows(tmp_path / "three", rows, **settings, training__logging_steps=3)
    assert [line["step"] for line in read_lines(triple) if "loss" in line] == [3, 4], "the last step is logged too"
    summaries = [read_json(tmp_path / name / "small" / "summary.json") for name in ("one", "two", "three")]
    for summary in summaries:
        assert summary["train_loss"] == pytest.approx(sum(trained) / 3)
        assert summary["tokens"] == summaries[0]["tokens"]


def test_a_run_without_a_checkpoint_yet_says_so(tmp_path, rows, spoil):
    spoil("loss")
    with pytest.raises(DivergedError, match=r"No checkpoint was saved yet(?s:.*)--overwrite training\.non_finite=skip"):
        run_rows(tmp_path, rows, training__save_steps=100)
    assert read_json(tmp_path / "small" / "status.json")["status"] == "failed"


def test_a_run_that_leaves_out_too_many_steps_gives_up(tmp_path, rows, spoil):
    spoil("forward")
    with pytest.raises(DivergedError, match=r"(?s)nothing of this step was kept, and 1 before.*max_skipped_steps=2"):
        run_rows(
            tmp_path, rows, training__max_steps=8, training__non_finite="skip", training__max_skipped_steps=1
        )  # two passes over the rows
    found = [json.loads(line) for line in (tmp_path / "small" / "non_finite.jsonl").read_text().splitlines()]
    assert [row["row"] for row in found].count(GUILTY_ROW) == 2
    assert not (tmp_path / "small" / "adapter").exists()


def test_a_resumed_run_leaves_out_and_counts_what_the_unbroken_one_does(tmp_path, rows, spoil, monkeypatch):
    spoil("forward")
    settings = {"training__max_steps": 8, "training__non_finite": "skip", "training__logging_steps": 2}
    unbroken = run_rows(tmp_path / "unbroken", rows, **settings)
    training_step = SupervisedTrainer.training_step

    def die_at_step_6(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SupervisedTrainer, "training_step", die_at_step_6)
        run_rows(tmp_path / "resumed", rows, **settings)
    resumed = run_rows(tmp_path / "resumed", rows, resume=True, **settings)
    assert read_figures(resumed) == read_figures(unbroken)
    assert read_weights(resumed) == read_weights(unbroken)
    assert read_json(resumed / "summary.json")["skipped_steps"] == 2
    assert (resumed / "non_finite.jsonl").read_text() == (unbroken / "non_finite.jsonl").read_text()


def test_weights_that_are_not_finite_are_blamed_and_not_the_rows(tmp_path, rows):
    # 1e38 times a first update of Adam is beyond float32 after a few steps.
    with pytest.raises(DivergedError) as stopped:
        run_rows(tmp_path, rows, training__learning_rate=1e38, training__max_steps=8, training__non_finite="skip")
    assert "finite" in str(stopped.value)
    assert "lora_" in str(stopped.value), "the weight is named"
    run = tmp_path / "small"
    for checkpoint in _find_checkpoints(run):
        for tensor in load_file(checkpoint / "adapter_model.safetensors").values():
            assert torch.isfinite(tensor).all()
    assert not (run / "adapter").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_small(tmp_path_factory.mktemp("finished"), **PLAIN)


def _change(finished: Path, tmp_path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> tuple[Path, str]:
    run = tmp_path / "changed"
    shutil.copytree(finished, run)
    path = run / "adapter" / "adapter_model.safetensors"
    tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return run, next(name for name in tensors if "lora_B" in name)


def _spoil_number(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(math.inf)) if "lora_B" in name else tensor


@pytest.mark.parametrize(
    ("change", "says"),
    [(_spoil_number, "{name} holds numbers that are not finite"), (lambda _, t: t * 0, "every number is zero")],
    ids=["infinite", "zeros"],
)
def test_chat_merge_and_a_run_that_starts_from_it_refuse_an_adapter_that_is_not_sound(finished, tmp_path, change, says):
    run, name = _change(finished, tmp_path, change)
    says = says.format(name=name)
    with pytest.raises(PlaceError, match=says):
        load_for_inference(str(run))
    with pytest.raises(PlaceError, match=says):
        export(str(run), tmp_path / "merged", device="cpu")
    start = {"adapter": {"init_from": str(run)}, "model__quantization": "none"}
    pairs = {"objective": "dpo", "data__train": {"path": str(ROOT / "data/tiny_world/preferences.jsonl"), "limit": 8}}
    for further in ({}, pairs):
        with pytest.raises(PlaceError, match=says):
            run_small(tmp_path / "next", **start, **further)
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "next" / "small").exists()


def test_an_adapter_that_changes_nothing_is_not_merged_and_a_chat_says_so(finished, tmp_path, caplog):
    run, name = _change(finished, tmp_path, lambda name, tensor: tensor * 0 if "lora_B" in name else tensor)
    with pytest.raises(PlaceError, match="the output side is all zeros") as refused:
        export(str(run), tmp_path / "merged", device="cpu")
    assert name in str(refused.value)
    with caplog.at_level(logging.WARNING, "finetune"):
        load_for_inference(str(run))
    assert "changes nothing" in caplog.text


def _find_checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
