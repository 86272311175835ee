"""The path: one recipe, from rows to a saved adapter. Read `train` from top to bottom.

In goes a parsed recipe, out comes a run folder that is enough to repeat, resume, chat with and
explain the run. `data`, `model`, `objectives` and `run` get its sections or plain values, never
the whole recipe.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from finetune.budget.computing import find_loss
from finetune.measuring import Gauge, Measured, drop_changed, from_figures, to_figures
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
from finetune.model.lean import use_lean_path
from finetune.model.lean_elementwise import use_lean_elementwise
from finetune.model.printing import printed_to_log
from finetune.model.read_ahead import read_ahead
from finetune.model.scoring import check_same_words, check_scorer, load_scorer
from finetune.objectives import OBJECTIVES
from finetune.objectives.answers import Answerer, SampleAnswers
from finetune.objectives.building import TrainerParts
from finetune.objectives.finite import NonFinitePolicy
from finetune.objectives.free_memory import read_available_bytes
from finetune.objectives.full_memory import telling_full_memory
from finetune.objectives.rehearsal import rehearse
from finetune.objectives.rewards import build_rewards
from finetune.objectives.trainer import StepMixin
from finetune.objectives.workers import telling_dead_workers
from finetune.origin import Origin, claim_folder, find_origin
from finetune.planning.estimate import Plan
from finetune.predicting import open_with_plan
from finetune.prepare import Prepared, build_arguments, prepare
from finetune.recipe.heads import HEAD_OF_OBJECTIVE
from finetune.recipe.reading import to_resolved
from finetune.recipe.schema import Recipe
from finetune.reference import fill_reference
from finetune.result import leave_result, write_answers
from finetune.room import check_room, estimate_checkpoint
from finetune.run.checkpoints import CommitRecord
from finetune.run.environment import read_environment
from finetune.run.folder import RunFolder
from finetune.run.full_disk import telling_full_disk
from finetune.run.interrupts import Interrupts
from finetune.run.launch import is_main_process
from finetune.run.logging import log_to_console
from finetune.run.metrics import MetricsWriter, read_metrics
from finetune.run.non_finite import cut_non_finite_rows, write_non_finite_rows
from finetune.run.resuming import has_other_recipe, write_identity
from finetune.run.samples import cut_samples
from finetune.run.secrets import refuse_known_secrets
from finetune.run.spikes import SpikeWatch
from finetune.run.trackers import check_trackers

__all__ = ["train"]

log = logging.getLogger("finetune.train")


def train(
    recipe: Recipe,
    *,
    recipe_text: str,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_mismatch: Sequence[str] = (),
) -> Path:
    """Carry a recipe to its adapter.

    Args:
        recipe: what to do.
        recipe_text: the recipe as typed, kept in the run folder.
        resume: continue the newest whole checkpoint; start at step 0 where there is none.
        overwrite: replace the run of this name, once the new one is known to start.
        dry_run: do all that needs no weights, say what was found, write nothing.
        allow_mismatch: keys that a resumed run may have other values of than the run had so far.

    Returns:
        The run folder.

    Raises:
        FinetuneError: what a user can mend, by kind; `Interrupted` after a signal, with everything saved.
    """
    with log_to_console(writes=is_main_process()) as log_file, printed_to_log():
        refuse_known_secrets(recipe_text, json.dumps(to_resolved(recipe)))
        if dry_run:
            arguments, _ = check_settings(recipe)
            open_with_plan(recipe, prepare(recipe), num_processes=arguments.world_size)
            log.info("Recipe, base, device, rows and trainer settings are in order; no weight was loaded.")
            return Path(recipe.output_dir) / recipe.name
        claim = claim_folder(recipe, resume=resume, overwrite=overwrite, allow_mismatch=allow_mismatch)
        folder = claim.folder
        if folder.finished:
            log.info("%s is already complete (%s): nothing to do.", folder.path, folder.to_state())
            folder.release()
            return folder.path
        with folder, Interrupts(folder) as interrupts:
            arguments, trained_dir = check_settings(recipe)
            with telling_of_the_place(recipe, arguments, trained_dir, folder):
                read_ahead(recipe.model, read_available_bytes())  # while the rows are tokenized
                prepared = prepare(recipe)
                plan = open_with_plan(recipe, prepared, num_processes=arguments.world_size)
                if trained_dir is not None:
                    check_same_template(trained_dir, prepared.tokenizer)
                base = load_frozen_base(recipe, arguments, prepared)
                origin = find_origin(recipe, base, prepared, trained_dir, claim)
                model = attach(recipe, base, arguments, trained_dir)
                answerer = Answerer(model, prepared.tokenizer, prepared.stop_ids, recipe.evaluation)
                samples = SampleAnswers(answerer, prepared.samples, partial(write_answers, folder))
                # The interrupts stand behind the others, so that they see what came while those worked.
                trainer = build_trainer(recipe, arguments, prepared, base, model, folder, origin, [samples, interrupts])
                trainer.is_stopping = interrupts.is_stopping
                if recipe.training.rehearsal:
                    rehearse(trainer, folder.path)

                # From here on the run exists: all that a recipe or its rows can get wrong is behind us.
                folder.start()
                log_file.open(folder.log_path)
                write_records(folder, recipe, recipe_text, prepared, origin, plan)
                fill_reference(recipe, base, prepared, trainer, trained_dir)
                gauge = Gauge(trainer, answerer, prepared, recipe.training.per_device_eval_batch_size)
                is_fresh = origin.checkpoint is None
                before = measure_start(folder, recipe, gauge) if is_fresh else read_start(folder, gauge)
                trainer.train(resume_from_checkpoint=None if origin.checkpoint is None else str(origin.checkpoint))
                interrupts.raise_if_received()

                leave_result(folder, recipe, base, gauge, before, plan)
    return folder.path


# ---- where to begin


@contextmanager
def telling_of_the_place(
    recipe: Recipe, arguments: TrainingArguments, trained_dir: Path | None, folder: RunFolder
) -> Iterator[None]:
    """Translate what the place does to a run wherever it is: a disk or a memory that is full, workers that die.

    Raises:
        PlaceError: one of these, with what is kept and what to type.
    """
    checkpoint_bytes = partial(estimate_checkpoint, recipe, arguments, trained_dir)
    dead_workers = telling_dead_workers(arguments.dataloader_num_workers)
    with telling_full_memory(), telling_full_disk(folder, checkpoint_bytes), dead_workers:
        yield


def check_settings(recipe: Recipe) -> tuple[TrainingArguments, Path | None]:
    """Check what needs neither rows nor weights.

    Returns:
        The trainer's own config, and the folder of the adapter that is trained on; None: a fresh one.
    """
    check_trackers(recipe.training.report_to)
    find_backend(recipe.model.backend)  # the command line has started it, before the libraries that it changes
    head, trained_dir = HEAD_OF_OBJECTIVE[recipe.objective], None
    virtual_tokens = recipe.adapter.virtual_tokens
    check_base(recipe.model, max_length=recipe.data.max_length, head=head, virtual_tokens=virtual_tokens)
    if recipe.adapter.init_from is None:
        check_adapter(recipe.adapter, head=head)
    else:
        trained_dir = find_trained_adapter(
            recipe.adapter.init_from, recipe.model, recipe.seed, any_base=recipe.adapter.any_base
        )
    for reward in recipe.rewards:
        if reward.path is not None:
            check_scorer(reward.path, device=recipe.model.device)
    check_trainer_fields(recipe.training.fields, choose_device(recipe.model.device))
    arguments = build_arguments(recipe)
    check_room(recipe, arguments, trained_dir)
    return arguments, trained_dir


def load_frozen_base(recipe: Recipe, arguments: TrainingArguments, prepared: Prepared) -> BaseModel:
    """Load the base that the objective wants, and hold the tokenizer's words against its embeddings."""
    base = load_base(
        recipe.model,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        head=HEAD_OF_OBJECTIVE[recipe.objective],
        labels=None if prepared.labelled is None else prepared.labelled.labels,
        checkpointing=arguments.gradient_checkpointing,
    )
    check_vocabulary(base.model, prepared.tokenizer)
    return base


def attach(
    recipe: Recipe, base: BaseModel, arguments: TrainingArguments, trained_dir: Path | None
) -> PreTrainedModel | PeftModel:
    """Attach a fresh adapter, or one trained before, with a frozen copy beside it where every step reads the start."""
    if trained_dir is None:
        model = attach_adapter(base, recipe.adapter, recipe.seed, checkpointing=arguments.gradient_checkpointing)
    else:
        model = attach_trained_adapter(base, trained_dir, recipe.seed, checkpointing=arguments.gradient_checkpointing)
        if OBJECTIVES[recipe.objective].reads_start(arguments):
            add_reference(model, trained_dir)
    if base.backend == "transformers":  # Unsloth has functions of its own
        use_lean_path(model)
        use_lean_elementwise(model)
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


def build_bare_trainer(
    recipe: Recipe,
    arguments: TrainingArguments,
    prepared: Prepared,
    base: BaseModel,
    model: PreTrainedModel | PeftModel,
    callbacks: Sequence[TrainerCallback] = (),
) -> StepMixin:
    """Build the objective's trainer from what was prepared and loaded; it belongs to no run's folder yet."""
    parts = TrainerParts(
        base=base,
        model=model,
        tokenizer=prepared.tokenizer,
        arguments=arguments,
        train=prepared.train,
        held_out=prepared.held_out,
        data=recipe.data,
        training=recipe.training,
        callbacks=callbacks,
    )
    return OBJECTIVES[recipe.objective].build_trainer(parts, **load_further(recipe, prepared))


def build_trainer(
    recipe: Recipe,
    arguments: TrainingArguments,
    prepared: Prepared,
    base: BaseModel,
    model: PreTrainedModel | PeftModel,
    folder: RunFolder,
    origin: Origin,
    callbacks: Sequence[TrainerCallback],
) -> StepMixin:
    """Build the objective's trainer with the run's callbacks in front, and take up what it had decided before."""
    keep = recipe.training.save_total_limit
    of_the_run = [
        SpikeWatch(folder, resumed_step=origin.resumed_step),  # marks the line that the next one writes
        MetricsWriter(folder, resumed_step=origin.resumed_step),
        CommitRecord(folder.checkpoints_dir, writes=folder.writes, keep=keep, made_from=origin.made_from),
    ]
    trainer = build_bare_trainer(recipe, arguments, prepared, base, model, [*of_the_run, *callbacks])
    trainer.check_before_start()
    trainer.finite.policy = NonFinitePolicy(
        choice=recipe.training.non_finite,
        max_skipped_steps=recipe.training.max_skipped_steps,
        account=prepared.train.account,
        write=partial(write_non_finite_rows, folder),
    )
    loss = find_loss(recipe.objective, recipe.training.fields.get("loss_type"))
    trainer.idle_memory.begin(recipe.training.memory, base, recipe.adapter, loss=loss)
    if origin.checkpoint is not None:
        trainer.args.eval_on_start = False  # of a checkpoint's step: the same figure again would cost patience
        trainer.takes_new_settings = has_other_recipe(origin.checkpoint, origin.made_from)
        trainer.micro_batches.read(origin.checkpoint)
        if not trainer.takes_new_settings:  # else another step has to fit
            trainer.idle_memory.read(origin.checkpoint)
    return trainer


def write_records(
    folder: RunFolder,
    recipe: Recipe,
    recipe_text: str,
    prepared: Prepared,
    origin: Origin,
    plan: Plan | None,
) -> None:
    """Write what the run is made from, and cut what stands behind the step it is taken up from."""
    # What was accepted comes first: killed behind it, the same command finds the old recipe and is let through again.
    write_identity(folder, origin.identity, origin.accepted, step=origin.resumed_step)
    folder.write_text(folder.recipe_path, recipe_text)
    folder.write_json(folder.resolved_path, to_resolved(recipe))
    folder.write_json(folder.environment_path, read_environment())
    folder.write_json(folder.data_report_path, prepared.report)
    if plan is not None:
        folder.write_json(folder.plan_path, plan.to_json())
    folder.write_status("running")
    if folder.writes:
        cut_samples(folder.samples_path, origin.resumed_step)
        cut_non_finite_rows(folder.non_finite_path, origin.resumed_step)


# ---- before and after


def measure_start(folder: RunFolder, recipe: Recipe, gauge: Gauge) -> Measured:
    """Measure the start, and log it as step 0: from there `read_start` has it when the run is resumed."""
    measured = gauge.measure(with_base=recipe.adapter.init_from is not None)
    gauge.trainer.log(dict(to_figures(measured)))
    for callback in gauge.trainer.callback_handler.callbacks:
        if isinstance(callback, MetricsWriter):
            callback.note(gauge.hash_asked())
    write_answers(folder, 0, measured.samples)
    return measured


def read_start(folder: RunFolder, gauge: Gauge) -> Measured:
    """Read what was measured before the first step, in the process that began this run, where the same is asked now."""
    line = next(iter(read_metrics(folder.metrics_path)), {})
    return drop_changed(from_figures(line), line, gauge.hash_asked())
