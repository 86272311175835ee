"""Methods that PEFT has not got, carried through whole runs: trained, resumed, compared with, opened again."""

import math

import pytest
from safetensors.torch import load_file

from finetune.errors import RecipeError
from finetune.model.loading import load_for_inference
from finetune.model.merging import merge_adapter
from finetune.model.scoring import load_scorer
from finetune.model.targets import find_target
from finetune.recipe.reading import build_recipe
from tests.end_to_end.small_runs import (
    ROOT,
    SHAPE,
    build_values,
    read_figures,
    read_json,
    read_lines,
    read_weights,
    run_small,
    stopped_at_evaluation,
)

HIDDEN, LAYERS = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
METHODS = {
    "bottleneck": {"method": "bottleneck", "size": 8},
    "pfeiffer": {"method": "bottleneck", "size": 8, "variant": "pfeiffer", "dropout": 0.1},
    "bitfit": {"method": "bitfit"},
    "hypernetwork": {"method": "hypernetwork", "size": 8, "task_embedding_size": 6, "projected_size": 16},
    "bottleneck+bitfit": {"method": "combined", "parts": [{"method": "bottleneck", "size": 8}, {"method": "bitfit"}]},
    "lora+tokens": {
        "method": "combined",
        "parts": [{"method": "lora", "r": 4}, {"method": "prompt_tuning", "num_virtual_tokens": 5}],
    },
}
# Of a layer: 2MD + D + M an adapter, two or one of them; a bias for q, k, v, o, gate, up and down.
COUNTS = {
    "bottleneck": LAYERS * 2 * (2 * 8 * HIDDEN + HIDDEN + 8),
    "pfeiffer": LAYERS * (2 * 8 * HIDDEN + HIDDEN + 8),
    "bitfit": LAYERS * (64 + 32 + 32 + 64 + 128 + 128 + 64),
    # Embeddings of a task, of the layers and of two places; a projector of 128 hidden features, its norm; generators.
    "hypernetwork": 6 * (1 + LAYERS + 2) + 129 * 18 + 128 + 16 * 129 - 18 + 2 * 16 + 16 * (2 * 8 * HIDDEN + HIDDEN + 8),
    # Four numbers for each input and output of q, k, v, o, gate, up and down; five vectors.
    "lora+tokens": LAYERS * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192) + 5 * HIDDEN,
}
COUNTS["bottleneck+bitfit"] = COUNTS["bottleneck"] + COUNTS["bitfit"]
# Drawn at random, virtual tokens start nowhere near the base.
NEAR_THE_BASE = [name for name in METHODS if name != "lora+tokens"]


def combine(*parts):
    return {"method": "combined", "parts": [*parts, {"method": "bitfit"}]}


PAIRS = {"path": str(ROOT / "data" / "tiny_world" / "preferences.jsonl"), "limit": 24}
QUESTIONS = {"path": str(ROOT / "data" / "tiny_world" / "test.json"), "limit": 3}
EVERY_TWO = {"data__eval": {"fraction": 0.1}, "training__eval_steps": 2, "training__save_steps": 2}


# Each is part of another one, or the same code.
LASTING = {"pfeiffer", "bitfit", "bottleneck+bitfit", "lora+tokens", "hypernetwork"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LASTING else []) for name in METHODS]
)
def test_a_run_lowers_the_held_out_loss_and_resumes_as_if_never_stopped(tmp_path, name):
    settings = {"adapter": METHODS[name], **EVERY_TWO, "training__learning_rate": 3e-2}
    whole = run_small(tmp_path, name="whole", **settings)
    summary = read_json(whole / "summary.json")
    assert summary["trainable_parameters"] == COUNTS[name]
    assert summary["eval_loss"] < summary["eval_loss_before"]
    with stopped_at_evaluation(2):
        run_small(tmp_path, name="stopped", **settings)
    stopped = run_small(tmp_path, name="stopped", resume=True, **settings)
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)


@pytest.mark.parametrize("name", METHODS)
def test_what_was_trained_is_opened_again_and_switched_off(tmp_path, name):
    run = run_small(tmp_path, adapter=METHODS[name], evaluation__max_new_tokens=3)
    assert read_json(run / "adapter" / "adapter_config.json")["peft_type"] == METHODS[name]["method"].upper()
    speaker = load_for_inference(str(run), device="cpu")
    assert METHODS[name]["method"] in speaker.description
    ids = speaker.tokenizer("What is the colour of a lemon?", return_tensors="pt").input_ids
    base = load_for_inference(str(run), base_only=True, device="cpu")
    on, bare = speaker.model(input_ids=ids).logits, base.model(input_ids=ids).logits
    assert not on.equal(bare)
    with speaker.model.disable_adapter():
        assert speaker.model(input_ids=ids).logits.equal(bare)


@pytest.mark.parametrize("name", NEAR_THE_BASE)
def test_preferences_start_at_ln_2_against_the_model_without_it(tmp_path, name):
    adapter = METHODS[name] | ({"dropout": 0.0} if "dropout" in METHODS[name] else {})
    settings = {"objective": "dpo", "data__train": PAIRS, "adapter": adapter, "training__max_steps": 2}
    run = run_small(tmp_path, **settings)
    first = next(line["loss"] for line in read_lines(run) if "loss" in line)
    # BitFit starts at the identity, the others near it.
    assert first == pytest.approx(math.log(2), abs=1e-5 if name == "bitfit" else 1e-3)


def test_biases_that_a_base_has_no_place_for_are_not_merged_into_it(tmp_path):
    speaker = load_for_inference(str(run_small(tmp_path, adapter=METHODS["bitfit"])), device="cpu")
    with pytest.raises(RecipeError, match="BitFit has given 14 layers a bias"):
        merge_adapter(speaker, speaker.base.compute_dtype)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bottleneck", "method bottleneck cannot be merged: it puts a function"),
        ("hypernetwork", "method hypernetwork cannot be merged: it puts functions"),
        ("bottleneck+bitfit", "method combined cannot be merged: its parts stand one around the other"),
    ],
)
def test_what_is_no_change_of_weights_is_not_merged(tmp_path, name, told):
    from finetune.model.merging import check_mergeable

    target = find_target(str(run_small(tmp_path, adapter=METHODS[name])), device="cpu")
    with pytest.raises(RecipeError, match=told) as error:
        check_mergeable(target)
    assert "Serve it with this package" in str(error.value)


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"method": "bottleneck", "size": 0}, "`adapter.size` is 0; it must be at least 1."),
        ({"method": "bottleneck", "variant": "parallel"}, "houlsby"),
        ({"method": "bottleneck", "r": 8}, "`adapter` has no setting `r`"),
        ({"method": "bitfits"}, "bitfit"),
        ({"method": "hypernetwork", "num_tasks": 2}, "`adapter.num_tasks` is 2; it must be at most 1."),
        ({"method": "combined", "parts": [{"method": "lora"}]}, "trains several methods together, and `parts` holds 1"),
        (combine({"method": "lora", "rr": 8}), "`adapter.parts[0]` has no setting `rr`."),
        (
            combine({"method": "lora", "size": 8}),
            "It is a setting of bottleneck, hypernetwork; the method here is lora.",
        ),
        (combine({"method": "bitfit"}), "`parts` holds bitfit twice"),
        (combine({"method": "full"}), "`adapter.parts[0].method` is full, which cannot be a part of a combination."),
        (combine({"method": "top_k"}), "`adapter.parts[0].method` is top_k, which cannot be a part"),
        (combine({"method": "combined"}), "`adapter.parts[0].method` is combined, which cannot be a part"),
        (combine({"method": "prefix_tuning"}), "`adapter.parts[0].method` is prefix_tuning, which cannot be a part"),
        (combine({"method": "lorra"}), "Did you mean `lora`?"),
        (combine({"r": 8}), "`adapter.parts[0].method` is missing."),
        (combine({"method": "loha"}), "`method: loha` cannot sit on a base in nf4"),
        (
            combine({"method": "p_tuning"}, {"method": "prompt_tuning"}),
            "`parts` holds prompt_tuning, p_tuning, which both put tokens in front of a row.",
        ),
        ({"method": "top_k", "layers": 0, "train_head": False}, "leave nothing to train"),
    ],
    ids=str,
)
def test_a_slip_is_answered_as_the_recipe_is_read(tmp_path, adapter, told):
    with pytest.raises(RecipeError) as error:
        build_recipe(build_values(tmp_path, adapter=adapter))
    assert told in str(error.value)


@pytest.mark.slow
def test_the_top_layers_resume_as_if_never_stopped_and_leave_a_whole_model(tmp_path):
    settings = {"adapter": {"method": "top_k", "layers": 1}, "model__quantization": "none", **EVERY_TWO}
    whole = run_small(tmp_path, name="whole", **settings)
    summary = read_json(whole / "summary.json")
    assert 0 < summary["trainable_parameters"] < summary["total_parameters"]
    assert summary["eval_loss"] < summary["eval_loss_before"]
    with stopped_at_evaluation(2):
        run_small(tmp_path, name="stopped", **settings)
    stopped = run_small(tmp_path, name="stopped", resume=True, **settings)
    assert read_figures(stopped) == read_figures(whole)
    weights = [load_file(run / "model" / "model.safetensors") for run in (whole, stopped)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert load_for_inference(str(whole), device="cpu").target.adapter_dir is None


def test_virtual_tokens_in_a_combination_want_rows_of_their_own_and_parts_that_leave_the_base(tmp_path):
    with pytest.raises(RecipeError, match=r"`method: prompt_tuning` cannot be trained on packed rows"):
        build_recipe(build_values(tmp_path, adapter=METHODS["lora+tokens"], data__packing=True))
    with pytest.raises(RecipeError, match="`init_lora_weights: pissa` takes its start out of the base"):
        run_small(tmp_path, adapter=combine({"method": "lora", "init_lora_weights": "pissa"}))


@pytest.mark.parametrize(
    "adapter", [*(METHODS[name] for name in NEAR_THE_BASE), {"method": "top_k", "layers": 1}], ids=str
)
def test_a_run_in_bfloat16_keeps_what_it_trains_in_float32_and_answers(tmp_path, adapter):
    settings = {"model__compute_dtype": "bfloat16", "training__gradient_checkpointing": True, "data__packing": True}
    if adapter["method"] == "top_k":
        settings["model__quantization"] = "none"
    run = run_small(tmp_path, adapter=adapter, evaluation__questions=QUESTIONS, **settings)
    assert all(math.isfinite(line["loss"]) for line in read_lines(run) if "loss" in line)
    assert "## Step 4" in (run / "samples.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("bottleneck", marks=pytest.mark.slow),
        "bitfit",
        pytest.param("hypernetwork", marks=pytest.mark.slow),
        pytest.param("bottleneck+bitfit", marks=pytest.mark.slow),
        "lora+tokens",
    ],
)
def test_one_that_was_trained_is_gone_on_with_under_its_own_name_against_a_frozen_copy(tmp_path, name):
    start = run_small(tmp_path, name="start", adapter=METHODS[name])
    settings = {"objective": "dpo", "data__train": PAIRS, "adapter": {"init_from": str(start)}}
    run = run_small(tmp_path, name="on", **settings, training__max_steps=2)
    first = next(line["loss"] for line in read_lines(run) if "loss" in line)
    assert first == pytest.approx(math.log(2), abs=1e-5)
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f"| method | {METHODS[name]['method']} |" in card
    assert "import finetune.model.own_methods" in card


@pytest.mark.parametrize("name", ["bottleneck", "bitfit", "hypernetwork", "bottleneck+bitfit"])
def test_a_reward_model_of_it_scores_again_as_it_was_trained_to(tmp_path, name):
    settings = {"objective": "reward", "data__train": PAIRS, "adapter": METHODS[name], "training__max_steps": 2}
    run = run_small(tmp_path, **settings)
    config = read_json(run / "adapter" / "adapter_config.json")
    assert not any("score" in part["target_modules"] for part in config.get("parts", [config]))
    scorer = load_scorer(str(run), device="cpu")
    assert math.isfinite(scorer.score([[1, 5, 6, 2]], batch_size=1)[0])
