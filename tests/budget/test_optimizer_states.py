"""What an optimizer keeps is counted as the optimizer itself holds it behind its first step."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from finetune.budget.optimizer_states import estimate_state_bytes, is_counted, is_in_pages

# Below and above the 4,096 numbers from which bitsandbytes takes 8 bits, and one more than a whole number of blocks.
SHAPES = [(16, 300), (7, 5), (300,), (70, 70), (4096,), (4097,)]
COUNTED = (
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit", "adagrad", "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "adafactor", "sgd",
)  # fmt: skip


def count_storages(state: object, seen: set[int]) -> int:
    if isinstance(state, torch.Tensor):
        address = state.untyped_storage().data_ptr()
        if address in seen:
            return 0
        seen.add(address)
        return state.nbytes
    inside = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(count_storages(one, seen) for one in inside)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")  # their states are those of the others
@pytest.mark.parametrize("name", COUNTED)
def test_the_states_are_counted_to_the_byte(name, tmp_path):
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES])
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True)
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer = optimizer_class(model.parameters(), **settings)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert estimate_state_bytes(name, SHAPES) == count_storages(dict(optimizer.state), set())
    assert is_counted(name)
    assert is_in_pages(name) == name.startswith("paged_")


def test_an_optimizer_without_a_rule_is_taken_as_adam_and_said_to_be():
    assert not is_counted("galore_adamw")
    assert estimate_state_bytes("galore_adamw", [(10, 10)]) == 800
