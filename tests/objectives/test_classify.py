"""The loss of a classifier is transformers' own, over the rows of a whole step, however they are shared out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments, set_seed

from finetune.data.batches import LabelCollator
from finetune.data.tokens import TokenRows
from finetune.model.heads import LabelSpace, set_labels
from finetune.objectives.classify import LabelTrainer, label_loss
from finetune.objectives.label_scores import Metric, choose_metric
from tests.data.small_encoder import PAD, SPECIAL, WORDS

SIZES = {
    "vocab_size": len(SPECIAL + WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 24, "pad_token_id": PAD,
}  # fmt: skip
KINDS = {"bert": {}, "roberta": {}, "llama": {"num_key_value_heads": 1}}
THREE, NUMBER = LabelSpace(("no", "maybe", "yes")), LabelSpace(None)


def build_model(kind: str = "bert", labels: LabelSpace = THREE, dropout: float = 0.0) -> torch.nn.Module:
    fields = KINDS[kind] | (
        {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout} if dropout else {}
    )
    config = AutoConfig.for_model(kind, **SIZES, **fields, initializer_range=0.2)
    if not dropout:
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if name in config.to_dict():
                setattr(config, name, 0.0)
    set_labels(config, labels)
    set_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


def build_rows(labels: list[int] | list[float]) -> TokenRows:
    """Rows of 3, 4, 5 … tokens."""
    ids = [[2, *range(5, 6 + place), 3] for place in range(len(labels))]
    rows = Dataset.from_dict({"input_ids": ids, "label": labels, "length": [len(row) for row in ids]})
    return TokenRows(rows, rows, {}, "rows")


def build_trainer(folder: Path, model: torch.nn.Module, rows: TokenRows, **arguments: object) -> LabelTrainer:
    number = model.config.problem_type == "regression"
    metric: Metric = choose_metric(
        None, task=None, problem_type=model.config.problem_type, num_labels=1 if number else 3
    )
    settings = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "max_steps": 1, "learning_rate": 0.1,
        "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "weight_decay": 0.0,
        "remove_unused_columns": False, "label_names": ["labels"], "save_strategy": "no", "disable_tqdm": True,
        "logging_strategy": "no", "per_device_eval_batch_size": 2,
    }  # fmt: skip
    return LabelTrainer(
        metric=metric,
        held_out={"": rows},
        model=model,
        args=TrainingArguments(**settings | arguments),
        data_collator=LabelCollator(PAD),
        train_dataset=rows.dataset,
        eval_dataset=rows.dataset,
    )


def read_gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("labels", "values"), [(THREE, [0, 2, 1, 1]), (NUMBER, [0.5, -1.0, 3.0, 2.0])], ids=["labels", "number"]
)
def test_the_loss_and_its_gradients_are_those_of_transformers_model(kind, labels, values):
    batch = LabelCollator(PAD)(list(build_rows(values).dataset))
    del batch["num_real_tokens"]
    theirs, ours = build_model(kind, labels), build_model(kind, labels)
    expected = theirs(**batch).loss
    expected.backward()
    wanted = batch.pop("labels")
    found = label_loss(ours(**batch), wanted)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in read_gradients(theirs).items():
        assert torch.allclose(gradient, read_gradients(ours)[name], atol=1e-6), name


def test_smoothing_spreads_a_share_of_each_label_over_all():
    logits, labels = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    log_p = logits.log_softmax(-1)
    target = 0.7 * F.one_hot(labels, 3) + 0.3 / 3
    found = label_loss({"logits": logits}, labels, label_smoothing=0.3)
    assert found.item() == pytest.approx(-(target * log_p).sum(-1).mean().item(), rel=1e-6)


def test_logits_of_16_bits_are_summed_up_in_float32():
    logits = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.zeros(2000, dtype=torch.long)
    assert label_loss({"logits": logits}, labels).dtype == torch.float32
    assert label_loss({"logits": logits}, labels) == label_loss({"logits": logits.float()}, labels)


def step(folder: Path, labels: LabelSpace, values: list, batch_size: int, accumulation: int) -> dict[str, Tensor]:
    """Train one step on five rows; the weights it leads to."""
    model = build_model("bert", labels)
    trainer = build_trainer(
        folder, model, build_rows(values), per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer.train()
    return model.state_dict()


@pytest.mark.parametrize(
    ("labels", "values"), [(THREE, [0, 2, 1, 1, 0]), (NUMBER, [0.5, -1.0, 3.0, 2.0, 0.0])], ids=["labels", "number"]
)
def test_unequal_micro_batches_make_the_step_of_one_batch(tmp_path, labels, values):
    whole = step(tmp_path, labels, values, 5, 1)
    shared_out = step(tmp_path, labels, values, 2, 3)  # two rows, two rows and one
    start = build_model("bert", labels).state_dict()
    assert not torch.allclose(whole["classifier.weight"], start["classifier.weight"], atol=1e-4)
    for name, weight in whole.items():
        assert torch.allclose(weight, shared_out[name], atol=1e-6), name


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_held_out_loss_and_scores_are_those_of_all_rows_at_once(tmp_path, smoothing):
    rows = build_rows([0, 2, 1, 1, 0])
    model = build_model(dropout=0.5)
    trainer = build_trainer(tmp_path, model, rows, label_smoothing_factor=smoothing)
    batch = LabelCollator(PAD)(list(rows.dataset))
    del batch["num_real_tokens"]
    with torch.no_grad():
        expected = model.eval()(**batch)
    model.train()
    measured, evaluated = trainer.measure_held_out(), trainer.evaluate()
    for figures in (measured, evaluated):
        assert figures["eval_loss"] == pytest.approx(expected.loss.item(), abs=1e-6)
        assert figures["eval_scores/accuracy"] == figures["eval_score"]
    assert measured["eval_score"] == evaluated["eval_score"]
    logits = trainer.predict_logits(rows.dataset)
    assert np.abs(logits - expected.logits.numpy()).max() < 1e-6
    assert measured["eval_score"] == (logits.argmax(-1) == np.array([0, 2, 1, 1, 0])).mean()
