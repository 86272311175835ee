"""A result measured by the code that measures it at the end of a run.

In goes what `asking` found; out comes an `Evaluation`. Nothing in the run's folder is touched.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from finetune.errors import CheckpointError, PlaceError, RecipeError
from finetune.evaluating.asking import Evaluated
from finetune.evaluating.figures import Evaluation
from finetune.measuring import Gauge, Measured
from finetune.model.adapters import REFERENCE
from finetune.model.backends import find_backend
from finetune.model.base import BaseModel, check_vocabulary, load_base
from finetune.model.continuing import add_reference, find_trained_adapter
from finetune.model.identity import hash_adapter
from finetune.model.lean import use_lean_path
from finetune.model.lean_elementwise import use_lean_elementwise
from finetune.model.loading import attach_saved_adapter, check_adapter_file, check_target_base
from finetune.model.targets import Target, find_target
from finetune.objectives import OBJECTIVES
from finetune.objectives.answers import Answerer
from finetune.objectives.full_memory import telling_full_memory
from finetune.objectives.trainer import StepMixin
from finetune.prepare import Prepared, build_arguments, prepare
from finetune.recipe.heads import HEAD_OF_OBJECTIVE
from finetune.recipe.own_methods import WHOLE_METHODS
from finetune.recipe.schema import AdapterSettings, EvalFraction, Recipe, SourceSettings
from finetune.run.layout import RunLayout
from finetune.run.own_files import read_object
from finetune.train import build_bare_trainer

__all__ = ["evaluate"]

log = logging.getLogger("finetune.evaluating")

# Methods that begin a little beside the base, or far from it (PEFT 0.21 and ours, fresh on a small Mistral: its logits
# move by 0.001 to 6); of these, the ones that `init_weights: true` puts on it.
_BEGIN_BESIDE_THE_BASE = frozenset({"bottleneck", "c3a", "combined", "fourierft", "hypernetwork", "unilora", "vblora"})
_TRUE_IS_THE_BASE = frozenset({"c3a", "fourierft"})

# The settings that say how an adapter begins, and their values with which the other methods begin as the base (measured
# so too: at most 3e-6). Not among them: false, null, loftq, tinylora's uniform, and whatever a later PEFT adds.
_STARTS = ("init_lora_weights", "init_ia3_weights", "init_weights")
_START_AS_THE_BASE = frozenset({True, "gaussian", "orthogonal", "olora", "pissa", "mica", "lycoris", "bat", "mini"})


def evaluate(
    asked: Evaluated,
    *,
    with_base: bool = False,
    with_answers: bool = False,
    predictions_dir: Path | None = None,
    any_base: bool = False,
) -> Evaluation:
    """Measure a result.

    Args:
        asked: from `read_evaluated`.
        with_base: measure the base with the adapter switched off too.
        with_answers: keep as many answers as the recipe's `evaluation.num_samples`.
        predictions_dir: a new folder for the labels of `classification.predict`'s rows; None: they are left alone.
        any_base: take the base that lies there, also where it has other weights than those the adapter was trained on.

    Raises:
        CheckpointError: what the run held out, or how it asked, is no longer what it was.
        PlaceError: the run is not finished, or something of it is missing.
        RecipeError: there is nothing to measure, or no base to compare with.
    """
    recipe, run = asked.recipe, asked.run
    if run is not None:
        target = find_target(asked.name, device=recipe.model.device)
    else:  # an adapter does not say how its base is held
        target = find_target(asked.name, quantization=recipe.model.quantization, device=recipe.model.device)
        held = {"compute_dtype": recipe.model.compute_dtype, "attention": recipe.model.attention}
        target = replace(target, base=target.base.model_copy(update=held))
    _check_measurable(recipe, target, with_base=with_base, predicts=predictions_dir is not None)
    any_base = any_base or recipe.adapter.any_base
    check_target_base(target, any_base=any_base)
    # The trainer wants a folder for checkpoints; none is written.
    with (
        tempfile.TemporaryDirectory(prefix="finetune-evaluate-") as folder,
        _new_folder(predictions_dir),
        telling_full_memory(trains=False),
    ):
        recipe = _to_measuring(recipe, target, folder, predicts=predictions_dir is not None)
        arguments, prepared = build_arguments(recipe), _prepare(recipe)
        if run is not None:
            _check_same_run(RunLayout(run), asked, prepared, target)
        base, model = _load_result(recipe, target, arguments, prepared, run, any_base=any_base)
        trainer = build_bare_trainer(recipe, arguments, prepared, base, model)
        shown = prepared if with_answers else replace(prepared, samples=[])
        if shown.held_out is not None and not _has_its_start(asked.recipe):
            log.warning(
                "%s: its held-out loss compares with a start that is no longer there, and is left out%s.",
                target.name, "" if run is None else f"; of its own rows it stands in {RunLayout(run).summary_path}",
            )  # fmt: skip
            shown = replace(shown, held_out=None)
        result, of_base = _measure(recipe, trainer, model, shown, with_base=with_base)
        if predictions_dir is not None and prepared.labelled is not None:
            prepared.labelled.write_predictions(predictions_dir, trainer.predict_logits, writes=True)
    return Evaluation(recipe, target, prepared, result, of_base)


def _check_measurable(recipe: Recipe, target: Target, *, with_base: bool, predicts: bool) -> None:
    """Check that there is something to measure, before anything is loaded."""
    if predicts and recipe.objective != "classify":
        raise RecipeError(f"command line: --predictions labels rows, and `objective: {recipe.objective}` labels none.")
    if predicts and recipe.classification.predict is None:
        raise RecipeError(
            "command line: --predictions wants rows to label.\n  Name them: classification.predict.path=FILE"
        )
    evaluation = recipe.evaluation
    sources = (evaluation.questions, evaluation.preferences, evaluation.general_text, recipe.data.eval)
    if all(source is None for source in sources) and not predicts:
        raise RecipeError(
            f"{target.name}: its recipe held out no rows and asks no questions: there is nothing to measure.\n"
            "  Name rows: --rows FILE     Or questions: evaluation.questions.path=FILE"
        )
    if with_base and (target.adapter_dir is None or target.ends_with not in ("words", "masked")):
        why = "changed the base itself" if target.adapter_dir is None else "has a head that its base has not got"
        raise RecipeError(
            f"command line: --base compares with the adapter switched off, and this run {why}.\n"
            "  What its start was worth stands in its summary.json."
        )


def _has_its_start(recipe: Recipe) -> bool:
    """Whether what the loss compares with, if it does, can still be read.

    It is the adapter that the run went on from, or the base with the adapter off. Where the run took the reference
    once, its adapter may also have begun with a change of the base, or the base itself have been trained.
    """
    adapter, training = recipe.adapter, recipe.training.fields
    if not OBJECTIVES[recipe.objective].reference_columns or not training.get("precompute_ref_log_probs"):
        return True
    trains_base = adapter.method in WHOLE_METHODS or adapter.fields.get("bias", "none") != "none"
    return _begins_as_the_base(adapter) and not trains_base


def _begins_as_the_base(adapter: AdapterSettings) -> bool:
    starts = [adapter.fields[name] for name in _STARTS if name in adapter.fields]
    if adapter.method in _BEGIN_BESIDE_THE_BASE:
        return adapter.method in _TRUE_IS_THE_BASE and True in starts
    return all(
        start in _START_AS_THE_BASE or (isinstance(start, str) and start.startswith("pissa_niter_")) for start in starts
    )


@contextmanager
def _new_folder(folder: Path | None) -> Iterator[None]:
    """Make a folder before anything is measured, so that no figure is lost for it; taken back if nothing came of it."""
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise PlaceError(f"{folder} is there already.\n  --predictions wants the name of a new folder.") from None
    except OSError as error:
        raise PlaceError(f"{folder} cannot be made: {error.strerror}.\n  Name another one: --predictions DIR") from None
    try:
        yield
    finally:
        with suppress(OSError):  # it holds the labels
            folder.rmdir()


def _to_measuring(recipe: Recipe, target: Target, folder: str, *, predicts: bool) -> Recipe:
    """Put the result in the place of the run's base, and leave out what only training wants."""
    data = recipe.data
    changes: dict[str, Any] = {"report_to": []}
    if "precompute_ref_log_probs" in recipe.training.fields:  # of all training rows, for a few held-out ones
        changes["precompute_ref_log_probs"] = False
    if isinstance(data.eval, SourceSettings):  # rows that were trained on are not read, and need no longer be there
        data = data.model_copy(update={"train": data.eval, "findings": None})
    told_apart: dict[str, Any] = {"shots": None}
    if target.labels is not None and target.labels.names is not None:  # else they are those of the rows
        told_apart["labels"] = list(target.labels.names)
    if not predicts:
        told_apart["predict"] = None
    return recipe.model_copy(
        update={
            "output_dir": folder,
            "model": target.base,
            "data": data,
            "classification": recipe.classification.model_copy(update=told_apart),
            "training": recipe.training.model_copy(update=changes),
        }
    )


def _prepare(recipe: Recipe) -> Prepared:
    """Prepare the rows; what is said of those to train on is of no interest here."""
    ours = logging.getLogger("finetune")
    level_before = ours.level
    ours.setLevel(logging.WARNING)
    try:
        return prepare(recipe)
    finally:
        ours.setLevel(level_before)


def _check_same_run(layout: RunLayout, asked: Evaluated, prepared: Prepared, target: Target) -> None:
    """Check that rows and template are those of the run, as its identity tells of them.

    Raises:
        CheckpointError: the template has other content; rows that were held out by a fraction are others today, so
            that some were trained on.
    """
    identity = read_object(layout.identity_path)
    held_out = prepared.held_out
    if identity.get("template", prepared.template_hash) != prepared.template_hash:
        raise CheckpointError(
            f"{layout.path}: the template's content is no longer what the run was trained with.\n"
            f"  Restore the file. What was saved with the result: {target.saved_dir}/chat_template.jinja"
        )
    if not asked.is_own_rows or held_out is None or identity.get("held_out") in (None, held_out.report["label_hash"]):
        return
    if isinstance(asked.recipe.data.eval, EvalFraction):
        raise CheckpointError(
            f"{layout.path}: its rows have changed since, so the fraction held out today was partly trained on.\n"
            "  Restore them, or measure on other rows: --rows FILE"
        )
    log.warning("The held-out rows are no longer those of the run: its own figures are not comparable.")


def _load_result(
    recipe: Recipe,
    target: Target,
    arguments: TrainingArguments,
    prepared: Prepared,
    run: Path | None,
    *,
    any_base: bool,
) -> tuple[BaseModel, PreTrainedModel | PeftModel]:
    """Load the base with the run's adapter, and beside it the one that it started from where the loss compares."""
    base = load_base(
        target.base,
        max_length=recipe.data.max_length,
        seed=target.seed,
        head=HEAD_OF_OBJECTIVE[recipe.objective],
        labels=None if prepared.labelled is None else prepared.labelled.labels,
        fresh_head=target.adapter_dir is not None,
    )
    check_vocabulary(base.model, prepared.tokenizer)
    if target.adapter_dir is None:
        return base, base.model
    check_adapter_file(target.adapter_dir)
    opened = attach_saved_adapter(base.model, target.adapter_dir)
    model = find_backend(base.backend).take_over(opened, checkpointing=False)
    if recipe.adapter.init_from is not None and OBJECTIVES[recipe.objective].reads_start(arguments):
        start = find_trained_adapter(recipe.adapter.init_from, target.base, target.seed, any_base=any_base)
        if run is not None and read_object(RunLayout(run).identity_path).get("init_from") != hash_adapter(start):
            raise CheckpointError(
                f"{run}: `adapter.init_from`, {recipe.adapter.init_from}, has changed since the run began from it, and "
                "its loss compares with that.\n  Restore it: the run cannot be measured without."
            )
        add_reference(model, start)
    use_lean_path(model)
    use_lean_elementwise(model)
    return base, model


def _measure(
    recipe: Recipe,
    trainer: StepMixin,
    model: PreTrainedModel | PeftModel,
    prepared: Prepared,
    *,
    with_base: bool,
) -> tuple[Measured, Measured | None]:
    """Measure the result, and the base where it is asked for."""
    answerer = Answerer(model, prepared.tokenizer, prepared.stop_ids, recipe.evaluation)
    gauge = Gauge(trainer, answerer, prepared, recipe.training.per_device_eval_batch_size)
    if not with_base:
        return gauge.measure(), None
    assert isinstance(model, PeftModel), "a base to compare with is that of an adapter"
    if REFERENCE in model.peft_config:  # switched off with the other, it would be no reference of the base's loss
        result = gauge.measure(with_base=True)
        return replace(result, base_pairs=None), Measured(held_out={}, pairs=result.base_pairs)
    result = gauge.measure()
    with model.disable_adapter():
        return result, replace(gauge, prepared=replace(prepared, samples=[])).measure()
