"""The path: one recipe, from rows to a saved adapter. Read `train` from top to bottom.

In goes a parsed recipe, out comes a run folder that is enough to repeat, resume, chat with and
explain the run. Every part gets its own section of the recipe; only this file holds a whole one.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from finetune.errors import FinetuneError
from finetune.measuring import Gauge, Measured, from_figures, to_figures
from finetune.model.adapters import attach_adapter, check_adapter
from finetune.model.backends import find_backend
from finetune.model.base import BaseModel, check_base, check_vocabulary, load_base
from finetune.model.continuing import (
    add_reference,
    attach_trained_adapter,
    check_same_template,
    find_trained_adapter,
)
from finetune.model.devices import check_trainer_fields, choose_device
from finetune.model.identity import hash_adapter
from finetune.model.printing import printed_to_log
from finetune.model.scoring import check_same_words, check_scorer, load_scorer
from finetune.objectives import OBJECTIVES
from finetune.objectives.answers import Answered, Answerer, SampleAnswers, render_answers
from finetune.objectives.rewards import build_rewards
from finetune.objectives.trainer import StepMixin
from finetune.prepare import Prepared, build_arguments, prepare
from finetune.recipe.reading import to_resolved
from finetune.recipe.schema import Recipe
from finetune.reference import fill_reference
from finetune.result import build_summary, save_result, write_predictions
from finetune.run.checkpoints import CommitRecord, find_checkpoint_named, find_newest_checkpoint
from finetune.run.environment import read_environment
from finetune.run.folder import RunFolder
from finetune.run.interrupts import Interrupts
from finetune.run.launch import count_processes, is_main_process
from finetune.run.layout import find_step
from finetune.run.logging import log_to_console
from finetune.run.loss_plot import write_loss_plot
from finetune.run.metrics import MetricsWriter, read_metrics
from finetune.run.resuming import refuse_other_identity, refuse_other_recipe, write_identity
from finetune.run.samples import Sample, cut_samples, write_samples
from finetune.run.summary import render_summary
from finetune.run.trackers import check_trackers

__all__ = ["train"]

log = logging.getLogger("finetune.train")


def train(
    recipe: Recipe, *, recipe_text: str, resume: bool = False, overwrite: bool = False, dry_run: bool = False
) -> Path:
    """Carry a recipe to its adapter.

    Args:
        recipe: what to do.
        recipe_text: the recipe as typed, kept in the run folder.
        resume: continue the newest whole checkpoint; start at step 0 where there is none.
        overwrite: replace the run of this name, once the new one is known to start.
        dry_run: do all that needs no weights, say what was found, write nothing.

    Returns:
        The run folder.

    Raises:
        FinetuneError: what a user can mend, by kind; `Interrupted` after a signal, with everything saved.
    """
    with log_to_console(writes=is_main_process()) as log_file, printed_to_log():
        arguments, trained_dir = check_settings(recipe)
        if dry_run:
            prepare(recipe)
            log.info("Recipe, base, device, rows and trainer settings are in order; no weight was loaded.")
            return Path(recipe.output_dir) / recipe.name
        folder = claim_folder(recipe, resume=resume, overwrite=overwrite)
        if folder.finished:
            log.info("%s is already complete (%s): nothing to do.", folder.path, folder.to_state())
            folder.release()
            return folder.path
        with folder, Interrupts(folder) as interrupts:
            prepared = prepare(recipe)
            if trained_dir is not None:
                check_same_template(trained_dir, prepared.tokenizer)
            base = load_frozen_base(recipe, arguments, prepared)
            identity = build_identity(base, prepared, trained_dir)
            if resume:
                refuse_other_identity(folder, identity)
            model = attach(recipe, base, arguments, trained_dir)
            answerer = Answerer(model, prepared.tokenizer, prepared.stop_ids, recipe.evaluation)
            checkpoint = find_checkpoint(folder) if resume else None
            resumed_step = None if checkpoint is None else find_step(checkpoint)
            trainer = OBJECTIVES[recipe.objective].build_trainer(
                base=base,
                model=model,
                tokenizer=prepared.tokenizer,
                arguments=arguments,
                train=prepared.train,
                held_out=prepared.held_out,
                data=recipe.data,
                training=recipe.training,
                callbacks=[
                    MetricsWriter(folder, resumed_step=resumed_step),
                    CommitRecord(folder.checkpoints_dir, writes=folder.writes, keep=recipe.training.save_total_limit),
                    SampleAnswers(answerer, prepared.samples, partial(_write_samples, folder)),
                    interrupts,  # behind the others, so that it sees what came while they worked
                ],
                **load_further(recipe, prepared),
            )
            trainer.check_before_start()

            # From here on the run exists: all that a recipe or its rows can get wrong is behind us.
            folder.start()
            log_file.open(folder.log_path)
            write_records(folder, recipe, recipe_text, prepared, identity, resumed_step)
            fill_reference(recipe, base, prepared, trainer, trained_dir)
            gauge = Gauge(trainer, answerer, prepared, recipe.training.per_device_eval_batch_size)
            before = measure_start(folder, recipe, gauge) if checkpoint is None else read_start(folder)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            interrupts.raise_if_received()

            best_step = put_best_back(folder, trainer)
            after = gauge.measure()
            _write_samples(folder, best_step or trainer.state.global_step, after.samples)
            write_predictions(folder, prepared, trainer)
            result = save_result(folder, recipe, base, trainer, prepared, before, after)
            summary = build_summary(folder, base, trainer, prepared, before, after, best_step, result)
            folder.write_json(folder.summary_path, summary.to_json())
            folder.write_status("done")
            if folder.writes:
                write_loss_plot(folder.metrics_path, folder.loss_plot_path)
            for lines in render_answers(before.samples, after.samples):
                log.info("%s", lines)
            log.info("%s", render_summary(summary, str(result), str(folder.path), head=base.head))
    return folder.path


# ---- where to begin


def check_settings(recipe: Recipe) -> tuple[TrainingArguments, Path | None]:
    """Check what needs neither rows nor weights.

    Returns:
        The trainer's own config, and the folder of the adapter that is trained on; None: a fresh one.
    """
    check_trackers(recipe.training.report_to)
    find_backend(recipe.model.backend)  # the command line has started it, before the libraries that it changes
    head, trained_dir = OBJECTIVES[recipe.objective].head, None
    virtual_tokens = recipe.adapter.virtual_tokens
    check_base(recipe.model, max_length=recipe.data.max_length, head=head, virtual_tokens=virtual_tokens)
    if recipe.adapter.init_from is None:
        check_adapter(recipe.adapter, head=head)
    else:
        trained_dir = find_trained_adapter(recipe.adapter.init_from, recipe.model, recipe.seed)
    for reward in recipe.rewards:
        if reward.path is not None:
            check_scorer(reward.path, device=recipe.model.device)
    check_trainer_fields(recipe.training.fields, choose_device(recipe.model.device))
    return build_arguments(recipe), trained_dir


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


def load_frozen_base(recipe: Recipe, arguments: TrainingArguments, prepared: Prepared) -> BaseModel:
    """Load the base that the objective wants, and hold the tokenizer's words against its embeddings."""
    base = load_base(
        recipe.model,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        head=OBJECTIVES[recipe.objective].head,
        labels=None if prepared.labelled is None else prepared.labelled.labels,
        checkpointing=arguments.gradient_checkpointing,
    )
    check_vocabulary(base.model, prepared.tokenizer)
    return base


def build_identity(base: BaseModel, prepared: Prepared, trained_dir: Path | None) -> dict[str, object]:
    """Build what the recipe does not show and a resumed run must share: base, trained adapter, rows, processes."""
    identity: dict[str, object] = {
        "base_commit": base.commit, "data": prepared.train.report["label_hash"], "num_processes": count_processes()
    }  # fmt: skip
    if prepared.held_out is not None:  # the best step and early stopping go by these
        identity["held_out"] = prepared.held_out.report["label_hash"]
    return identity if trained_dir is None else identity | {"init_from": hash_adapter(trained_dir)}


def attach(
    recipe: Recipe, base: BaseModel, arguments: TrainingArguments, trained_dir: Path | None
) -> PreTrainedModel | PeftModel:
    """Attach a fresh adapter, or one trained before, with a frozen copy beside it where every step reads the start."""
    if trained_dir is None:
        return attach_adapter(base, recipe.adapter, recipe.seed, checkpointing=arguments.gradient_checkpointing)
    model = attach_trained_adapter(base, trained_dir, recipe.seed, checkpointing=arguments.gradient_checkpointing)
    if OBJECTIVES[recipe.objective].reads_start(arguments):
        add_reference(model, trained_dir)
    return model


def load_further(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """Load what one objective's trainer takes beyond the others: rewards and what ends an answer, or labels."""
    if prepared.labelled is not None:
        return {"labelled": prepared.labelled}
    if not recipe.rewards:
        return {}
    size = recipe.training.per_device_train_batch_size
    scorers = {}
    for part in recipe.rewards:
        if part.path is not None:
            scorer = load_scorer(part.path, device=recipe.model.device)
            check_same_words(scorer, prepared.tokenizer)
            scorers[part.path] = partial(scorer.score, batch_size=size)
    return {"rewards": build_rewards(recipe.rewards, scorers), "stop_ids": prepared.stop_ids}


def find_checkpoint(folder: RunFolder) -> Path | None:
    """Find the checkpoint to continue from, and say so."""
    # One after the other: the first process sets a torn checkpoint aside while the others would be reading it.
    with PartialState().main_process_first():
        checkpoint = find_newest_checkpoint(folder.checkpoints_dir, writes=folder.writes)
    if checkpoint is None:
        log.info("No checkpoint yet: starting at step 0.")
    else:
        folder.note_resumed(find_step(checkpoint))
        log.info("Continuing after step %d.", find_step(checkpoint))
    return checkpoint


def write_records(
    folder: RunFolder,
    recipe: Recipe,
    recipe_text: str,
    prepared: Prepared,
    identity: dict[str, object],
    resumed_step: int | None,
) -> None:
    """Write what the run is made from, and cut the samples behind the step it is taken up from."""
    folder.write_text(folder.recipe_path, recipe_text)
    folder.write_json(folder.resolved_path, to_resolved(recipe))
    folder.write_json(folder.environment_path, read_environment())
    folder.write_json(folder.data_report_path, prepared.report)
    write_identity(folder, identity)
    folder.write_status("running")
    if folder.writes:
        cut_samples(folder.samples_path, resumed_step)


# ---- before and after


def measure_start(folder: RunFolder, recipe: Recipe, gauge: Gauge) -> Measured:
    """Measure the start, and log it as step 0: from there `read_start` has it when the run is resumed."""
    measured = gauge.measure(with_base=recipe.adapter.init_from is not None)
    gauge.trainer.log(to_figures(measured))
    _write_samples(folder, 0, measured.samples)
    return measured


def read_start(folder: RunFolder) -> Measured:
    """Read what was measured before the first step, in the process that began this run."""
    return from_figures(next(iter(read_metrics(folder.metrics_path)), {}))


# ---- what is left behind


def put_best_back(folder: RunFolder, trainer: StepMixin) -> int | None:
    """Put the weights of the best step back and give its number; None where the last step's are the result."""
    name = trainer.find_best_checkpoint_name()
    checkpoint = None if name is None else find_checkpoint_named(folder.checkpoints_dir, name)
    if checkpoint is None:
        return None
    trainer.load_weights(checkpoint)
    return find_step(checkpoint)


def _write_samples(folder: RunFolder, step: int, answered: Sequence[Answered]) -> None:
    shown = [Sample(one.question.asked, one.question.reference, one.answer) for one in answered]
    write_samples(folder, step, shown)
