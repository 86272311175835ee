"""Runs that are short of memory go on with fewer rows at once; a rehearsal finds it out first and changes nothing."""

import errno
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from finetune.errors import PlaceError
from finetune.objectives.micro_batches import MicroBatches
from finetune.objectives.supervised import SupervisedTrainer
from tests.end_to_end import small_classifiers
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

EVALUATED = {
    "data__train": {"path": "data/tiny_world/train.json", "limit": 24},
    "data__eval": {"fraction": 0.25},
    "training__eval_steps": 2,
    "evaluation__num_samples": 0,
}
PACKED = EVALUATED | {
    "data__packing": True,
    "training__gradient_checkpointing": True,
    "training__gradient_accumulation_steps": 2,
}
ADALORA = {"method": "adalora", "init_r": 8, "target_r": 6, "total_step": 3, "tinit": 0, "tfinal": 1}
PAIRS = {
    "objective": "dpo",
    "adapter__lora_dropout": 0.0,
    "data__train": {"path": "data/tiny_world/preferences.jsonl", "limit": 24},
    "data__eval": {"path": "data/tiny_world/preferences_test.jsonl", "limit": 6},
    "training__eval_steps": 2,
    "evaluation__num_samples": 0,
    "training__precompute_ref_log_probs": True,
}
RunsOut = Callable[[Any, int], bool]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def run_out(monkeypatch) -> Callable[[RunsOut], None]:
    """Let memory run out in the embedding of every trainer built from now on, where a rule of rows says so."""

    def install(rule: RunsOut) -> None:
        def begin(self: MicroBatches, trainer: Any) -> None:
            own(self, trainer)

            def fail(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
                if rule(trainer, len(output)):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

            trainer.model.get_input_embeddings().register_forward_hook(fail)

        own = MicroBatches.__init__
        monkeypatch.setattr(MicroBatches, "__init__", begin)

    return install


@pytest.mark.parametrize(
    "settings",
    [
        PACKED,
        pytest.param(EVALUATED | {"adapter": ADALORA}, marks=pytest.mark.slow),
        pytest.param(
            EVALUATED | {"adapter": {"method": "full"}, "model__quantization": "none"}, marks=pytest.mark.slow
        ),
        pytest.param(PAIRS, marks=pytest.mark.slow),
    ],
    ids=["packed nf4 with dropout", "adalora", "full", "dpo"],
)
def test_a_rehearsal_changes_no_figure_and_no_byte(tmp_path, monkeypatch, capsys, settings):
    settings = settings | {"training__max_steps": 3}
    runs = []
    for asked in (False, True):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / f"cache_{asked}")  # of the reference
        runs.append(run_small(tmp_path / str(asked), training__rehearsal=asked, **settings))
    assert capsys.readouterr().err.count("Rehearsal: the longest batch (2 rows, ") == 1
    assert read_figures(runs[0]) == read_figures(runs[1])
    kept = {str(path.relative_to(runs[0])) for path in runs[0].rglob("*.safetensors")}
    assert any(name.startswith(("adapter/", "model/")) for name in kept)
    for name in kept:
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    assert not list(runs[1].glob(".rehearsal*"))


def test_a_run_halved_on_the_way_resumes_as_if_never_stopped_and_says_so(tmp_path, run_out):
    settings = EVALUATED | {"training__max_steps": 4, "training__gradient_accumulation_steps": 2}
    run_out(lambda trainer, rows: trainer.model.training and trainer.state.global_step >= 1 and rows > 1)
    whole = run_small(tmp_path / "whole", **settings)
    with stopped_at_evaluation(2):
        run_small(tmp_path / "stopped", **settings)
    stopped = tmp_path / "stopped" / "small"
    kept = read_json(next(stopped.glob("checkpoints/*/training_memory.json")))
    assert (kept["micro_batch_rows"], kept["eval_batch_rows"], kept["is_news"]) == (1, None, False)
    run_small(tmp_path / "stopped", **settings, resume=True)

    assert [line.get("micro_batch_rows") for line in read_lines(whole)] == [None, None, 1, None, None]
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)
    assert read_json(whole / "summary.json")["micro_batch_rows"] == 1
    assert "step 2: memory ran out" in (whole / "log.txt").read_text()


@pytest.mark.slow
def test_a_rehearsal_short_of_memory_halves_before_the_first_step_and_the_losses_stay(tmp_path, run_out, capsys):
    settings = EVALUATED | {"adapter__lora_dropout": 0.0, "training__per_device_train_batch_size": 4}
    enough = run_small(tmp_path / "enough", **settings)
    assert read_json(enough / "summary.json")["micro_batch_rows"] is None
    capsys.readouterr()
    run_out(lambda trainer, rows: rows > 2)
    left = tmp_path / "halved" / "small" / ".rehearsal.part" / "adapter"  # by a rehearsal that was killed
    left.mkdir(parents=True)
    halved = run_small(tmp_path / "halved", **settings)
    assert not left.parent.exists()

    said = capsys.readouterr().err
    assert "Before the first step: memory ran out (CUDA out of memory" in said
    assert "Rehearsal: the longest batch (4 rows, " in said
    assert read_json(halved / "summary.json")["micro_batch_rows"] == 2
    for ours, wanted in zip(read_lines(halved), read_lines(enough), strict=True):
        for name in {"loss", "eval_loss", "tokens", "grad_norm"} & wanted.keys():
            assert ours[name] == pytest.approx(wanted[name], rel=1e-4), name


@pytest.mark.slow
def test_a_classifier_is_trained_and_scored_alike_with_fewer_rows_at_once(tmp_path, run_out):
    base = small_classifiers.write_encoder(tmp_path / "base")
    config = read_json(base / "config.json")  # without the draws of dropout
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps(config))
    rows = small_classifiers.write_rows(tmp_path / "rows.jsonl", small_classifiers.build_reviews())
    settings = {"data__train": {"path": rows}, "data__eval": {"fraction": 0.25}, "training__eval_steps": 1}
    settings |= {"training__per_device_eval_batch_size": 8}
    enough = small_classifiers.run_small(tmp_path / "enough", base, **settings)
    run_out(lambda trainer, rows: rows > 2)
    halved = small_classifiers.run_small(tmp_path / "halved", base, **settings)
    for ours, wanted in zip(read_lines(halved), read_lines(enough), strict=True):
        for name in {"loss", "eval_loss", "eval_score", "tokens"} & wanted.keys():
            assert ours[name] == pytest.approx(wanted[name], rel=1e-4), name


@pytest.mark.parametrize("where", ["one row", "checkpoint", "optimizer"])
def test_what_does_not_fit_is_found_before_there_is_a_run(tmp_path, monkeypatch, run_out, where):
    def fail(*_: Any, **__: Any) -> None:
        if where == "optimizer":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        raise OSError(errno.ENOSPC, "No space left on device")

    said = {
        "one row": r"Before the first step: memory is full at a single row of \d+ tokens",
        "checkpoint": r"Before the first step: a checkpoint cannot be written \(\[Errno 28\] No space left",
        "optimizer": r"Before the first step: there is not enough memory for the gradients and the optimizer's states",
    }
    if where == "one row":
        run_out(lambda trainer, rows: trainer.model.training)
    else:
        monkeypatch.setattr(SupervisedTrainer, "create_optimizer" if where == "optimizer" else "_save", fail)
    with pytest.raises(PlaceError, match=said[where]):
        run_small(tmp_path, **EVALUATED)
    assert not (tmp_path / "small").exists()


@pytest.mark.slow
def test_where_answers_are_sampled_states_and_a_checkpoint_are_rehearsed_and_change_nothing(tmp_path, capsys):
    settings = {"objective": "rloo", "rewards": [{"function": "length", "max_tokens": 4}], "adapter__lora_dropout": 0.0}
    settings |= {"training__max_steps": 1, "training__max_completion_length": 8, "training__num_generations": 2}
    with_one = run_small(tmp_path / "with", **settings)
    assert "Rehearsal: a checkpoint fits, and the optimizer's states: peak" in capsys.readouterr().err
    without = run_small(tmp_path / "without", training__rehearsal=False, **settings)
    assert read_figures(with_one) == read_figures(without)
    assert read_weights(with_one) == read_weights(without)


def test_an_update_that_the_host_has_no_memory_to_undo_is_left_out(tmp_path, monkeypatch, capsys):
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:       16000000 kB\nMemAvailable:         12 kB\n")
    monkeypatch.setattr("finetune.objectives.free_memory._MEMORY_TABLE", table)
    built = []
    build = SupervisedTrainer.create_optimizer
    monkeypatch.setattr(SupervisedTrainer, "create_optimizer", lambda self: built.append(1) or build(self))
    run_small(tmp_path, training__max_steps=1)
    said = capsys.readouterr().err
    assert "Rehearsal: without an update, which would take" in said
    assert "Rehearsal: the longest batch (2 rows, " in said
    assert len(built) == 1, "the run's own"


def test_an_optimizer_in_pages_is_built_once_since_its_pages_are_never_given_back(tmp_path, monkeypatch):
    built = []

    def build(self: SupervisedTrainer) -> Any:
        built.append(self.args.optim)
        self.optimizer = torch.optim.SGD([value for value in self.model.parameters() if value.requires_grad])
        return self.optimizer

    monkeypatch.setattr(SupervisedTrainer, "create_optimizer", build)
    run_small(tmp_path, training__max_steps=1, training__optim="paged_adamw_32bit")
    assert built == ["paged_adamw_32bit"]


@pytest.mark.slow
def test_memory_that_runs_out_outside_of_forward_and_backward_is_told_in_words(tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def fail_at_states(self: torch.optim.AdamW, state: dict[str, Any]) -> None:
        if state["state"]:  # accelerate has a new optimizer take up its own, which are none
            fail()

    settings = EVALUATED | {"training__max_steps": 4, "training__rehearsal": False}
    with monkeypatch.context() as patch, pytest.raises(PlaceError, match=r"^Memory ran out \(CUDA out of memory"):
        patch.setattr("finetune.train.load_base", fail)
        run_small(tmp_path, **settings)
    with monkeypatch.context() as patch, pytest.raises(PlaceError, match=r"^Memory ran out \(CUDA out of memory"):
        patch.setattr(torch.optim.AdamW, "step", fail)
        run_small(tmp_path, **settings)
    assert read_json(tmp_path / "small" / "status.json")["status"] == "failed"
    with stopped_at_evaluation(2):
        run_small(tmp_path, resume=True, **settings)
    with monkeypatch.context() as patch, pytest.raises(PlaceError, match=r"optimizer\.json: memory ran out while"):
        patch.setattr(torch.optim.AdamW, "load_state_dict", fail_at_states)
        run_small(tmp_path, resume=True, **settings)
    assert list((tmp_path / "small" / "checkpoints").glob("checkpoint-2")), "it is not called damaged"
