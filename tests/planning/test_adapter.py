"""What a recipe trains where that stands elsewhere: in an adapter's folder, or in the recipe that will make it."""

import json
import re
import struct

import pytest

from finetune.budget.architecture import build_architecture
from finetune.objectives import OBJECTIVES
from finetune.planning.adapter import find_adapter
from finetune.prepare import build_arguments
from finetune.recipe.reading import read_recipe
from finetune.recipe.row_kinds import KIND_OF_OBJECTIVE, SAMPLED

BASE = build_architecture({"model_type": "mistral"})
MAKER = """
name: maker
objective: sft
model: {model_name_or_path: mistralai/Mistral-7B-v0.1}
data: {train: {path: org/rows, format: alpaca}}
adapter: {method: lora, r: RANK}
"""


def write_follower(folder, start):
    path = folder / "follower.yaml"
    path.write_text(
        MAKER.replace("name: maker", "name: follower").replace("{method: lora, r: RANK}", f"{{init_from: {start}}}")
    )
    return path


@pytest.mark.parametrize(
    ("rank", "r", "note"), [("5", 5, "as .*maker.yaml will make it"), ("abc", 16, "taken as LoRA with r=16")]
)
def test_a_recipe_beside_it_makes_the_adapter_unless_it_has_a_fault(tmp_path, rank, r, note):
    (tmp_path / "maker.yaml").write_text(MAKER.replace("RANK", rank))
    path = write_follower(tmp_path, "outputs/maker")
    found = find_adapter(read_recipe(path), BASE, path)
    assert found.shape.r == r
    assert found.note is not None
    assert re.search(note, found.note)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_a_torn_file_leaves_the_estimate(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT"}))
    path = write_follower(tmp_path, tmp_path)
    estimated = find_adapter(read_recipe(path), BASE, path).shape.num_parameters
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    assert find_adapter(read_recipe(path), BASE, path).shape.num_parameters == estimated > 0
    header = json.dumps({"one": {"dtype": "F32", "shape": [3, 7], "data_offsets": [0, 84]}}).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert find_adapter(read_recipe(path), BASE, path).shape.num_parameters == 21


@pytest.mark.parametrize(
    ("objective", "settings", "has_copy"),
    [
        ("grpo", [], False),  # beta is 0 by the library's default
        ("grpo", ["training.beta=0.04"], True),
        ("rloo", [], True),
        ("rloo", ["training.beta=0"], False),
        ("dpo", [], True),
        ("dpo", ["training.precompute_ref_log_probs=true"], False),
        ("kto", [], True),
        ("kto", ["training.precompute_ref_log_probs=true"], False),
        ("orpo", [], False),
        ("sft", [], False),
    ],
)
def test_a_frozen_copy_lies_beside_where_the_run_compares_with_its_start(tmp_path, objective, settings, has_copy):
    path = write_follower(tmp_path, "outputs/maker")
    text = path.read_text().replace("objective: sft", f"objective: {objective}")
    if objective in SAMPLED:
        text += "rewards: [{function: exact_match}]\n"
    rows = "preference" if KIND_OF_OBJECTIVE[objective] in ("preference", "judged") else "alpaca"
    path.write_text(text.replace("alpaca", rows))
    recipe = read_recipe(path, settings)
    assert find_adapter(recipe, BASE, path).has_copy is has_copy
    assert OBJECTIVES[objective].reads_start(build_arguments(recipe)) is has_copy  # as the run itself asks
