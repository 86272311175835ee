"""Whether two adapters, or an adapter and a recipe, stand on the same base: by names, and by what lies in a folder.

In go settings of `model` with the seeds that draw random weights; out comes nothing, or both names and whether one may
be a copy of the other. A name and a commit on the Hub stand for the same weights for ever; a folder's name does not, so
an adapter that was trained on a folder carries the fingerprint of its weights, and is held against what lies there.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetune.errors import RecipeError
from finetune.model.identity import fingerprint_folder
from finetune.model.targets import ADAPTER_WEIGHTS, describe_base
from finetune.recipe.places import expand, is_here, is_local
from finetune.recipe.schema import ModelSettings

__all__ = ["BaseDifference", "check_base_weights", "find_base_difference", "note_base_weights"]

log = logging.getLogger("finetune.model.same_base")

_FINGERPRINT = "finetune_base"  # in the metadata of the adapter's safetensors file, beside PEFT's `format`
_SHOWN_DIGITS = 16


@dataclass(frozen=True, slots=True)
class BaseDifference:
    """Two bases that are not called alike.

    Attributes:
        one: name of the first one, with its commit where that is the difference.
        other: of the second one.
        may_be_a_copy: one names the Hub and the other a folder, so that nobody can tell without reading both.
    """

    one: str
    other: str
    may_be_a_copy: bool


def find_base_difference(
    one: ModelSettings, one_seed: int, other: ModelSettings, other_seed: int
) -> BaseDifference | None:
    """Find what tells two bases apart; None where nothing does.

    Args:
        one: settings of the first.
        one_seed: draws it where its weights are random.
        other: settings of the second.
        other_seed: draws that.

    Returns:
        The names that differ, or, under one name, the commits where both know theirs.
    """
    names = describe_base(one, one_seed), describe_base(other, other_seed)
    if names[0] != names[1]:
        typed = (one.model_name_or_path, other.model_name_or_path)
        are_pretrained = {one.weights, other.weights} == {"pretrained"}
        is_one_here = len({is_local(name) for name in typed if name is not None}) == 2
        return BaseDifference(*names, may_be_a_copy=are_pretrained and is_one_here)
    commits = one.revision, other.revision
    if None not in commits and commits[0] != commits[1]:
        return BaseDifference(f"{names[0]} at {commits[0]}", f"{names[1]} at {commits[1]}", may_be_a_copy=False)
    return None


def note_base_weights(folder: Path, base: ModelSettings) -> None:
    """Note in a saved adapter which weights it was trained on, where they came from a folder.

    Args:
        folder: the adapter's, as it was just written.
        base: settings of the base.
    """
    found = _fingerprint(base)
    if found is None:
        return
    path = folder / ADAPTER_WEIGHTS
    with safe_open(path, framework="pt") as tensors:
        metadata = tensors.metadata() or {}
    save_file(load_file(path), path, metadata=metadata | {_FINGERPRINT: found})
    _order_metadata(path)


def _order_metadata(path: Path) -> None:
    """Order the entries of a safetensors file's metadata, so that equal runs end in equal bytes.

    safetensors (0.8) keeps them in a map that is walked in another order in every process.

    Raises:
        ValueError: the header does not fit where it was, in front of the weights; nothing is written.
    """
    with path.open("r+b") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(num_bytes))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) > num_bytes:
            raise ValueError(f"{path}: its header of {num_bytes} bytes has {len(ordered)} when its entries are ordered")
        file.seek(8)
        file.write(ordered.ljust(num_bytes))  # spaces behind the header belong to the format


def check_base_weights(folder: Path, base: ModelSettings, *, name: str, forced: bool, how_to_force: str | None) -> None:
    """Check that a base has the weights that an adapter was trained on, where both are folders and the adapter says so.

    The same shape with other weights loads without a word, and answers as neither model would.

    Args:
        folder: the adapter's.
        base: settings of the base it is to stand on.
        name: of the adapter, as typed.
        forced: other weights are wanted: told in a warning.
        how_to_force: what to type for that; None where nothing may.

    Raises:
        RecipeError: the weights are others, with both fingerprints.
    """
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
        then = (tensors.metadata() or {}).get(_FINGERPRINT)
    now = None if then is None else _fingerprint(base)
    if then is None or now is None or then == now:
        return
    told = (
        f"{name} was trained on other weights than those in {base.model_name_or_path} today.\n"
        f"  Trained on: {then[:_SHOWN_DIGITS]}     There now: {now[:_SHOWN_DIGITS]}"
    )
    if not forced:
        or_else = "." if how_to_force is None else f", or take this one all the same: {how_to_force}"
        raise RecipeError(f"{told}\n  Put back the base that it was trained on{or_else}")
    log.warning("%s\n  Taken all the same, as asked.", told)


def _fingerprint(base: ModelSettings) -> str | None:
    """Hash the weights in a base's folder; None where they come from the Hub or from a seed."""
    if base.weights == "random" or base.model_name_or_path is None or not is_here(expand(base.model_name_or_path)):
        return None
    return fingerprint_folder(Path(expand(base.model_name_or_path)))
