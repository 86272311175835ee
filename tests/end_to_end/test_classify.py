"""A classifier learns, its best step is the result, and a run that was stopped is the run that never was."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from finetune import export
from finetune.data.submission import check_submission
from finetune.errors import DataError, RecipeError
from finetune.model.loading import load_target
from finetune.model.quantization import build_bnb_config
from finetune.model.targets import find_target
from finetune.recipe.reading import build_recipe
from finetune.train import train
from tests.conftest import ROOT
from tests.end_to_end.small_classifiers import (
    DOCUMENTS,
    NUMBERS,
    PRAISE,
    build_reviews,
    build_sentences,
    learn,
    run_small,
    write_rows,
)
from tests.end_to_end.small_runs import (
    build_values,
    read_figures,
    read_json,
    read_lines,
    read_weights,
    stopped_at_evaluation,
)
from tests.end_to_end.test_processes import column, run_two

# ---- what is learned


@pytest.mark.parametrize("name", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_a_classifier_learns_which_word_decides(request, tmp_path, reviews, name):
    summary = learn(tmp_path, request.getfixturevalue(name), reviews)
    assert summary["metric"] == "accuracy"
    assert summary["eval_rows"] == 18
    assert summary["majority_score"] <= 0.6 < 0.9 < summary["score"] == summary["scores"]["accuracy"]
    assert summary["score_before"] < 0.8
    assert summary["eval_loss"] < summary["eval_loss_before"]


def test_a_pair_is_read_as_two_texts(tmp_path, encoder):
    words = [text for text, _ in build_sentences()][:24]
    rows = [{"text": text, "text_pair": word, "label": word} for text in words for word in ("good", "bad")]
    summary = learn(tmp_path, encoder, write_rows(tmp_path / "pairs.jsonl", rows))
    assert summary["score"] > 0.9
    assert summary["score"] > summary["majority_score"] + 0.3


@pytest.mark.parametrize("setting", ["data__eval", "classification__predict"])
@pytest.mark.parametrize("is_pair", [True, False], ids=["a model of pairs", "a model of single texts"])
def test_rows_that_are_not_of_the_kind_trained_on_are_refused(tmp_path, encoder, reviews, setting, is_pair):
    pairs = write_rows(tmp_path / "pairs.jsonl", [{**row, "text_pair": "good"} for row in build_reviews()])
    train, other = (pairs, reviews) if is_pair else (reviews, pairs)
    with pytest.raises(DataError) as told:
        run_small(tmp_path, encoder, **{"data__train": {"path": train}, setting: {"path": other}})
    has, trained = ("no", "one") if is_pair else ("a", "none")
    assert str(told.value).startswith(
        f"{other}: the rows have {has} `text_pair`, and those to train on have {trained}."
    )


def test_three_labels_are_told_apart_and_their_names_are_kept(tmp_path, encoder):
    of = {"good": "yes", "bad": "no", "old": "maybe"}
    rows = [{"text": text, "label": of[word]} for text, word in build_sentences() if word in of]
    labels = ["yes", "no", "maybe"]  # in an order of one's own, which no sorting gives
    summary = learn(
        tmp_path, encoder, write_rows(tmp_path / "rows.jsonl", rows), classification__labels=labels,
        classification__metric="macro_f1",
    )  # fmt: skip
    assert (summary["metric"], set(summary["scores"])) == ("macro_f1", {"accuracy", "macro_f1", "matthews_correlation"})
    assert summary["score"] > 0.9
    adapter = tmp_path / "small" / "adapter"
    config = read_json(adapter / "config.json")
    assert config["id2label"] == dict(zip("012", labels, strict=True))
    assert config["label2id"] == {label: place for place, label in enumerate(labels)}
    assert config["problem_type"] == "single_label_classification"
    assert "| labels | yes, no, maybe |" in (adapter / "README.md").read_text()


@pytest.mark.parametrize("name", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_a_number_is_learned_as_a_correlation(request, tmp_path, name):
    number_of = {word: number + 0.5 for number, word in enumerate(NUMBERS)}
    nouns = ["film", "play", "good film", "bad film", "old play", "new play", "dull film", "fine film"]
    rows = [{"text": f"the {noun} was {word}", "label": number_of[word]} for noun in nouns for word in NUMBERS]
    base, path = request.getfixturevalue(name), write_rows(tmp_path / "rows.jsonl", rows)
    summary = learn(tmp_path, base, path, steps=60, classification__problem_type="regression")
    assert (summary["metric"], set(summary["scores"])) == ("pearson", {"pearson", "spearmanr"})
    assert summary["score"] > max(0.8, summary["score_before"] + 0.3)
    assert "majority_score" not in summary or summary["majority_score"] is None
    config = read_json(tmp_path / "small" / "adapter" / "config.json")
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "LABEL_0"})


@pytest.mark.slow
def test_few_shots_are_so_many_rows_of_each_label(tmp_path, encoder, reviews):
    run = run_small(tmp_path, encoder, data__train={"path": reviews}, classification__shots=4)
    report = read_json(run / "data_report.json")["train"]
    assert (report["census"]["rows"], report["labels"]) == (8, {"blame": 4, "praise": 4})
    with pytest.raises(DataError, match=r"`blame` has 36 rows, and `classification.shots` asks for 37 of each"):
        run_small(tmp_path / "more", encoder, data__train={"path": reviews}, classification__shots=37)


def test_the_weights_of_the_best_step_are_the_result(tmp_path, encoder, reviews):
    # A rate that rises all the time: at first it teaches, and then it destroys.
    worsening = {"training__learning_rate": 1.0, "training__warmup_steps": 100, "training__max_steps": 18}
    worsening |= {"training__lr_scheduler_type": "constant_with_warmup", "training__eval_steps": 3}
    worsening |= {"data__train": {"path": reviews}, "data__eval": {"fraction": 0.25}}
    run = run_small(tmp_path, encoder, **worsening)
    summary = read_json(run / "summary.json")
    score_at = {line["step"]: line["eval_score"] for line in read_lines(run) if line["step"] and "eval_score" in line}
    loss_at = {line["step"]: line["eval_loss"] for line in read_lines(run) if "eval_loss" in line}
    best = max(score_at, key=lambda step: score_at[step])
    assert summary["best_step"] == best < max(score_at)
    assert summary["score"] == score_at[best] > score_at[max(score_at)]
    assert summary["eval_loss"] == pytest.approx(loss_at[best], abs=1e-6)


def test_the_held_out_loss_is_that_of_the_labels_whatever_the_smoothing(tmp_path, encoder, reviews):
    run = run_small(
        tmp_path, encoder, data__train={"path": reviews}, data__eval={"fraction": 0.25},
        training__label_smoothing_factor=0.4, training__eval_steps=3,
    )  # fmt: skip
    summary = read_json(run / "summary.json")
    assert read_lines(run)[-1]["eval_loss"] == pytest.approx(summary["eval_loss"], abs=1e-6)


# ---- stopped and taken up again


@pytest.mark.parametrize("objective", ["classify", pytest.param("mlm", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(tmp_path, encoder, reviews, objective):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text, _ in build_sentences()])
    rows, own = (reviews, {}) if objective == "classify" else (texts, DOCUMENTS)
    # Seven steps an epoch: the stop comes in the middle of the second one.
    settings = {"data__train": {"path": rows}, "data__eval": {"fraction": 0.25}, **own}
    settings |= {"training__max_steps": 16, "training__eval_steps": 9, "training__learning_rate": 2e-3}
    whole = run_small(tmp_path / "whole", encoder, **settings)
    with stopped_at_evaluation(9):
        run_small(tmp_path / "stopped", encoder, **settings)
    stopped = run_small(tmp_path / "stopped", encoder, **settings, resume=True)
    assert read_json(stopped / "summary.json")["resumed_from"] == [9]
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)
    losses = [line["loss"] for line in read_lines(whole) if "loss" in line]
    assert len(set(losses)) == len(losses) == 16


def test_masked_tokens_are_restored_better_and_the_adapter_is_opened_as_its_card_says(tmp_path, encoder):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text, _ in build_sentences()])
    run = run_small(
        tmp_path, encoder, **DOCUMENTS, data__train={"path": texts}, data__eval={"fraction": 0.25},
        training__max_steps=40, training__eval_steps=20,
    )  # fmt: skip
    summary = read_json(run / "summary.json")
    assert summary["eval_loss"] < 0.8 * summary["eval_loss_before"]
    assert summary["eval_loss_before"] == read_lines(run)[0]["eval_loss"]
    speaker = load_target(find_target(str(run), device="cpu"), talks=False)
    names: dict[str, Any] = {}
    code = (run / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("path/to/this/folder", str(run / "adapter")), names)
    batch = names["tokenizer"](["the film was [MASK]", "[MASK] play"], padding=True, return_tensors="pt")
    with torch.no_grad():
        ours, card = speaker.model(**batch).logits, names["model"].eval()(**batch).logits
    assert ours.shape == (2, 6, len(names["tokenizer"]))
    assert (ours - card).abs().max() < 1e-5


# ---- GLUE


LABELS = ("entailment", "neutral", "contradiction")


def write_mnli(folder: Path) -> Path:
    """Write MNLI's files: a hypothesis is entailed where the word is the same, contradicted where another kind is."""
    pairs = [
        (text, f"it is {other}", LABELS[0 if other == word else 1 if (other in PRAISE) == (word in PRAISE) else 2])
        for text, word in build_sentences()
        for other in ("good", "bad", "fine")
    ]

    def write(path: Path, rows: list, columns: tuple[str, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [columns, *[(str(number), *row[: len(columns) - 1]) for number, row in enumerate(rows)]]
        path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")

    labelled, unlabelled = ("index", "sentence1", "sentence2", "gold_label"), ("index", "sentence1", "sentence2")
    write(folder / "MNLI" / "train.tsv", pairs[:120], labelled)
    for part, rows in {"matched": pairs[120:150], "mismatched": pairs[150:190]}.items():
        write(folder / "MNLI" / f"dev_{part}.tsv", rows, labelled)
        write(folder / "MNLI" / f"test_{part}.tsv", rows[:7] if part == "matched" else rows[:9], unlabelled)
    write(folder / "diagnostic" / "diagnostic.tsv", pairs[200:205], unlabelled)
    return folder


@pytest.mark.slow
def test_both_parts_of_mnli_are_scored_and_answered_and_ax_by_the_same_model(tmp_path, encoder):
    glue = str(write_mnli(tmp_path / "glue"))
    mine = tmp_path / "mine.csv"
    mine.write_text("premise,hypothesis\nthe film was good,it is good\na play is bad,it is fine\n", encoding="utf-8")
    settings = {"data__train": {"path": glue}, "classification__task": "mnli", "training__eval_steps": 2}
    asked = [{"path": glue}, {"path": glue, "subset": "ax"}, {"path": str(mine)}]
    run = run_small(tmp_path, encoder, **settings, classification__predict=asked)
    summary = read_json(run / "summary.json")
    assert (summary["metric"], summary["eval_rows"]) == ("accuracy", 70)
    assert set(summary["scores"]) == {"matched/accuracy", "mismatched/accuracy"}
    assert summary["score"] == pytest.approx(sum(summary["scores"].values()) / 2), "as GLUE's table has it"
    assert "eval_scores/matched/accuracy" in read_lines(run)[2]
    assert read_json(run / "adapter" / "config.json")["id2label"] == dict(zip("012", LABELS, strict=True))
    report = read_json(run / "data_report.json")
    assert {part: one["census"]["rows"] for part, one in report["eval"].items()} == {"matched": 30, "mismatched": 40}

    lines = (run / "predictions" / "predictions_3.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [2, 3], "rows of one's own are not a submission"
    (run / "predictions" / "predictions_3.jsonl").unlink()
    header, *answers = (run / "predictions" / "AX.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    assert [line.split("\t")[0] for line in answers] == ["0", "1", "2", "3", "4"]
    assert {line.split("\t")[1] for line in answers} <= set(LABELS)
    (run / "predictions" / "AX.tsv").unlink()
    faults = check_submission(run / "predictions", ["mnli"])
    assert faults == [
        "MNLI-m.tsv: 7 rows, not the 9796 of the test set", "MNLI-mm.tsv: 9 rows, not the 9847 of the test set"
    ]  # fmt: skip


def test_the_majority_is_that_of_all_rows_also_where_few_are_drawn(tmp_path, encoder):
    rows = [
        {"text": text, "label": "yes" if number % 4 else "no"} for number, (text, _) in enumerate(build_sentences())
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    few = {"data__train": {"path": path}, "data__eval": {"path": path}, "classification__shots": 4}
    summary = read_json(run_small(tmp_path, encoder, **few) / "summary.json")
    assert summary["majority_score"] == pytest.approx(0.75)


def test_learned_vectors_before_the_text_are_refused_where_the_last_token_gives_the_label(tmp_path, decoder, reviews):
    for method in ("prompt_tuning", "p_tuning"):
        adapter = {"method": method, "num_virtual_tokens": 4}
        with pytest.raises(RecipeError, match="no longer finds a row's last token"):
            run_small(tmp_path / method, decoder, data__train={"path": reviews}, adapter=adapter)


def test_a_base_that_was_saved_in_4_bits_is_given_a_head_in_full(tmp_path, encoder, reviews):
    held = AutoModelForMaskedLM.from_pretrained(
        encoder, quantization_config=build_bnb_config("nf4", True, torch.float32), device_map={"": "cpu"}
    )
    saved = tmp_path / "saved"
    held.save_pretrained(saved)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(saved)
    run = run_small(tmp_path, saved, data__train={"path": reviews}, model__quantization="nf4")
    assert read_json(run / "summary.json")["trainable_parameters"] > 0


@pytest.mark.slow
def test_a_plateau_of_the_score_and_not_its_rise_lowers_the_rate(tmp_path, encoder, reviews):
    schedule = {"training__lr_scheduler_type": "reduce_lr_on_plateau", "training__eval_steps": 5}
    schedule["training__lr_scheduler_kwargs"] = {"patience": 0}
    run = tmp_path / "small"
    summary = learn(tmp_path, encoder, reviews, steps=40, **schedule)
    lines = [line for line in read_lines(run) if "eval_score" in line and line["step"] > 0]
    rates = [line["learning_rate"] for line in lines]
    rises = [later["eval_score"] > earlier["eval_score"] for earlier, later in pairwise(lines)]
    assert rises[0], "it learns"
    assert rates[1] == rates[0] == pytest.approx(1e-2)
    assert summary["score"] > summary["majority_score"]


ADALORA = {"method": "adalora", "init_r": 6, "target_r": 3, "total_step": 12, "tinit": 2, "tfinal": 4}


def test_ranks_that_were_pruned_are_those_of_the_best_step(tmp_path, encoder, reviews):
    falling = {"training__eval_steps": 3, "training__save_steps": 3, "training__learning_rate": 3e-2}
    summary = learn(tmp_path, encoder, reviews, steps=12, adapter=ADALORA, **falling)
    assert summary["best_step"] < 12, "the run gets worse, and pruning ends at step 8"
    scores = {line["step"]: line["eval_score"] for line in read_lines(tmp_path / "small") if "eval_score" in line}
    assert summary["score"] == scores[summary["best_step"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [pytest.param(6, id="while ranks are pruned"), pytest.param(9, id="behind it", marks=pytest.mark.slow)]
)
def test_a_run_of_adalora_goes_on_with_the_ranks_it_had(tmp_path, encoder, reviews, step):
    steady = {"data__train": {"path": reviews}, "data__eval": {"fraction": 0.25}, "adapter": ADALORA}
    steady |= {"training__max_steps": 12, "training__eval_steps": 3, "training__save_steps": 3}
    whole = run_small(tmp_path / "whole", encoder, **steady)
    with stopped_at_evaluation(step):
        run_small(tmp_path / "cut", encoder, **steady)
    cut = run_small(tmp_path / "cut", encoder, resume=True, **steady)
    assert read_figures(cut) == read_figures(whole)
    assert read_weights(cut) == read_weights(whole)


# ---- a real sample


def test_reviews_of_films_are_trained_exported_and_served_end_to_end(tmp_path, tiny_base, shared_data):
    sample = str(shared_data / "imdb" / "imdb_train_2000.csv")
    asked = {"path": str(shared_data / "imdb" / "imdb_test_1000.csv"), "limit": 12}
    values = build_values(
        tmp_path, objective="classify", data={"train": {"path": sample, "limit": 200}, "max_length": 64},
        classification={"predict": asked}, evaluation={}, training__max_steps=6,
    )  # fmt: skip
    run = train(build_recipe(values), recipe_text="")
    with pytest.raises(SystemExit) as left:
        export.main([str(run), "--merge", str(tmp_path / "whole"), "--dtype", "float32", "--device", "cpu"])
    assert left.value.code == 0
    lines = [json.loads(line) for line in (run / "predictions" / "predictions.jsonl").read_text().splitlines()]
    with Path(asked["path"]).open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row, _ in zip(csv.DictReader(file), range(12), strict=False)]
    pipe = pipeline("text-classification", model=str(tmp_path / "whole"), device="cpu", dtype=torch.float32)
    answers = pipe(texts, truncation=True, max_length=64, batch_size=4)
    assert [answer["label"] for answer in answers] == [line["label"] for line in lines]
    shares = [line["scores"][line["label"]] for line in lines]
    assert [answer["score"] for answer in answers] == pytest.approx(shares, abs=1e-4)


# ---- in two processes


@pytest.mark.slow
def test_two_processes_learn_and_score_as_one_does(tmp_path, tiny_base, monkeypatch):
    monkeypatch.chdir(ROOT)
    # An odd number of held-out rows, so that it cannot be shared out evenly, and of every length.
    rows = [
        {"text": f"{text} {'very ' * place}", "label": word}
        for place, (text, word) in enumerate(build_sentences()[:12])
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    settings = {
        "objective": "classify", "evaluation": {}, "adapter__lora_dropout": 0.0,
        "data": {"train": {"path": path}, "eval": {"path": path, "limit": 7}, "max_length": 32},
        "classification": {"predict": {"path": path, "limit": 5}},
        "training__max_steps": 5, "training__eval_steps": 3, "training__gradient_accumulation_steps": 2,
    }  # fmt: skip
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    values = build_values(tmp_path / "one", **settings, training__per_device_train_batch_size=2)
    alone = train(build_recipe(values), recipe_text="")
    together = run_two("classify", tmp_path / "two", **settings, training__per_device_train_batch_size=1)
    for figure in ("loss", "grad_norm", "eval_loss", "eval_score", "eval_scores/macro_f1"):
        assert column(together, figure) == pytest.approx(column(alone, figure), abs=1e-4), figure
        assert len(column(alone, figure)) >= 3
    first, second = (read_json(run / "summary.json") for run in (alone, together))
    assert second["score"] == pytest.approx(first["score"])
    assert second["eval_rows"] == first["eval_rows"] == 7
    answers = [(run / "predictions" / "predictions.jsonl").read_text().splitlines() for run in (alone, together)]
    assert [json.loads(line)["label"] for line in answers[0]] == [json.loads(line)["label"] for line in answers[1]]
