"""The path: one recipe, from rows to a saved adapter. Read `train` from top to bottom.

In goes a parsed recipe, out comes a run folder that is enough to repeat, resume, chat with and
explain the run. Every part gets its own section of the recipe; only this file holds a whole one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
from accelerate import PartialState
from transformers import GenerationConfig, PreTrainedTokenizerBase

from finetune.data.rendering import Renderer
from finetune.data.sources import load_examples, split_examples
from finetune.data.templates import load_template
from finetune.data.tokens import TokenRows
from finetune.errors import FinetuneError
from finetune.model.adapters import adapter_bytes, attach_adapter, count_parameters
from finetune.model.base import BaseModel, check_base, check_vocabulary, choose_device, load_base
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives import OBJECTIVES
from finetune.objectives.answers import Answered, Answerer, Question, SampleAnswers, build_questions, mean_score
from finetune.objectives.supervised import SupervisedTrainer
from finetune.recipe.reading import to_resolved
from finetune.recipe.schema import DataSettings, EvalFraction, Recipe
from finetune.run.card import build_card
from finetune.run.checkpoints import CommitRecord, find_newest_checkpoint, find_step
from finetune.run.environment import is_main_process, name_device, read_environment
from finetune.run.folder import RunFolder
from finetune.run.interrupts import Interrupts
from finetune.run.logging import log_to, shows_bars
from finetune.run.metrics import MetricsWriter, read_metrics, read_totals, write_loss_plot
from finetune.run.resuming import refuse_other_recipe
from finetune.run.samples import Sample, cut_samples, write_samples
from finetune.run.summary import Summary, render_summary

__all__ = ["train"]

_ANSWERS_SHOWN = 3  # printed before and after

log = logging.getLogger("finetune.train")


def train(
    recipe: Recipe, *, recipe_text: str, resume: bool = False, overwrite: bool = False, dry_run: bool = False
) -> Path:
    """Carry a recipe to its adapter.

    Args:
        recipe: what to do.
        recipe_text: the recipe as typed, kept in the run folder.
        resume: continue the newest whole checkpoint; start at step 0 where there is none.
        overwrite: delete the run folder of this name first.
        dry_run: prepare everything up to the first weight, say what was found, write nothing.

    Returns:
        The run folder.

    Raises:
        FinetuneError: what a user can mend, by kind; `Interrupted` after a signal, with everything saved.
    """
    with log_to(None, writes=is_main_process()):
        check_base(recipe.model, max_length=recipe.data.max_length)
        if dry_run:
            prepare(recipe)
            log.info("Everything up to the first step is in order; nothing was written.")
            return Path(recipe.output_dir) / recipe.name
        folder = claim_folder(recipe, resume=resume, overwrite=overwrite)
        if folder.finished:
            log.info("%s is already complete (%s): nothing to do.", folder.path, folder.to_state())
            folder.release()
            return folder.path
    with folder, log_to(folder.log_path, writes=folder.writes), Interrupts(folder) as interrupts:
        folder.write_text(folder.recipe_path, recipe_text)
        folder.write_json(folder.resolved_path, to_resolved(recipe))
        folder.write_json(folder.environment_path, read_environment())
        folder.write_status("running")

        prepared = prepare(recipe)
        folder.write_json(folder.data_report_path, prepared.report)

        base = load_base(recipe.model, max_length=recipe.data.max_length, seed=recipe.seed)
        check_vocabulary(base.model, prepared.tokenizer)
        model = attach_adapter(base, recipe.adapter, recipe.seed)
        parameters = count_parameters(model)
        log.info("%s of %s parameters are trained.", f"{parameters.trainable:,}", f"{parameters.total:,}")

        checkpoint = find_checkpoint(folder) if resume else None
        resumed_step = None if checkpoint is None else find_step(checkpoint)
        answerer = Answerer(model, prepared.tokenizer, prepared.renderer.stop_ids, recipe.evaluation)
        trainer = OBJECTIVES[recipe.objective].build_trainer(
            base=base,
            model=model,
            tokenizer=prepared.tokenizer,
            train=prepared.train,
            held_out=prepared.held_out,
            data=recipe.data,
            training=recipe.training,
            seed=recipe.seed,
            checkpoints_dir=folder.checkpoints_dir,
            callbacks=[
                MetricsWriter(folder, resumed_step=resumed_step),
                CommitRecord(folder.checkpoints_dir, writes=folder.writes, keep=recipe.training.save_total_limit),
                SampleAnswers(answerer, prepared.samples, lambda step, shown: _write_samples(folder, step, shown)),
                interrupts,  # behind the others, so that it sees what came while they worked
            ],
        )
        if checkpoint is None:
            before = measure(trainer, answerer, prepared)
            if before.exact_match is not None:
                trainer.log({"exact_match": before.exact_match})
        else:
            before = _read_before(folder)
            folder.note_resumed(find_step(checkpoint))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        interrupts.raise_if_received()

        best_step = trainer.state.best_global_step if trainer.load_best() else None
        after = measure(trainer, answerer, prepared)
        result = save_result(folder, recipe, base, trainer, prepared)
        summary = build_summary(folder, base, trainer, before, after, best_step, len(prepared.questions), result)
        if folder.writes:
            write_loss_plot(folder.metrics_path, folder.loss_plot_path)
        folder.write_json(folder.summary_path, summary.to_json())
        folder.write_status("done")
        _say_answers(before.answered, after.answered)
        log.info("%s", render_summary(summary, str(result), str(folder.path)))
    return folder.path


def claim_folder(recipe: Recipe, *, resume: bool, overwrite: bool) -> RunFolder:
    """Claim the run's folder; one that another recipe has begun is given back untouched."""
    folder = RunFolder.claim(Path(recipe.output_dir), recipe.name, resume=resume, overwrite=overwrite)
    try:
        if resume:
            refuse_other_recipe(folder, to_resolved(recipe))
    except FinetuneError:
        folder.release()
        raise
    return folder


def find_checkpoint(folder: RunFolder) -> Path | None:
    """Find where to continue, and cut what the run wrote behind that point."""
    # One after the other: the first process sets a torn checkpoint aside while the others would be reading it.
    with PartialState().main_process_first():
        checkpoint = find_newest_checkpoint(folder.checkpoints_dir, writes=folder.writes)
    step = None if checkpoint is None else find_step(checkpoint)
    if folder.writes:
        cut_samples(folder.samples_path, step)
    log.info("No checkpoint yet: starting at step 0." if step is None else f"Continuing after step {step}.")
    return checkpoint


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
    report: dict[str, object]


def prepare(recipe: Recipe) -> Prepared:
    """Read the rows and turn them into tokens: the tokenizer is loaded, the weights are not."""
    objective, data, evaluation = OBJECTIVES[recipe.objective], recipe.data, recipe.evaluation
    if not shows_bars():
        datasets.disable_progress_bars()
    # Of several processes the first one fills the caches, and the others read them.
    with PartialState(cpu=choose_device(recipe.model.device).type == "cpu").main_process_first():
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

        questions: list[Question] = []
        if evaluation.questions is not None:
            asked = load(evaluation.questions, kind="conversation", setting="evaluation.questions")
            questions = build_questions(asked, renderer)
        samples = questions[: evaluation.num_samples]
        if not samples and held_out_examples and objective.reads == "conversation":
            samples = build_questions(held_out_examples, renderer, limit=evaluation.num_samples)
    report: dict[str, object] = {"train": train.report, "eval": held_out.report if held_out else None}
    _say_rows(train.report, data)
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


@dataclass(frozen=True, slots=True)
class Measured:
    """How good the model was at one moment; None and empty where the recipe did not ask."""

    eval_loss: float | None
    exact_match: float | None
    answered: Sequence[Answered]


def measure(trainer: SupervisedTrainer, answerer: Answerer, prepared: Prepared) -> Measured:
    """Measure the held-out loss and answer the questions with the weights as they are."""
    eval_loss = trainer.evaluate()["eval_loss"] if prepared.held_out is not None else None
    answered = answerer.answer(prepared.questions)
    return Measured(eval_loss, mean_score(answered) if answered else None, answered[:_ANSWERS_SHOWN])


def save_result(
    folder: RunFolder, recipe: Recipe, base: BaseModel, trainer: SupervisedTrainer, prepared: Prepared
) -> Path:
    """Save what was trained: the adapter, or the whole model where its own weights were changed."""
    target = folder.model_dir if recipe.adapter.method == "full" else folder.adapter_dir
    if not folder.writes:
        return target
    with folder.write_dir(target) as part:
        trainer.save_weights(part, dtype=base.stored_dtype)
        prepared.tokenizer.save_pretrained(part)
        GenerationConfig(
            bos_token_id=prepared.tokenizer.bos_token_id,
            eos_token_id=prepared.renderer.stop_ids,
            pad_token_id=prepared.tokenizer.pad_token_id,
        ).save_pretrained(part)
        card = build_card(recipe, template=prepared.renderer.template.name, commit=base.commit)
        (part / "README.md").write_text(card, encoding="utf-8")
    return target


def build_summary(
    folder: RunFolder,
    base: BaseModel,
    trainer: SupervisedTrainer,
    before: Measured,
    after: Measured,
    best_step: int | None,
    num_questions: int,
    result: Path,
) -> Summary:
    """Put a run's figures together, those before an interruption included."""
    totals, parameters = read_totals(folder.metrics_path), count_parameters(trainer.model)
    return Summary(
        status="done",
        steps=trainer.state.global_step,
        resumed_from=folder.resumed_from,
        train_loss=totals.train_loss,
        eval_loss_before=before.eval_loss,
        eval_loss=after.eval_loss,
        best_step=best_step,
        exact_match_before=before.exact_match,
        exact_match=after.exact_match,
        questions=num_questions or None,
        trainable_parameters=parameters.trainable,
        total_parameters=parameters.total,
        adapter_bytes=adapter_bytes(result) if folder.writes else 0,
        tokens=totals.tokens,
        tokens_per_second=totals.tokens_per_second,
        peak_memory_bytes=totals.peak_memory_bytes,
        seconds=totals.seconds,
        device=name_device(base.device.type),
    )


def _read_before(folder: RunFolder) -> Measured:
    """Read what was measured before the first step, in the process that began this run."""
    first = next(iter(read_metrics(folder.metrics_path)), {})
    return Measured(first.get("eval_loss"), first.get("exact_match"), [])


def _write_samples(folder: RunFolder, step: int, answered: Sequence[Answered]) -> None:
    shown = [Sample(one.question.asked, one.question.reference, one.answer) for one in answered]
    write_samples(folder, step, shown)


def _say_rows(report: dict[str, object], data: DataSettings) -> None:
    dropped = report["dropped"]
    assert isinstance(dropped, dict)
    log.info(
        "%d rows of %d read, %s tokens, %s of them trained; dropped: %d longer than %d tokens, %d without a trained "
        "token; cut: %d.",
        report["rows"], report["rows_read"], f"{report['tokens']:,}", f"{report['trained_tokens']:,}",
        dropped["too_long"], data.max_length, dropped["nothing_trained"], report["cut"],
    )  # fmt: skip


def _say_answers(before: Sequence[Answered], after: Sequence[Answered]) -> None:
    earlier = {one.question.asked: one.answer for one in before}
    for one in after:
        log.info(
            "asked   %s\n  before  %s\n  after   %s\n  right   %s\n",
            one.question.asked.replace("\n", "\n        "),
            earlier.get(one.question.asked, "(measured before this process)"),
            one.answer,
            one.question.reference,
        )
