"""What a layer keeps changes no bit of loss and gradient; what it costs is counted tensor by tensor."""

from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, MistralConfig, MistralForCausalLM, set_seed
from trl.models.utils import disable_gradient_checkpointing

from finetune.model.recomputation import Keeps, Recomputation, SavedBytes, find_layers
from tests.model.tiny_models import SHAPE

MIXED: list[Keeps] = ["nothing", "attention", "mlp", "all"]
CASES: list[list[Keeps]] = [["nothing"] * 4, ["attention"] * 4, ["mlp"] * 4, MIXED]
IDS = torch.arange(2 * 33).reshape(2, 33) % SHAPE["vocab_size"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Four layers with LoRA on every linear, and with dropout in it."""
    set_seed(0)
    fields = {name: value for name, value in SHAPE.items() if name != "model_type"} | {"num_hidden_layers": 4}
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2)
    peft_model = get_peft_model(MistralForCausalLM(MistralConfig(**fields)), lora)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return peft_model.train()


@pytest.fixture(scope="module")
def recomputation(model: nn.Module) -> Recomputation:
    return Recomputation(model)


def step(model: nn.Module, recomputation: Recomputation) -> tuple[float, Tensor, SavedBytes]:
    """Loss, gradients and saved bytes of a step in mixed precision."""
    model.zero_grad()
    torch.manual_seed(1)
    with recomputation.counting() as passes:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
    [saved] = passes
    gradients = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
    return loss.item(), torch.cat(gradients), saved


@pytest.fixture(scope="module")
def kept(model: nn.Module, recomputation: Recomputation) -> tuple[float, Tensor, SavedBytes]:
    """A step without any recomputation, by transformers' own switch."""
    model.gradient_checkpointing_disable()
    return step(model, recomputation)


@pytest.mark.parametrize("keeps", CASES, ids="-".join)
def test_no_bit_of_a_step_hangs_on_what_layers_keep(model, recomputation, kept, keeps: list[Keeps]) -> None:
    recomputation.follow(keeps)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, gradients, saved = step(model, recomputation)
    assert loss == kept[0]
    assert torch.equal(gradients, kept[1])
    assert saved.total < kept[2].total


@pytest.mark.parametrize("keeps", [["nothing"] * 4, ["nothing", "nothing", "all", "all"]], ids="-".join)
def test_in_the_reentrant_mode_neither_where_whole_layers_are_kept(model, recomputation, kept, keeps) -> None:
    recomputation.follow(keeps)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    loss, gradients, saved = step(model, recomputation)
    assert loss == kept[0]
    assert torch.equal(gradients, kept[1])
    assert [num_bytes > 0 for num_bytes in saved.layers] == [kind == "all" for kind in keeps]


def test_what_a_part_is_counted_to_cost_is_what_is_saved_without_it(model, recomputation, kept) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    recomputation.follow(MIXED)
    mixed, whole = step(model, recomputation)[2], kept[2]
    # The first layer saves the angles and the mask that all share; a part that is recomputed saves its input.
    assert mixed.layers[3] == whole.layers[3]
    assert mixed.layers[2] == whole.layers[2] - whole.attention[2] + whole.input_bytes
    assert mixed.layers[0] == 0
    assert abs(mixed.layers[1] - (whole.layers[1] - whole.mlp[1] + whole.input_bytes)) < 0.05 * whole.layers[1]
    assert whole.tokens == IDS.numel()
    assert whole.input_bytes == IDS.numel() * SHAPE["hidden_size"] * 4


def test_counted_are_the_tensors_that_the_backward_pass_of_a_linear_holds() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).relu().sum()

    decoder = Decoder()
    recomputation = Recomputation(decoder)
    assert recomputation.num_layers == 0
    with recomputation.counting() as passes:
        decoder(torch.ones(4, 8)).backward()
    # The input for the weight's gradient, and what relu gave: 4 rows of 8 float32 numbers each. The weight is none.
    assert [one.total for one in passes] == [2 * 4 * 8 * 4]


def test_whoever_switches_recomputation_on_again_recomputes_what_was_decided(model, recomputation) -> None:
    def count_recomputed() -> list[bool]:
        return [layer.gradient_checkpointing for layer in recomputation.layers]

    recomputation.follow(["nothing", "all", "nothing", "all"])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    step(model, recomputation)
    assert count_recomputed() == [True, False, True, False]
    with disable_gradient_checkpointing(model, {"use_reentrant": False}), torch.no_grad():  # as TRL's reference pass
        model(input_ids=IDS, use_cache=False)
        assert count_recomputed() == [False] * 4
    step(model, recomputation)
    assert count_recomputed() == [True, False, True, False]
    recomputation.follow(["nothing"] * 4)
    assert count_recomputed() == [True] * 4, "at once, for the step that is repeated"


def test_a_choice_of_layers_that_somebody_else_has_made_stays_until_another_one_is_made() -> None:
    fields = {name: value for name, value in SHAPE.items() if name != "model_type"} | {"num_hidden_layers": 4}
    model = MistralForCausalLM(MistralConfig(**fields)).train()
    recomputation = Recomputation(model)
    model.gradient_checkpointing_enable({"use_reentrant": False}, every_n_layers=2)
    model(input_ids=IDS, use_cache=False)
    assert [layer.gradient_checkpointing for layer in recomputation.layers] == [True, False, True, False]
    recomputation.follow(["nothing", "all", "all", "all"])
    model(input_ids=IDS, use_cache=False)
    assert [layer.gradient_checkpointing for layer in recomputation.layers] == [True, False, False, False]


def test_parts_are_put_back_and_an_evaluation_recomputes_none(model, recomputation) -> None:
    mlp = recomputation.layers[0].get_submodule("mlp")
    own = mlp.forward
    recomputation.follow(["attention"] * 4)
    assert mlp.forward != own
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with torch.no_grad():  # a warning of torch's if a checkpoint were made
        model(input_ids=IDS, use_cache=False)
    recomputation.follow(["all"] * 4)
    assert mlp.forward == own
    assert "forward" not in vars(mlp)


def find_kinds(model: nn.Module) -> Sequence[str]:
    return [type(layer).__name__ for _, layer in find_layers(model)]


def test_layers_of_an_encoder_are_found_too_and_of_no_layers_none() -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertForMaskedLM(BertConfig(**fields, vocab_size=20))
    assert find_kinds(encoder) == ["BertLayer"] * 3
    assert not Recomputation(encoder).has_parts
    assert find_kinds(nn.Sequential(nn.Linear(2, 2))) == []
