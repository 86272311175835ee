"""What is done before a weight is loaded: the trainer's settings tried, the rows read, rendered and counted.

In goes a recipe; out come rows of tokens, the questions, and the report on what became of every row.
`train` begins with it, and so does whatever wants to see the very tokens a run would train.
"""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from finetune.data.rendering import Renderer
from finetune.data.sources import load_examples, split_examples
from finetune.data.templates import load_template
from finetune.data.tokens import TokenRows
from finetune.model.devices import choose_compute_dtype, choose_device
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives import OBJECTIVES
from finetune.objectives.answers import Question, build_questions, build_samples
from finetune.recipe.schema import EvalFraction, Recipe
from finetune.run.progress import shows_bars

__all__ = ["Prepared", "build_arguments", "build_renderer", "prepare"]

log = logging.getLogger("finetune.prepare")


def build_arguments(recipe: Recipe) -> SFTConfig:
    """Build the trainer's own config, so that a setting it refuses is known before any row is read."""
    device = choose_device(recipe.model.device)
    return OBJECTIVES[recipe.objective].build_arguments(
        recipe.training,
        name=recipe.name,
        device=device,
        compute_dtype=choose_compute_dtype(recipe.model.compute_dtype, device),
        evaluates=recipe.data.eval is not None,
        seed=recipe.seed,
        checkpoints_dir=Path(recipe.output_dir) / recipe.name / "checkpoints",
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before a weight is loaded.

    Attributes:
        questions: scored before and after the run.
        samples: answered at every evaluation, for people to read.
        report: what `data_report.json` says.
    """

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    train: TokenRows
    held_out: TokenRows | None
    questions: list[Question]
    samples: list[Question]
    report: dict[str, Any]


def prepare(recipe: Recipe) -> Prepared:
    """Read the rows and turn them into tokens: the tokenizer is loaded, the weights are not."""
    objective, data, evaluation = OBJECTIVES[recipe.objective], recipe.data, recipe.evaluation
    if not shows_bars():
        datasets.disable_progress_bars()
    # Of several processes the first one fills the caches, and the others read them.
    with PartialState().main_process_first():
        tokenizer = load_tokenizer(recipe.model)
        renderer = build_renderer(recipe, tokenizer)
        load = partial(load_examples, seed=recipe.seed, on_bad_rows=data.on_bad_rows)
        train_examples = load(data.train, kind=objective.reads)
        held_out_examples = None
        if isinstance(data.eval, EvalFraction):
            train_examples, held_out_examples = split_examples(train_examples, data.eval.fraction, recipe.seed)
        elif data.eval is not None:
            held_out_examples = load(data.eval, kind=objective.reads, setting="data.eval")
        train = objective.build_rows(train_examples, renderer, data)
        held_out = objective.build_rows(held_out_examples, renderer, data) if held_out_examples else None

        questions, asked_report = [], None
        if evaluation.questions is not None:
            asked = load(evaluation.questions, kind="conversation", setting="evaluation.questions")
            questions, asked_report = build_questions(asked, renderer), asked.report
        samples = questions[: evaluation.num_samples]
        if not samples and held_out_examples and objective.reads == "conversation":
            samples = build_samples(held_out_examples, renderer, evaluation.num_samples)
    for what, rows in (("training", train), ("evaluation", held_out)):
        if rows is not None:
            _say_rows(what, rows)
    report = {"train": train.report, "eval": held_out.report if held_out else None, "questions": asked_report}
    return Prepared(tokenizer, renderer, train, held_out, questions, samples, report)


def build_renderer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    """Bind the run's one template to its tokenizer, which then carries it to wherever the result is served.

    Plain text needs none. Where a pretraining run asks questions all the same, they are put in the
    tokenizer's own template, or in Alpaca's, and the tokenizer is left as it was.
    """
    data = recipe.data
    if OBJECTIVES[recipe.objective].reads == "document":
        own = "model" if tokenizer.chat_template else "alpaca"
        return Renderer(load_template(own, tokenizer), tokenizer, "everything", data.special_tokens_in_data)
    template = load_template(data.template, tokenizer)
    tokenizer.chat_template = template.serving_source
    return Renderer(template, tokenizer, data.train_on, data.special_tokens_in_data)


def _say_rows(what: str, rows: TokenRows) -> None:
    report = rows.report
    lost = [f"{count} {reason.replace('_', ' ')}" for reason, count in report["dropped"].items() if count]
    lost += [f"{report['cut']} cut"] if report["cut"] else []
    log.info(
        "%s: %d rows of tokens from %d read, %s tokens, %s of them trained%s.",
        what, report["rows"], report["rows_read"], f"{report['tokens']:,}", f"{report['trained_tokens']:,}",
        f" ({', '.join(lost)} at {report['max_length']} tokens)" if lost else "",
    )  # fmt: skip
