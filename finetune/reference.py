"""The start's log-probabilities put beside the rows: from the cache where any run took them before, else computed.

In go the recipe and what was loaded for it; what decides the numbers is named here, part by part, and a
change of any part is another entry of the cache.
"""

import logging
from importlib.metadata import version
from pathlib import Path

import datasets

from finetune.model.base import BaseModel
from finetune.model.identity import hash_adapter, identify_base
from finetune.objectives import OBJECTIVES
from finetune.objectives.reference import compute_reference, use_reference
from finetune.objectives.trainer import StepMixin
from finetune.prepare import Prepared
from finetune.recipe.schema import Recipe
from finetune.run.launch import is_main_process
from finetune.run.reference_cache import read_reference, write_reference

__all__ = ["describe_reference", "fill_reference"]

log = logging.getLogger("finetune.reference")

_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
_OF_UNSLOTH = ("unsloth", "unsloth_zoo")


def fill_reference(
    recipe: Recipe, base: BaseModel, prepared: Prepared, trainer: StepMixin, trained_dir: Path | None
) -> None:
    """Put the log-probabilities of the start beside the rows, where the recipe wants them taken once."""
    columns = OBJECTIVES[recipe.objective].reference_columns
    if not columns or not recipe.training.fields.get("precompute_ref_log_probs"):
        return
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "finetune_reference"
    parts = describe_reference(recipe, base, prepared, trained_dir)
    reference = read_reference(folder, parts)
    if reference is not None:
        log.info("Reference log-probabilities: from the cache.")
    else:
        rows = len(prepared.train.dataset) + (0 if prepared.held_out is None else len(prepared.held_out.dataset))
        log.info("Reference log-probabilities of %s rows: computed now, once.", f"{rows:,}")
        reference = compute_reference(trainer, columns)
        if is_main_process():
            write_reference(folder, parts, reference)
    use_reference(trainer, reference)


def describe_reference(
    recipe: Recipe, base: BaseModel, prepared: Prepared, trained_dir: Path | None
) -> dict[str, object]:
    """Name all that decides the reference's log-probabilities.

    The rows' fingerprint covers their content, the template and the tokenizer. `trained_dir` is the folder of the
    adapter that is trained on; None: a fresh one.
    """
    if trained_dir is None:
        started = {**recipe.adapter.model_dump(mode="json"), "seed": recipe.seed}
    else:
        started = {"sha256": hash_adapter(trained_dir)}
    return {
        "objective": recipe.objective,
        "rows": prepared.train.fingerprint,
        "held_out_rows": None if prepared.held_out is None else prepared.held_out.fingerprint,
        "template": prepared.template_source,
        "base": identify_base(recipe.model, base, recipe.seed),
        "quantization": [base.quantization, recipe.model.double_quantization],
        "adapter": started,
        "compute_dtype": str(base.compute_dtype),
        "backend": base.backend,
        "attention": base.attention,
        "device": base.device.type,
        "ld_alpha": recipe.training.fields.get("ld_alpha"),
        "loss_type": recipe.training.fields.get("loss_type") if recipe.objective == "kto" else None,
        "versions": {
            name: version(name) for name in (*_LIBRARIES, *(_OF_UNSLOTH if base.backend == "unsloth" else ()))
        },
    }
