"""BitFit and bottleneck adapters through PEFT's own functions, on a tiny Mistral, BERT, Qwen2 and GPT-2."""

import json
import math
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
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

from finetune.model.adapters import count_parameters
from finetune.model.bitfit import BitFitConfig, BitFitLayer, find_added_biases
from finetune.model.bottleneck import BottleneckConfig, BottleneckLinear
from finetune.model.continuing import add_reference
from finetune.model.loading import attach_saved_adapter
from finetune.model.own_methods import OWN_METHODS
from tests.conftest import ROOT
from tests.model.tiny_models import SHAPE, load_tiny

TOKENS = torch.arange(24).reshape(2, 12)
H, F, LAYERS = 64, 128, 2  # of the tiny Mistral: hidden size, feed-forward size, layers
# Outputs of q and o, k and v, gate and up, down in each layer; an adapter is 2 M D + D + M.
PARAMETERS = {
    "bitfit": LAYERS * (2 * H + 2 * 32 + 2 * F + H),
    "houlsby": LAYERS * 2 * (2 * 8 * H + H + 8),
    "pfeiffer": LAYERS * (2 * 8 * H + H + 8),
}
METHODS = sorted(PARAMETERS)


def config_of(method: str) -> PeftConfig:
    if method == "bitfit":
        return BitFitConfig(task_type=TaskType.CAUSAL_LM)
    return BottleneckConfig(task_type=TaskType.CAUSAL_LM, size=8, variant=method)


def attach(folder: Path, method: str, quantization: str = "none", **settings: object) -> PeftModel:
    set_seed(1)
    return get_peft_model(load_tiny(folder, quantization, **settings).model, config_of(method))


def train(model: PeftModel, steps: int = 3, rate: float = 1e-2) -> None:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()


@torch.no_grad()
def logits_of(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS).logits


def small_bert(**fields: object) -> BertConfig:
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return BertConfig(
        **sizes, num_attention_heads=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **fields
    )


def small_qwen() -> Qwen2ForCausalLM:
    set_seed(2)
    fields = {name: value for name, value in SHAPE.items() if name != "model_type"}
    return Qwen2ForCausalLM(Qwen2Config(**fields, initializer_range=0.2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_exactly_the_adapter_is_trained_in_float32_and_has_the_papers_number_of_parameters(
    tiny_model, method, quantization
):
    model = attach(tiny_model, method, quantization)
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert count_parameters(model).trainable == PARAMETERS[method]
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(trained)
    assert all(p.grad.abs().max() > 0 for p in trained.values())
    # What TRL copies into its frozen reference it finds by the adapter's name in the middle.
    assert all(".default." in name for name in trained)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_bitfit_starts_at_the_base_itself(tiny_model, quantization):
    model = attach(tiny_model, "bitfit", quantization)
    with model.disable_adapter():
        of_base = logits_of(model)
    assert torch.equal(logits_of(model), of_base)


@pytest.mark.parametrize("init_std", [1e-2, 1e-1])
def test_a_bottleneck_starts_as_near_the_identity_as_its_initialisation_says(init_std):
    set_seed(0)
    base = nn.Linear(512, 512).requires_grad_(False)
    layer = BottleneckLinear(base, "default", BottleneckConfig(size=64, init_std=init_std))
    inputs = torch.randn(256, 512)
    with torch.no_grad():
        change = layer(inputs) - base(inputs)
    # A normal distribution cut at two standard deviations keeps 0.774 of its variance; relu keeps half.
    expected = 0.774 * init_std**2 * math.sqrt(512 * 64 / 2)
    assert change.norm() / base(inputs).norm() == pytest.approx(expected, rel=0.15)
    weights = [layer.bottleneck_down["default"].weight, layer.bottleneck_up["default"].weight]
    assert all(0 < weight.abs().max() <= 2 * init_std for weight in weights)
    assert not layer.bottleneck_down["default"].bias.any() and not layer.bottleneck_up["default"].bias.any()


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
def test_a_bottleneck_adds_what_the_papers_equation_says_before_the_residual_addition(tiny_model, activation):
    config = BottleneckConfig(size=8, variant="pfeiffer", activation=activation, init_std=0.5)
    set_seed(1)
    model = get_peft_model(load_tiny(tiny_model).model, config).eval()
    block = model.base_model.model.model.layers[0]
    adapted = block.mlp.down_proj
    down, up = adapted.bottleneck_down["default"], adapted.bottleneck_up["default"]
    with torch.no_grad():
        for layer in (down, up):
            layer.bias.normal_()
        inputs = torch.randn(5, F)
        h = inputs @ adapted.base_layer.weight.T
        f = {"relu": torch.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu, "tanh": torch.tanh}[activation]
        expected = h + f(h @ down.weight.T + down.bias) @ up.weight.T + up.bias
        torch.testing.assert_close(adapted(inputs), expected, rtol=1e-5, atol=1e-5)


FRESH_PROCESS = """
import sys
from pathlib import Path

from peft import PeftConfig

runs, base = Path(sys.argv[1]), Path(sys.argv[2])
try:
    PeftConfig.from_pretrained(str(runs / "bitfit_none"))
except KeyError as error:
    print("plain PEFT:", error)

import torch
from safetensors.torch import load_file

import finetune.model.own_methods
from finetune.model.loading import attach_saved_adapter
from tests.model.tiny_models import load_tiny

for folder in sorted(runs.iterdir()):
    model = attach_saved_adapter(load_tiny(base, folder.name.rpartition("_")[2]).model, folder)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(24).reshape(2, 12)).logits
    print(folder.name, torch.equal(logits, load_file(folder / "logits.safetensors")["logits"]))
"""


@pytest.mark.slow
def test_what_was_trained_opens_in_a_fresh_process_to_identical_logits_and_not_with_plain_peft(tiny_model, tmp_path):
    expected = {"plain PEFT: 'BITFIT'"}
    for method in METHODS:
        for quantization in ("none", "nf4"):
            model = attach(tiny_model, method, quantization)
            before = logits_of(model)
            train(model)
            after = logits_of(model)
            assert (after - before).abs().max() > 0.05
            with model.disable_adapter():
                assert torch.equal(logits_of(model), logits_of(load_tiny(tiny_model, quantization).model))
            assert torch.equal(logits_of(model), after)
            folder = tmp_path / f"{method}_{quantization}"
            model.save_pretrained(folder)
            save_file({"logits": after}, folder / "logits.safetensors")
            expected.add(f"{folder.name} True")
            assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == config_of(method).peft_type
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path), str(tiny_model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == expected


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_config_is_read_again_as_it_was(tiny_model, tmp_path, method):
    model = attach(tiny_model, method)
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert type(config) is OWN_METHODS["bitfit" if method == "bitfit" else "bottleneck"]
    own = {"target_modules", "exclude_modules", "size", "variant", "activation", "init_std", "dropout", "peft_type"}
    then, now = model.peft_config["default"].to_dict(), config.to_dict()
    assert {name: value for name, value in now.items() if name in own} == {
        name: value for name, value in then.items() if name in own
    }
    assert model.get_model_status().peft_types == {"default": str(config.peft_type.value)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_frozen_copy_stays_what_training_started_from(tiny_model, tmp_path, method, quantization):
    started = attach(tiny_model, method, quantization)
    train(started)
    started.save_pretrained(tmp_path)
    model = attach_saved_adapter(load_tiny(tiny_model, quantization).model, tmp_path, is_trainable=True)
    before = logits_of(model)
    add_reference(model, tmp_path)
    assert count_parameters(model).trainable == PARAMETERS[method]
    assert count_parameters(model).total == count_parameters(started).total
    train(model)
    assert not torch.equal(logits_of(model), before)
    model.set_adapter("ref", inference_mode=True)
    assert torch.equal(logits_of(model), before)
    model.set_adapter("default")
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {"default"}


@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_one_method_stand_side_by_side_and_go_one_by_one(tiny_model, tmp_path, method):
    other = attach(tiny_model, method)
    train(other, steps=1)
    other.save_pretrained(tmp_path)
    model = attach(tiny_model, method)
    train(model, steps=2)
    first = logits_of(model)
    model.load_adapter(str(tmp_path), adapter_name="second")
    assert torch.equal(logits_of(model), first)
    model.set_adapter("second")
    assert torch.equal(logits_of(model), logits_of(other))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    state = get_peft_model_state_dict(model, adapter_name="second")
    assert state.keys() == saved.keys() and all(torch.equal(state[name], saved[name]) for name in saved)
    model.add_adapter("third", config_of(method))
    assert torch.equal(logits_of(model), logits_of(other))
    model.delete_adapter("third")
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    assert torch.equal(logits_of(model.unload()), logits_of(load_tiny(tiny_model).model))


@pytest.mark.parametrize("method", METHODS)
def test_a_base_in_bfloat16_rounds_no_weight_of_the_adapter(tiny_model, tmp_path, method):
    model = attach(tiny_model, method, compute_dtype="bfloat16")
    train(model)
    assert logits_of(model).dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in saved.values())
    for fields in ({"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False}):
        base = load_tiny(tiny_model, compute_dtype="bfloat16").model
        opened = get_peft_model_state_dict(PeftModel.from_pretrained(base, tmp_path, **fields))
        assert all(torch.equal(opened[name], saved[name]) for name in saved)


@pytest.mark.parametrize("method", METHODS)
def test_activations_computed_twice_give_the_same_gradients(tiny_model, method):
    gradients = []
    for checkpointing in (False, True):
        base = load_tiny(tiny_model).model
        if checkpointing:
            base.gradient_checkpointing_enable()
        set_seed(1)
        model = get_peft_model(base, config_of(method)).train()
        model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_dropout_drops_what_is_added_in_training_alone(tiny_model):
    set_seed(1)
    config = BottleneckConfig(size=8, init_std=0.1, dropout=0.5)
    model = get_peft_model(load_tiny(tiny_model).model, config)
    assert torch.equal(logits_of(model), logits_of(model))
    with torch.no_grad():
        first, second = (model.train()(input_ids=TOKENS).logits for _ in range(2))
    assert not torch.equal(first, second)


def take_one_step(model: nn.Module, forward: object, parameters: list[nn.Parameter]) -> None:
    forward(model).backward()
    torch.optim.SGD(parameters, lr=0.1).step()


def test_one_step_of_bitfit_is_one_step_on_every_bias_of_an_encoder_norms_included():
    set_seed(0)
    bert = BertModel(small_bert())
    state = {name: tensor.clone() for name, tensor in bert.state_dict().items()}

    def forward(model: nn.Module) -> torch.Tensor:
        outputs = model(input_ids=TOKENS)
        return outputs.last_hidden_state.pow(3).mean() + outputs.pooler_output.pow(2).mean()

    biases = {name: p for name, p in bert.named_parameters() if name.endswith(".bias")}
    take_one_step(bert, forward, list(biases.values()))
    other = BertModel(small_bert())
    other.load_state_dict(state)
    model = get_peft_model(other, BitFitConfig())
    assert model.peft_config["default"].target_modules == ["LayerNorm", "dense", "key", "query", "value"]
    assert find_added_biases(model) == []
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == sum(p.numel() for p in biases.values())
    take_one_step(model, forward, trainable)
    merged = dict(model.merge_and_unload().named_parameters())
    assert merged.keys() == dict(bert.named_parameters()).keys()
    for name, bias in biases.items():
        if ".key." not in name:  # softmax does not see the bias of the keys
            assert (bias - state[name]).abs().max() > 1e-7
        torch.testing.assert_close(merged[name], bias, rtol=1e-5, atol=1e-8)


def test_one_step_of_bitfit_is_one_step_on_the_biases_of_a_decoder():
    qwen = small_qwen()
    biases = {name: p for name, p in qwen.named_parameters() if name.endswith(".bias")}
    assert len(biases) == 3 * LAYERS
    take_one_step(qwen, lambda model: model(input_ids=TOKENS, labels=TOKENS).loss, list(biases.values()))
    model = get_peft_model(small_qwen(), BitFitConfig(target_modules=["q_proj", "k_proj", "v_proj"]))
    assert find_added_biases(model) == []
    take_one_step(
        model, lambda m: m(input_ids=TOKENS, labels=TOKENS).loss, [p for p in model.parameters() if p.requires_grad]
    )
    merged = dict(model.merge_and_unload().named_parameters())
    for name, bias in biases.items():
        torch.testing.assert_close(merged[name], bias, rtol=1e-5, atol=1e-8)
    assert merged["model.layers.0.self_attn.v_proj.bias"].abs().max() > 1e-4


def test_biases_that_were_added_are_told_by_name():
    model = get_peft_model(small_qwen(), BitFitConfig(task_type="CAUSAL_LM"))
    added = find_added_biases(model)
    assert len(added) == 4 * LAYERS and added[0] == "model.layers.0.self_attn.o_proj"
    assert {name.rpartition(".")[2] for name in added} == {"o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not any("head" in name or "norm" in name for name in model.base_model.targeted_module_names)


def test_a_merged_bias_speaks_like_the_adapter_and_is_taken_out_again_to_the_bit(tiny_model):
    model = attach(tiny_model, "bitfit")
    train(model)
    expected = logits_of(model)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits_of(model), expected)
    model.add_adapter("second", config_of("bitfit"))
    for layer in model.modules():
        if isinstance(layer, BitFitLayer):
            nn.init.constant_(layer.bitfit_delta["second"].bias, 0.1)
    model.merge_adapter(adapter_names=["default", "second"])
    bias = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.bias
    assert (logits_of(model) - expected).abs().max() > 0.1 and bias is not None
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(load_tiny(tiny_model).model))
    model.delete_adapter("second")
    merged = model.merge_and_unload()
    assert not any(isinstance(module, BitFitLayer) for module in merged.modules())
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "quantization", "reason"),
    [
        ("bitfit", "nf4", "quantized: open it unquantized"),
        ("bitfit", "int8", "quantized: open it unquantized"),
        ("houlsby", "none", "does not merge: it is not linear"),
    ],
)
def test_a_merge_that_would_not_be_exact_is_refused_and_changes_nothing(tiny_model, method, quantization, reason):
    set_seed(1)
    base = load_tiny(tiny_model, quantization).model
    # One layer was left in full, and comes first.
    base.set_submodule("model.layers.0.self_attn.q_proj", nn.Linear(H, H, bias=False))
    model = get_peft_model(base, config_of(method))
    train(model, steps=1)
    expected, number = logits_of(model), 4 if method == "houlsby" else 14
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=reason):
            merge()
        layers = [module for module in model.modules() if isinstance(module, BitFitLayer | BottleneckLinear)]
        assert len(layers) == number and not any(layer.merged for layer in layers)
    with pytest.raises(ValueError, match=reason):
        layers[-1].merge()
    assert torch.equal(logits_of(model), expected)


@pytest.mark.parametrize("config", [BitFitConfig(), BottleneckConfig(size=4)], ids=["bitfit", "bottleneck"])
def test_a_base_of_conv1d_layers_is_served_too(config):
    set_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2))
    model = get_peft_model(base, config)
    norms = 2 * 2 * 32 + 32
    expected = norms + 2 * (3 * 32 + 32 + 4 * 32 + 32) if isinstance(config, BitFitConfig) else 4 * (2 * 4 * 32 + 36)
    assert count_parameters(model).trainable == expected
    train(model)
    trained = logits_of(model)
    with model.disable_adapter():
        assert not torch.allclose(logits_of(model), trained, atol=1e-3)
    if isinstance(config, BitFitConfig):
        torch.testing.assert_close(logits_of(model.merge_and_unload()), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [BitFitConfig, BottleneckConfig])
def test_a_classifiers_fresh_head_is_trained_whole_and_saved_beside_the_adapter(tmp_path, config):
    set_seed(0)
    base = BertForSequenceClassification(small_bert(num_labels=3))
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, config(task_type="SEQ_CLS"))
    assert not any("classifier" in name for name in model.base_model.targeted_module_names)
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()(input_ids=TOKENS, labels=torch.tensor([0, 2])).loss.backward()
    torch.optim.SGD(parameters, lr=0.5).step()
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} <= saved.keys()
    again = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(logits_of(attach_saved_adapter(again, tmp_path / "adapter")), logits_of(model))


OLD_TORCHSCRIPT = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # DeBERTa's, at its import
# Adapters of each variant in the shortest model of a family.
PLACES = {
    "llama": (4, 2),
    "qwen3": (4, 2),
    "gemma2": (4, 2),
    "phi": (4, 2),
    "phi3": (4, 2),
    "gpt2": (4, 2),
    "gpt_neo": (4, 2),
    "gptj": (4, 2),
    "gpt_neox": (4, 2),
    "opt": (4, 2),
    "falcon": (4, 2),
    "bloom": (4, 2),
    "mpt": (4, 2),
    "starcoder2": (4, 2),
    "codegen": (4, 2),
    "bert": (4, 2),
    "roberta": (4, 2),
    "distilbert": (4, 2),
    "deberta": (4, 2),
    "deberta-v2": (4, 2),
    "electra": (4, 2),
    "mpnet": (4, 2),
    "modernbert": (4, 2),
    "albert": (2, 1),  # its layers are one
    "t5": (10, 4),  # with cross-attention, two layers on either side
    "bart": (10, 4),
}
NAMES_OF_LAYERS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)


def build_empty(family: str, **fields: int) -> nn.Module:
    """A model of two layers without memory for its weights."""
    config = AutoConfig.for_model(family, **fields)
    for name in NAMES_OF_LAYERS:
        if name in config.to_dict() or name in config.attribute_map:
            setattr(config, name, 2)
    if family == "gpt_neo":
        config.attention_types, config.attention_layers = [[["global"], 2]], ["global", "global"]
    with torch.device("meta"):
        return AutoModel.from_config(config)


@pytest.mark.parametrize("family", PLACES)
@OLD_TORCHSCRIPT
def test_bottlenecks_find_their_places_by_name(family):
    for variant, number in zip(("houlsby", "pfeiffer"), PLACES[family], strict=True):
        model = build_empty(family)
        features = model.get_input_embeddings().embedding_dim if family not in ("albert", "electra", "opt") else None
        with torch.device("meta"):
            adapted = get_peft_model(model, BottleneckConfig(size=4, variant=variant))
        layers = [module for module in adapted.modules() if isinstance(module, BottleneckLinear)]
        assert len(layers) == number
        sizes = {layer.bottleneck_up["default"].out_features for layer in layers}
        assert len(sizes) == 1 and (features is None or sizes == {features})


@OLD_TORCHSCRIPT
def test_bitfit_finds_a_norm_of_an_architectures_own_class():
    with torch.device("meta"):
        model = get_peft_model(build_empty("deberta"), BitFitConfig())
    assert type(model.base_model.model.embeddings.LayerNorm.base_layer).__name__ == "DebertaLayerNorm"
    assert find_added_biases(model) == [f"encoder.layer.{i}.attention.self.in_proj" for i in range(2)]


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize(("family", "fields"), [("mixtral", {}), ("deepseek_v3", {"first_k_dense_replace": 1})])
def test_a_mixture_of_experts_has_no_known_place_and_the_error_names_the_linear_layers(family, fields, variant):
    model = build_empty(family, **fields)
    with pytest.raises(ValueError, match="to end the feed-forward of every layer") as refusal:
        get_peft_model(model, BottleneckConfig(variant=variant))
    assert "name those in target_modules, out of" in str(refusal.value) and "o_proj" in str(refusal.value)


def test_a_model_without_known_attention_takes_pfeiffers_variant_alone():
    with pytest.raises(ValueError, match="to end the attention of every layer"):
        get_peft_model(build_empty("fnet"), BottleneckConfig())
    with torch.device("meta"):
        get_peft_model(build_empty("fnet"), BottleneckConfig(variant="pfeiffer"))


@pytest.mark.parametrize("method", ["bitfit", "houlsby"])
def test_targets_are_taken_at_their_word_and_found_again_beneath_a_first_adapter(tiny_model, method):
    by_default = 14 if method == "bitfit" else 4
    for targets, number in ((["q_proj"], 2), (r".*layers\.1\.mlp\..*_proj", 3), ("all-linear", 14), (None, by_default)):
        config = config_of(method)
        config.target_modules = targets
        model = get_peft_model(load_tiny(tiny_model).model, config)
        assert len(model.base_model.targeted_module_names) == number
        again = config_of(method)
        again.target_modules = targets
        model.add_adapter("second", again)
        assert len(model.base_model.targeted_module_names) == number
        assert set(again.target_modules) == set(config.target_modules)
    config = config_of(method)
    config.exclude_modules = ["down_proj"]
    model = get_peft_model(load_tiny(tiny_model).model, config)
    assert not any("down_proj" in name for name in model.base_model.targeted_module_names)


@pytest.mark.parametrize("method", ["bitfit", "houlsby"])
@pytest.mark.parametrize("target", ["norm", "embed_tokens"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_target_of_another_kind_is_refused_by_name(tiny_model, method, target):
    config = config_of(method)
    config.target_modules = [target]
    with pytest.raises(ValueError, match=f"`model.{target}` is a "):
        get_peft_model(load_tiny(tiny_model).model, config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size is 0, and a bottleneck has at least 1 feature"),
        ({"variant": "parallel"}, "there is no variant `parallel`; there are houlsby, pfeiffer"),
        ({"activation": "swish"}, "there is no activation `swish`; there are relu, gelu, silu, tanh"),
        ({"init_std": 0.0}, "init_std is 0.0, and from zero on both sides no adapter would learn"),
        ({"dropout": 1.0}, "dropout is 1.0, and what is dropped is a fraction"),
    ],
)
def test_a_value_that_makes_no_adapter_is_refused_in_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as refusal:
        BottleneckConfig(**fields)
    assert "\n" not in str(refusal.value)
