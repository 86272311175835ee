"""Combinations of methods on classifiers: a fresh head beside the parts, and virtual tokens before an encoder's."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    set_seed,
)

from finetune.model.loading import attach_saved_adapter
from tests.model.test_combined import RMS_NORM, TOKENS, config_of, logits_of

ON_A_CLASSIFIER = [("bottleneck", "bitfit"), ("lora", "bitfit"), ("lokr", "ia3"), ("loha", "prompt_tuning")]
ON_A_CLASSIFIER += [("ln_tuning", "lora"), ("hypernetwork", "p_tuning")]
BERT = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def build_classifier() -> BertForSequenceClassification:
    set_seed(0)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**BERT, **no_dropout, num_labels=3, initializer_range=0.2))


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@torch.no_grad()
def test_virtual_tokens_of_an_encoders_classifier_are_pefts():
    model = get_peft_model(build_classifier(), config_of("lora", "prompt_tuning", task_type="SEQ_CLS"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.3)
    state = {name: p for name, p in model.named_parameters() if p.requires_grad}
    linear = ["query", "key", "value", "dense"]
    lora = get_peft_model(build_classifier(), LoraConfig(r=2, target_modules=linear, task_type="SEQ_CLS"))
    lora.load_state_dict(state, strict=False)
    inside = lora.base_model.model
    inside.classifier = inside.classifier.modules_to_save["default"]
    theirs = get_peft_model(inside, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, token_dim=32))
    theirs.base_model.classifier.modules_to_save["default"].load_state_dict(
        inside.classifier.original_module.state_dict()
    )
    [vectors] = [p for name, p in state.items() if "prompt_encoder" in name]
    theirs.prompt_encoder["default"].embedding.weight.copy_(vectors)
    mask = torch.ones_like(TOKENS)
    mask[1, 9:] = 0
    for inputs in ({}, {"attention_mask": mask}, {"labels": torch.tensor([0, 2])}):
        ours, expected = (one.eval()(input_ids=TOKENS, **inputs) for one in (model, theirs))
        torch.testing.assert_close(ours.logits, expected.logits, rtol=1e-5, atol=1e-5)
        if "labels" in inputs:
            torch.testing.assert_close(ours.loss, expected.loss)
    with model.disable_adapter():
        assert not torch.allclose(logits_of(model), ours.logits, atol=1e-2)


def test_virtual_tokens_before_a_head_that_reads_a_counted_place_are_refused():
    set_seed(0)
    shape = {name: BERT[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    decoder = MistralForSequenceClassification(MistralConfig(**shape, num_attention_heads=2, num_key_value_heads=2))
    with pytest.raises(ValueError, match="behind virtual tokens a mistral model no longer finds a row's last token"):
        get_peft_model(decoder, config_of("lora", "prompt_tuning", task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match="virtual tokens move the masked places"):
        get_peft_model(BertForMaskedLM(BertConfig(**BERT)), config_of("lora", "p_tuning", task_type=None))


@RMS_NORM
@pytest.mark.parametrize("methods", ON_A_CLASSIFIER, ids="+".join)
def test_a_classifiers_fresh_head_is_trained_whole_once_and_saved_beside_the_parts(tmp_path, methods):
    base = build_classifier()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, config_of(*methods, task_type="SEQ_CLS"))
    head = [n for n, p in model.named_parameters() if p.requires_grad and "classifier" in n]
    assert [n.partition("classifier.")[2] for n in head] == [
        "modules_to_save.default.weight",
        "modules_to_save.default.bias",
    ]
    model.train()(input_ids=TOKENS, labels=torch.tensor([0, 2])).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    model.save_pretrained(tmp_path / "adapter")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    assert torch.equal(logits_of(attach_saved_adapter(again, tmp_path / "adapter")), logits_of(model))
