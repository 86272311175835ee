"""Everything that is not the usual case runs PEFT's own forward, decided at each call; the usual one never does."""

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import nn

from tests.model.lean_layers import KINDS, build_model, make_lean, run

X = torch.linspace(-1, 1, 160).reshape(5, 32)
PEFT_LAYERS = {"nf4": lora.Linear4bit, "fp4": lora.Linear4bit, "int8": lora.Linear8bitLt, "full": lora.Linear}


@pytest.fixture
def pefts_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of PEFT's whose forward ran."""
    calls: list[str] = []
    for layer in set(PEFT_LAYERS.values()):
        monkeypatch.setattr(layer, "forward", noting(layer.forward, layer.__name__, calls))
    return calls


def noting(forward: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    def noted(self: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return forward(self, x, *args, **kwargs)

    return noted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_the_usual_case_runs_none_of_pefts(kind, training, pefts_calls):
    model = make_lean(build_model(kind)).train(training)
    run(model, X)
    with torch.no_grad():
        model.only(X)
    assert pefts_calls == []


def test_dropout_that_is_off_is_the_usual_case(pefts_calls):
    model = make_lean(build_model("nf4", lora_dropout=0.5)).eval()
    model.only(X)
    assert pefts_calls == []
    model.train()
    model.only(X)
    assert pefts_calls == ["Linear4bit"]


def add_second(model: nn.Module) -> None:
    model.only.update_layer("other", 2, lora_alpha=2, config=LoraConfig())
    nn.init.normal_(model.only.lora_B["other"].weight)
    model.only.set_adapter(["default", "other"])


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "switched off": lambda model: model.only.enable_adapters(False),
    "merged": lambda model: model.only.merge(),
    "two at once": add_second,
    "none of that name": lambda model: setattr(model.only, "_active_adapter", ["absent"]),
    "a hook on the base": lambda model: model.only.base_layer.register_forward_hook(lambda *_: None),
    "a hook on lora_A": lambda model: model.only.lora_A["default"].register_forward_pre_hook(lambda *_: None),
    "a forward put over the base's": lambda model: setattr(
        model.only.base_layer, "forward", model.only.base_layer.forward
    ),
    "another kind of lora_B": lambda model: setattr(
        model.only.lora_B, "default", type("Other", (nn.Linear,), {})(4, 24, bias=False)
    ),
    "a trained base": lambda model: model.only.base_layer.bias.requires_grad_(),
    "an adapter in another dtype": lambda model: model.only.lora_A.double() and model.only.lora_B.double(),
}


@pytest.mark.filterwarnings("ignore:Merge lora module")
@pytest.mark.parametrize("kind", ["nf4", "full"])
@pytest.mark.parametrize("change", CHANGES)
def test_any_other_case_is_pefts(kind, change, pefts_calls):
    theirs = build_model(kind, bias=True)
    ours = make_lean(theirs)
    outs = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        CHANGES[change](model)
        outs.append(model.only(X))
    assert pefts_calls == [PEFT_LAYERS[kind].__name__] * 2
    assert torch.equal(*outs)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}], ids=str)
def test_other_kinds_of_lora_are_pefts(config, pefts_calls):
    ours = make_lean(build_model("nf4", bias=True, **config))
    ours.only(X)
    assert pefts_calls == ["Linear4bit"]


def test_names_of_adapters_for_each_row_are_pefts(pefts_calls):
    model = make_lean(build_model("nf4")).eval()
    model.only(X, adapter_names=["default"] * 4 + ["__base__"])
    assert pefts_calls == ["Linear4bit"]


def test_an_input_in_float32_of_a_base_that_computes_in_bfloat16_is_pefts_without_autocast(pefts_calls):
    model = make_lean(build_model("nf4", dtype=torch.bfloat16))
    model.only(X)
    assert pefts_calls == ["Linear4bit"]
    with torch.autocast("cpu", torch.bfloat16):
        model.only(X)
    assert pefts_calls == ["Linear4bit"]


def test_an_autocast_to_another_dtype_than_the_bases_is_pefts(pefts_calls):
    model = make_lean(build_model("nf4", dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.float16):
        model.only(X)
    assert pefts_calls == ["Linear4bit"]


def test_a_batch_without_rows_is_pefts(pefts_calls):
    model = make_lean(build_model("nf4"))
    assert model.only(X[:0]).shape == (0, 24)
    assert pefts_calls == ["Linear4bit"]


@pytest.mark.skipif(not bnb.functional.has_avx512bf16(), reason="weights are packed on a CPU with AVX512-BF16 alone")
def test_a_weight_that_bitsandbytes_has_packed_is_pefts(pefts_calls):
    model = make_lean(build_model("nf4", 128, 64))
    model.only.base_layer.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        model.only.eval().base_layer(torch.ones(1, 128))
    model.only(torch.ones(1, 128))
    assert pefts_calls == ["Linear4bit"]
