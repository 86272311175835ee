"""Reference log-probabilities on the disk: computed once for the same rows on the same start, whatever the run.

In goes what decides the numbers, by name; out come the tensors, or nothing where they were never
computed. A file's key is the hash of all its parts, and the file names them for whoever looks, and the hash of its
numbers: of one that a disk has altered nothing is used.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.run.writing import sync_dir

__all__ = ["read_reference", "write_reference"]

log = logging.getLogger("finetune.run.reference_cache")

_HASH = "numbers_sha256"


def read_reference(folder: Path, parts: Mapping[str, object]) -> dict[str, Tensor] | None:
    """Read the log-probabilities of a start; None where there are none, or their file is damaged.

    Args:
        folder: of the cache.
        parts: all that decides the numbers: rows, base, adapter, template, precision, libraries.
    """
    path = _find_path(folder, parts)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(_HASH)
        reference = load_file(path)
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read (%s): computing the reference anew.", path, str(error).splitlines()[0])
        return None
    if written != _hash_numbers(reference):
        log.warning("%s does not hold what its own hash says: computing the reference anew.", path)
        return None
    return reference


def write_reference(folder: Path, parts: Mapping[str, object], reference: Mapping[str, Tensor]) -> None:
    """Write the log-probabilities of a start, in one step: other runs may be reading, or writing the same.

    A cache that cannot be written is told and costs this run nothing: it has the numbers.
    """
    path = _find_path(folder, parts)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        named = {name: str(value) for name, value in parts.items()}
        save_file(dict(reference), part, metadata=named | {_HASH: _hash_numbers(reference)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync_dir(folder)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        log.warning("%s: the reference is not kept for other runs (%s).", path, str(error).splitlines()[0])


def _hash_numbers(reference: Mapping[str, Tensor]) -> str:
    """Hash the numbers by name, with their kind and shape."""
    digest = hashlib.sha256()
    for name, tensor in sorted(reference.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _find_path(folder: Path, parts: Mapping[str, object]) -> Path:
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f"{key[:32]}.safetensors"
