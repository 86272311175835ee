"""What every shipped recipe's plan gives to the byte, held against its model laid out without memory.

Base, adapter and what is trained are as transformers and PEFT build them; an adapter's file is one that safetensors
writes, and a matrix in 4 bits is one that bitsandbytes has quantized, each shape once.
"""

import logging
import math
from functools import cache
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save
from torch import nn

from finetune.budget.optimizer_states import estimate_state_bytes
from finetune.model.adapters import attach_adapter, count_parameters
from finetune.model.base import BaseModel
from finetune.planning.base import find_config
from finetune.planning.device_rules import find_compute_bytes
from finetune.planning.estimate import estimate_plan
from finetune.planning.schedule import find_setting
from finetune.recipe.heads import HEAD_OF_OBJECTIVE
from finetune.recipe.places import is_local
from finetune.recipe.reading import read_recipe
from finetune.recipe.schema import Recipe
from tests.budget.real_models import build_base, count_held

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if "compare" not in path.stem)
SMALL = ("classify_own", "quickstart", "quickstart_classify", "quickstart_dpo", "quickstart_reward", "tiny_full")
NUM_LABELS = 3


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "path",
    [path if path.stem in SMALL else pytest.param(path, marks=pytest.mark.slow) for path in RECIPES],
    ids=lambda path: path.stem,
)
def test_a_shipped_recipe_is_planned_to_the_byte(path):
    recipe = read_recipe(path)
    num_outputs = NUM_LABELS if recipe.objective == "classify" else 1
    plan = estimate_plan(recipe, recipe_path=path, num_outputs=num_outputs, compares_devices=False)
    parts = plan.chosen.memory
    head = HEAD_OF_OBJECTIVE[recipe.objective]
    base = build_base(find_config(recipe.model).fields, head=head, num_outputs=num_outputs)
    num_base = count_parameters(base.model).total
    compute_bytes = find_compute_bytes(recipe, plan.chosen.device)
    base_bytes = weigh_base(base, recipe, compute_bytes)
    maker = recipe if recipe.adapter.init_from is None else read_recipe(find_maker(recipe))
    model = attach_adapter(base, maker.adapter, seed=0)

    trained = [tuple(one.shape) for one in model.parameters() if one.requires_grad]
    num_trained = sum(map(math.prod, trained))
    is_whole = maker.adapter.method == "full"
    assert plan.trainable_parameters == num_trained
    assert plan.total_parameters == num_base + (0 if is_whole else num_trained)
    assert parts.weights - plan.chosen.spending.resident_bytes == (4 * num_trained if is_whole else base_bytes)
    assert parts.adapter == (0 if is_whole else 4 * num_trained * (2 if has_copy(recipe) else 1))
    assert parts.gradients == 4 * num_trained
    states_bytes = estimate_state_bytes(str(find_setting(recipe, "optim")), trained)
    assert parts.optimizer == states_bytes
    assert plan.checkpoint_bytes == 4 * num_trained + states_bytes
    if not is_whole:
        assert plan.adapter_bytes == count_file(model, names_base=is_local(str(recipe.model.model_name_or_path)))


def find_maker(recipe: Recipe) -> Path:
    """The recipe of the run that an adapter comes from."""
    return ROOT / "recipes" / f"{Path(str(recipe.adapter.init_from)).name}.yaml"


def has_copy(recipe: Recipe) -> bool:
    """Whether a frozen copy of the adapter that it goes on with lies beside it; no shipped recipe sets `beta` to 0."""
    reads_start = recipe.objective in ("dpo", "kto", "rloo") and not find_setting(recipe, "precompute_ref_log_probs")
    return recipe.adapter.init_from is not None and reads_start


def count_file(model: nn.Module, *, names_base: bool) -> int:
    """Bytes of the file that the adapter is saved to; beside a base in a folder it notes a hash of 64 characters."""
    tensors = {name: torch.zeros(one.shape) for name, one in get_peft_model_state_dict(model).items()}
    noted = {"finetune_base": "0" * 64} if names_base else {}
    return len(save(tensors, metadata={**noted, "format": "pt"}))


def weigh_base(base: BaseModel, recipe: Recipe, compute_bytes: int) -> int:
    """Bytes of the base as it is held: 4 bits in its linear layers, but for the last one and a head's."""
    quantization, doubled = recipe.model.quantization, recipe.model.double_quantization
    held: dict[nn.Parameter, int] = {}  # each once, where two modules have it
    for name, module in base.model.named_modules():
        for parameter in module.parameters(recurse=False):
            held[parameter] = parameter.numel() * (4 if name == "score" else compute_bytes)
        is_last = module is base.model.get_output_embeddings() or name.split(".")[0] in ("classifier", "score")
        if quantization != "none" and type(module) is nn.Linear and not is_last:
            held[module.weight] = weigh_matrix(tuple(module.weight.shape), quantization, doubled)
    return sum(held.values())


@cache
def weigh_matrix(shape: tuple[int, int], quantization: str, doubled: bool) -> int:
    """Bytes of a matrix that bitsandbytes has taken to 4 bits."""
    weight = torch.zeros(shape, dtype=torch.bfloat16)
    held = bnb.nn.Params4bit(weight, requires_grad=False, quant_type=quantization, compress_statistics=doubled)
    module = nn.Module()
    module.register_parameter("weight", held.to("cpu"))
    return count_held(module)
