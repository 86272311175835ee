"""What a run is made from, and whether what lies in its folder goes on with that.

In go a recipe, what was prepared and loaded for it, and what the command line accepts; out come the claimed
folder, the hashes that a run and each of its checkpoints are known by, and the checkpoint to continue from.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from finetune.errors import FinetuneError
from finetune.model.base import BaseModel
from finetune.model.identity import fingerprint_base, hash_adapter
from finetune.objectives.training_state import check_no_pickle
from finetune.prepare import Prepared
from finetune.recipe.reading import to_resolved
from finetune.recipe.schema import Recipe
from finetune.run.checkpoints import find_newest_checkpoint, find_set_aside, warn_of_other_machine
from finetune.run.environment import name_device
from finetune.run.folder import RunFolder
from finetune.run.launch import count_processes
from finetune.run.layout import find_step
from finetune.run.resuming import (
    Mismatch,
    check_allowed_keys,
    hash_recipe,
    refuse_other_identity,
    refuse_other_origin,
    refuse_other_recipe,
)

__all__ = ["Claim", "Origin", "claim_folder", "find_origin"]

log = logging.getLogger("finetune.origin")


@dataclass(frozen=True, slots=True)
class Claim:
    """The run's folder, claimed, and what the command line lets be done with what lies there.

    Attributes:
        folder: the run's.
        resumes: whether there may be a checkpoint to continue.
        allowed: keys that may differ from the run so far.
        accepted: those of the recipe that do.
    """

    folder: RunFolder
    resumes: bool
    allowed: Sequence[str]
    accepted: list[Mismatch]


def claim_folder(recipe: Recipe, *, resume: bool, overwrite: bool, allow_mismatch: Sequence[str]) -> Claim:
    """Claim the run's folder; one that another recipe has begun is given back untouched."""
    folder = RunFolder.claim(Path(recipe.output_dir), recipe.name, resume=resume, overwrite=overwrite)
    accepted: list[Mismatch] = []
    try:
        if resume:
            resolved = to_resolved(recipe)
            check_allowed_keys(folder, resolved, allow_mismatch)
            accepted = refuse_other_recipe(folder, resolved, allow_mismatch)
    except FinetuneError:
        folder.release()
        raise
    return Claim(folder, resume, allow_mismatch, accepted)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run is made from, and where it goes on.

    Attributes:
        identity: what the recipe does not show and a resumed run must share.
        made_from: hashes of recipe, rows, template and base, and the precision, kernel and device that computed; each
            checkpoint's record says them.
        accepted: differences from the run so far that the command line allows.
        checkpoint: the one to continue from; None: step 0.
    """

    identity: dict[str, object]
    made_from: dict[str, object]
    accepted: list[Mismatch]
    checkpoint: Path | None

    @property
    def resumed_step(self) -> int | None:
        """Step of the checkpoint; None without one."""
        return None if self.checkpoint is None else find_step(self.checkpoint)


def find_origin(recipe: Recipe, base: BaseModel, prepared: Prepared, trained_dir: Path | None, claim: Claim) -> Origin:
    """Find what a run is made from, and the checkpoint that it goes on from.

    Args:
        recipe: the run.
        base: the loaded base.
        prepared: its rows and template.
        trained_dir: folder of the adapter that is trained on; None: a fresh one.
        claim: of the run's folder.

    Raises:
        CheckpointError: what lies in the folder was made from something else.
    """
    identity = _build_identity(recipe, base, prepared, trained_dir)
    named = {name: identity[name] for name in ("data", "template", "base", "device", "compute_dtype", "attention")}
    made_from = {"recipe": hash_recipe(to_resolved(recipe))} | named | {"device_name": name_device(base.device.type)}
    if not claim.resumes:
        return Origin(identity, made_from, [], None)
    further = refuse_other_identity(claim.folder, identity, claim.allowed, accepted=claim.accepted)
    accepted = [*claim.accepted, *further]
    return Origin(identity, made_from, accepted, _find_checkpoint(claim.folder, made_from, accepted))


def _build_identity(recipe: Recipe, base: BaseModel, prepared: Prepared, trained_dir: Path | None) -> dict[str, object]:
    """Build what the recipe does not show and a resumed run must share: base, trained adapter, rows, processes.

    Of device, precision and kernel the recipe may say `auto`; here stands what that came to.
    """
    identity: dict[str, object] = {
        "base_commit": base.commit,
        "base": fingerprint_base(recipe.model, base, recipe.seed),
        "template": prepared.template_hash,
        "data": prepared.train.report["label_hash"],
        "num_processes": count_processes(),
        "device": base.device.type,
        "compute_dtype": str(base.compute_dtype).removeprefix("torch."),
        "attention": base.attention,
    }
    if prepared.held_out is not None:  # the best step and early stopping go by these
        identity["held_out"] = prepared.held_out.report["label_hash"]
    return identity if trained_dir is None else identity | {"init_from": hash_adapter(trained_dir)}


def _find_checkpoint(folder: RunFolder, made_from: dict[str, object], accepted: Sequence[Mismatch]) -> Path | None:
    """Find the checkpoint to continue from, hold its record against today's run, and say so."""
    # One after the other: the first process sets a torn checkpoint aside while the others would be reading it.
    with PartialState().main_process_first():
        checkpoint = find_newest_checkpoint(folder.checkpoints_dir, writes=folder.writes)
    set_aside = find_set_aside(folder.checkpoints_dir)
    if checkpoint is None and set_aside:
        log.warning(
            "No checkpoint is whole, and %d set aside as .broken: starting at step 0.\n"
            "  What is set aside stays until the run has come as far again; to look at it first, stop this run.",
            len(set_aside),
        )
    elif checkpoint is None:
        log.info("No checkpoint yet: starting at step 0.")
    else:
        check_no_pickle(checkpoint)
        refuse_other_origin(folder, checkpoint, made_from, accepted)
        warn_of_other_machine(checkpoint, str(made_from["device_name"]))
        folder.note_resumed(find_step(checkpoint))
        log.info("Continuing after step %d.", find_step(checkpoint))
    return checkpoint
