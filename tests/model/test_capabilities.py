"""The table of methods, tried out: each answer of `find_capabilities` on a tiny decoder and a tiny encoder.

Methods as a run attaches them, one step of training, saved and opened again; a `no` that is PEFT's own is tried too.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    set_seed,
)

from docs.make_method_table import PAGE, build_page, find_described
from finetune.errors import RecipeError
from finetune.model.adapters import attach_adapter, count_parameters
from finetune.model.base import BaseModel, load_base
from finetune.model.bitfit import find_added_biases
from finetune.model.capabilities import QUESTIONS, REQUIRED_FIELDS, find_capabilities
from finetune.model.heads import LabelSpace
from finetune.model.loading import attach_saved_adapter
from finetune.model.several import BASE, ModelSwitch
from finetune.recipe.json_schema import build_adapter_schema, find_methods
from finetune.recipe.own_methods import PART_METHODS, WHOLE_METHODS
from finetune.recipe.schema import AdapterSettings, ModelSettings

# PEFT says of BEFT and of norms that it has not seen such layers, and of BOFT that it would be faster on a GPU.
pytestmark = pytest.mark.filterwarnings(r"ignore::UserWarning:peft\.tuners\.")

TOKENS = torch.arange(4, 28).reshape(2, 12)
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 96, "initializer_range": 0.1}  # fmt: skip
# Where a method's own defaults are too large for layers of 16 to 64 features.
SMALL: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 16},
    "fourierft": {"n_frequency": 64},
    "miss": {"r": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "top_k": {"layers": 1},
    "vblora": {"vector_length": 16, "num_vectors": 8},
    "waveft": {"n_frequency": 64},
    "bottleneck": {"size": 4},
}
ON_AN_ENCODER = {"ln_tuning": {"target_modules": ["LayerNorm"]}}
METHODS = find_methods()
ADAPTERS = [method for method in METHODS if method not in WHOLE_METHODS]
KINDS = ("decoder", "encoder")


def asked(question: str, word: str = "yes", methods: list[str] = METHODS) -> list[str]:
    return [method for method in methods if getattr(find_capabilities(method), question).word == word]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("capabilities")
    set_seed(0)
    MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2)).save_pretrained(place / "decoder")
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertForSequenceClassification(BertConfig(**SIZES, **dropout, num_labels=3)).save_pretrained(place / "encoder")
    return {kind: place / kind for kind in KINDS}


@pytest.fixture(scope="module")
def load(folders) -> Callable[..., BaseModel]:
    """Load a base as a run does, once; each further call copies it, which takes a tenth of the time."""

    @cache
    def read(kind: str, quantization: str) -> BaseModel:
        settings = ModelSettings(
            model_name_or_path=str(folders[kind]), quantization=quantization, compute_dtype="float32", device="cpu"
        )
        if kind == "decoder":
            return load_base(settings)
        base = load_base(settings, head="labels", labels=LabelSpace(("a", "b", "c")))
        base.model.config.pad_token_id = 0
        return base

    def load(kind: str, quantization: str = "none") -> BaseModel:
        base = read(kind, quantization)
        return replace(base, model=copy.deepcopy(base.model))

    return load


def attach(base, method: str, **fields: object):
    small = REQUIRED_FIELDS.get(method, {}) | SMALL.get(method, {})
    if base.head == "labels":
        small |= ON_AN_ENCODER.get(method, {})
    return attach_adapter(base, AdapterSettings.model_validate({"method": method, **small, **fields}), seed=1)


@torch.no_grad()
def logits_of(model: nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS).logits.clone()


def find_gradients(model: nn.Module, kind: str) -> dict[str, torch.Tensor]:
    labels = TOKENS if kind == "decoder" else torch.tensor([0, 1])
    set_seed(2)  # of dropout, and of PVeRA's draws
    model.train()
    model.zero_grad()
    model(input_ids=TOKENS, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(model: nn.Module, kind: str) -> None:
    """Two steps: where one of two factors starts at zero, the other one moves with the second."""
    for _ in range(2):
        gradients = find_gradients(model, kind)
        with torch.no_grad():
            for name, gradient in gradients.items():
                model.get_parameter(name).sub_(0.5 * gradient)


def held_tensors(model: nn.Module, *, trainable: bool) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad is trainable}


def train_and_hold(load, method: str, kind: str, quantization: str = "none"):
    """A trained model, what the base said before, and the proof that the adapter alone has moved."""
    base = load(kind, quantization)
    of_base = logits_of(base.model)
    model = attach(base, method)
    frozen, trained = held_tensors(model, trainable=False), held_tensors(model, trainable=True)
    train(model, kind)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items()), "the base has moved"
    assert any(not torch.equal(now[name], before) for name, before in trained.items()), "the adapter has not"
    assert not torch.equal(logits_of(model), of_base)
    return model, of_base


def save_and_reopen(load, model: PeftModel, kind: str, folder: Path, quantization: str = "none") -> None:
    model.save_pretrained(folder, save_embedding_layers=False)
    opened = attach_saved_adapter(load(kind, quantization).model, folder)
    assert torch.equal(logits_of(opened), logits_of(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_trains_alone_saves_reopens_switches_off_lies_beside_others_and_merges(load, tmp_path, method, kind):
    able = find_capabilities(method)
    answer = able.decoder if kind == "decoder" else able.encoder
    if answer.word == "no":
        with pytest.raises(RecipeError):
            attach(load(kind), method)
        return
    model, of_base = train_and_hold(load, method, kind)
    trained = logits_of(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)

    if able.switching_off.why and kind == "encoder":
        with pytest.raises(UnboundLocalError), model.disable_adapter():
            pass
    else:
        with model.disable_adapter():
            assert torch.equal(logits_of(model), of_base)

    switch = ModelSwitch(load(kind).model)
    switch.attach("one", tmp_path)
    switch.attach("two", tmp_path)
    for name, expected in ((BASE, of_base), ("one", trained), (BASE, of_base), ("two", trained)):
        assert torch.equal(logits_of(switch.use(name)), expected), name

    if able.merging.why and able.merging.word == "yes" and find_added_biases(model):
        return  # it merges, and the export refuses it: the architecture would pass over the biases
    if able.merging.word == "no" or (able.merging.why and kind == "decoder"):
        with pytest.raises((AttributeError, NotImplementedError, ValueError)):
            model.merge_adapter()
    else:
        model.merge_adapter()
        assert torch.allclose(logits_of(model), trained, atol=1e-4)
        assert all(layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", asked("four_bit"))
def test_in_4_bits_the_adapter_trains_saves_and_reopens_and_the_codes_stay(load, tmp_path, method, kind):
    if getattr(find_capabilities(method), kind).word == "no":
        return
    model, of_base = train_and_hold(load, method, kind, "nf4")
    assert any(parameter.dtype == torch.uint8 for parameter in model.parameters())
    save_and_reopen(load, model, kind, tmp_path, "nf4")
    if kind == "decoder":
        with model.disable_adapter():
            assert torch.equal(logits_of(model), of_base)


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_gives_the_same_gradients_and_packed_documents_do_not_read_each_other(load, method):
    able = find_capabilities(method)
    model = attach(load("decoder"), method)
    plain = find_gradients(model, "decoder")
    if able.packing.word == "yes":
        apart = logits_of(model)
        places = torch.arange(12).repeat(2)[None]
        with torch.no_grad():
            packed = model(input_ids=TOKENS.reshape(1, -1), position_ids=places, use_cache=False).logits
        assert torch.allclose(packed.reshape(apart.shape), apart, atol=1e-5)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if able.checkpointing.word == "no":
        with pytest.raises(RuntimeError):
            find_gradients(model, "decoder")
        return
    twice = find_gradients(model, "decoder")
    assert twice.keys() == plain.keys()
    assert all(torch.allclose(twice[name], plain[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("method", asked("modules_to_save", methods=ADAPTERS))
def test_a_whole_module_is_trained_and_saved_beside_it(load, method):
    model = attach(load("decoder"), method, modules_to_save=["lm_head"])
    heads = [name for name, p in model.named_parameters() if "modules_to_save" in name and p.requires_grad]
    assert len(heads) == 1
    before = model.get_parameter(heads[0]).detach().clone()
    train(model, "decoder")
    saved = [t for name, t in get_peft_model_state_dict(model).items() if name.endswith("lm_head.weight")]
    assert len(saved) == 1
    assert not torch.equal(saved[0], before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", WHOLE_METHODS)
def test_a_whole_method_changes_the_base_and_leaves_a_model(load, tmp_path, method, kind):
    model, _ = train_and_hold(load, method, kind)
    model.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if kind == "decoder" else AutoModelForSequenceClassification
    opened = auto.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits_of(opened), logits_of(model))
    able = find_capabilities(method)
    no = ("four_bit", "merging", "switching_off", "several", "modules_to_save", "unsloth", "plain_peft")
    assert {question for question in QUESTIONS if getattr(able, question).word == "no"} == set(no)


# What docs/methods.md says of a layer with m outputs and n inputs, at r = 4: k_proj has 16 and 32.
M, N, R = 16, 32, 4
PARAMETERS = {
    "lora": R * (M + N),
    "adalora": 12 * (M + N + 1),  # init_r
    "hira": R * (M + N),
    "loha": 2 * R * (M + N),
    "miss": R * M,
    "delora": R * (M + N) + 1,
    "gralora": R * (M + N),
    "deft": R * (M + N),
    "peanut": 2 * R * M,
    "vera": M + R,
    "pvera": M + 2 * R,
    "oft": N // 8 * (8 * 7 // 2),
    "hra": R * N,
    "psoft": R * (R - 1) // 2 + 2 * R,
    "road": M,
    "shira": R * (M + N),
    "fourierft": 64,
    "waveft": 64,
    "c3a": M * N // 8,
    "ia3": M,
    "bitfit": M,
}
SETTINGS = {"oft": {"oft_block_size": 8}, "c3a": {"block_size": 8}, "ia3": {"feedforward_modules": []}, "adalora": {}}


@pytest.mark.parametrize("method", PARAMETERS)
def test_a_layer_has_as_many_parameters_as_the_page_says(load, method):
    has_rank = "r" in build_adapter_schema(method)["properties"] and method != "oft"
    fields = SETTINGS.get(method, {"r": R} if has_rank else {})
    model = attach(load("decoder"), method, target_modules=["layers.0.self_attn.k_proj"], **fields)
    assert count_parameters(model).trainable == PARAMETERS[method]


def test_what_serves_takes_lora_as_it_is_and_others_merged():
    assert asked("vllm", methods=ADAPTERS) == asked("ollama", methods=ADAPTERS) == ["lora"]
    assert set(asked("vllm", "merged")) == {*asked("merging")} - {"lora"}
    assert asked("unsloth") == ["lora"]


def test_a_combination_can_what_each_of_its_parts_can_and_says_which_cannot():
    able = find_capabilities("combined")
    for question in ("decoder", "encoder", "four_bit", "packing", "checkpointing", "unsloth"):
        of_parts = {part: getattr(find_capabilities(part), question).word for part in PART_METHODS}
        unable = [part for part, word in of_parts.items() if word == "no"]
        answer = getattr(able, question)
        if len(unable) == 0:
            assert (answer.word, answer.why) == ("yes", ""), question
        elif question != "unsloth":
            assert (answer.word, answer.why) == ("yes", f"where each part can: not with {' and '.join(unable)}")
    assert able.four_bit.why.endswith("not with loha and lokr")
    assert able.packing.why.endswith("not with prompt_tuning and p_tuning")
    assert able.unsloth.word == "no"


def test_every_no_has_its_reason_and_a_name_that_is_no_method_is_refused():
    for method in METHODS:
        able = find_capabilities(method)
        assert not [question for question in QUESTIONS if getattr(able, question).word == "no"
                    and not getattr(able, question).why]  # fmt: skip
    with pytest.raises(RecipeError, match="no adapter method `lora2`"):
        find_capabilities("lora2")


def test_the_page_holds_the_table_and_a_line_on_every_method():
    assert build_page() == PAGE.read_text(encoding="utf-8"), "run `make docs`"
    assert set(METHODS) <= find_described()
