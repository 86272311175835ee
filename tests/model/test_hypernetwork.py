"""Adapters that a hypernetwork makes, through PEFT's own functions, on a tiny Mistral, GPT-2 and encoders."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    set_seed,
)

from finetune.model.adapters import count_parameters
from finetune.model.continuing import add_reference
from finetune.model.hypernetwork import HypernetworkConfig
from finetune.model.hypernetwork_tuner import HypernetworkLinear, pass_task_ids
from finetune.model.loading import attach_saved_adapter
from tests.conftest import ROOT
from tests.model.tiny_models import load_tiny

TOKENS = torch.arange(24).reshape(2, 12)
D, LAYERS = 64, 2  # of the tiny Mistral: hidden size, layers
M, E, H, S = 8, 4, 6, 5  # the adapters' size, an embedding's, the projector's hidden and last
SIZES = {"size": M, "task_embedding_size": E, "projector_hidden_size": H, "projected_size": S}


def count(tasks: int = 1, layers: int = LAYERS, places: int = 2, features: int = D) -> int:
    projector = 3 * E * H + H + H * S + S + 2 * S
    return E * (tasks + layers + places) + projector + S * (2 * M * features + M + features)


def config_of(**fields: object) -> HypernetworkConfig:
    return HypernetworkConfig(**{"task_type": TaskType.CAUSAL_LM, "init_std": 0.1} | SIZES | fields)


def attach(folder: Path, quantization: str = "none", seed: int = 1, **fields: object) -> PeftModel:
    set_seed(seed)
    model = get_peft_model(load_tiny(folder, quantization).model, config_of(**fields))
    pass_task_ids(model)
    return model


def train(model: PeftModel, steps: int = 3, rate: float = 1e-2, **inputs: object) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS, **inputs).loss.backward()
        optimizer.step()


@torch.no_grad()
def logits_of(model: nn.Module, **inputs: object) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS, **inputs).logits


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize(("variant", "places"), [("houlsby", 2), ("pfeiffer", 1)])
def test_exactly_the_hypernetwork_is_trained_in_float32_and_all_of_it(tiny_model, quantization, variant, places):
    model = attach(tiny_model, quantization, variant=variant)
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert count_parameters(model).trainable == count(places=places)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(trained)
    # Embeddings, projector and generators alike; all rows are of the one task.
    assert all(p.grad.abs().max() > 0 for p in trained.values())
    assert all(".default." in name for name in trained)


def test_a_further_layer_costs_one_embedding():
    counts = []
    for layers in (2, 3):
        base = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=layers, n_head=2))
        counts.append(count_parameters(get_peft_model(base, config_of())).trainable)
    assert counts == [count(layers=2, features=32), count(layers=3, features=32)]
    assert counts[1] - counts[0] == E


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("task_ids", [None, [0, 0], [2, 1]])
def test_each_row_passes_the_adapter_that_is_made_for_its_task_layer_and_place(tiny_model, activation, task_ids):
    model = attach(tiny_model, activation=activation, num_tasks=3, init_std=0.5).eval()
    network = model.base_model.hypernetwork_shared["default"]
    with torch.no_grad():
        for generator in (network.down_bias, network.up_bias):
            generator.weight.normal_()
    logits_of(model, **{} if task_ids is None else {"task_ids": torch.tensor(task_ids)})
    function = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu, "tanh": torch.tanh}
    for layer, block in enumerate(model.base_model.model.model.layers):
        for place, adapted in enumerate((block.self_attn.o_proj, block.mlp.down_proj)):
            inputs = torch.randn(2, 5, adapted.base_layer.in_features)
            with torch.no_grad():
                found = adapted(inputs)
                h = inputs @ adapted.base_layer.weight.T
                for row, task in enumerate(task_ids or [0, 0]):
                    made = [w[0] for w in network(torch.tensor([task]), layer, place)]
                    hidden = function[activation](h[row] @ made[0].T + made[1])
                    expected = h[row] + hidden @ made[2].T + made[3]
                    torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)


def test_tasks_share_all_but_their_embedding(tiny_model):
    model = attach(tiny_model, num_tasks=3)
    assert count_parameters(model).trainable == count(tasks=3)
    before = [logits_of(model, task_ids=torch.tensor([task, task])) for task in range(3)]
    assert torch.allclose(before[0], logits_of(model), atol=1e-5)
    assert all((before[0] - other).abs().max() > 1e-3 for other in before[1:])
    mixed = logits_of(model, task_ids=torch.tensor([2, 1]))
    torch.testing.assert_close(mixed, torch.stack([before[2][0], before[1][1]]), rtol=1e-4, atol=1e-4)
    model.train()(input_ids=TOKENS, labels=TOKENS, task_ids=torch.tensor([2, 2])).loss.backward()
    gradient = model.base_model.hypernetwork_shared["default"].task.weight.grad
    assert gradient[2].any() and not gradient[:2].any()


def test_beams_and_sampled_answers_keep_the_task_of_their_row(tiny_model):
    model = attach(tiny_model, num_tasks=2, init_std=0.3).eval()
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for further in ({}, {"num_beams": 3}):
        answers = [
            model.generate(input_ids=TOKENS, task_ids=torch.tensor(tasks), **settings, **further)
            for tasks in ([0, 0], [1, 1], [0, 1])
        ]
        assert not torch.equal(answers[0], answers[1])
        assert torch.equal(answers[2], torch.stack([answers[0][0], answers[1][1]]))


def test_a_task_that_is_not_there_or_not_passed_on_is_refused(tiny_model):
    model = attach(tiny_model, num_tasks=2)
    for task_ids, reason in (
        ([0, 2], "from 0 to 1"),
        ([-1, 0], "from 0 to 1"),
        ([0, 1, 1], "3 numbers, and there are 2"),
    ):
        with pytest.raises(ValueError, match=reason):
            model(input_ids=TOKENS, task_ids=torch.tensor(task_ids))
    bare = get_peft_model(load_tiny(tiny_model).model, config_of(num_tasks=2))
    with pytest.raises(ValueError, match=r"call hypernetwork_tuner.pass_task_ids\(model\) once"):
        bare(input_ids=TOKENS, task_ids=torch.tensor([0, 1]))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")  # transformers' default
def test_the_pages_example_trains_an_embedding_for_each_task(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    example = page.partition("### Several tasks by one hypernetwork")[2].partition("```python\n")[2].partition("```")[0]
    rows = [{"input_ids": TOKENS[0], "labels": TOKENS[0], "task_ids": task} for task in (0, 1, 2, 2)]
    names = {"base": load_tiny(tiny_model).model, "rows": rows}
    exec(example, names)
    model = names["model"]
    by_task = [logits_of(model, task_ids=torch.tensor([task, task])) for task in range(3)]
    assert (by_task[0] - by_task[1]).abs().max() > 1e-4 and (by_task[1] - by_task[2]).abs().max() > 1e-4
    again = attach_saved_adapter(load_tiny(tiny_model).model, tmp_path / "outputs" / "tasks" / "adapter")
    pass_task_ids(again)
    assert torch.equal(logits_of(again, task_ids=torch.tensor([2, 2])), by_task[2])


@pytest.mark.parametrize("init_std", [1e-2, 1e-1])
def test_it_starts_as_near_the_identity_as_its_initialisation_says(init_std):
    set_seed(0)
    base = nn.Sequential(nn.Linear(512, 512))
    config = HypernetworkConfig(target_modules=["0"], size=64, init_std=init_std, activation="relu")
    layer = get_peft_model(base, config).base_model.model[0]
    inputs = torch.randn(256, 512)
    with torch.no_grad():
        change = layer(inputs) - layer.base_layer(inputs)
        made = layer.hypernetwork_shared["default"](torch.tensor([0]), 0, 0)
    expected = init_std**2 * (512 * 64 / 2) ** 0.5
    assert change.norm() / layer.base_layer(inputs).norm() == pytest.approx(expected, rel=0.15)
    assert made.down.std().item() == pytest.approx(init_std, rel=0.03)
    assert made.up.std().item() == pytest.approx(init_std, rel=0.03)
    assert not made.down_bias.any() and not made.up_bias.any()


FRESH_PROCESS = """
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import finetune.model.own_methods
from finetune.model.hypernetwork_tuner import pass_task_ids
from finetune.model.loading import attach_saved_adapter
from tests.model.tiny_models import load_tiny

runs, base = Path(sys.argv[1]), Path(sys.argv[2])
for folder in sorted(runs.iterdir()):
    model = attach_saved_adapter(load_tiny(base, folder.name).model, folder)
    pass_task_ids(model)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(24).reshape(2, 12), task_ids=torch.tensor([1, 0])).logits
    print(folder.name, torch.equal(logits, load_file(folder / "logits.safetensors")["logits"]))
"""


@pytest.mark.slow
def test_what_was_trained_opens_in_a_fresh_process_to_identical_logits(tiny_model, tmp_path):
    tasks = {"task_ids": torch.tensor([1, 0])}
    for quantization in ("none", "nf4"):
        model = attach(tiny_model, quantization, num_tasks=2)
        before = logits_of(model, **tasks)
        train(model, **tasks)
        after = logits_of(model, **tasks)
        assert (after - before).abs().max() > 0.05
        with model.disable_adapter():
            assert torch.equal(logits_of(model, **tasks), logits_of(load_tiny(tiny_model, quantization).model))
        assert torch.equal(logits_of(model, **tasks), after)
        folder = tmp_path / quantization
        model.save_pretrained(folder)
        saved = load_file(folder / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in saved.values()) == count(tasks=2)
        assert all(name.startswith("base_model.hypernetwork_shared.") and "default" not in name for name in saved)
        save_file({"logits": after}, folder / "logits.safetensors")
        config = PeftConfig.from_pretrained(str(folder))
        assert type(config) is HypernetworkConfig
        assert (config.size, config.num_tasks, config.target_modules) == (M, 2, ["down_proj", "o_proj"])
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path), str(tiny_model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["nf4 True", "none True"]


def test_adapters_stand_side_by_side_and_go_one_by_one(tiny_model, tmp_path):
    other = attach(tiny_model, seed=2)
    train(other, steps=1)
    other.save_pretrained(tmp_path)
    model = attach(tiny_model)
    train(model, steps=2)
    first = logits_of(model)
    model.load_adapter(str(tmp_path), adapter_name="second")
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"default"}
    assert torch.equal(logits_of(model), first)
    model.set_adapter("second")
    assert torch.equal(logits_of(model), logits_of(other))
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"second"}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    state = get_peft_model_state_dict(model, adapter_name="second")
    assert state.keys() == saved.keys() and all(torch.equal(state[name], saved[name]) for name in saved)
    model.add_adapter("third", config_of(size=3, target_modules=["q_proj"]))
    assert torch.equal(logits_of(model), logits_of(other))
    model.set_adapter("third")
    assert not torch.equal(logits_of(model), logits_of(other))
    model.set_adapter("default")
    model.delete_adapter("third")
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    assert torch.equal(logits_of(copy.deepcopy(model)), first)
    assert count_parameters(model).trainable == count()
    assert torch.equal(logits_of(model.unload()), logits_of(load_tiny(tiny_model).model))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_frozen_copy_stays_what_training_started_from(tiny_model, tmp_path, quantization):
    started = attach(tiny_model, quantization)
    train(started)
    started.save_pretrained(tmp_path)
    model = attach_saved_adapter(load_tiny(tiny_model, quantization).model, tmp_path, is_trainable=True)
    before = logits_of(model)
    add_reference(model, tmp_path)
    assert count_parameters(model).trainable == count()
    assert count_parameters(model).total == count_parameters(started).total
    train(model)
    assert not torch.equal(logits_of(model), before)
    model.set_adapter("ref", inference_mode=True)
    assert torch.equal(logits_of(model), before)
    model.set_adapter("default")
    assert {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"default"}


def test_a_base_in_bfloat16_rounds_no_weight_of_the_hypernetwork(tiny_model, tmp_path):
    set_seed(1)
    model = get_peft_model(load_tiny(tiny_model, compute_dtype="bfloat16").model, config_of())
    train(model)
    assert logits_of(model).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in saved.values())
    for fields in ({"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False}):
        base = load_tiny(tiny_model, compute_dtype="bfloat16").model
        opened = get_peft_model_state_dict(PeftModel.from_pretrained(base, tmp_path, **fields))
        assert all(torch.equal(opened[name], saved[name]) for name in saved)


def test_activations_computed_twice_give_the_same_gradients_for_every_rows_task(tiny_model):
    gradients = []
    for checkpointing in (False, True):
        base = load_tiny(tiny_model).model
        if checkpointing:
            base.gradient_checkpointing_enable()
        set_seed(1)
        model = get_peft_model(base, config_of(num_tasks=2)).train()
        pass_task_ids(model)
        loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False, task_ids=torch.tensor([1, 0])).loss
        with model.disable_adapter(), torch.no_grad():  # the pass of a reference leaves the rows' tasks alone
            model(input_ids=TOKENS)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_dropout_drops_what_is_added_in_training_alone(tiny_model):
    model = attach(tiny_model, dropout=0.5)
    assert torch.equal(logits_of(model), logits_of(model))
    with torch.no_grad():
        first, second = (model.train()(input_ids=TOKENS).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_a_merge_is_refused_and_changes_nothing(tiny_model):
    model = attach(tiny_model)
    expected = logits_of(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="do not merge: they are not linear"):
            merge()
    layers = [module for module in model.modules() if isinstance(module, HypernetworkLinear)]
    assert len(layers) == 2 * LAYERS and not any(layer.merged for layer in layers)
    assert torch.equal(logits_of(model), expected)


ENCODERS = ["bert", "roberta", "deberta-v2", "electra", "distilbert", "mpnet"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # DeBERTa's, at its import
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_has_them_behind_attention_and_feed_forward_and_is_told_apart_again(tmp_path, name):
    set_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    if name == "distilbert":
        sizes = {"vocab_size": 128, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    else:
        sizes["num_attention_heads"] = 2
    base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(name, num_labels=3, **sizes))
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, config_of(task_type="SEQ_CLS"))
    assert not any(word in n for n in model.base_model.targeted_module_names for word in ("classifier", "pre_"))
    assert len(model.base_model.targeted_module_names) == 4
    head = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" in n)
    assert head > 0 and count_parameters(model).trainable == count(features=32) + head
    model.train()(input_ids=TOKENS, labels=torch.tensor([0, 2])).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    assert torch.equal(logits_of(attach_saved_adapter(again, tmp_path / "adapter")), logits_of(model))


def test_layers_of_several_sizes_and_a_module_that_is_not_linear_are_refused(tiny_model):
    with pytest.raises(ValueError, match="these layers put out 32 and 64 numbers"):
        attach(tiny_model, target_modules=["q_proj", "k_proj"])
    with pytest.raises(ValueError, match="stand behind linear layers"):
        attach(tiny_model, target_modules=["embed_tokens"])
    with pytest.raises(ValueError, match="projected_size is 0"):
        config_of(projected_size=0)
    with pytest.raises(ValueError, match="there is no variant `parallel`"):
        config_of(variant="parallel")
