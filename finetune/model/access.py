"""The way to a base model's files: a folder or the Hub; what stands in between, and each way out.

In goes a name; out come its config or the knowledge that its weights are within reach, or a
PlaceError that says which of the many reasons it is and what to type.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from finetune.errors import PlaceError, RecipeError
from finetune.model.tensor_files import check_tensor_file
from finetune.recipe.places import expand, is_here, reads_as_path

__all__ = [
    "check_folder",
    "check_reachable",
    "check_weights",
    "fetch",
    "find_cache_dir",
    "find_cached",
    "find_download_bytes",
    "find_folder",
    "find_tensor_files",
    "reaching",
    "refuse_lacking",
]

log = logging.getLogger("finetune.model.access")

_PAUSE_SECONDS = 1
_PATIENCE_SECONDS = 10
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLE = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_SHARD_NAME = re.compile(r"\w[\w.-]*\.safetensors")
_QUICKSTART = "  Or see a whole run without any download: make quickstart"


@contextmanager
def reaching(name: str, revision: str | None = None) -> Iterator[None]:
    """Translate what keeps a library from a model's files.

    Raises:
        PlaceError: offline, not there, private, gated, refused, too slow or out of order.
    """
    try:
        yield
    except (OSError, httpx.HTTPError, HFValidationError) as error:
        cause = _find_cause(error)
        if cause is None:
            raise
        raise _explain(name, revision, cause) from error


def find_cached(name: str, filename: str, revision: str | None = None) -> Path | None:
    """Find a file of a repository in the Hub's cache on this machine.

    Raises:
        PlaceError: the name is none that the Hub could have.
    """
    with reaching(name, revision):
        cached = try_to_load_from_cache(name, filename, revision=revision)
    return Path(cached) if isinstance(cached, str) else None  # else unknown, or known to be absent


def fetch(name: str, filename: str, revision: str | None = None) -> Path | None:
    """Fetch a file of a repository from the cache or the Hub; None where the repository has no such file.

    Raises:
        PlaceError: the repository is out of reach.
    """
    cached = find_cached(name, filename, revision)
    if cached is not None:
        return cached
    with reaching(name, revision):
        try:
            return Path(hf_hub_download(name, filename, revision=revision))
        except LocalEntryNotFoundError:  # offline: not known to be absent
            raise
        except EntryNotFoundError:
            return None


def check_folder(name: str) -> None:
    """Check that a local base is a folder with a model's config, before the libraries guess.

    Raises:
        PlaceError: there is no such folder, or nothing in it.
        RecipeError: it holds an adapter.
    """
    folder = Path(name)
    if not is_here(name):
        if reads_as_path(name):
            raise PlaceError(
                f"{name}: there is no such folder, and a name on the Hub has the form OWNER/MODEL.\n"
                "  `model.model_name_or_path` is one of the two; a path starts where the command is run.\n"
                + _QUICKSTART
            )
        return
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise RecipeError(
            f"{name} holds an adapter, and `model.model_name_or_path` wants the base it stands on.\n"
            "  Its base is named in adapter_config.json: `base_model_name_or_path`."
        )
    raise PlaceError(
        f"{name} holds no config.json, so it is no model's folder.\n  A whole one: hf download NAME --local-dir FOLDER"
    )


def check_reachable(name: str, revision: str | None) -> None:
    """Check that a model is here or that the Hub answers for it.

    The libraries' own look-up waits for a silent Hub up to six minutes; this one tries twice for ten seconds.

    Raises:
        PlaceError: it is out of reach.
        RecipeError: the repository is no model's.
    """
    with reaching(name, revision):
        if is_here(name) or find_cached(name, "config.json", revision) is not None:
            return
        url = hf_hub_url(name, "config.json", revision=revision)
        try:
            _ask_twice(url)
        except EntryNotFoundError:
            raise RecipeError(
                f"{name} has no config.json on the Hub, so it is no base: an adapter, or GGUF files.\n"
                "  `model.model_name_or_path` wants the base itself."
            ) from None


def _ask_twice(url: str) -> None:
    try:
        get_hf_file_metadata(url)
    except (httpx.TransportError, HfHubHTTPError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        time.sleep(_PAUSE_SECONDS)
        get_hf_file_metadata(url)


def find_folder(name: str, commit: str | None) -> Path:
    """Find the folder of a base that has been loaded: its own, or the cache's for that commit."""
    if is_here(name):
        return Path(name)
    config = find_cached(name, "config.json", commit)
    if config is None:
        raise PlaceError(f"{name} is no longer in the Hub's cache on this machine; it was a moment ago.")
    return config.parent


def check_weights(name: str, revision: str | None, *, allow_pickles: bool = False) -> bool:
    """Check that safetensors weights lie in the folder, in the cache, or on the Hub; fetch none.

    Args:
        name: of the model, a folder or on the Hub.
        revision: on the Hub.
        allow_pickles: take `pytorch_model.bin` where there are no others.

    Returns:
        Whether they are safetensors; False: pickles, and those are allowed.

    Raises:
        PlaceError: they are out of reach, partly here, no whole safetensors files, or pickles.
    """
    if is_here(name):
        return _check_local_weights(name, allow_pickles)
    for filename in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        cached = find_cached(name, filename, revision)
        if cached is not None:
            if filename == SAFE_WEIGHTS_NAME or not _find_missing_shards(cached):
                _check_tensor_files(cached)
                return True
            if constants.is_offline_mode():
                raise _explain(name, revision, OfflineModeIsEnabled())
    for filename in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        with reaching(name, revision):
            try:
                get_hf_file_metadata(hf_hub_url(name, filename, revision=revision))
            except EntryNotFoundError:
                continue
            return True
    if not allow_pickles:
        raise _pickled(name)
    return False


def find_cache_dir() -> Path:
    """Find the folder that the Hub's files go into on this machine."""
    return Path(constants.HF_HUB_CACHE)


def find_download_bytes(name: str, revision: str | None) -> int:
    """Find how many bytes of a model the Hub's cache on this machine still lacks; 0 for a folder, and offline.

    Of the repository's files those are counted that loading it fetches: safetensors, not their copies in other
    formats, and what is small. A Hub that gives no list of them keeps no run from starting: a word in the log, and 0.
    """
    if is_here(name) or constants.is_offline_mode() or find_tensor_files(name, revision):
        return 0
    try:
        listed = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=_PATIENCE_SECONDS).siblings
    except (OSError, httpx.HTTPError, HFValidationError) as error:
        log.info("The Hub does not say how large %s is (%s): its download is not held against the disk.", name, error)
        return 0
    sizes = {one.rfilename: one.size or 0 for one in listed or ()}
    weights = [SAFE_WEIGHTS_NAME] if SAFE_WEIGHTS_NAME in sizes else [n for n in sizes if _SHARD.fullmatch(n)]
    weights = weights or [filename for filename in sizes if _PICKLE.fullmatch(filename)]
    small = [filename for filename in sizes if filename.endswith((".json", ".jinja", "tokenizer.model"))]
    return sum(sizes[one] for one in [*weights, *small] if find_cached(name, one, revision) is None)


def find_tensor_files(name: str, revision: str | None) -> list[Path]:
    """Find a model's safetensors files on this machine, in the order of their names; none where one is missing."""
    for filename in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        found = Path(expand(name)) / filename if is_here(name) else find_cached(name, filename, revision)
        if found is not None and found.is_file():
            if filename == SAFE_WEIGHTS_NAME:
                return [found]
            return [] if _find_missing_shards(found) else [found.parent / shard for shard in _read_shards(found)]
    return []


def refuse_lacking(name: str, missing: Set[str]) -> None:
    """Refuse files that lack tensors: transformers would fill them with random numbers and go on.

    Raises:
        PlaceError: there are some.
    """
    if missing:
        raise PlaceError(
            f"The weights of {name} lack {len(missing)} of the model's tensors, the first {min(missing)}.\n"
            "  They are another model's, or only a part. Fetch them anew: hf download NAME --local-dir FOLDER"
        )


def _check_local_weights(name: str, allow_pickles: bool) -> bool:
    folder = Path(expand(name))
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        _check_tensor_files(folder / SAFE_WEIGHTS_NAME)
        return True
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        if any(folder.glob("*.bin")):
            if allow_pickles:
                return False
            raise _pickled(name)
        raise PlaceError(
            f"{name} holds no weights: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}.\n"
            "  A whole one: hf download NAME --local-dir FOLDER     Shapes without weights: model.weights=random"
        )
    missing = _find_missing_shards(index)
    if missing:
        raise PlaceError(
            f"{name} is only partly here: {len(missing)} of its weight files are missing, the first {missing[0]}.\n"
            f"  Fetch the rest: hf download NAME --local-dir {name}"
        )
    _check_tensor_files(index)
    return True


def _check_tensor_files(found: Path) -> None:
    """Check the header of a model's one file, or of every file that its index names."""
    for path in [found] if found.name == SAFE_WEIGHTS_NAME else [found.parent / one for one in _read_shards(found)]:
        check_tensor_file(path)


def _find_missing_shards(index: Path) -> list[str]:
    return [shard for shard in _read_shards(index) if not (index.parent / shard).is_file()]


def _read_shards(index: Path) -> list[str]:
    """Read which files an index names: each lies beside it, and is safetensors."""
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlaceError(f"{index} is no index of weights.\n  Fetch or copy it again.") from error
    odd = [shard for shard in shards if not (isinstance(shard, str) and _SHARD_NAME.fullmatch(shard))]
    if odd:
        raise PlaceError(
            f"{index} names {odd[0]!r}, which is no safetensors file beside it, so nothing is read there.\n"
            "  The index was altered or made up. Fetch or copy it again from where it came from."
        )
    return shards


def _pickled(name: str) -> PlaceError:
    return PlaceError(
        f"{name} has no safetensors weights, and pickles (pytorch_model.bin) are not opened: they can run code.\n"
        "  Many models have a converted copy as a pull request: model.revision=refs/pr/N\n"
        "  As tensors alone, without what could run code: model.allow_pickled_weights=true"
    )


_Cause = HfHubHTTPError | HFValidationError | OfflineModeIsEnabled | LocalEntryNotFoundError | httpx.HTTPError


def _find_cause(error: BaseException) -> _Cause | None:
    """Find the most telling error of a chain: the last one that is the Hub's or the network's own."""
    found: _Cause | None = None
    link: BaseException | None = error
    while link is not None:
        # Below the Hub's own class stands httpx's, which no longer knows gated from missing.
        if isinstance(link, _Cause) and not isinstance(found, HfHubHTTPError):
            found = link
        link = link.__cause__ or link.__context__
    return found


def _explain(name: str, revision: str | None, cause: _Cause) -> PlaceError:
    """Say what keeps us from a model, the action that mends it first, then the ways around it."""
    page = f"https://huggingface.co/{name}"
    around = f"  A copy on this machine: model.model_name_or_path=FOLDER\n{_QUICKSTART}"
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if isinstance(cause, GatedRepoError) and status == 401:
        return PlaceError(
            f"{name} is gated on the Hub, and you are not logged in (401).\n"
            f"  Accept its terms on {page}, then: hf auth login\n{around}"
        )
    if isinstance(cause, GatedRepoError):
        return PlaceError(
            f"{name} is gated on the Hub, and your account has no access to it yet ({status}).\n"
            f"  Ask for it on {page}\n{around}"
        )
    if isinstance(cause, RevisionNotFoundError):
        return PlaceError(
            f"The Hub has no revision `{revision}` of {name} (404).\n  Its revisions: {page}/tree/main\n{around}"
        )
    if isinstance(cause, RepositoryNotFoundError) and status == 401:
        # Logged out, the Hub gives 401 for private and absent alike.
        return PlaceError(
            f"The Hub shows no model {name} to one who is not logged in (401): it is private, or the name is wrong.\n"
            f"  Log in: hf auth login     Or check the name: {page}\n{around}"
        )
    if isinstance(cause, RepositoryNotFoundError):
        return PlaceError(
            f"The Hub has no model {name} (404), and there is no folder of that name here.\n"
            f"  Check the name: https://huggingface.co/models?search={name.rpartition('/')[2]}\n{around}"
        )
    if isinstance(cause, HFValidationError):
        return PlaceError(f"{name}: there is no such folder, and a name on the Hub has the form OWNER/MODEL.\n{around}")
    if status in (401, 403):
        return PlaceError(
            f"The Hub refuses {name} to your token ({status}): it lacks the right to read it.\n"
            f"  A token that may: hf auth login\n{around}"
        )
    if status is not None:
        return PlaceError(
            f"The Hub is out of order: it answers {status} for {name}, twice in a row.\n"
            f"  Try again later: https://status.huggingface.co\n{around}"
        )
    return PlaceError(f"{_say_unreachable(name, cause)}\n{_render_download(name)}\n{_QUICKSTART}")


def _say_unreachable(name: str, cause: _Cause) -> str:
    if isinstance(cause, httpx.TimeoutException):
        return f"{name} is not on this machine, and the Hub did not answer in time, twice in a row."
    if isinstance(cause, OfflineModeIsEnabled) or constants.is_offline_mode():
        return f"{name} is not, or not whole, on this machine, and HF_HUB_OFFLINE forbids fetching it."
    return f"{name} is not, or not whole, on this machine, and the Hub cannot be reached: {cause}."


def _render_download(name: str) -> str:
    folder = f"models/{name.rpartition('/')[2]}"
    return (
        f"  Where there is network: hf download {name} --local-dir {folder}     (a gated one: hf auth login first)\n"
        f"  Then: model.model_name_or_path={folder}"
    )
