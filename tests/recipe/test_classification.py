"""What a recipe of classify or mlm takes, what it is filled up with, and what it cannot have, told with the line."""

import pytest

from finetune.recipe.reading import build_recipe, read_recipe, to_resolved
from finetune.recipe.rows_schema import SourceSettings
from tests.recipe.told import Write, message_of

HEAD = "name: small\nobjective: {objective}\nmodel: {{model_name_or_path: org/base}}\n"
ROWS = "data: {train: {path: rows.jsonl}}\n"
CLASSIFIES, MASKS = "gives labels and no answers", "restores masked tokens and gives no answers"

FAULTS = [
    # objective, lines from the fourth on, line that is named, what is said of it, advice
    ("classify", ROWS + "classification:\n  task: ax", 6, "`task: ax` has no rows to train on: a model of MNLI answers",
     "Set task: mnli, and classification.predict: {path: …, subset: ax}."),
    ("classify", "data:\n  train:\n    - path: glue\n    - path: more\nclassification: {task: rte}", 5,
     "`task: rte` reads the benchmark's rows from one place; `data.train` lists several.", "Name one, or"),
    ("classify", ROWS + "classification:\n  task: stsb\n  problem_type: single_label_classification", 7,
     "`task: stsb` is a regression; found single_label_classification.", "Take the line out."),
    ("classify", ROWS + "classification:\n  task: rte\n  problem_type: regression", 7,
     "`task: rte` is a single label classification; found regression.", "Take the line out."),
    ("classify", ROWS + "classification:\n  task: rte\n  labels: [yes, no]", 7,
     "`task: rte` has other labels than these.", "Its labels, in this order: entailment"),
    ("classify", ROWS + "classification:\n  task: mrpc\n  labels: [equivalent, not_equivalent]", 7,
     "`task: mrpc` has other labels than these.", "in this order: not_equivalent, equivalent"),
    ("classify", ROWS + "classification:\n  task: stsb\n  metric: f1", 7, "`metric: f1` does not score numbers.",
     "Of numbers: pearson"),
    ("classify", ROWS + "classification:\n  task: rte\n  metric: pearson", 7,
     "`metric: pearson` does not score labels.", "of labels: accuracy"),
    ("classify", ROWS + "classification:\n  labels: [a, b, c]\n  metric: f1", 7,
     "`metric: f1` is of two labels, the second one sought, and there are 3.", "macro_f1"),
    ("classify", ROWS + "classification:\n  predict:\n    path: rows.jsonl\n    format: alpaca", 8,
     "`classification.predict` reads labelled texts", "Choose auto"),
    ("classify", ROWS + "evaluation:\n  metric: exact_match", 6,
     f"`objective: classify` {CLASSIFIES}, so `evaluation.metric` is not read.", "Take the line out."),
    ("classify", ROWS + "training:\n  prediction_loss_only: true", 6, "`prediction_loss_only`", "all at once"),
    ("classify", ROWS + "training:\n  dataloader_drop_last: true", 6, "`dataloader_drop_last`", "held-out rows"),
    ("classify", ROWS + "classification:\n  task: stsb\n  labels: [a, b]", 7,
     "`task: stsb` has other labels than these.", "It gives a number."),
    ("classify", ROWS + "classification:\n  task: rte\n  predict:\n    path: glue\n    subset: ax", 9,
     "`subset: ax` is answered by a model of MNLI; it is of rte here.", "Set task: mnli"),
    ("classify", ROWS + "classification:\n  problem_type: regression\n  labels: [a, b]", 7,
     "`classification.labels` is of labels, and a regression gives a number.", "Take the line out."),
    ("classify", ROWS + "classification:\n  problem_type: regression\n  shots: 8", 7,
     "`classification.shots` is of labels, and a regression gives a number.", "Take the line out."),
    ("classify", ROWS + "classification:\n  task: stsb\ntraining:\n  label_smoothing_factor: 0.1", 8,
     "`training.label_smoothing_factor` smooths labels, and a regression gives a number.", "Take the line out."),
    ("classify", ROWS + "classification:\n  labels: [a, b, a]", 6, "`classification.labels` names a label twice.",
     "Name"),
    ("classify", ROWS + "classification:\n  labels: [a]", 6, "`classification.labels`", ""),
    ("classify", ROWS + "classification:\n  task: sst-2", 6, "`classification.task` cannot be the text `sst-2`.",
     "`sst2`"),
    ("classify", ROWS + "classification:\n  lables: [a, b]", 6, "`classification` has no setting `lables`.",
     "`labels`"),
    ("classify", ROWS + "classification:\n  shots: 0", 6, "`classification.shots` is 0; it must be at least 1.", ""),
    ("classify", "data:\n  train: {path: rows.jsonl}\n  mask_fraction: 0.3", 6,
     "`data.mask_fraction` hides tokens, and `objective: classify` hides none.", "Take the line out."),
    ("classify", "data:\n  train: {path: rows.jsonl}\n  packing: true", 6,
     "`objective: classify` reads each row whole, so rows cannot be packed together.", "Take the line out."),
    ("classify", "data:\n  train: {path: rows.jsonl}\n  template: alpaca", 6,
     f"`objective: classify` {CLASSIFIES}, so `data.template` is not read.", "Take the line out."),
    ("classify", "data:\n  train: {path: rows.jsonl}\n  train_on: everything", 6,
     f"`objective: classify` {CLASSIFIES}, so `data.train_on` is not read.", "Take the line out."),
    ("classify", "data:\n  train: {path: rows.jsonl}\n  too_long: split", 6,
     "`too_long: split` would tear a labelled text", "Choose drop, truncate or error."),
    ("classify", "data:\n  train:\n    path: rows.jsonl\n    format: alpaca", 7, "`objective: classify` reads",
     "labelled"),
    ("classify", ROWS + "evaluation:\n  questions: {path: q.jsonl}", 6,
     f"`objective: classify` {CLASSIFIES}, so `evaluation.questions` is not read.", "Take the line out."),
    ("classify", ROWS + "evaluation:\n  preferences: {path: q.jsonl}", 6,
     f"`objective: classify` {CLASSIFIES}, so `evaluation.preferences` is not read.", "Take the line out."),
    ("classify", ROWS + "evaluation:\n  num_samples: 4", 6,
     f"`objective: classify` {CLASSIFIES}, so `evaluation.num_samples` is not read.", "Take the line out."),
    ("classify", ROWS + "adapter:\n  init_from: outputs/other", 6,
     "`adapter.init_from` continues an adapter that answers; `objective: classify` begins a fresh one.",
     "Take the line"),
    ("mlm", "data:\n  train: {path: rows.jsonl}\n  packing: true", 6,
     "`objective: mlm` reads each row whole, so rows cannot be packed together.", "Take the line out."),
    ("mlm", "data:\n  train: {path: rows.jsonl}\n  template: alpaca", 6,
     f"`objective: mlm` {MASKS}, so `data.template` is not read.", "Take the line out."),
    ("mlm", ROWS + "evaluation:\n  questions: {path: q.jsonl}", 6,
     f"`objective: mlm` {MASKS}, so `evaluation.questions` is not read.", "Take the line out."),
    ("mlm", ROWS + "adapter:\n  init_from: outputs/other", 6,
     "`adapter.init_from` continues an adapter that answers; `objective: mlm` begins a fresh one.",
     "Take the line out."),
    ("mlm", "data:\n  train: {path: rows.jsonl}\n  mask_fraction: 1.0", 6, "`data.mask_fraction` is 1", "below 1"),
    ("mlm", ROWS + "classification:\n  task: rte", 6,
     "`classification.task` is read by `objective: classify` alone; it is mlm here.", "set objective: classify."),
    ("sft", ROWS + "classification:\n  shots: 4", 6,
     "`classification.shots` is read by `objective: classify` alone; it is sft here.", "set objective: classify."),
    ("dpo", "data:\n  train: {path: rows.jsonl}\n  mask_fraction: 0.3", 6,
     "`data.mask_fraction` hides tokens, and `objective: dpo` hides none.", "Take the line out."),
    ("sft", "data:\n  train:\n    path: rows.jsonl\n    format: labelled", 7, "`objective: sft` reads",
     "Choose auto, "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "lines", "line", "what", "advice"), FAULTS, ids=[f"{one[0]}: {one[3][:60]}" for one in FAULTS]
)
def test_what_cannot_be_is_told_with_its_line(
    write: Write, objective: str, lines: str, line: int, what: str, advice: str
) -> None:
    first, *rest = message_of(write(HEAD.format(objective=objective) + lines)).splitlines()
    assert first.startswith(f"r.yaml:{line}: ")
    assert what in first
    assert advice in "\n".join([first, *rest])
    assert not any(one.startswith("r.yaml") for one in rest), "one slip is told once"


@pytest.mark.parametrize("objective", ["classify", "mlm"])
def test_its_defaults_are_read_back_from_the_resolved_form(write: Write, objective: str) -> None:
    recipe = read_recipe(write(HEAD.format(objective=objective) + ROWS))
    assert not recipe.data.packing
    assert build_recipe(to_resolved(recipe)) == recipe


@pytest.mark.parametrize(
    ("train", "eval_source"),
    [
        ("{path: glue}", SourceSettings(path="glue")),
        ("{path: nyu-mll/glue, revision: abc}", SourceSettings(path="nyu-mll/glue", revision="abc")),
        ("{path: glue, limit: 100}", SourceSettings(path="glue")),
        ("{path: train.tsv}", None),
        ("{path: train.tsv.gz}", None),
    ],
)
def test_a_task_brings_its_own_development_rows_where_none_are_named(
    write: Write, train: str, eval_source: SourceSettings | None
) -> None:
    text = HEAD.format(objective="classify") + f"data: {{train: {train}}}\nclassification: {{task: rte}}\n"
    recipe = read_recipe(write(text))
    assert recipe.data.eval == eval_source
    assert build_recipe(to_resolved(recipe)) == recipe
    assert read_recipe(write(text), ["data.eval=null"]).data.eval is None
    assert read_recipe(write(text), ["data.eval={path: mine.tsv}"]).data.eval == SourceSettings(path="mine.tsv")


def test_labels_that_look_like_numbers_or_truths_are_names(write: Write) -> None:
    text = HEAD.format(objective="classify") + ROWS + "classification:\n  labels: [no, yes, '0']\n"
    assert read_recipe(write(text)).classification.labels == ["no", "yes", "0"]
    message = message_of(write(text.replace("'0'", "0")))
    assert message.startswith("r.yaml:6: `classification.labels[2]`")
    assert '"0"' in message or "'0'" in message


def test_the_benchmarks_own_rows_are_held_out_by_the_same_columns_and_positions_are_those_of_bert(write: Write) -> None:
    task = "data: {train: {path: glue, columns: {text: t}, limit: 9}}\nclassification: {task: sst2}"
    recipe = read_recipe(write(HEAD.format(objective="classify") + task))
    assert recipe.data.eval == SourceSettings(path="glue", columns={"text": "t"})
    assert recipe.data.max_length == 512
    one_file = task.replace("path: glue", "path: glue/train.tsv")
    assert read_recipe(write(HEAD.format(objective="classify") + one_file)).data.eval is None
