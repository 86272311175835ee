"""Combinations of methods through PEFT's own functions, on a tiny Mistral, BERT and GPT-2."""

import itertools
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from finetune.errors import PlaceError
from finetune.model.adapters import count_parameters
from finetune.model.combined import CombinedConfig, CombinedModel
from finetune.model.continuing import add_reference
from finetune.model.loading import attach_saved_adapter
from finetune.recipe.own_methods import PART_METHODS, PROMPT_PARTS
from tests.conftest import ROOT
from tests.model.tiny_models import load_tiny

TOKENS = torch.arange(24).reshape(2, 12)
PARTS = {
    "ln_tuning": {},
    "lora": {"r": 2},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "ia3": {},
    "bitfit": {},
    "bottleneck": {"size": 4, "init_std": 0.1},
    "hypernetwork": {"size": 4, "projected_size": 5, "init_std": 0.1},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
}
PAIRS = [pair for pair in itertools.combinations(PART_METHODS, 2) if set(pair) != set(PROMPT_PARTS)]
USUAL = [
    ("lora", "prompt_tuning"),
    ("bottleneck", "bitfit"),
    ("lora", "bitfit"),
    ("lora", "bottleneck"),
    ("ia3", "lora"),
]
# PEFT's, of a norm that is not torch's own.
RMS_NORM = pytest.mark.filterwarnings("ignore:Unsupported layer type")


def config_of(*methods: str, **fields: object) -> CombinedConfig:
    parts = [{"method": method, **PARTS[method]} for method in methods]
    return CombinedConfig(**{"task_type": TaskType.CAUSAL_LM, "parts": parts} | fields)


def attach(folder: Path, *methods: str, quantization: str = "none", **settings: object) -> PeftModel:
    base = load_tiny(folder, quantization, **settings).model
    set_seed(1)
    return get_peft_model(base, config_of(*methods))


@cache
def count_alone(folder: Path, method: str) -> int:
    fields = PARTS[method] | ({"target_modules": "all-linear"} if method in ("lora", "loha", "lokr") else {})
    config = PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()](task_type=TaskType.CAUSAL_LM, **fields)
    return count_parameters(get_peft_model(load_tiny(folder).model, config)).trainable


def train(model: PeftModel, steps: int = 3) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()


@torch.no_grad()
def logits_of(model: nn.Module, **inputs: object) -> torch.Tensor:
    return model.eval()(**{"input_ids": TOKENS} | inputs).logits


@RMS_NORM
@pytest.mark.parametrize("methods", PAIRS, ids="+".join)
def test_parts_are_trained_together_and_are_together_what_they_are_alone(tiny_model, tmp_path, methods):
    bare = logits_of(load_tiny(tiny_model).model)
    model = attach(tiny_model, *methods)
    expected_count = sum(count_alone(tiny_model, method) for method in methods)
    assert count_parameters(model).trainable == expected_count
    train(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad.abs().max() > 0 and p.dtype == torch.float32 and ".default" in n for n, p in trained.items())
    after = logits_of(model)
    assert after.shape == bare.shape and (after - bare).abs().max() > 0.02
    with model.disable_adapter():
        assert torch.equal(logits_of(model), bare)
    assert torch.equal(logits_of(model), after)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == expected_count
    assert not any("default" in name for name in saved)
    assert torch.equal(logits_of(attach_saved_adapter(load_tiny(tiny_model).model, tmp_path)), after)
    again = attach_saved_adapter(load_tiny(tiny_model).model, tmp_path, is_trainable=True)
    assert count_parameters(again).trainable == expected_count
    # Without one of its parts it is another model.
    for part in ("first", "second"):
        lacking = attach_saved_adapter(load_tiny(tiny_model).model, tmp_path)
        layers = [m for m in lacking.modules() if isinstance(m, BaseTunerLayer)]
        wanted = type(layers[0] if part == "first" else layers[-1])
        for layer in layers:
            if type(layer) is wanted:
                layer.enable_adapters(False)
        assert not torch.equal(logits_of(lacking), after)


FRESH_PROCESS = """
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import finetune.model.own_methods
from finetune.model.loading import attach_saved_adapter
from tests.model.tiny_models import load_tiny

runs, base = Path(sys.argv[1]), Path(sys.argv[2])
for folder in sorted(runs.iterdir()):
    model = attach_saved_adapter(load_tiny(base, folder.name.rpartition("+")[2]).model, folder)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(24).reshape(2, 12)).logits
    print(folder.name, torch.equal(logits, load_file(folder / "logits.safetensors")["logits"]))
"""


@pytest.mark.slow
def test_what_was_trained_opens_in_a_fresh_process_to_identical_logits(tiny_model, tmp_path):
    expected = set()
    for methods, quantization in itertools.product(USUAL, ("none", "nf4")):
        model = attach(tiny_model, *methods, quantization=quantization)
        train(model)
        folder = tmp_path / "+".join([*methods, quantization])
        model.save_pretrained(folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["peft_type"] == "COMBINED" and {part["method"] for part in config["parts"]} == set(methods)
        assert type(PeftConfig.from_pretrained(str(folder))) is CombinedConfig
        save_file({"logits": logits_of(model).contiguous()}, folder / "logits.safetensors")
        with model.disable_adapter():
            assert torch.equal(logits_of(model), logits_of(load_tiny(tiny_model, quantization).model))
        expected.add(f"{folder.name} True")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path), str(tiny_model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == expected


@pytest.mark.parametrize("methods", [("lora", "bottleneck", "bitfit", "prompt_tuning"), ("ia3", "lora")], ids="+".join)
def test_the_order_of_the_list_changes_nothing(tiny_model, methods):
    first, second = (attach(tiny_model, *order) for order in (methods, methods[::-1]))
    train(first)
    assert first.state_dict().keys() == second.state_dict().keys()
    second.load_state_dict(first.state_dict())
    assert torch.equal(logits_of(first), logits_of(second))


@torch.no_grad()
def test_an_outer_part_sees_what_an_inner_one_has_made_of_the_output(tiny_model):
    model = attach(tiny_model, "bottleneck", "lora", "bitfit")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1)
    outer = model.base_model.model.model.layers[1].mlp.down_proj
    middle = outer.base_layer
    inner = middle.base_layer
    x = torch.randn(3, 128)
    y = x @ inner.base_layer.weight.T
    y = y + x @ inner.lora_A["default"].weight.T @ inner.lora_B["default"].weight.T * inner.scaling["default"]
    y = y + middle.bitfit_delta["default"].bias
    down, up = outer.bottleneck_down["default"], outer.bottleneck_up["default"]
    y = y + torch.relu(y @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(outer(x), y, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@torch.no_grad()
def test_lora_and_virtual_tokens_are_pefts_lora_under_pefts_virtual_tokens(tiny_model):
    model = attach(tiny_model, "lora", "prompt_tuning")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.3)
    state = {name: p for name, p in model.named_parameters() if p.requires_grad}
    lora = get_peft_model(load_tiny(tiny_model).model, LoraConfig(r=2, target_modules="all-linear"))
    lora.load_state_dict({name: p for name, p in state.items() if "lora_" in name}, strict=False)
    theirs = get_peft_model(
        lora.base_model.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=64)
    )
    [vectors] = [p for name, p in state.items() if "prompt_encoder" in name]
    theirs.prompt_encoder["default"].embedding.weight.copy_(vectors)
    mask = torch.ones_like(TOKENS)
    mask[1, :4] = 0  # padded on the left
    for inputs in ({}, {"attention_mask": mask}, {"labels": TOKENS}):
        ours, expected = (one.eval()(input_ids=TOKENS, **inputs) for one in (model, theirs))
        assert expected.logits.shape[1] == TOKENS.shape[1] + 3
        torch.testing.assert_close(ours.logits, expected.logits[:, 3:], rtol=1e-5, atol=1e-5)
        if "labels" in inputs:
            torch.testing.assert_close(ours.loss, expected.loss)


@pytest.mark.parametrize("method", PROMPT_PARTS)
def test_answers_with_a_cache_without_one_and_in_a_batch_are_the_same(tiny_model, method):
    model = attach(tiny_model, "lora", method)
    train(model, steps=5)
    model.eval()
    prompts = [[5, 9, 2, 40, 7], [17, 3, 60]]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(8):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        expected.append(ids[0].tolist())
        for use_cache in (True, False):
            made = model.generate(input_ids=torch.tensor([prompt]), use_cache=use_cache, **settings)
            assert made[0].tolist() == expected[-1]
    padded = torch.tensor([prompts[0], [0, 0, *prompts[1]]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    made = model.generate(input_ids=padded, attention_mask=mask, **settings).tolist()
    assert [made[0], made[1][2:]] == expected
    with model.disable_adapter():
        made = model.generate(input_ids=torch.tensor([prompts[0]]), **settings)
    assert torch.equal(made, load_tiny(tiny_model).model.eval().generate(torch.tensor([prompts[0]]), **settings))


@torch.no_grad()
def test_positions_are_counted_on_behind_virtual_tokens_and_a_mask_of_pairs_is_refused(tiny_model):
    model = attach(tiny_model, "bitfit", "prompt_tuning")
    positions = torch.arange(12).expand(2, -1)
    torch.testing.assert_close(logits_of(model, position_ids=positions), logits_of(model))
    embedded = model.get_input_embeddings()(TOKENS)
    torch.testing.assert_close(logits_of(model, input_ids=None, inputs_embeds=embedded), logits_of(model))
    assert torch.equal(model.get_base_model()(TOKENS).logits, logits_of(model))
    with pytest.raises(ValueError, match="attention_mask has 4 dimensions"):
        model(input_ids=TOKENS, attention_mask=torch.ones(2, 1, 12, 12))


@pytest.mark.parametrize("methods", USUAL, ids="+".join)
def test_adapters_stand_side_by_side_and_go_one_by_one(tiny_model, tmp_path, methods):
    other = attach(tiny_model, *methods)
    train(other, steps=1)
    other.save_pretrained(tmp_path)
    model = attach(tiny_model, *methods)
    train(model, steps=2)
    first, count = logits_of(model), count_parameters(model).trainable
    model.load_adapter(str(tmp_path), adapter_name="second")
    assert torch.equal(logits_of(model), first)
    assert count_parameters(model).trainable == count
    model.set_adapter("second")
    assert torch.equal(logits_of(model), logits_of(other))
    assert count_parameters(model).trainable == count
    with pytest.raises(ValueError, match="combinations of the same methods"):
        model.add_adapter("third", config_of("lokr", "loha"))
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    assert torch.equal(logits_of(model.unload()), logits_of(load_tiny(tiny_model).model))


@pytest.mark.parametrize("methods", [*USUAL, ("hypernetwork", "lora")], ids="+".join)
def test_a_frozen_copy_stays_what_training_started_from(tiny_model, tmp_path, methods):
    started = attach(tiny_model, *methods)
    train(started)
    started.save_pretrained(tmp_path)
    model = attach_saved_adapter(load_tiny(tiny_model).model, tmp_path, is_trainable=True)
    before = logits_of(model)
    add_reference(model, tmp_path)
    assert count_parameters(model) == count_parameters(started)
    train(model)
    assert not torch.equal(logits_of(model), before)
    model.set_adapter("ref", inference_mode=True)
    assert torch.equal(logits_of(model), before)
    model.set_adapter("default")
    assert count_parameters(model) == count_parameters(started)


def test_a_base_in_bfloat16_rounds_no_weight_of_any_part(tiny_model, tmp_path):
    model = attach(tiny_model, "lora", "bitfit", "bottleneck", "p_tuning", compute_dtype="bfloat16")
    train(model)
    assert logits_of(model).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in saved.values())
    opened = attach_saved_adapter(load_tiny(tiny_model, compute_dtype="bfloat16").model, tmp_path)
    state = get_peft_model_state_dict(opened)
    assert all(torch.equal(state[name], saved[name]) for name in saved)


@pytest.mark.parametrize("methods", USUAL, ids="+".join)
def test_activations_computed_twice_give_the_same_gradients(tiny_model, methods):
    gradients = []
    for checkpointing in (False, True):
        base = load_tiny(tiny_model).model
        if checkpointing:
            base.gradient_checkpointing_enable()
        set_seed(1)
        model = get_peft_model(base, config_of(*methods)).train()
        model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_an_adapter_put_in_without_memory_has_none_in_any_layer_of_its_parts(tiny_model, tmp_path):
    model = attach(tiny_model, "lora", "bottleneck", "bitfit")
    train(model)
    model.save_pretrained(tmp_path)
    # In place, without the PeftModel around it, which would empty whatever is made inside.
    bare = load_tiny(tiny_model).model
    CombinedModel(bare, {"default": config_of("lora", "bottleneck", "bitfit")}, "default", low_cpu_mem_usage=True)
    assert all(p.is_meta for name, p in bare.named_parameters() if ".default." in name)
    opened = PeftModel.from_pretrained(load_tiny(tiny_model).model, tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits_of(opened), logits_of(model))


def test_a_base_of_conv1d_layers_with_learned_positions_is_served_too():
    set_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    bare = logits_of(base)
    parts = [{"method": "lora", "fan_in_fan_out": True}, {"method": "prompt_tuning", "num_virtual_tokens": 3}]
    parts.append({"method": "bottleneck", "size": 4, "init_std": 0.1})
    model = get_peft_model(base, CombinedConfig(task_type="CAUSAL_LM", parts=parts))
    train(model)
    assert logits_of(model).shape == bare.shape and not torch.allclose(logits_of(model), bare, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), bare)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([{"method": "lora"}], "at least two parts, and this one has 1"),
        ([{"method": "lora"}, {"method": "full"}], "full cannot be a part; those that can: ln_tuning, lora"),
        ([{"method": "lora"}, {"method": "top_k"}], "top_k cannot be a part"),
        ([{"method": "lora"}, {"method": "combined"}], "combined cannot be a part"),
        ([{"method": "lora"}, {"method": "prefix_tuning"}], "prefix_tuning cannot be a part"),
        ([{"method": "lora"}, {"method": "lora", "r": 2}], "lora stands in it twice"),
        ([{"method": "p_tuning"}, {"method": "prompt_tuning"}], "both put virtual tokens in front of a row"),
        ([{"method": "bitfit"}, {"method": "bottleneck", "size": 0}], "size is 0"),
        ([{"method": "bitfit"}, {"method": "lora", "rank": 2}], "lora: .*rank"),
        ([{"method": "bitfit"}, {"method": "lora", "init_lora_weights": "pissa"}], "takes its start out of the base"),
        ([{"method": "bitfit"}, {"method": "hypernetwork", "num_tasks": 2}], "as a part it knows one task"),
        ([{"method": "bitfit"}, {"method": "lora", "bias": "all"}], "the part for that is bitfit"),
    ],
    ids=str,
)
def test_parts_that_do_not_go_together_are_refused(parts, reason):
    with pytest.raises(ValueError, match=reason):
        CombinedConfig(parts=parts)


def test_what_does_not_fit_the_model_or_the_file_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="the model has no module `query`"):
        parts = [{"method": "lora", "target_modules": ["q_proj", "query"]}, {"method": "bitfit"}]
        get_peft_model(load_tiny(tiny_model).model, CombinedConfig(task_type="CAUSAL_LM", parts=parts))
    model = attach(tiny_model, "lora", "bitfit")
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="a combination does not merge"):
            merge()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in saved.items() if "bitfit" not in name}
    save_file(kept, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PlaceError, match=r"bitfit_delta.bias is not in the file"):
        attach_saved_adapter(load_tiny(tiny_model).model, tmp_path)
