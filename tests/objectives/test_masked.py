"""Masked-language modelling computes its head at the masked places alone, and nothing comes out otherwise for it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForMaskedLM, TrainingArguments, set_seed

from finetune.data.batches import IGNORE_INDEX, MaskedCollator
from finetune.objectives.masked import MaskedTrainer, _fill_up
from tests.data.small_encoder import build_tokenizer

VOCAB, PAD, MASK = 40, 0, 4
KINDS = {
    "bert": {},
    "roberta": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {},
    "electra": {"embedding_size": 8},
}
NO_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"), 0.0)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # DeBERTa's, at its import


def build_model(kind: str, **fields: object) -> torch.nn.Module:
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 32, "pad_token_id": PAD,
    }  # fmt: skip
    known = AutoConfig.for_model(kind)
    has = {name: value for name, value in NO_DROPOUT.items() if name in known.to_dict()}
    config = AutoConfig.for_model(kind, **sizes | has | KINDS[kind] | {"initializer_range": 0.2} | fields)
    set_seed(0)
    return AutoModelForMaskedLM.from_config(config)


# Of 3, 6, 9, 12 and 15 tokens: micro-batches differ in what they hold and in how much of it is masked.
ROWS = [{"input_ids": [1, *(5 + (7 * place) % 30 for place in range(size)), 2]} for size in (1, 4, 7, 10, 13)]


def build_masking() -> MaskedCollator:
    return MaskedCollator(PAD, mask_token_id=MASK, vocab_size=VOCAB, special_ids=range(5), mask_fraction=0.4)


def build_trainer(folder: Path, model: torch.nn.Module, **arguments: object) -> MaskedTrainer:
    settings = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "max_steps": 1, "learning_rate": 0.1,
        "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "weight_decay": 0.0,
        "remove_unused_columns": False, "label_names": ["labels"], "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "per_device_eval_batch_size": 2,
    }  # fmt: skip
    rows = Dataset.from_list([{**row, "length": len(row["input_ids"])} for row in ROWS])
    return MaskedTrainer(
        model=model,
        args=TrainingArguments(**settings | arguments),
        data_collator=build_masking(),
        train_dataset=rows,
        eval_dataset=rows,
    )


def read_gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_its_gradients_are_those_of_the_whole_text(tmp_path, kind):
    theirs, ours = build_model(kind).train(), build_model(kind).train()
    batch = build_masking()(ROWS)
    assert 0 < (batch["labels"] != IGNORE_INDEX).sum() < batch["attention_mask"].sum()
    whole = {name: value for name, value in batch.items() if name != "num_real_tokens"}
    expected = theirs(**whole).loss
    expected.backward()
    found = build_trainer(tmp_path, ours).compute_loss(ours, dict(batch))
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert read_gradients(ours).keys() == read_gradients(theirs).keys()
    for name, gradient in read_gradients(theirs).items():
        assert torch.allclose(gradient, read_gradients(ours)[name], atol=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_sees_the_masked_places_alone_and_all_of_them_again_afterwards(tmp_path, kind):
    model = build_model(kind)
    trainer, batch = build_trainer(tmp_path, model), build_masking()(ROWS)
    num_masked = int((batch["labels"] != IGNORE_INDEX).sum())
    _, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
    assert outputs.logits.shape == (1, num_masked, VOCAB)
    assert model(input_ids=batch["input_ids"]).logits.shape == (*batch["input_ids"].shape, VOCAB)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_unequal_micro_batches_make_the_step_of_one_batch(tmp_path, kind):
    def step(batch_size: int, accumulation: int) -> dict[str, Tensor]:
        model = build_model(kind)
        build_trainer(
            tmp_path, model, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation
        ).train()
        return model.state_dict()

    whole, shared_out, start = step(5, 1), step(2, 3), build_model(kind).state_dict()
    assert max((whole[name] - start[name]).abs().max() for name in whole) > 1e-3
    for name, weight in whole.items():
        assert torch.allclose(weight, shared_out[name], atol=1e-5), name


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_held_out_loss_is_the_mean_over_all_masked_tokens(tmp_path, smoothing):
    model = build_model("bert")
    trainer = build_trainer(tmp_path, model, label_smoothing_factor=smoothing)
    batch = build_masking().for_evaluation()(ROWS)
    labels = batch["labels"]
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    masked = labels != IGNORE_INDEX
    expected = F.cross_entropy(logits[masked], labels[masked]).item()
    model.train()
    assert trainer.measure_held_out()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    # A mean over the micro-batches' means would be another number.
    means = [
        F.cross_entropy(logits[rows][masked[rows]], labels[rows][masked[rows]]).item()
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5))
    ]
    assert abs(sum(means) / 3 - expected) > 1e-3


def test_evaluation_masks_the_same_tokens_each_time_and_training_others_each_epoch(tmp_path):
    trainer = build_trainer(tmp_path, build_model("bert"))
    trainer._masking.set_epoch(0)
    first = [batch["labels"] for batch in trainer.get_eval_dataloader()]
    trainer._masking.set_epoch(1)
    second = [batch["labels"] for batch in trainer.get_eval_dataloader()]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    trained = []
    for epoch in (0, 1):
        trainer._masking.set_epoch(epoch)
        trained.append(trainer.data_collator(ROWS)["labels"])
    assert not torch.equal(*trained)


def test_rows_that_fill_up_the_batches_of_several_processes_weigh_nothing(tmp_path):
    trainer = build_trainer(tmp_path, build_model("bert"))
    expected = trainer.measure_held_out()["eval_loss"]
    arguments = SimpleNamespace(per_device_eval_batch_size=4, world_size=2)
    filled = _fill_up(trainer.eval_dataset, build_tokenizer(), arguments)
    assert (len(filled), filled["length"][5:]) == (8, [2, 2, 2])
    assert (build_masking()(list(filled)[5:])["labels"] == IGNORE_INDEX).all()
    trainer.eval_dataset = filled
    assert trainer.measure_held_out()["eval_loss"] == pytest.approx(expected, abs=1e-6)
    assert _fill_up(filled, build_tokenizer(), arguments) is filled
