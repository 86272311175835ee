"""The plan: every shipped recipe has one, its exact figures are those of a real run, and it says what it stands on."""

import json
from pathlib import Path

import pytest

from finetune.budget.devices import DEVICES, find_device
from finetune.estimate import estimate_plan
from finetune.model.sizes import estimate_parameters
from finetune.objectives import OBJECTIVES
from finetune.planning.base import find_config
from finetune.planning.console import render_verdict
from finetune.planning.machine import find_cpu, with_measured_speed
from finetune.recipe.reading import read_recipe
from tests.end_to_end.small_runs import read_json, run_small

RECIPES = sorted(path for path in (Path(__file__).parents[1] / "recipes").glob("*.yaml") if "compare" not in path.stem)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(RECIPES[0].parents[1])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_has_a_plan(path):
    recipe = read_recipe(path)
    plan = estimate_plan(recipe, recipe_path=path)
    parts = plan.chosen.memory
    assert plan.chosen.fits
    assert sum(parts.to_json().values()) == parts.peak_bytes
    assert [one.device for one in plan.others] == list(DEVICES)
    assert plan.schedule.steps > 0
    assert plan.trainable_parameters > 0
    if recipe.objective in ("rloo", "grpo"):
        assert plan.chosen.seconds is None
        assert any("sampling the answers" in one for one in plan.not_planned)
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_trains_as_many_numbers_as_its_model_laid_out_without_memory(path):
    recipe = read_recipe(path)
    head = OBJECTIVES[recipe.objective].head
    if recipe.adapter.init_from is not None or head in ("labels", "score"):
        pytest.skip("the adapter is not there yet, or a head whose width the model's config does not tell")
    plan = estimate_plan(recipe, recipe_path=path)
    fields = dict(find_config(recipe.model).fields)
    laid_out = recipe.model.model_copy(update={"weights": "random", "config": fields})
    count = estimate_parameters(laid_out, recipe.adapter, head=head)
    assert (plan.trainable_parameters, plan.total_parameters) == (count.trainable, count.total)


def test_a_t4_trains_what_it_is_said_to_and_a_larger_batch_is_answered_with_ways_out():
    recipe = read_recipe(RECIPES[0].with_name("mistral_alpaca.yaml"), ["training.per_device_train_batch_size=16"])
    plan = estimate_plan(recipe, device=find_device("t4"))
    first, second, *ways = render_verdict(plan, recipe).splitlines()
    assert first == (
        f"This recipe needs about {plan.chosen.memory.peak_bytes / 2**30:.1f} GiB and T4 16 GB has 14.6 GiB."
    )
    assert second.startswith("  Most of it is activations: ")
    assert ways[0].startswith(
        "  With training.per_device_train_batch_size=8 training.gradient_accumulation_steps=8 (64 rows a step as before"
    )
    for change in plan.changes:
        assert change.peak_bytes <= find_device("t4").memory_bytes
        again = read_recipe(RECIPES[0].with_name("mistral_alpaca.yaml"), change.to_arguments().split())
        rows = recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps
        if "data.max_length" not in change.settings:
            assert again.training.per_device_train_batch_size * again.training.gradient_accumulation_steps == rows


def test_idle_memory_is_spent_on_layers_as_far_as_the_device_has_any():
    recipe = read_recipe(RECIPES[0].with_name("mistral_alpaca.yaml"))
    recomputed = {one.device.name: one.spending.num_recomputed for one in estimate_plan(recipe).others}
    assert recomputed["t4"] > recomputed["l4"] > recomputed["h200"] == 0
    everything = recipe.model_copy(update={"training": recipe.training.model_copy(update={"memory": "recompute_all"})})
    plan = estimate_plan(everything, device=find_device("h200"))
    assert plan.chosen.spending.num_recomputed == 32
    assert plan.chosen.memory.activations < estimate_plan(recipe, device=find_device("h200")).chosen.memory.activations


@pytest.mark.usefixtures("tiny_base")
def test_a_run_opens_with_its_plan_and_ends_with_what_it_came_to(tmp_path, caplog):
    caplog.set_level("INFO", logger="finetune")
    folder = run_small(tmp_path, training__save_steps=10, training__max_steps=10)
    plan, summary = read_json(folder / "plan.json"), read_json(folder / "summary.json")
    assert plan["device"] == "cpu"
    assert plan["rows_from"] == "this run's own rows"
    assert plan["steps"] == summary["steps"] == 10
    # To the byte: numbers trained, the adapter's file, the checkpoint's tensors.
    assert plan["trainable_parameters"] == summary["trainable_parameters"]
    assert plan["total_parameters"] == summary["total_parameters"]
    assert plan["adapter_bytes"] == summary["adapter_bytes"]
    checkpoint = folder / "checkpoints" / "checkpoint-10"
    assert plan["checkpoint_bytes"] == sum(
        count_tensor_bytes(checkpoint / name) for name in ("adapter_model.safetensors", "optimizer.safetensors")
    )
    assert summary["predicted"]["peak_memory_bytes"] == plan["peak_memory_bytes"]
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "Plan: 10 steps, " in said
    assert "\npredicted      peak " in said
    # The next plan of such work knows how fast this CPU was.
    kind = "mistral 64x2 sft"
    assert with_measured_speed(find_cpu(), "another").flops_per_second is None
    assert f"measured by the run {folder.name}" in with_measured_speed(find_cpu(), kind).assumptions[0]


def count_tensor_bytes(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
