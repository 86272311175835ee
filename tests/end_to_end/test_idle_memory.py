"""Idle memory makes runs faster and changes no byte of them: whatever is kept, losses and adapter are the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.objectives import free_memory
from finetune.objectives.idle_memory import IdleMemory
from tests.end_to_end.small_runs import (
    ROOT,
    SHAPE,
    read_figures,
    read_json,
    read_lines,
    read_weights,
    run_small,
    stopped_at_evaluation,
)

pytestmark = pytest.mark.usefixtures("tiny_base")

FOUR_LAYERS = {"model__config": SHAPE | {"num_hidden_layers": 4}, "training__gradient_checkpointing": True}
PACKED = FOUR_LAYERS | {
    "model__compute_dtype": "bfloat16",
    "adapter__lora_dropout": 0.0,  # with bfloat16 the default, which takes LoRA's lean path
    "data__packing": True,
    "data__eval": {"fraction": 0.25},
    "training__gradient_accumulation_steps": 2,
    "training__max_steps": 2,
    "training__eval_steps": 1,
    "evaluation__num_samples": 0,
}
# Each step asks the reference, with recomputation switched off and on again by TRL.
PAIRS = FOUR_LAYERS | {
    "objective": "dpo",
    "model__compute_dtype": "bfloat16",
    "adapter__lora_dropout": 0.0,
    "data__train": {"path": "data/tiny_world/preferences.jsonl", "limit": 8},
    "training__max_steps": 2,
}
REENTRANT = {"training__gradient_checkpointing_kwargs": {"use_reentrant": True}}
# For two or three of the four layers in PACKED: the loss, gradients and states take most.
SCARCE_KB = 14_000
Leave = Callable[[int], None]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def leave(tmp_path, monkeypatch) -> Leave:
    """Let the host have so many kB, all of them free."""

    def install(kilobytes: int) -> None:
        table = tmp_path / "meminfo"
        table.write_text(f"MemTotal: {kilobytes} kB\nMemAvailable: {kilobytes} kB\n")
        monkeypatch.setattr(free_memory, "_MEMORY_TABLE", table)
        monkeypatch.setattr(free_memory, "_OWN_GROUPS", tmp_path / "none")

    return install


@pytest.fixture(scope="module")
def recomputed(tiny_base, tmp_path_factory) -> Path:
    """The run in which every layer is recomputed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_small(tmp_path_factory.mktemp("recomputed"), training__memory="recompute_all", **PACKED)


def read_spending(run: Path) -> dict[str, Any]:
    spending: dict[str, Any] = read_json(run / "summary.json")["memory_spending"]
    return spending


def assert_same(ours: Path, other: Path) -> None:
    assert read_figures(ours) == read_figures(other)
    assert read_weights(ours) == read_weights(other)


def test_where_all_fits_nothing_is_recomputed_and_every_weight_is_kept_in_full(tmp_path, recomputed, capsys):
    run = run_small(tmp_path, **PACKED)
    spending = read_spending(run)
    assert (spending["num_kept"], spending["num_layers"], spending["num_resident"]) == (4, 4, 4 * 7)
    assert capsys.readouterr().err.count("Memory: 4 of 4 layers recompute nothing (+") == 1
    assert spending["measured_step_bytes"] == pytest.approx(spending["predicted_step_bytes"], rel=0.05)
    assert read_json(recomputed / "summary.json")["memory_spending"] is None
    assert_same(run, recomputed)


def test_where_part_fits_part_is_kept_and_not_a_byte_more(tmp_path, recomputed, leave):
    leave(SCARCE_KB)
    run = run_small(tmp_path, **PACKED)
    spending = read_spending(run)
    assert spending["num_kept"] < 4
    assert spending["num_kept"] + spending["num_mlp_kept"] + spending["num_attention_kept"] > 0
    assert spending["layer_bytes"] + spending["resident_bytes"] < 0.95 * SCARCE_KB * 1024
    assert_same(run, recomputed)


@pytest.mark.slow
def test_the_first_step_is_measured_where_there_is_no_rehearsal_and_the_reentrant_mode_keeps_whole_layers(
    tmp_path, recomputed, leave
):
    leave(SCARCE_KB)
    run = run_small(tmp_path, training__rehearsal=False, **PACKED, **REENTRANT)
    spending = read_spending(run)
    assert 0 < spending["num_kept"] < 4
    assert spending["num_mlp_kept"] == spending["num_attention_kept"] == 0
    assert_same(run, recomputed)


@pytest.mark.slow
def test_pairs_with_a_reference_in_every_step_come_out_the_same(tmp_path):
    runs = [run_small(tmp_path / choice, training__memory=choice, **PAIRS) for choice in ("recompute_all", "auto")]
    assert read_spending(runs[1])["num_kept"] == 4
    assert_same(*runs)


def test_a_run_whose_loss_reads_all_logits_counts_them(tmp_path):
    run = run_small(tmp_path, **PAIRS | {"objective": "orpo", "training__max_steps": 1})
    longest = read_json(run / "data_report.json")["train"]["census"]["lengths"]["max"]
    logits_bytes = 2 * 2 * longest * SHAPE["vocab_size"] * 4  # both answers of two pairs, in float32
    assert read_spending(run)["predicted_step_bytes"] > logits_bytes


def test_recompute_none_recomputes_none_and_spends_nothing_else(tmp_path, recomputed):
    run = run_small(tmp_path, training__memory="recompute_none", **PACKED)
    assert read_json(run / "summary.json")["memory_spending"] is None
    assert_same(run, recomputed)


def test_memory_that_runs_out_takes_back_before_it_cuts_rows_and_a_resumed_run_knows(tmp_path, recomputed, monkeypatch):
    """The first step goes well; from the second on memory runs out as long as more than two layers keep anything."""
    memories: list[IdleMemory] = []
    begin = IdleMemory.begin

    def watch(self: IdleMemory, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        memories.append(self)
        self._trainer.model.get_input_embeddings().register_forward_hook(run_out)

    def run_out(embeddings: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        spending, step = memories[-1].spending, memories[-1]._trainer.state.global_step
        if torch.is_grad_enabled() and step >= 1 and spending is not None and spending.num_kept > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(IdleMemory, "begin", watch)
    with stopped_at_evaluation(2):
        run_small(tmp_path, **PACKED | {"training__max_steps": 3})
    stopped = tmp_path / "small"
    decision = read_json(next(stopped.glob("checkpoints/*/memory_decision.json")))
    assert (decision["spending"]["num_kept"], decision["spending"]["num_resident"]) == (2, 0)
    assert "step 2: memory ran out" in (stopped / "log.txt").read_text()
    assert read_lines(stopped)[-1].get("micro_batch_rows") is None
    assert [line["recomputed_layers"] for line in read_lines(stopped) if "recomputed_layers" in line] == [2]
    run_small(tmp_path, resume=True, **PACKED | {"training__max_steps": 3})
    assert read_spending(stopped)["num_kept"] == 2
    assert "as before the stop" in (stopped / "log.txt").read_text()
