"""The recipe's settings of rows: where they come from, how they become tokens, and what their labels are."""

from typing import Annotated, Literal

from pydantic import Field

from finetune.recipe.section import Name, Section

__all__ = [
    "AssumedRows",
    "ClassificationSettings",
    "DataSettings",
    "EvalFraction",
    "FindingPolicy",
    "FindingsSettings",
    "GlueName",
    "SourceSettings",
]

GlueName = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"]


class SourceSettings(Section):
    """One place that rows come from."""

    path: Annotated[
        Name,
        Field(description="Hub name, a file (.json .jsonl .csv .tsv, each also .gz, or .parquet) or a folder of such."),
    ]
    format: Annotated[
        Literal[
            "auto",
            "messages",
            "sharegpt",
            "alpaca",
            "prompt_completion",
            "text",
            "preference",
            "openai_preference",
            "sharegpt_preference",
            "orca",
            "dialogues",
            "ranking",
            "judged",
            "judged_messages",
            "prompt",
            "labelled",
        ],
        Field(description="Shape of a row. auto decides by the columns and says what it found."),
    ] = "auto"
    columns: Annotated[
        dict[str, str],
        Field(description="The format's column -> your column where names differ, e.g. {instruction: question}."),
    ] = {}
    split: Annotated[Name | None, Field(description="Split of a Hub dataset; null: train.")] = None
    subset: Annotated[Name | None, Field(description="Configuration of a Hub dataset that has several.")] = None
    revision: Annotated[Name | None, Field(description="Branch, tag or commit of a Hub dataset.")] = None
    limit: Annotated[int | None, Field(ge=1, description="Take only the first rows of this source.")] = None
    weight: Annotated[
        float,
        Field(gt=0, description="Share in a mix, relative to the other sources; the first to run out ends the mix."),
    ] = 1.0


class EvalFraction(Section):
    """A part of the training rows, held out by the seed."""

    fraction: Annotated[float, Field(gt=0, lt=1, description="Share of the training rows held out for evaluation.")]


class AssumedRows(Section):
    """What the training rows come to, for a plan that is made before they have been counted."""

    rows: Annotated[
        int, Field(ge=1, description="Rows of `data.train`, held-out ones included; for preferences, pairs.")
    ]
    tokens_per_row: Annotated[
        float,
        Field(gt=0, description="Mean tokens of a row, prompt and answer; for a pair, of both its answers' rows."),
    ]


FindingPolicy = Literal["report", "drop", "error"]


class FindingsSettings(Section):
    """What becomes of training rows in which something is found: they are reported, left out, or stop the run."""

    duplicates: Annotated[FindingPolicy, Field(description="Rows equal to an earlier one except for white space.")] = (
        "report"
    )
    near_duplicates: Annotated[
        FindingPolicy, Field(description="Rows that share nearly all their words with an earlier one.")
    ] = "report"
    eval_overlap: Annotated[
        FindingPolicy,
        Field(description="Training rows whose prompt an evaluation also asks: held-out rows, questions, pairs."),
    ] = "report"
    near_eval_overlap: Annotated[
        FindingPolicy, Field(description="Training rows that share nearly all their words with one in an evaluation.")
    ] = "report"
    conflicting_answers: Annotated[
        FindingPolicy, Field(description="Rows whose prompt an earlier row answers differently.")
    ] = "report"
    empty_answers: Annotated[
        FindingPolicy, Field(description="Answers of nothing but white space and invisible characters.")
    ] = "report"
    short_answers: Annotated[
        FindingPolicy, Field(description="Answers without a letter or digit, and placeholders such as N/A.")
    ] = "report"
    refusals: Annotated[FindingPolicy, Field(description="Answers that decline to answer.")] = "report"
    boilerplate: Annotated[
        FindingPolicy, Field(description="Answers with phrases in which AI assistants describe themselves.")
    ] = "report"
    template_leftovers: Annotated[
        FindingPolicy, Field(description="Marks of a prompt template in a row's text, such as [INST].")
    ] = "report"
    other_language: Annotated[
        FindingPolicy, Field(description="Rows whose prompt and answer are in another language than most.")
    ] = "report"
    encoding_damage: Annotated[
        FindingPolicy, Field(description="Text damaged by being read in the wrong encoding.")
    ] = "report"
    length_bias: Annotated[
        Literal["report", "error"],
        Field(description="The longer answer, or the shorter one, is the chosen one in 60 % of the pairs or more."),
    ] = "report"


class DataSettings(Section):
    """The rows, how they become tokens, and which tokens are trained."""

    train: Annotated[
        SourceSettings | Annotated[list[SourceSettings], Field(min_length=1)],
        Field(description="One source, or a list mixed by weight."),
    ]
    eval: Annotated[
        EvalFraction | SourceSettings | None,
        Field(description="{fraction: …} of the training rows, a source of its own, or null for no evaluation."),
    ] = None
    template: Annotated[
        Name,
        Field(
            description="alpaca, mistral, llama2, chatml, zephyr, vicuna, llama3, model (the tokenizer's own), or a "
            "path to a .jinja file."
        ),
    ] = "model"
    max_length: Annotated[int, Field(ge=8, description="Tokens of one training row, prompt and answer together.")] = (
        2048
    )
    train_on: Annotated[
        Literal["answers", "last_answer", "everything"],
        Field(description="Which tokens carry loss: every assistant turn, the last one, or all tokens."),
    ] = "answers"
    too_long: Annotated[
        Literal["drop", "truncate", "split", "error"] | None,
        Field(
            description="What happens to a row of more than `max_length` tokens; always counted. split: several "
            "rows, only for pretrain and mlm. null: split for those two, truncate for classify, drop for the others."
        ),
    ] = None
    packing: Annotated[
        bool,
        Field(
            description="Fill rows of `max_length` with several documents, kept apart by their positions; only for sft "
            "and pretrain."
        ),
    ] = True
    tokens_per_batch: Annotated[
        int | None,
        Field(
            ge=8,
            description="With `packing`: each micro-batch is one row of whole documents with at most this many tokens "
            "in all (no less than `max_length`); both per-device batch sizes must be 1. null: rows of `max_length`.",
        ),
    ] = None
    share_prompts: Annotated[
        Literal["auto", "always", "never"],
        Field(
            description="For dpo: compute the prompt, which both answers of a pair share, once. auto: where the model "
            "can, and it saves work on these rows; always: in every batch; never: once for each answer. Results are "
            "equal except for rounding."
        ),
    ] = "auto"
    mask_fraction: Annotated[
        float, Field(gt=0, lt=1, description="Share of a row's tokens that `objective: mlm` hides from the model.")
    ] = 0.15
    special_tokens_in_data: Annotated[
        Literal["escape", "error", "allow"],
        Field(
            description="Control tokens such as </s> written in a row's text: break them up, stop with file and "
            "line, or let them through."
        ),
    ] = "escape"
    findings: Annotated[
        FindingsSettings | None,
        Field(
            description="What is looked for in the text of the training rows, and a policy for each finding: report, "
            "drop or error; see docs/quality.md. null: nothing is looked for."
        ),
    ] = FindingsSettings()
    assumed: Annotated[
        AssumedRows | None,
        Field(
            description="What `plan` takes for the rows until a run or a preview has counted them: {rows: …, "
            "tokens_per_row: …}. Training does not read it."
        ),
    ] = None
    on_bad_rows: Annotated[
        Literal["error", "skip"],
        Field(description="A row that cannot be read: stop with file, line and reason, or count it and go on."),
    ] = "error"


class ClassificationSettings(Section):
    """What `objective: classify` reads from a row and scores, for a benchmark's task or labels of one's own."""

    task: Annotated[
        GlueName | None,
        Field(
            description="A task of GLUE: it brings columns, labels, metrics, its development rows as `data.eval`, and "
            "the form of its submission. null: rows of `text`, `text_pair` where there is one, and `label`."
        ),
    ] = None
    problem_type: Annotated[
        Literal["single_label_classification", "regression"] | None,
        Field(description="One label of several, or a number. null: the task's, else one label of several."),
    ] = None
    labels: Annotated[
        list[Name] | None,
        Field(
            min_length=2,
            description="The labels in the order of the model's outputs; a row with another one is bad. null: the "
            "task's, else those of the training rows, sorted.",
        ),
    ] = None
    metric: Annotated[
        Literal["accuracy", "f1", "macro_f1", "matthews_correlation", "pearson", "spearmanr", "combined"] | None,
        Field(
            description="The score by which the best step is chosen; `combined` is the mean of the task's. null: the "
            "task's own, else accuracy, or pearson for a regression."
        ),
    ] = None
    shots: Annotated[
        int | None,
        Field(ge=1, description="Few-shot: this many training rows of each label, drawn by the seed. null: all rows."),
    ] = None
    predict: Annotated[
        SourceSettings | Annotated[list[SourceSettings], Field(min_length=1)] | None,
        Field(
            description="Rows, with or without labels, that the trained model labels; written to `predictions/`. One "
            "source or several: the test rows of `task` in the form that GLUE's server takes (`subset: ax` beside "
            "mnli's), others as JSON Lines."
        ),
    ] = None
