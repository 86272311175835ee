"""The base's config without the base: from its folder, the Hub's cache on this disk, the recipe, or a built-in list.

In goes the recipe's `model` section; out come the fields of a config.json and where they are from. The Hub is asked
last, for that one file, where nothing else knows it. No library that takes long to import is used before that.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetune.errors import PlaceError, RecipeError
from finetune.recipe.places import expand, is_local, reads_as_path
from finetune.recipe.schema import ModelSettings

__all__ = ["FoundConfig", "find_cache_home", "find_cached_file", "find_config", "find_hub_cache"]

_CONFIG = "config.json"
_HUB_SECONDS = 5.0  # that the Hub has to answer
# Published config.json files, each model's under its name: https://huggingface.co/NAME/raw/main/config.json. Numbers of
# parameters that follow from them are those on the model pages; tests/budget/test_known_models.py holds some of them.
_KNOWN_MODELS_PATH = Path(__file__).parents[1] / "budget" / "known_models.json"


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """Fields of a config.json, and in words where they are from."""

    fields: Mapping[str, Any]
    origin: str


def find_config(model: ModelSettings) -> FoundConfig:
    """Find the config of a base.

    Raises:
        RecipeError: the recipe names no base.
        PlaceError: nothing here knows it, and the Hub cannot be asked, or has none of that name.
    """
    if model.weights == "random" and isinstance(model.config, dict):
        return FoundConfig(model.config, "the recipe's `model.config`")
    name = model.config if model.weights == "random" and model.config is not None else model.model_name_or_path
    if not isinstance(name, str):
        raise RecipeError(
            "`model.model_name_or_path`: no base model is named.\n"
            "  A Hub name or a folder: model.model_name_or_path=mistralai/Mistral-7B-v0.1"
        )
    if is_local(name):
        return _read_local(name)
    cached = find_cached_file(name, _CONFIG, model.revision)
    if cached is not None:
        return FoundConfig(_read(cached), "the Hub's cache on this disk")
    known = _read_known_models()
    if name in known["models"]:
        return FoundConfig(known["shapes"][known["models"][name]], "the built-in list of shapes")
    return FoundConfig(_fetch(name, model.revision), "the Hub")


def find_hub_cache() -> Path:
    """Find the folder in which the Hub's files are cached, by the variables that huggingface_hub reads."""
    return Path(expand(os.environ.get("HF_HUB_CACHE") or str(find_cache_home() / "hub")))


def find_cache_home() -> Path:
    """Find the folder that the caches of the Hub's files and of `datasets` lie in where neither is put elsewhere."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or expand("~/.cache"), "huggingface")
    return Path(home)


def find_cached_file(name: str, filename: str, revision: str | None = None) -> Path | None:
    """Find a file of a repository in the Hub's cache: as `try_to_load_from_cache`, whose import takes half a second."""
    folder = find_hub_cache() / f"models--{name.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text("utf-8").strip() if reference.is_file() else revision
    path = folder / "snapshots" / (commit or "") / filename
    return path if commit and path.is_file() else None


def _read_local(name: str) -> FoundConfig:
    place = Path(expand(name))
    path = place / _CONFIG if place.is_dir() else place
    if not path.is_file():
        what = f"holds no {_CONFIG}" if place.is_dir() else "is not there"
        raise PlaceError(f"The base model {name} {what}, so its shape is not known.\n  Paths start at {Path.cwd()}.")
    return FoundConfig(_read(path), str(path))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PlaceError(f"{path} cannot be read as a model's config: {error}.") from error
    return _check_fields(fields, path)


def _check_fields(fields: Any, place: Path | str) -> Mapping[str, Any]:
    if not isinstance(fields, dict):
        raise PlaceError(f"{place} holds no object, so it is no model's config.")
    return fields


@cache
def _read_known_models() -> dict[str, Any]:
    known: dict[str, Any] = json.loads(_KNOWN_MODELS_PATH.read_text("utf-8"))
    return known


def _fetch(name: str, revision: str | None) -> Mapping[str, Any]:
    """Fetch the config alone from the Hub, which is asked once: without a network a plan is not to wait for one."""
    from huggingface_hub import get_session, hf_hub_url  # half a second
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    if reads_as_path(name):
        raise PlaceError(f"The base model {name} is not there.\n  Paths start at {Path.cwd()}.")
    try:
        url = hf_hub_url(name, _CONFIG, revision=revision)
        answer = get_session().get(url, headers=build_hf_headers(), timeout=_HUB_SECONDS, follow_redirects=True)
        hf_raise_for_status(answer)
        return _check_fields(answer.json(), url)
    except PlaceError:
        raise
    except Exception as error:  # the library has a dozen kinds, of the network, of access, of names
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PlaceError(
            f"The shape of {name} is not known here: it is neither in the Hub's cache nor in the built-in list.\n"
            f"  The Hub was asked for its {_CONFIG}: {reason}\n"
            f"  Online, or logged in where it is gated, ask again. Or give a folder that holds the {_CONFIG}:\n"
            f"  model.model_name_or_path=/path/to/folder"
        ) from error
