"""Memory that runs out costs a repeated step and nothing else: loss, gradients and figures are those of the whole."""

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from finetune.data.batches import IGNORE_INDEX, Collator, JudgedCollator, PairCollator
from finetune.data.tokens import TokenRows
from finetune.errors import PlaceError
from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives import dpo, kto, orpo, reward, supervised
from finetune.objectives.batch_parts import count_rows, cut
from finetune.objectives.building import RunArguments, TrainerParts
from finetune.objectives.full_memory import is_out_of_memory
from finetune.objectives.micro_batches import MicroBatches
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import AdapterSettings, DataSettings, ModelSettings, SourceSettings, TrainingSettings
from tests.model.saved_runs import write_base
from tests.model.tiny_models import SHAPE
from tests.objectives import test_masked

ALLOCATOR_SAYS = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 12 bytes."
LORA = {"method": "lora", "r": 4}
ADALORA = {"method": "adalora", "init_r": 4, "target_r": 2, "total_step": 100, "tinit": 1, "tfinal": 1}
OBJECTIVES = {"sft": supervised, "dpo": dpo, "orpo": orpo, "reward": reward, "kto": kto}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def tokenizer(folder) -> PreTrainedTokenizerFast:
    return load_tokenizer(ModelSettings(model_name_or_path=str(folder)))


# ---- rows: number n has n + 4 tokens, the first three of which are not trained


def draw(length: int, seed: int) -> list[int]:
    return torch.randint(20, 120, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def mask(ids: list[int]) -> list[int]:
    return [IGNORE_INDEX] * 3 + ids[3:]


def build_rows(objective: str, count: int, *, packs: bool) -> TokenRows:
    rows = []
    for number in range(count):
        ids, other = draw(number + 4, number), draw(9 - number, 50 + number)
        row: dict[str, Any] = {"input_ids": ids, "labels": mask(ids), "length": len(ids)}
        if packs:
            row = {"input_ids": ids + other, "labels": mask(ids) + mask(other), "seq_lengths": [len(ids), len(other)]}
        elif objective == "kto":
            row |= {"kl_input_ids": other, "kl_labels": mask(other), "desirable": number % 2 == 0}
        elif objective != "sft":
            row = {
                "chosen_ids": ids, "chosen_labels": mask(ids), "rejected_ids": other, "rejected_labels": mask(other),
                "length": max(len(ids), len(other)),
            }  # fmt: skip
        rows.append(row)
    dataset = Dataset.from_list(rows)
    return TokenRows(dataset, dataset, {}, "")


def make(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    output_dir: Path,
    *,
    objective: str = "sft",
    adapter: dict[str, Any] = LORA,
    packs: bool = False,
    layout: str | None = None,
    **training: Any,
) -> StepMixin:
    """A trainer in float64, whose adapter is not what it was at its start."""
    head = "score" if objective == "reward" else "words"
    base = load_base(
        ModelSettings(
            model_name_or_path=str(folder), quantization="none", compute_dtype="float32", device="cpu"
        ),
        head=head,
    )  # fmt: skip
    settings = TrainingSettings(
        gradient_checkpointing=False, per_device_train_batch_size=4, gradient_accumulation_steps=2, **training
    )
    run = RunArguments(
        name="test", device=base.device, compute_dtype=base.compute_dtype, evaluates=True, seed=1,
        checkpoints_dir=output_dir / "checkpoints",
    )  # fmt: skip
    rows = build_rows(objective, 6, packs=packs)
    ours = OBJECTIVES[objective]
    trainer = ours.build_trainer(
        TrainerParts(
            base=base,
            model=attach_adapter(base, AdapterSettings(**adapter), seed=1),
            tokenizer=tokenizer,
            arguments=ours.build_arguments(settings, run),
            train=rows,
            held_out=rows,
            data=DataSettings(train=SourceSettings(path="rows.jsonl"), packing=packs),
            training=settings,
        ),
    )
    if layout is not None:
        trainer.data_collator = Collator(layout, trainer.data_collator.pad_token_id, names_lengths=layout == "flat")
    trainer.model.double()
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trainer._tokens_not_noted = 1  # policy and reference differ, as behind the first step
    return trainer


# ---- memory that runs out


@contextmanager
def memory_for(
    trainer: StepMixin, rows: int, *, in_backward: bool = False, after: int = 0, error: type | str = "cuda"
) -> Iterator[list[int]]:
    """Let memory run out where more than so many rows pass the embedding; the rows of each forward pass.

    Args:
        trainer: whose model it is.
        rows: that fit.
        in_backward: it runs out there.
        after: forward passes that fit whatever they hold.
        error: `cuda`, or `cpu` for the host's allocator.
    """
    passed: list[int] = []

    def fail(*_: Any) -> None:
        raise (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if error == "cuda"
            else (RuntimeError(ALLOCATOR_SAYS))
        )

    def watch(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        num_rows = len(output)
        passed.append(num_rows)
        if num_rows <= rows or len(passed) <= after:
            return output
        if not in_backward:
            fail()
        output = output.detach().requires_grad_()
        output.register_hook(fail)
        return output

    hook = trainer.model.get_input_embeddings().register_forward_hook(watch)
    try:
        yield passed
    finally:
        hook.remove()


def train_step(trainer: StepMixin, sizes: tuple[int, ...] = (4, 2)) -> tuple[float, dict[str, Tensor], dict[str, Any]]:
    """One step of micro-batches of so many rows: its loss, its gradients and what TRL noted."""
    edges = list(accumulate((0, *sizes)))
    batches = [
        trainer.data_collator([trainer.train_dataset[place] for place in range(*edge)]) for edge in pairwise(edges)
    ]
    num_items = trainer._get_num_items_in_batch(batches, trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer.model.zero_grad()
    tokens_before = trainer._tokens_not_noted
    trainer.find_train_figures().clear()
    loss = 0.0
    for place, batch in enumerate(batches):
        trainer.accelerator.gradient_state._set_sync_gradients(place == len(batches) - 1)
        step = super(StepMixin, trainer).training_step
        loss += trainer.micro_batches.train(trainer.model, batch, num_items, step).item()
    gradients = {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}
    figures = {name: list(values) for name, values in trainer.find_train_figures().items()}
    return loss, gradients, figures | {"our tokens": trainer._tokens_not_noted - tokens_before}


CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft packed": {"packs": True},
    "sft of one row": {"packs": True, "layout": "flat"},
    "sft adalora": {"adapter": ADALORA},
    "dpo": {"objective": "dpo"},
    "dpo and sft": {"objective": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "orpo": {"objective": "orpo"},
    "reward": {"objective": "reward"},
}


@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_figures_of_a_halved_step_are_those_of_the_whole(folder, tokenizer, tmp_path, case):
    trainer = make(folder, tokenizer, tmp_path, **CASES[case])
    wanted_loss, wanted, wanted_figures = train_step(trainer)
    trainer.micro_batches.rows = 1
    loss, gradients, figures = train_step(trainer)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)  # the libraries sum it up in float32
    tolerance = 1e-6 if case == "reward" else 1e-12  # TRL's score head computes in float32
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, wanted[name], rtol=tolerance, atol=tolerance), name
    assert figures.keys() == wanted_figures.keys()
    # Means over tokens or padding, not over pairs; and a count that is not logged.
    for name in figures.keys() - {"logits/chosen", "logits/rejected", "num_tokens"}:
        assert figures[name] == pytest.approx(wanted_figures[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("fits", "error", "halvings"),
    [
        ({"rows": 2}, "cuda", 1),
        ({"rows": 1}, "cpu", 2),
        ({"rows": 2, "in_backward": True}, "cuda", 1),
        ({"rows": 1, "after": 1}, "cuda", 1),  # the second micro-batch, of two rows
        ({"rows": 1, "after": 1, "in_backward": True}, "cpu", 1),
    ],
    ids=["forward", "forward twice", "backward", "second micro-batch", "its backward"],
)
def test_a_step_short_of_memory_is_repeated_with_the_draws_it_had_begun_with(
    folder, tokenizer, tmp_path, caplog, fits, error, halvings
):
    trainer = make(folder, tokenizer, tmp_path, adapter=LORA | {"lora_dropout": 0.5})
    torch.manual_seed(5)
    with memory_for(trainer, error=error, **fits) as passed:
        loss, gradients, figures = train_step(trainer)
    rows = trainer.micro_batches.rows
    assert rows == fits["rows"]
    repeated = passed[-(6 // rows) :]
    assert repeated == [rows] * (6 // rows), "the whole step again, all six rows of it"
    said = [record.getMessage() for record in caplog.records if "memory ran out" in record.getMessage()]
    assert len(said) == halvings and f"From here on {rows} row" in said[-1]
    assert trainer.micro_batches.take_news() == {"micro_batch_rows": rows}
    assert trainer.micro_batches.take_news() == {}

    torch.manual_seed(5)
    wanted_loss, wanted, wanted_figures = train_step(trainer)  # cut from its beginning
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert all(torch.equal(gradient, wanted[name]) for name, gradient in gradients.items())
    assert {name: figures[name] for name in figures.keys() - {"num_tokens"}} == {
        name: wanted_figures[name] for name in figures.keys() - {"num_tokens"}
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's addresses is Linux's")
def test_a_step_goes_on_where_the_hosts_allocator_really_has_no_more(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, loss_type="nll")
    ids = draw(128, seed=1)
    rows = [{"input_ids": ids, "labels": ids}] * 16  # whose logits alone have 16 * 128 * 4096 * 8 bytes
    batch = trainer.data_collator(rows)
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    trainer.model.get_input_embeddings()(torch.tensor([1]))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 80 * 2**20, unlimited[1]))
    try:
        step = super(StepMixin, trainer).training_step
        loss = trainer.micro_batches.train(trainer.model, batch, torch.tensor(16 * 127), step)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    assert trainer.micro_batches.rows in (1, 2, 4, 8)
    halved = [value.grad for value in trainer.model.parameters() if value.grad is not None]

    trainer.model.zero_grad()
    trainer.micro_batches.rows = None
    assert trainer.micro_batches.train(trainer.model, batch, torch.tensor(16 * 127), step) == pytest.approx(loss)
    whole = [value.grad for value in trainer.model.parameters() if value.grad is not None]
    assert all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(halved, whole, strict=True))


def test_the_loss_told_before_the_repetition_is_corrected(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path)
    whole, _, _ = train_step(trainer)
    with memory_for(trainer, 1, after=1):
        told, _, _ = train_step(trainer)
    assert told == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "limit", "words"),
    [
        ({}, 1, r"step 1: memory is full at a single row of 7 tokens \(CUDA out of memory"),
        ({"objective": "kto"}, None, r"It is not cut by itself: kto estimates over a whole micro-batch"),
        ({"objective": "dpo", "loss_type": ["aot"]}, None, r"It is not cut by itself: training\.loss_type \['aot'\]"),
    ],
    ids=["one row", "kto", "sorted pairs"],
)
def test_where_nothing_is_left_to_cut_the_message_says_what_helps(folder, tokenizer, tmp_path, settings, limit, words):
    trainer = make(folder, tokenizer, tmp_path, **settings)
    trainer.is_in_train = True
    trainer.micro_batches.rows = limit
    with memory_for(trainer, 0, after=3), pytest.raises(PlaceError, match=words) as refused:
        train_step(trainer)
    for helps in ("data.max_length", "training.gradient_checkpointing=true", "model.quantization=nf4", "adapter.r"):
        assert helps in str(refused.value)


def test_memory_that_runs_out_while_a_batch_is_cut_is_not_laid_to_answers_that_are_sampled(
    folder, tokenizer, tmp_path, monkeypatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = make(folder, tokenizer, tmp_path)
    trainer.micro_batches.rows = 1
    monkeypatch.setattr("finetune.objectives.micro_batches.cut", fail)
    with pytest.raises(PlaceError, match="memory is full") as refused:
        train_step(trainer)
    assert "It is not cut by itself" not in str(refused.value)


def test_several_processes_are_told_that_they_would_have_to_halve_together(folder, tokenizer, tmp_path, monkeypatch):
    trainer = make(folder, tokenizer, tmp_path)
    monkeypatch.setattr(type(trainer.args), "world_size", property(lambda args: 2))
    with memory_for(trainer, 1), pytest.raises(PlaceError, match="several processes would have to halve together"):
        train_step(trainer)
    assert trainer.micro_batches.rows is None


def test_masked_tokens_of_a_halved_step_are_trained_as_those_of_the_whole(tmp_path):
    trainer = test_masked.build_trainer(tmp_path, test_masked.build_model("bert"))
    whole = train_step(trainer, sizes=(3, 2))
    trainer.micro_batches.rows = 1
    halved = train_step(trainer, sizes=(3, 2))
    assert halved[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in halved[1].items():
        assert torch.allclose(gradient, whole[1][name], atol=1e-6), name


def test_an_error_that_is_not_about_memory_passes(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch["input_ids"][0, 0] = 10**6
    with pytest.raises(IndexError):
        trainer.micro_batches.train(trainer.model, batch, None, super(StepMixin, trainer).training_step)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError(ALLOCATOR_SAYS))
    assert not is_out_of_memory(RuntimeError("expected scalar type Float but found Double"))


def test_a_limit_and_its_news_are_taken_up_on_the_same_device_and_forgotten_on_another(tmp_path, caplog):
    def begin() -> MicroBatches:
        return MicroBatches(SimpleNamespace(args=SimpleNamespace(device=torch.device("cpu"))))

    halved, resumed, moved = begin(), begin(), begin()
    halved.rows, halved.eval_rows, halved._is_news = 2, 1, True
    halved.write(tmp_path)
    resumed.read(tmp_path)
    assert (resumed.rows, resumed.eval_rows) == (2, 1)
    assert [resumed.take_news(), resumed.take_news()] == [{"micro_batch_rows": 2}, {}]

    path = tmp_path / "training_memory.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "NVIDIA T4, 15 GiB"}))
    with caplog.at_level("INFO"):
        moved.read(tmp_path)
    assert (moved.rows, moved.eval_rows, moved.take_news()) == (None, None, {})
    assert "Memory had run out on NVIDIA T4, 15 GiB" in caplog.text


@pytest.mark.parametrize("objective", ["sft", "dpo", "orpo", "reward"])
def test_an_evaluation_short_of_memory_has_the_same_means(folder, tokenizer, tmp_path, caplog, objective):
    trainer = make(folder, tokenizer, tmp_path, objective=objective)
    wanted = trainer.measure_held_out()["eval_loss"]
    with memory_for(trainer, 3 if objective == "sft" else 6):
        assert trainer.measure_held_out()["eval_loss"] == pytest.approx(wanted, rel=1e-6)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-6)
    assert trainer.micro_batches.eval_rows == 2
    assert trainer.micro_batches.rows is None
    assert "memory ran out while rows are evaluated" in caplog.text
    with memory_for(trainer, 0), pytest.raises(PlaceError, match="memory is full while rows are evaluated at a single"):
        trainer.measure_held_out()


@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_answers_are_scored_in_their_order_where_memory_runs_out(folder, tokenizer, tmp_path, objective):
    trainer = make(folder, tokenizer, tmp_path, objective=objective)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with trainer.as_in_training():
        wanted = trainer.score_answers(batch)
        with memory_for(trainer, 4):
            found = trainer.score_answers(batch)
    assert torch.allclose(found[0], wanted[0], rtol=1e-6 if objective == "reward" else 1e-12)
    assert torch.equal(found[1], wanted[1])


# ---- the parts of a batch


def test_a_part_is_as_wide_as_its_own_longest_row_and_pairs_stay_together():
    rows = build_rows("dpo", 5, packs=False).dataset
    batch = PairCollator(0)([{**row, "ref_chosen_logps": -1.0 * place} for place, row in enumerate(rows)])
    parts = cut(batch, 2, answers_a_row=2)
    assert [len(part["input_ids"]) for part in parts] == [4, 4, 2]
    assert [part["input_ids"].shape[1] for part in parts] == [9, 7, 8]
    first = parts[1]
    assert first["input_ids"][0, : len(rows[2]["chosen_ids"])].tolist() == rows[2]["chosen_ids"]
    assert first["input_ids"][2, : len(rows[2]["rejected_ids"])].tolist() == rows[2]["rejected_ids"]
    assert first["ref_chosen_logps"].tolist() == [-2.0, -3.0]
    assert sum(part["num_real_tokens"] for part in parts) == batch["num_real_tokens"]


def test_packed_rows_lose_no_token_and_one_row_of_many_documents_is_cut_between_them():
    rows = [{"input_ids": draw(9, seed), "labels": draw(9, seed), "seq_lengths": lengths} for seed, lengths in
            enumerate([[4, 5], [2, 3, 4], [9]])]  # fmt: skip
    padded_rows = [*rows, {"input_ids": [5, 6], "labels": [5, 6], "seq_lengths": [2]}]
    parts = cut(Collator("packed", 0)(padded_rows), 3, pad_token_id=0)
    assert [part["input_ids"].shape for part in parts] == [(3, 9), (1, 2)]

    flat = Collator("flat", 0, names_lengths=True)(rows)
    assert count_rows(flat, flat_rows=3) == 3 and count_rows(flat, flat_rows=8) == 6
    parts = cut(flat, 1, flat_rows=3)
    assert [part["packed_seq_lengths"].tolist() for part in parts] == [[4, 5], [2, 3, 4], [9]]
    assert all(part["position_ids"][0, 0] == 0 for part in parts)
    assert torch.cat([part["input_ids"][0] for part in parts]).tolist() == flat["input_ids"][0].tolist()


@pytest.mark.parametrize("objective", ["sft", "dpo", "orpo"])
def test_experts_are_trained_on_whole_micro_batches_and_a_library_that_renames_the_switch_is_noticed(
    folder, tokenizer, tmp_path, objective
):
    trainer = make(folder, tokenizer, tmp_path, objective=objective)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert trainer.find_why_whole(batch) is None
    trainer.aux_loss_enabled = True
    assert trainer.find_why_whole(batch) == "the experts' balance is measured over a whole micro-batch"
    del trainer.aux_loss_enabled
    with pytest.raises(AttributeError, match="aux_loss_enabled"):
        trainer.find_why_whole(batch)


def test_judged_answers_are_left_whole(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, objective="kto")
    assert isinstance(trainer.data_collator, JudgedCollator)
    trainer.micro_batches.rows = 1
    with memory_for(trainer, 9) as passed:
        train_step(trainer)
    assert set(passed) == {4, 2}


def test_pairs_that_a_kto_run_is_told_apart_by_are_scored_in_parts_where_memory_runs_out(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, objective="kto")
    batch = PairCollator(0)(list(build_rows("dpo", 3, packs=False).dataset))
    with trainer.as_in_training():
        wanted = trainer.score_answers(batch)
        with memory_for(trainer, 4):
            found = trainer.score_answers(batch)
    assert torch.allclose(found[0], wanted[0], rtol=1e-12) and torch.equal(found[1], wanted[1])
    assert trainer.micro_batches.eval_rows == 3


def test_orpo_trains_the_balance_of_experts(tokenizer, tmp_path):
    shape = {name: value for name, value in SHAPE.items() if name != "model_type"}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    MixtralForCausalLM(MixtralConfig(**shape, **experts)).save_pretrained(tmp_path / "base")
    trainer = make(tmp_path / "base", tokenizer, tmp_path, objective="orpo")
    trainer.model.float()  # the experts' products know no float64
    batch = trainer.data_collator(list(trainer.train_dataset))
    losses = []
    for weight in (0.0, 1.0):
        trainer.aux_loss_coef = weight
        losses.append(trainer.compute_loss(trainer.model, dict(batch)).item())
    balance = losses[1] - losses[0]
    assert balance == pytest.approx(
        trainer.model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).aux_loss.item()
    )
    assert balance > 0.5
