"""What is done before a weight is loaded: the trainer's settings tried, the rows read, rendered and counted.

In goes a recipe; out come rows of tokens, the questions, and the report on what became of every row.
`train` begins with it, and so does whatever wants to see the very tokens a run would train.
"""

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, TrainingArguments

from finetune.data.parity import check_parity
from finetune.data.preference_tokens import build_pair_rows
from finetune.data.quality.screening import screen_examples
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples, load_examples, split_examples
from finetune.data.templates import load_template
from finetune.data.tokens import TokenRows, build_token_rows
from finetune.model.devices import choose_compute_dtype, choose_device
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives import OBJECTIVES, RowParts
from finetune.objectives.answers import Question, build_questions, build_samples
from finetune.objectives.building import RunArguments
from finetune.objectives.labelled import LabelledRows, load_labelled_rows
from finetune.recipe.heads import HEAD_OF_OBJECTIVE
from finetune.recipe.row_kinds import KIND_OF_OBJECTIVE, Kind
from finetune.recipe.schema import EvalFraction, Recipe, SourceSettings
from finetune.run.progress import shows_bars

__all__ = ["Prepared", "build_arguments", "build_renderer", "prepare"]

log = logging.getLogger("finetune.prepare")

# Figures of the census that a healthy set has none of.
_ODDITIES = {
    "answers_lost": "lost a whole answer to the cut",
    "unended": "have an answer whose end is not trained",
    "begins_twice": "begin with two beginning tokens",
}


def build_arguments(recipe: Recipe) -> TrainingArguments:
    """Build the trainer's own config, so that a setting it refuses is known before any row is read."""
    device = choose_device(recipe.model.device)
    run = RunArguments(
        name=recipe.name,
        device=device,
        compute_dtype=choose_compute_dtype(recipe.model.compute_dtype, device),
        evaluates=recipe.data.eval is not None,
        seed=recipe.seed,
        checkpoints_dir=Path(recipe.output_dir) / recipe.name / "checkpoints",
        backend=recipe.model.backend,
    )
    return OBJECTIVES[recipe.objective].build_arguments(recipe.training, run)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before a weight is loaded.

    Attributes:
        renderer: None where no template is put around the rows: labelled texts, and those of an encoder.
        questions: scored before and after the run.
        samples: answered at every evaluation, for people to read.
        pairs: held-out pairs, told apart before and after the run.
        general_text: plain text whose loss is measured before and after, and that is not trained on.
        labelled: what a classifier tells apart, and the further rows it is measured on and labels.
        report: what `data_report.json` says.
    """

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer | None
    train: TokenRows
    held_out: TokenRows | None
    questions: list[Question]
    samples: list[Question]
    pairs: TokenRows | None
    report: dict[str, Any]
    general_text: TokenRows | None = None
    labelled: LabelledRows | None = None

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end an answer; none where nothing is answered."""
        return [] if self.renderer is None else self.renderer.stop_ids

    @property
    def template_source(self) -> str | None:
        """What the rows are rendered by, in Jinja; None where no template is put around them."""
        return None if self.renderer is None else self.renderer.template.source

    @property
    def template_hash(self) -> str | None:
        """SHA-256 of the template's source, as identity.json has it."""
        source = self.template_source
        return None if source is None else hashlib.sha256(source.encode()).hexdigest()


def prepare(recipe: Recipe) -> Prepared:
    """Read the rows and turn them into tokens: the tokenizer is loaded, the weights are not."""
    objective, data, evaluation = OBJECTIVES[recipe.objective], recipe.data, recipe.evaluation
    reads, head = KIND_OF_OBJECTIVE[recipe.objective], HEAD_OF_OBJECTIVE[recipe.objective]
    if not shows_bars():
        datasets.disable_progress_bars()
    # Of several processes the first one fills the caches, and the others read them.
    with PartialState().main_process_first():
        tokenizer = load_tokenizer(recipe.model, ends_answers=head in ("words", "score"))
        if objective.build_rows is None:
            return _prepare_labelled(recipe, tokenizer)
        renderer = None if head == "masked" else build_renderer(recipe, tokenizer)
        parts = RowParts(data=data, training=recipe.training, tokenizer=tokenizer, renderer=renderer)
        load = partial(_load, seed=recipe.seed, on_bad_rows=data.on_bad_rows)
        train_examples = load_examples(data.train, kind=reads, seed=recipe.seed, on_bad_rows=data.on_bad_rows)
        held_out_examples: LoadedExamples | None
        if isinstance(data.eval, EvalFraction):
            train_examples, held_out_examples = split_examples(train_examples, data.eval.fraction, recipe.seed)
        else:
            held_out_examples = load(data.eval, kind=reads, setting="data.eval")
        asked = compared = general = None
        if renderer is not None:
            asked = load(evaluation.questions, kind="conversation", setting="evaluation.questions")
            compared = load(evaluation.preferences, kind="preference", setting="evaluation.preferences")
            general = load(evaluation.general_text, kind="document", setting="evaluation.general_text")

        scored = [(held_out_examples, reads), (asked, "conversation"), (compared, "preference")]
        evaluated = [(examples, kind) for examples, kind in scored if examples is not None]
        train = objective.build_rows(screen_examples(train_examples, evaluated, data.findings, kind=reads), parts)
        held_out = objective.build_rows(held_out_examples, parts) if held_out_examples else None
        questions = build_questions(asked, renderer) if asked and renderer else []
        samples = questions[: evaluation.num_samples]
        if not samples and held_out_examples and renderer and reads != "document" and head == "words":
            samples = build_samples(held_out_examples, renderer, evaluation.num_samples, reads)
        pairs = held_out if reads == "preference" else None
        if compared and renderer:
            pairs = build_pair_rows(compared, renderer, max_length=data.max_length, too_long=data.too_long or "drop")
        general_text = None
        if general and renderer:
            general_text = build_token_rows(general, renderer, max_length=data.max_length, too_long="split")
    for what, rows in (("training", train), ("evaluation", held_out), ("general text", general_text)):
        if rows is not None:
            _say_rows(what, rows, "may be masked" if recipe.objective == "mlm" else "trained")
            if rows is train:
                _say_census(rows)
    report = {"train": train.report, "eval": held_out.report if held_out else None, "questions": asked and asked.report}
    if compared and pairs:
        report["preferences"] = pairs.report
    if general_text:
        report["general_text"] = general_text.report
    return Prepared(tokenizer, renderer, train, held_out, questions, samples, pairs, report, general_text)


def _load(
    source: SourceSettings | None, *, kind: Kind, seed: int, on_bad_rows: str, setting: str
) -> LoadedExamples | None:
    """Load examples where the recipe names a source of them."""
    if source is None:
        return None
    return load_examples(source, kind=kind, seed=seed, on_bad_rows=on_bad_rows, setting=setting)


def _prepare_labelled(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Prepare labelled texts; no template is put around them, and nothing is answered."""
    rows = load_labelled_rows(recipe.data, recipe.classification, tokenizer, recipe.seed)
    _say_rows("training", rows.train)
    _say_census(rows.train)
    for kind, parts in (("evaluation", rows.held_out), *(("prediction", asked.parts) for asked in rows.asked)):
        for part, one in parts.items():
            _say_rows(f"{kind}, {part}" if part else kind, one)
    return Prepared(tokenizer, None, rows.train, rows.scored, [], [], None, rows.report, labelled=rows)


def build_renderer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Renderer:
    """Bind the run's one template to its tokenizer, which then carries it to wherever the result is served.

    Plain text needs none. Where a pretraining run asks questions all the same, they are put in the
    tokenizer's own template, or in Alpaca's, and the tokenizer is left as it was.
    """
    data = recipe.data
    if KIND_OF_OBJECTIVE[recipe.objective] == "document":
        own = "model" if tokenizer.chat_template else "alpaca"
        return Renderer(load_template(own, tokenizer), tokenizer, "everything", data.special_tokens_in_data)
    template = load_template(data.template, tokenizer)
    tokenizer.chat_template = template.serving_source
    renderer = Renderer(template, tokenizer, data.train_on, data.special_tokens_in_data)
    check_parity(renderer)
    return renderer


def _say_rows(what: str, rows: TokenRows, marked: str = "trained") -> None:
    report, census = rows.report, rows.report["census"]
    lost = [f"{count} {reason.replace('_', ' ')}" for reason, count in census["dropped"].items() if count]
    lost += [f"{census['cut']} cut"] if census["cut"] else []
    bad = sum(source["bad_rows"] for source in report["sources"])
    notes = [f"{', '.join(lost)} at {census['max_length']} tokens"] if lost else []
    notes += [f"{bad} bad rows left out: data_report.json"] if bad else []
    notes += [f"{report['rows_dropped']} left out by what was found in them"] if report.get("rows_dropped") else []
    notes += [f"{census[name]} {meaning}" for name, meaning in _ODDITIES.items() if census[name]]
    control = census["control_tokens"]
    notes += [f"control tokens in the text of {control['rows']}: {control['tokens']}"] if control["rows"] else []
    # Of prompts nothing is trained: the answers to them are made in the run.
    trained = f", {census['trained_tokens']:,} of them {marked}" if census["trained_tokens"] else ""
    log.info(
        "%s: %d rows of tokens from %d read, %s tokens%s%s.",
        what, census["rows"], report["rows_read"], f"{census['tokens']:,}", trained,
        f" ({'; '.join(notes)})" if notes else "",
    )  # fmt: skip


def _say_census(rows: TokenRows) -> None:
    """Say how long the rows to train on are, and what each source gives; `preview` shows the whole table."""
    census, lengths = rows.report["census"], rows.report["census"]["lengths"]
    keeping = ", ".join(f"{share} fit {tokens:,}" for share, tokens in census["max_length_keeping"].items())
    full = f"; packed rows {census['packing_fill']:.1%} full" if "packing_fill" in census else ""
    log.info(
        "  lengths: median %s, p90 %s, p99 %s, longest %s of %s tokens; %s%s",
        *(f"{lengths[name]:,}" for name in ("median", "p90", "p99", "max")), f"{census['max_length']:,}", keeping, full,
    )  # fmt: skip
    if len(census["sources"]) > 1:
        for source in census["sources"]:
            share = f", {source['trained_share']:.1%} trained" if source["trained_tokens"] else ""
            log.info(
                "  %s: %s rows, %s tokens%s", source["path"], f"{source['rows']:,}", f"{source['tokens']:,}", share
            )
