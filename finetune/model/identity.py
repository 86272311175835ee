"""Which weights these are: by the Hub's commit, or by the bytes of the files in a folder, all of them or a sample."""

import hashlib
import json
from pathlib import Path

from finetune.model.access import find_folder
from finetune.model.base import BaseModel
from finetune.model.targets import ADAPTER_WEIGHTS
from finetune.recipe.places import expand
from finetune.recipe.schema import ModelSettings

__all__ = ["fingerprint_base", "fingerprint_folder", "hash_adapter", "identify_base"]

_NUM_BLOCKS = 64
_BLOCK_BYTES = 64 * 1024


def identify_base(settings: ModelSettings, base: BaseModel, seed: int) -> str:
    """Name the base's weights so that other weights have another name, whatever their folder is called.

    A commit names them; a folder's files are read through, some seconds for 14 GB.
    """
    if settings.weights == "random":
        return f"random {json.dumps(settings.config or settings.model_name_or_path, sort_keys=True)} seed {seed}"
    assert settings.model_name_or_path is not None
    if base.commit is not None:
        return f"{settings.model_name_or_path} {base.commit}"
    folder = find_folder(expand(settings.model_name_or_path), None)
    files = [*_find_weight_files(folder), folder / "config.json"]
    return " ".join(f"{path.name} {_hash_file(path)}" for path in files)


def fingerprint_base(settings: ModelSettings, base: BaseModel, seed: int) -> str:
    """Hash what tells a base's weights from others at little cost: a resumed run asks it each time.

    A commit, or a drawn base's config and seed, as `identify_base` gives them. Of a folder's files the config
    whole, and of each file of weights its size and 64 blocks of 64 kB, evenly spread, header included: at most 4 MB
    a file. Other training shows in every tensor, and so in a block; a single altered byte need not.
    """
    if settings.weights == "random" or base.commit is not None:
        return hashlib.sha256(identify_base(settings, base, seed).encode()).hexdigest()
    assert settings.model_name_or_path is not None
    return fingerprint_folder(find_folder(expand(settings.model_name_or_path), None))


def fingerprint_folder(folder: Path) -> str:
    """Hash what tells the weights in a folder from others; see `fingerprint_base`."""
    found = hashlib.sha256((folder / "config.json").read_bytes())
    for path in _find_weight_files(folder):
        num_bytes = path.stat().st_size
        found.update(f"{path.name} {num_bytes}".encode())
        with path.open("rb") as file:
            for start in _spread_blocks(num_bytes):
                file.seek(start)
                found.update(file.read(_BLOCK_BYTES))
    return found.hexdigest()


def _find_weight_files(folder: Path) -> list[Path]:
    """Find what a base is loaded from: safetensors, or the pickles of one that has no others."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _spread_blocks(num_bytes: int) -> list[int]:
    """Where the blocks of a file begin, from its first byte to its last; a small file is covered whole."""
    last = max(num_bytes - _BLOCK_BYTES, 0)
    if last < _NUM_BLOCKS * _BLOCK_BYTES:
        return list(range(0, num_bytes, _BLOCK_BYTES))
    return [last * block // (_NUM_BLOCKS - 1) for block in range(_NUM_BLOCKS)]


def hash_adapter(folder: Path) -> str:
    """Hash an adapter's weights and config: what a resumed run has to find as it was."""
    return f"{_hash_file(folder / ADAPTER_WEIGHTS)} {_hash_file(folder / 'adapter_config.json')}"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
