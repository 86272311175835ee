"""The measure of forgetting: a model's own loss of plain text, whatever the batches or learned vectors in front."""

import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from finetune.objectives.general_text import measure_text_loss

ROWS = [[5, 6, 7, 8], [9, 3], [4, 4, 4, 4, 4, 11, 12]]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def measure(model, batch_size):
    rows = Dataset.from_list([{"input_ids": row, "labels": row, "length": len(row)} for row in ROWS])
    with torch.no_grad():
        return measure_text_loss(model, rows, pad_token_id=0, batch_size=batch_size, device=torch.device("cpu"))


def test_it_is_the_models_own_loss_averaged_over_tokens_and_not_over_rows(model):
    sums = [
        model(input_ids=ids, labels=ids).loss.item() * (len(row) - 1) for row in ROWS for ids in [torch.tensor([row])]
    ]
    expected = sum(sums) / sum(len(row) - 1 for row in ROWS)
    assert measure(model, 1) == pytest.approx(expected, rel=1e-5)
    assert measure(model, 3) == pytest.approx(expected, rel=1e-5)


def test_learned_vectors_before_the_text_shift_nothing(model):
    before = measure(model, 2)
    prompted = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with torch.no_grad():
        ids = torch.tensor([ROWS[0]])
        own = prompted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.item()
    rows = Dataset.from_list([{"input_ids": ROWS[0], "labels": ROWS[0], "length": 4}])
    with torch.no_grad():
        found = measure_text_loss(prompted, rows, pad_token_id=0, batch_size=1, device=torch.device("cpu"))
        assert measure(prompted, 2) != pytest.approx(before, rel=1e-4), "the vectors count"
    # PEFT's own loss also predicts the first token, from the last vector; without it the mean is of three.
    with torch.no_grad():
        logits = prompted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 3:]
    three = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    assert found == pytest.approx(float(three), rel=1e-5)
    assert own > 0
