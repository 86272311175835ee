"""What a finished run leaves behind: predictions, the adapter or the model with its card, and the figures.

In go the trained model and what was measured before and after; each part is written whole or not at all.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig

from finetune.measuring import Gauge, Measured, to_summary, to_words
from finetune.model.adapters import adapter_bytes, count_parameters, find_method
from finetune.model.base import BaseModel
from finetune.model.heads import write_labels
from finetune.model.same_base import note_base_weights
from finetune.objectives.answers import Answered, render_answers
from finetune.objectives.trainer import StepMixin
from finetune.planning.estimate import Plan
from finetune.predicting import to_prediction, write_speed
from finetune.prepare import Prepared
from finetune.recipe.own_methods import WHOLE_METHODS
from finetune.recipe.schema import Recipe
from finetune.run.card import build_card
from finetune.run.checkpoints import find_checkpoint_named
from finetune.run.environment import name_device
from finetune.run.folder import RunFolder
from finetune.run.full_disk import find_full
from finetune.run.layout import find_step
from finetune.run.loss_plot import write_loss_plot
from finetune.run.metrics import Totals, read_totals
from finetune.run.resuming import read_accepted
from finetune.run.samples import Sample, write_samples
from finetune.run.summary import Summary, render_summary

__all__ = ["leave_result", "write_answers"]

log = logging.getLogger("finetune.result")


def leave_result(
    folder: RunFolder, recipe: Recipe, base: BaseModel, gauge: Gauge, before: Measured, plan: Plan | None
) -> None:
    """Measure the best step's weights, save them, and sum the run up; it is done when this returns.

    Args:
        folder: the run's.
        recipe: the run.
        base: the loaded base.
        gauge: what `before` was measured with; its trainer is trained to its end.
        before: what the start was worth.
        plan: what the run was expected to need, printed beside what it did; None: there was none.
    """
    trainer, prepared = gauge.trainer, gauge.prepared
    best_step = put_best_back(folder, trainer)
    after = gauge.measure()
    write_answers(folder, best_step or trainer.state.global_step, after.samples)
    write_predictions(folder, prepared, trainer)
    if folder.writes:
        draw_curves(folder)
    result = folder.model_dir if recipe.adapter.method in WHOLE_METHODS else folder.adapter_dir
    totals = read_totals(folder.metrics_path)
    write_speed(plan, totals, folder.path.name)
    # It takes its place when the block ends: the last thing but one, since it says that the run has finished.
    with folder.write_dir(result, closes=True) as part:
        if folder.writes:
            save_result(part, recipe, base, gauge, before, after)
        summary = build_summary(folder, base, gauge, before, after, best_step, totals, part, plan)
        folder.write_json(folder.summary_path, summary.to_json())
    folder.write_status("done")
    for lines in render_answers(before.samples, after.samples):
        log.info("%s", lines)
    log.info("%s", render_summary(summary, str(result), str(folder.path), head=base.head))


def write_answers(folder: RunFolder, step: int, answered: Sequence[Answered]) -> None:
    """Write what was answered at a step into samples.md."""
    shown = [Sample(one.question.asked, one.question.reference, one.answer) for one in answered]
    write_samples(folder, step, shown)


def put_best_back(folder: RunFolder, trainer: StepMixin) -> int | None:
    """Put the weights of the best step back and give its number; None where the last step's are the result."""
    name = trainer.find_best_checkpoint_name()
    checkpoint = None if name is None else find_checkpoint_named(folder.checkpoints_dir, name)
    if checkpoint is None:
        return None
    trainer.load_weights(checkpoint)
    return find_step(checkpoint)


def draw_curves(folder: RunFolder) -> None:
    """Draw loss.png; a picture that cannot be drawn is no reason to lose a run, a full disk is told as everywhere."""
    try:
        write_loss_plot(folder.metrics_path, folder.loss_plot_path)
    except Exception as error:
        if find_full(error) is not None:
            raise
        folder.loss_plot_path.unlink(missing_ok=True)
        log.warning("%s could not be drawn: %s: %s", folder.loss_plot_path.name, type(error).__name__, error)


def write_predictions(folder: RunFolder, prepared: Prepared, trainer: StepMixin) -> None:
    """Label the rows that the recipe asks about; a whole model's weights are not rounded for the disk yet."""
    if prepared.labelled is None or not prepared.labelled.asked:
        return
    with folder.write_dir(folder.predictions_dir) as part:
        prepared.labelled.write_predictions(part, trainer.predict_logits, writes=folder.writes)


def save_result(part: Path, recipe: Recipe, base: BaseModel, gauge: Gauge, before: Measured, after: Measured) -> None:
    """Save what was trained into a folder: the adapter, or the whole model where its own weights were changed."""
    trainer, prepared = gauge.trainer, gauge.prepared
    trainer.save_weights(part, dtype=base.stored_dtype)
    if recipe.adapter.method not in WHOLE_METHODS:
        note_base_weights(part, recipe.model)
    prepared.tokenizer.save_pretrained(part)
    if base.head == "words":
        GenerationConfig(
            bos_token_id=prepared.tokenizer.bos_token_id,
            eos_token_id=prepared.stop_ids,
            pad_token_id=prepared.tokenizer.pad_token_id,
        ).save_pretrained(part)
    if base.head == "labels":
        write_labels(trainer.model, part)  # PEFT's files do not say what the outputs mean
    sources = recipe.data.train if isinstance(recipe.data.train, list) else [recipe.data.train]
    card = build_card(
        name=recipe.name,
        base=recipe.model.model_name_or_path,
        quantization=recipe.model.quantization,
        backend=recipe.model.backend,
        method=find_method(trainer.model) or recipe.adapter.method,
        fields=recipe.adapter.fields,
        init_from=recipe.adapter.init_from,
        ends_with=base.head,
        labels=None if base.labels is None else base.labels.names,
        data_paths=[source.path for source in sources],
        template=None if prepared.renderer is None else prepared.renderer.template.name,
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        commit=base.commit,
        results={"steps": trainer.state.global_step, **to_words(before, after, prepared.labelled)},
        rows=len(prepared.train.dataset),
        fingerprint=prepared.train.fingerprint,
    )
    (part / "README.md").write_text(card, encoding="utf-8")


def build_summary(
    folder: RunFolder,
    base: BaseModel,
    gauge: Gauge,
    before: Measured,
    after: Measured,
    best_step: int | None,
    totals: Totals,
    part: Path,
    plan: Plan | None,
) -> Summary:
    """Put a run's figures together, those before an interruption included; `part` is where the result lies."""
    trainer, prepared, parameters = gauge.trainer, gauge.prepared, count_parameters(gauge.trainer.model)
    return Summary(
        status="done",
        steps=trainer.state.global_step,
        resumed_from=folder.resumed_from,
        train_loss=totals.train_loss,
        skipped_steps=len(trainer.finite.skipped_steps),
        loss_spikes=totals.loss_spikes,
        best_step=best_step,
        accepted_mismatches=read_accepted(folder) or None,
        questions=len(prepared.questions) or None,
        pairs=None if prepared.pairs is None else len(prepared.pairs.dataset),
        **({} if prepared.labelled is None else prepared.labelled.to_summary()),
        **to_summary(before, after),
        trainable_parameters=parameters.trainable,
        total_parameters=parameters.total,
        adapter_bytes=adapter_bytes(part) if folder.writes else 0,
        tokens=totals.tokens,
        tokens_per_second=totals.tokens_per_second,
        peak_memory_bytes=totals.peak_memory_bytes,
        micro_batch_rows=trainer.micro_batches.rows,
        memory_spending=trainer.idle_memory.to_json(),
        seconds=totals.seconds,
        predicted=to_prediction(plan),
        device=name_device(base.device.type),
    )
