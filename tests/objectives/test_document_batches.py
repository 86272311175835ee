"""Micro-batches of whole documents, by rows or by a budget of tokens: the step of one large batch, and no waiting."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from finetune.data.batches import Collator
from finetune.data.packing import pack_documents
from finetune.data.tokens import TokenRows
from finetune.errors import PlaceError
from finetune.model.adapters import attach_adapter
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives import supervised
from finetune.objectives.batch_parts import cut
from finetune.objectives.building import RunArguments, TrainerParts
from finetune.objectives.supervised import SupervisedTrainer, build_arguments, build_trainer
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import AdapterSettings, DataSettings, ModelSettings, SourceSettings, TrainingSettings
from tests.model.tiny_models import load_tiny, write_tiny_model
from tests.objectives.test_micro_batches import train_step
from tests.objectives.test_supervised import documents, to_rows, to_single_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(shared_data) -> PreTrainedTokenizerFast:
    return load_tokenizer(ModelSettings(model_name_or_path=str(shared_data / "models" / "stories260K")))


def pack(found: list[list[int]], num_tokens: int) -> TokenRows:
    packed = pack_documents(to_single_rows(found).dataset, num_tokens, f"{len(found)} in {num_tokens}")
    return TokenRows(packed, packed, {}, "")


def make(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    train: TokenRows,
    *,
    attention: str = "documents",
    compute_dtype: str = "float32",
    tokens_per_batch: int | None = None,
    **training: Any,
) -> SupervisedTrainer:
    base = load_tiny(folder, attention=attention, compute_dtype=compute_dtype)
    asked = {"gradient_checkpointing": False, "warmup_steps": 0, "learning_rate": 1e-2} | training
    settings = TrainingSettings(**asked)
    run = RunArguments(
        name="test", device=base.device, compute_dtype=base.compute_dtype, evaluates=False, seed=1,
        checkpoints_dir=tmp_path / "checkpoints",
    )  # fmt: skip
    trainer = build_trainer(
        TrainerParts(
            base=base,
            model=attach_adapter(base, AdapterSettings(method="lora", r=4, init_lora_weights=False), seed=1),
            tokenizer=tokenizer,
            arguments=build_arguments(settings, run),
            train=train,
            held_out=None,
            data=DataSettings(train=SourceSettings(path="rows.jsonl"), tokens_per_batch=tokens_per_batch),
            training=settings,
        ),
    )
    assert trainer.sums_trained_tokens
    return trainer


def read_weights(trainer: SupervisedTrainer) -> Tensor:
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters() if value.requires_grad])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_behind_each_other_take_the_step_that_they_take_under_each_other(
    folder, tokenizer, tmp_path, checkpointing
):
    found = documents(12, seed=4)
    rows = to_rows(found[:3], found[3:5], found[5:9], found[9:])
    taken, losses = [], []
    for attention in ("documents", "sdpa"):
        trainer = make(
            folder, tokenizer, tmp_path, rows, attention=attention, max_steps=2, optim="sgd",
            per_device_train_batch_size=2, gradient_accumulation_steps=1, gradient_checkpointing=checkpointing,
        )  # fmt: skip
        assert trainer.data_collator.layout == ("flat" if attention == "documents" else "packed")
        trainer.train()
        taken.append(read_weights(trainer))
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(taken[0], taken[1], rtol=1e-4, atol=1e-6)


def test_micro_batches_of_a_token_budget_take_the_step_of_one_large_batch_of_all_documents(folder, tokenizer, tmp_path):
    found = documents(12, seed=5)
    taken, losses = [], []
    for budget in (40, 1000):
        rows = pack(found, budget)
        assert len(rows.dataset) == (1 if budget == 1000 else 5)
        trainer = make(
            folder, tokenizer, tmp_path, rows, tokens_per_batch=budget, max_steps=1, optim="sgd",
            gradient_accumulation_steps=len(rows.dataset),
        )  # fmt: skip
        assert trainer.args.train_batch_size == 1
        trainer.train()
        taken.append(read_weights(trainer))
        losses.append(next(line["loss"] for line in trainer.state.log_history if "loss" in line))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(taken[0], taken[1], rtol=1e-4, atol=1e-6)


def test_a_micro_batch_of_a_token_budget_is_halved_between_its_documents(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, pack(documents(12, seed=5), 60), tokens_per_batch=60)
    whole_loss, whole, whole_figures = train_step(trainer, sizes=(1, 1))
    trainer.micro_batches.rows = 2
    loss, gradients, figures = train_step(trainer, sizes=(1, 1))
    assert len(trainer.micro_batches._split(next(iter(trainer.get_train_dataloader())), 2, 1)) > 1
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)
    for name in ("entropy", "mean_token_accuracy"):
        assert figures[name] == pytest.approx(whole_figures[name], rel=1e-5)


def test_entropy_and_accuracy_are_those_of_trl(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, pack(documents(12, seed=5), 60))
    [batch, *_] = trainer.get_train_dataloader()
    noted = []
    for is_ours in (True, False):
        trainer.sums_trained_tokens = is_ours
        if not is_ours:  # TRL's own reads them off the logits
            del trainer.model.get_base_model().forward
            trainer.args.loss_type = "nll"
        trainer.compute_loss(trainer.model, dict(batch))
        noted.append({name: list(values) for name, values in trainer.find_train_figures().items()})
        trainer.find_train_figures().clear()
    for name in ("entropy", "mean_token_accuracy"):
        assert noted[0][name] == pytest.approx(noted[1][name], rel=1e-4)


class Misnaming(Collator):
    """Batches that call a whole row one document, of positions that run on."""

    def __call__(self, rows: Any) -> Any:
        batch = super().__call__(rows)
        num_tokens = batch["input_ids"].shape[1]
        starts = torch.tensor([0, num_tokens], dtype=torch.int32)
        return batch | {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": num_tokens}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_documents_that_are_not_kept_apart_stop_the_run_before_its_first_step(
    folder, tokenizer, tmp_path, monkeypatch, dtype
):
    make(folder, tokenizer, tmp_path, to_rows(documents(3)), compute_dtype=dtype).check_before_start()
    monkeypatch.setattr(supervised, "Collator", Misnaming)
    trainer = make(folder, tokenizer, tmp_path, to_rows(documents(3)), compute_dtype=dtype)
    with pytest.raises(PlaceError, match="Packed documents read each other"):
        trainer.check_before_start()


class Waits(TorchDispatchMode):
    """Counts the operations for whose result the host of a GPU would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_host_waits_for_nothing_between_a_batch_and_its_gradients(folder, tokenizer, tmp_path, checkpointing):
    waits = []
    for attention in ("documents", "sdpa"):
        trainer = make(folder, tokenizer, tmp_path, to_rows(documents(6)), attention=attention)
        if checkpointing:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        [batch] = trainer.get_train_dataloader()
        num_items = trainer._get_num_items_in_batch([batch], trainer.args.device)
        if attention == "sdpa":  # as TRL goes
            trainer.sums_trained_tokens = False
            del trainer.model.get_base_model().forward
            trainer.args.loss_type = "nll"
        trainer._tokens_not_noted = 1  # the first loss is looked at once
        trainer.current_gradient_accumulation_steps = 1
        with Waits() as watched:
            super(StepMixin, trainer).training_step(trainer.model, dict(batch), num_items)
        waits.append(watched.count)
    ours, theirs = waits
    assert ours == 0
    assert theirs >= 4


def test_what_fills_a_row_up_trains_nothing_where_it_is_a_part_of_its_own(folder, tokenizer, tmp_path):
    rows = to_rows([list(range(3, 43)), [5, 6, 7, 8]])
    whole, parts = (make(folder, tokenizer, tmp_path, rows, tokens_per_batch=64) for _ in range(2))
    batch = whole.data_collator([rows.dataset[0]])
    found = cut(batch, 1, flat_rows=1)
    assert [part["num_trained_tokens"] for part in found] == [39, 3, 0]
    parts.micro_batches.rows = 1
    loss, gradients, figures = train_step(whole, (1,))
    loss_of_parts, gradients_of_parts, figures_of_parts = train_step(parts, (1,))
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    assert figures["our tokens"] == figures_of_parts["our tokens"] == 44
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, gradients_of_parts[name], atol=1e-6), name
