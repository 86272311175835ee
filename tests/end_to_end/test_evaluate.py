"""`finetune.evaluate` gives a finished run's own figures again, and those of other rows; the run stays as it is."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune import evaluate
from finetune.errors import CheckpointError, PlaceError, RecipeError
from finetune.evaluating.asking import FREE_SETTINGS, read_evaluated
from finetune.evaluating.figures import Evaluation, render_evaluation
from finetune.evaluating.measurement import evaluate as measure_result
from finetune.measuring import to_figures
from tests.end_to_end import small_classifiers
from tests.end_to_end.small_runs import ROOT, ROWS, TINY, build_values, hash_files, read_json, run_small, write_recipe

HELD_OUT = {"path": str(ROWS), "limit": 12}
PAIRS = {"path": str(ROOT / "data" / "tiny_world" / "preferences_test.jsonl"), "limit": 8}
TRAINED_PAIRS = {"path": str(ROOT / "data" / "tiny_world" / "preferences.jsonl"), "limit": 16}


def measure(run: Path | str, *overrides: str, **options: Any) -> Evaluation:
    asked = {name: options.pop(name) for name in ("rows", "recipe_path") if name in options}
    return measure_result(read_evaluated(str(run), overrides, **asked), **options)


def test_the_figures_of_a_runs_end_come_again_to_the_last_digit_and_the_run_stays_as_it_was(tmp_path, capsys):
    run = run_small(tmp_path, data__eval=HELD_OUT, evaluation__questions=HELD_OUT)
    before, summary = hash_files(run), read_json(run / "summary.json")
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        evaluate.main([str(run / "adapter"), "--base", "--json", "evaluation.num_samples=12"])
    assert left.value.code == 0
    found = json.loads(capsys.readouterr().out)
    for state, suffix in (("result", ""), ("base", "_before")):
        for name in ("eval_loss", "exact_match", "answer_tokens"):
            assert found[state][name] == summary[f"{name}{suffix}"], (state, name)
    assert (found["rows"], found["questions"], len(found["answers"])) == (12, 12, 12)
    assert hash_files(run) == before


def test_other_rows_take_the_place_of_the_held_out_ones_and_those_trained_on_need_not_be_there(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(json.loads(ROWS.read_text("utf-8"))[:60]), encoding="utf-8")
    run = run_small(tmp_path, data__train={"path": str(rows)})
    rows.unlink()
    with pytest.raises(RecipeError, match="held out no rows and asks no questions"):
        measure(run)
    found = measure(run, "data.eval.limit=7", rows=str(ROWS))
    others = measure(run, "data.eval.limit=9", "training.per_device_eval_batch_size=2", rows=str(ROWS))
    assert (found.num_rows, others.num_rows) == (7, 9)
    assert others.result.held_out["eval_loss"] != found.result.held_out["eval_loss"]
    assert "perplexity" in render_evaluation(found)


@pytest.mark.parametrize(
    ("settings", "rounding"),
    [
        ({"data__packing": True, "adapter__lora_dropout": 0.0}, 0.0),
        ({"adapter": {"method": "full"}, "model__quantization": "none"}, 2e-3),  # saved in 16 bits
        ({"adapter": {"method": "prompt_tuning", "num_virtual_tokens": 4}, "training__learning_rate": 0.5}, 0.0),
        ({"data__eval": {"fraction": 0.2}, "training__eval_steps": 1, "training__save_steps": 1,
          "training__learning_rate": 0.3, "training__max_steps": 6}, 0.0),
    ],
    ids=["packed", "the whole model", "learned prompt", "the best step"],
)  # fmt: skip
def test_whatever_was_trained_is_measured_as_it_was(tmp_path, settings, rounding):
    run = run_small(tmp_path, **{"data__eval": HELD_OUT} | settings)
    moved = run.rename(tmp_path / "moved")
    found, summary = measure(moved), read_json(moved / "summary.json")
    assert found.num_rows == 12
    assert abs(summary["eval_loss"] - summary["eval_loss_before"]) > 2 * rounding
    assert found.result.held_out["eval_loss"] == pytest.approx(summary["eval_loss"], abs=rounding, rel=0)


def test_preferences_are_compared_with_what_the_run_began_from(tmp_path):
    pairs = {"objective": "dpo", "data__train": TRAINED_PAIRS, "data__eval": PAIRS}
    first = run_small(tmp_path, name="first", adapter__lora_dropout=0.0, **pairs)
    goes_on = {"adapter": {"init_from": str(first)}, "training__precompute_ref_log_probs": True}
    second = run_small(tmp_path, name="second", **pairs, **goes_on)
    for run in (first, second):
        summary, figures = read_json(run / "summary.json"), to_figures(measure(run).result)
        for name in ("eval_loss", "preference_accuracy", "preference_margin"):
            assert figures[name] == pytest.approx(summary[name], abs=1e-5), (run.name, name)
    of_base = measure(second, with_base=True).base
    assert of_base is not None
    assert "eval_loss" not in to_figures(of_base)  # a loss without its reference would be that of equal models
    started = read_json(first / "summary.json")
    assert of_base.pairs.margin == pytest.approx(started["preference_margin_before"], abs=1e-5)
    first.rename(tmp_path / "gone")
    run_small(tmp_path, name="first", training__max_steps=2, adapter__lora_dropout=0.0, **pairs)
    with pytest.raises(CheckpointError, match="has changed since the run began from it"):
        measure(second)


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter": {"method": "full"}, "model__quantization": "none"},
        {"adapter": {"method": "lora", "r": 4, "init_lora_weights": False}},
        {"adapter": {"method": "ia3", "init_ia3_weights": False}},
        {"adapter": {"method": "lora", "r": 4, "bias": "lora_only"}},
    ],
    ids=["the base was trained", "a start of its own", "ia3's own start", "trained biases"],
)
def test_a_loss_whose_start_is_no_longer_there_is_left_out_with_a_word_and_the_pairs_are_told_apart(
    tmp_path, settings, caplog
):
    pairs = {"objective": "dpo", "data__train": TRAINED_PAIRS, "data__eval": PAIRS, "training__max_steps": 2}
    run = run_small(tmp_path, **pairs, training__precompute_ref_log_probs=True, **settings)
    figures, summary = to_figures(measure(run).result), read_json(run / "summary.json")
    assert "eval_loss" in summary
    assert "eval_loss" not in figures
    assert figures["preference_margin"] == pytest.approx(summary["preference_margin"], abs=2e-2)  # saved in 16 bits
    assert "compares with a start that is no longer there" in caplog.text


@pytest.mark.parametrize("start", ["gaussian", "pissa_niter_4"])
def test_a_loss_whose_start_was_the_base_comes_again(tmp_path, start):
    pairs = {"objective": "dpo", "data__train": TRAINED_PAIRS, "data__eval": PAIRS, "training__max_steps": 2}
    adapter = {"method": "lora", "r": 4, "init_lora_weights": start}
    run = run_small(tmp_path, **pairs, training__precompute_ref_log_probs=True, adapter=adapter)
    found = to_figures(measure(run).result)["eval_loss"]
    assert found == pytest.approx(read_json(run / "summary.json")["eval_loss"], abs=1e-4)


@pytest.mark.parametrize("objective", ["kto", "reward", pytest.param("orpo", marks=pytest.mark.slow)])
def test_the_other_preferences_come_again_too(tmp_path, objective):
    pairs = {"data__train": TRAINED_PAIRS, "data__eval": PAIRS, "adapter__lora_dropout": 0.0}
    run = run_small(tmp_path, objective=objective, **pairs)
    found = measure(run)
    assert found.result.held_out["eval_loss"] == pytest.approx(read_json(run / "summary.json")["eval_loss"], abs=1e-5)
    assert "held-out loss" in render_evaluation(found)
    assert "perplexity" not in render_evaluation(found)


def test_an_adapter_that_no_run_made_is_measured_by_a_recipe(tmp_path):
    base = {"model_name_or_path": str(TINY), "quantization": "none", "device": "cpu", "compute_dtype": "float32"}
    recipe = write_recipe(tmp_path / "recipe.yaml", build_values(tmp_path, model=base, data__eval=HELD_OUT))
    adapter = run_small(tmp_path, name="on_it", data__eval=HELD_OUT, training__max_steps=2, model=base)
    alone = shutil.copytree(adapter / "adapter", tmp_path / "alone")
    with pytest.raises(PlaceError, match="--recipe FILE"):
        measure(alone)
    found, summary = measure(alone, recipe_path=recipe), read_json(adapter / "summary.json")
    assert found.result.held_out["eval_loss"] == summary["eval_loss"]
    assert summary["eval_loss"] < 0.9 * summary["eval_loss_before"]


def test_rows_a_template_or_labels_that_are_no_longer_the_runs_are_refused(tmp_path, caplog):
    rows, template = tmp_path / "rows.json", tmp_path / "look.jinja"
    values = json.loads(ROWS.read_text("utf-8"))[:60]
    rows.write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "held_out.json").write_text(json.dumps(values[:5]), encoding="utf-8")
    by_fraction = run_small(tmp_path, data__train={"path": str(rows)}, data__eval={"fraction": 0.2})
    alpaca = (by_fraction / "adapter" / "chat_template.jinja").read_text("utf-8")
    template.write_text(alpaca, encoding="utf-8")
    by_file = run_small(
        tmp_path, name="file", data__template=str(template), data__train={"path": str(rows)},
        data__eval={"path": str(tmp_path / "held_out.json")},
    )  # fmt: skip
    rows.write_text(json.dumps([*values, values[0]]), encoding="utf-8")
    (tmp_path / "held_out.json").write_text(json.dumps(values[:6]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="was partly trained on"):
        measure(by_fraction)
    assert measure(by_fraction, rows=str(tmp_path / "held_out.json")).num_rows == 6
    measure(by_file)
    assert "no longer those of the run" in caplog.text
    template.write_text(alpaca.replace("Below", "Here"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="template's content is no longer"):
        measure(by_file)


def test_a_classifier_labels_rows_it_never_saw(tmp_path, encoder, reviews):
    rows = shutil.copy(reviews, tmp_path / "rows.jsonl")
    run = small_classifiers.run_small(tmp_path, encoder, data__train={"path": str(rows)}, data__eval={"fraction": 0.3})
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"text": f"a good film {place}"}) + "\n" for place in range(5)), "utf-8")
    found = measure(run, f"classification.predict.path={asked}", predictions_dir=tmp_path / "labels")
    assert found.result.held_out["eval_score"] == read_json(run / "summary.json")["score"]
    assert len((tmp_path / "labels" / "predictions.jsonl").read_text("utf-8").splitlines()) == 5
    with pytest.raises(PlaceError, match="is there already"):
        measure(run, f"classification.predict.path={asked}", predictions_dir=tmp_path / "labels")
    with pytest.raises(RecipeError, match="has a head that its base has not got"):
        measure(run, with_base=True)
    with pytest.raises(RecipeError, match="--predictions wants rows to label"):
        measure(run, predictions_dir=tmp_path / "other")
    rows.unlink()  # its labels are known by the result
    praised = small_classifiers.write_rows(tmp_path / "praised.jsonl", small_classifiers.build_reviews()[:3])
    assert measure(run, rows=praised).num_rows == 3


def test_what_would_measure_another_model_and_what_is_no_finished_run_is_refused(tmp_path):
    run = run_small(tmp_path, data__eval=HELD_OUT)
    for setting in ("adapter.r=4", "data.template=chatml", "model.quantization=none", "evaluations.metric=x"):
        with pytest.raises(RecipeError, match="is the run's own"):
            read_evaluated(str(run), [setting])
    with pytest.raises(RecipeError, match="no setting `num_sample`"):
        read_evaluated(str(run), ["evaluation.num_sample=3"])
    with pytest.raises(RecipeError, match="rows that this run was trained on"):
        read_evaluated(str(run), ["data.eval={fraction: 0.5}"])
    with pytest.raises(RecipeError, match="--predictions labels rows, and `objective: sft` labels none"):
        measure(run, predictions_dir=tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
    assert all(setting in inspect.getsource(evaluate) for setting in FREE_SETTINGS)
    (run / "adapter").rename(run / "elsewhere")
    with pytest.raises(PlaceError, match="unfinished run"):
        measure(run)
    with pytest.raises(PlaceError, match="holds no run"):
        read_evaluated(str(run / "elsewhere"))
    (run / "resolved.json").write_text("{", encoding="utf-8")
    with pytest.raises(PlaceError, match="is damaged"):
        read_evaluated(str(run))
