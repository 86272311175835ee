"""The plan: every shipped recipe has one, its exact figures are those of a real run, and it says what it stands on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.budget.devices import DEVICES, build_cpu, find_device
from finetune.errors import PlaceError, RecipeError
from finetune.planning import machine
from finetune.planning.console import print_plan, render_line, render_verdict
from finetune.planning.device_rules import find_attention, is_refused
from finetune.planning.estimate import estimate_plan
from finetune.planning.machine import find_cpu, with_measured_speed
from finetune.recipe.reading import read_recipe
from finetune.recipe.row_kinds import SAMPLED
from tests.end_to_end.small_runs import read_json, run_small

RECIPES = sorted(path for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if "compare" not in path.stem)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(RECIPES[0].parents[1])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_has_a_plan(path):
    recipe = read_recipe(path)
    plan = estimate_plan(recipe, recipe_path=path)
    parts = plan.chosen.memory
    smallest = next((one.device for one in plan.others if one.verdict == "fits"), None)
    if smallest is not None and plan.chosen.device in DEVICES and machine.find_gpu() is None:
        assert plan.chosen.device == smallest
    for one in plan.others:
        assert one.fits is (one.memory.peak_bytes <= one.device.memory_bytes and not is_refused(recipe, one.device))
        assert one.fits or one.cost is None
    assert sum(parts.to_json().values()) == parts.peak_bytes
    assert [one.device for one in plan.others] == list(DEVICES)
    assert plan.schedule.steps > 0
    assert plan.trainable_parameters > 0
    if recipe.objective in SAMPLED:
        assert plan.chosen.seconds is None
        assert any("sampling the answers" in one for one in plan.not_planned)
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()


def test_a_t4_trains_what_it_is_said_to_and_a_larger_batch_is_answered_with_ways_out():
    larger = "training.per_device_train_batch_size=16"
    recipe = read_recipe(RECIPES[0].with_name("mistral_alpaca.yaml"), [larger])
    plan = estimate_plan(recipe, device=find_device("t4"))
    first, second, *ways = render_verdict(plan, recipe).splitlines()
    assert first == (
        f"This recipe needs about {plan.chosen.memory.peak_bytes / 2**30:.1f} GiB and T4 16 GB has 14.6 GiB."
    )
    assert second.startswith("  Most of it is activations: ")
    assert ways[0].startswith(
        "  With training.per_device_train_batch_size=4 training.gradient_accumulation_steps=16 "
        "(64 packed rows a step as before) it needs "
    )
    for change in plan.changes:
        again = read_recipe(RECIPES[0].with_name("mistral_alpaca.yaml"), [larger, *change.to_arguments().split()])
        planned = estimate_plan(again, device=find_device("t4"))
        assert planned.chosen.verdict == "fits"
        assert planned.chosen.memory.peak_bytes == change.peak_bytes
        assert planned.schedule.rows_per_step == pytest.approx(plan.schedule.rows_per_step, rel=0.02)


def plan_with(memory_bytes: int, *overrides: str):
    """A plan of an L4 that has so much memory."""
    device = replace(find_device("l4"), memory_bytes=memory_bytes)
    return estimate_plan(read_changed("mistral_alpaca", *overrides), device=device, compares_devices=False)


@pytest.mark.parametrize(
    ("overrides", "margin"),
    [
        (("training.gradient_checkpointing=false",), 0.104),
        (("training.memory=recompute_none",), 0.104),
        (("training.memory=recompute_none", "adapter.use_dora=true"), 0.19),
    ],
)
def test_what_fits_by_less_than_the_plan_may_be_wrong_by_may_not_fit(overrides, margin):
    memory = plan_with(2**50, "training.memory=recompute_none", *overrides[1:]).chosen.memory
    wrong_by = margin * (memory.activations + memory.logits + memory.buffers)
    plans = [plan_with(int(memory.peak_bytes + extra), *overrides) for extra in (-1e6, 0.9 * wrong_by, 1.1 * wrong_by)]
    assert [plan.chosen.verdict for plan in plans] == ["does not fit", "may not fit", "fits"]
    assert [plan.to_json()["fits"] for plan in plans] == [False, True, True]
    said = [render_verdict(plan, read_changed("mistral_alpaca", *overrides)).splitlines()[0] for plan in plans]
    assert said[1].startswith("mistral_alpaca may not fit: it needs about ")
    assert said[2].startswith("mistral_alpaca fits: ")
    assert "may NOT fit" in render_line(plans[1])
    assert plans[1].changes
    assert not plans[2].changes


def test_what_is_said_of_a_shared_cpu_is_said_of_a_process_s_share():
    recipe, cpu = read_changed("mistral_alpaca"), build_cpu(2**40, has_bfloat16=True, flops_per_second=1e12, source="")
    plan = estimate_plan(recipe, device=cpu, num_processes=2, compares_devices=False)
    assert render_verdict(plan, recipe).endswith(", and a process's share of this CPU (1 of 2) has 512.0 GiB.")
    assert " GiB of 512.0 GiB on a process's share of this CPU (1 of 2)" in render_line(plan)


def test_five_hundredths_are_the_least_margin_and_changes_keep_it():
    small = ("training.per_device_train_batch_size=1", "data.max_length=256", "training.memory=recompute_all")
    peak_bytes = plan_with(2**50, *small).chosen.memory.peak_bytes
    verdicts = [plan_with(int(peak_bytes / share), *small).chosen.verdict for share in (0.94, 0.96)]
    assert verdicts == ["fits", "may not fit"]


def test_a_line_and_the_table_tell_layers_that_recompute_a_part_from_those_that_recompute_all(capsys):
    recipe = read_changed("mistral_alpaca")
    plan = estimate_plan(recipe, device=find_device("t4"))
    spending = plan.chosen.spending
    kinds = {
        "nothing": spending.num_kept,
        "their attention": spending.num_mlp_kept,
        "their MLP": spending.num_attention_kept,
        "all": spending.num_recomputed,
    }
    assert spending.num_partly_recomputed == kinds["their attention"] + kinds["their MLP"] > 0
    said = "recomputed of 32 layers: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    assert said in render_line(plan)
    print_plan(plan, recipe)
    printed = capsys.readouterr().out
    assert f" {spending.num_recomputed}/{spending.num_partly_recomputed}/{spending.num_kept} " in printed
    assert said in printed
    assert plan.to_json()["partly_recomputed_layers"] == spending.num_partly_recomputed


def test_prompts_that_pairs_share_are_said_to_be_left_out():
    said = {
        choice: any("both answers of a pair share" in one for one in estimate_plan(
            read_changed("mistral_dpo", f"data.share_prompts={choice}"), device=find_device("h200"),
            compares_devices=False,
        ).not_planned)
        for choice in ("auto", "never")
    }  # fmt: skip
    assert said == {"auto": True, "never": False}


def read_changed(name: str, *overrides: str):
    return read_recipe(RECIPES[0].with_name(f"{name}.yaml"), list(overrides))


def test_changes_together_are_no_further_than_they_must_and_those_that_the_reader_takes():
    recipe = read_changed("mistral_kto", "training.per_device_train_batch_size=48", "model.quantization=none")
    (change,) = estimate_plan(recipe, device=find_device("t4")).changes
    changed = ["training.per_device_train_batch_size=48", "model.quantization=none", *change.to_arguments().split()]
    again = read_changed("mistral_kto", *changed)
    assert again.training.per_device_train_batch_size >= 2  # kto compares the answers of a micro-batch
    assert set(change.settings) == {
        "training.per_device_train_batch_size", "training.gradient_accumulation_steps", "model.quantization",
    }  # fmt: skip


def test_a_whole_model_that_fits_nowhere_near_is_answered_with_an_adapter():
    recipe = read_changed("mistral_alpaca", "adapter={method: full}", "model.quantization=none")
    plan = estimate_plan(recipe, device=find_device("h100"), compares_devices=False)
    assert [change.settings["adapter.method"] for change in plan.changes] == ["lora"]
    nowhere = read_changed("mistral_alpaca", "model.model_name_or_path=meta-llama/Llama-2-70b-hf")
    told = estimate_plan(nowhere, device=find_device("t4"), compares_devices=False)
    assert "it fits on " in render_verdict(told, nowhere)


def test_what_the_run_would_refuse_does_not_fit():
    in_bfloat16 = read_changed("mistral_alpaca", "model.compute_dtype=bfloat16")
    with pytest.raises(PlaceError, match=r"`model.compute_dtype: bfloat16` needs compute capability 8.0; T4"):
        estimate_plan(in_bfloat16, device=find_device("t4"))
    by_flash = read_changed("mistral_alpaca", "model.attention=flash_attention_2")
    for recipe in (in_bfloat16, by_flash):
        fits = {one.device.name: one.fits for one in estimate_plan(recipe, device=find_device("h100")).others}
        assert (fits["t4"], fits["l4"]) == (False, True)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "is held in GPTQ"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "already held in nf4 without double quantization"),
    ],
)
def test_a_base_that_is_held_otherwise_already_has_no_plan(tmp_path, saved, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", "quantization_config": saved}))
    with pytest.raises(RecipeError, match=message):
        estimate_plan(read_changed("mistral_alpaca", f"model.model_name_or_path={tmp_path}"))


def test_a_plan_says_where_its_hours_are_a_lower_bound_or_not_known():
    short = read_changed("mistral_alpaca", "training.per_device_train_batch_size=1")
    plan = estimate_plan(short, device=find_device("h200"))
    assert any("hours are a lower bound" in one for one in plan.not_planned)
    assert "speed: the host keeps up" not in plan.assumptions
    long = estimate_plan(
        read_changed("mistral_alpaca", "training.per_device_train_batch_size=4"), device=find_device("h200")
    )
    assert "speed: the host keeps up" in long.assumptions
    assert not any("lower bound" in one for one in long.not_planned)
    plan = estimate_plan(read_changed("mistral_alpaca", "model.compute_dtype=float32"), device=find_device("h200"))
    assert plan.chosen.seconds is None
    assert any("the speed of float32" in one for one in plan.not_planned)


def test_a_gpu_that_is_not_in_the_table_is_said_to_be_planned_for_by_another(tmp_path, monkeypatch):
    folder = tmp_path / "0000:01:00.0"
    folder.mkdir()
    (folder / "information").write_text("Model: \t NVIDIA GeForce RTX 3090\n")
    monkeypatch.setattr(machine, "_DRIVER", tmp_path)
    plan = estimate_plan(read_changed("mistral_alpaca"))
    assert plan.estimates[0].startswith("this machine's NVIDIA GeForce RTX 3090 is not in the table")
    assert not estimate_plan(read_changed("mistral_alpaca"), device=find_device("t4")).estimates


def test_documents_are_attended_apart_only_by_models_whose_run_does_that():
    recipe = read_changed("mistral_alpaca")
    found = {kind: find_attention(recipe, kind, find_device("h200")) for kind in ("mistral", "gemma2")}
    assert found == {"mistral": "documents", "gemma2": "sdpa"}


def test_dora_is_timed_without_the_lean_path_that_does_not_serve_it():
    lora, dora = (
        estimate_plan(
            read_changed("mistral_alpaca", "training.gradient_checkpointing=false", f"adapter.use_dora={flag}"),
            device=find_device("h200"),
        ).work.moved_bytes
        for flag in ("false", "true")
    )
    assert dora / lora == pytest.approx(18.5 / 15.3)  # PEFT's own passes over memory against the lean ones


def test_idle_memory_is_spent_on_layers_as_far_as_the_device_has_any():
    recipe = read_changed("mistral_alpaca", "training.per_device_train_batch_size=16")
    recomputed = {one.device.name: one.spending.num_recomputed for one in estimate_plan(recipe).others}
    assert recomputed["l4"] > recomputed["a100-40gb"] > recomputed["h100"] > recomputed["h200"] == 0
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
    assert "\npredicted      peak of a step " in said
    # The next plan of such work knows how fast this CPU was.
    kind = "mistral 64x2 sft"
    assert with_measured_speed(find_cpu(), "another").flops_per_second is None
    assert f"measured by the run {folder.name}" in with_measured_speed(find_cpu(), kind).assumptions[0]


def count_tensor_bytes(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
