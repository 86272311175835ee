"""Which weights these are: by the Hub's commit, or by the bytes of the files in a folder."""

import hashlib
import json
from pathlib import Path

from finetune.model.access import find_folder
from finetune.model.base import BaseModel
from finetune.model.targets import ADAPTER_WEIGHTS
from finetune.recipe.places import expand
from finetune.recipe.schema import ModelSettings

__all__ = ["hash_adapter", "identify_base"]


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
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    return " ".join(f"{path.name} {_hash_file(path)}" for path in files)


def hash_adapter(folder: Path) -> str:
    """Hash an adapter's weights and config: what a resumed run has to find as it was."""
    return f"{_hash_file(folder / ADAPTER_WEIGHTS)} {_hash_file(folder / 'adapter_config.json')}"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
