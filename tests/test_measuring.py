"""What was measured before the first step is what a resumed run reads back, and what the summary says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from finetune.measuring import Gauge, Measured, drop_changed, from_figures, to_figures, to_summary, to_words
from finetune.objectives.answers import Question
from finetune.objectives.pairs import PairFigures, PairScores, compare

START = Measured(
    held_out={"eval_loss": 0.69},
    exact_match=0.5,
    answer_tokens=3.5,
    pairs=PairFigures(accuracy=0.5, margin=0.1, chosen=-2.0, rejected=-2.1),
    base_pairs=PairFigures(accuracy=0.4, margin=-0.2, chosen=-3.0, rejected=-2.8),
    general_loss=2.5,
)


def test_the_figures_of_the_start_come_back_from_the_log():
    assert from_figures(to_figures(START)) == START
    assert from_figures({}) == Measured(held_out={})


def test_of_the_start_only_figures_of_what_is_asked_as_then_are_kept(caplog):
    then = {"questions_hash": "a", "pairs_hash": "b", "general_text_hash": "c"}
    assert drop_changed(START, then, then) is START
    assert drop_changed(START, {}, then) is START, "a run of an earlier version says nothing of what it asked"
    assert not caplog.text
    kept = drop_changed(START, then, {"questions_hash": "a", "general_text_hash": "d"})
    assert (kept.pairs, kept.base_pairs, kept.general_loss) == (None, None, None)
    assert (kept.held_out, kept.exact_match, kept.answer_tokens) == (START.held_out, 0.5, 3.5)
    assert "Changed since the run began: the held-out pairs, the general text" in caplog.text


QUESTION = Question("1 + 2?", [1, 2], "three")
ROWS = ("held_out", "pairs", "general_text")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("questions_hash", {"questions": [replace(QUESTION, prompt_ids=[1, 3])]}),
        ("questions_hash", {"questions": [replace(QUESTION, reference="four")]}),
        ("questions_hash", {"metric": "f1"}),
        ("questions_hash", {"answer_pattern": "(.)"}),
        ("questions_hash", {"max_new_tokens": 9}),
        ("held_out_hash", {"held_out": "other rows"}),
        ("pairs_hash", {"pairs": "other rows"}),
        ("general_text_hash", {"general_text": "other rows"}),
    ],
)
def test_what_is_asked_otherwise_has_another_hash(name, change):
    def hash_asked(questions=(QUESTION,), metric="exact_match", answer_pattern=None, max_new_tokens=8, **rows):
        rows = {part: SimpleNamespace(report={"label_hash": rows.get(part, part)}) for part in ROWS}
        asking = SimpleNamespace(metric=metric, answer_pattern=answer_pattern, max_new_tokens=max_new_tokens)
        prepared = SimpleNamespace(questions=questions, **rows)
        return Gauge(None, SimpleNamespace(settings=asking), prepared, 1).hash_asked()

    usual, changed = hash_asked(), hash_asked(**change)
    assert {one for one in usual if usual[one] != changed[one]} == {name}


def test_the_summary_has_each_figure_before_and_after_and_the_base_beside():
    end = Measured(held_out={"eval_loss": 0.2}, pairs=PairFigures(1.0, 2.0, -1.0, -3.0))
    summary = to_summary(START, end)
    assert (summary["eval_loss_before"], summary["eval_loss"]) == (0.69, 0.2)
    accuracies = [summary[f"preference_accuracy{state}"] for state in ("_base", "_before", "")]
    assert accuracies == [0.4, 0.5, 1.0]
    assert "exact_match" not in summary, "it was not measured at the end"
    assert to_words(START, end)["preference accuracy on held-out pairs"] == 1.0


def test_a_classifiers_scores_and_what_was_forgotten_are_in_the_summary():
    start = Measured(held_out={"eval_loss": 0.7, "eval_score": 0.5, "eval_scores/f1": 0.4}, general_loss=2.5)
    end = Measured(held_out={"eval_loss": 0.3, "eval_score": 0.9, "eval_scores/f1": 0.8}, general_loss=2.75)
    summary = to_summary(start, end)
    assert (summary["score_before"], summary["score"], summary["scores"]) == (0.5, 0.9, {"f1": 0.8})
    assert (summary["general_loss_before"], summary["general_loss"]) == (2.5, 2.75)
    assert from_figures(to_figures(start)) == start


def test_pairs_are_compared_per_token_and_two_alike_count_half():
    # Summed, the short rejected answers would win; per token -1 beats -2, -3 is beaten by -1, and -1 equals -1.
    scores = PairScores(
        chosen_N=torch.tensor([-10.0, -9.0, -4.0]),
        rejected_N=torch.tensor([-2.0, -2.0, -1.0]),
        chosen_tokens_N=torch.tensor([10, 3, 4]),
        rejected_tokens_N=torch.tensor([1, 2, 1]),
    )
    figures = compare(scores)
    assert figures.accuracy == pytest.approx((1 + 0 + 0.5) / 3)
    assert figures.margin == pytest.approx((1 - 2 + 0) / 3)
    assert compare(scores, per_token=False).accuracy == 0
