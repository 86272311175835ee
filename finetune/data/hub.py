"""Datasets of the Hugging Face Hub: opened at one commit, read as rows; what keeps them away, said apart."""

import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import httpx
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune.data.strict_json import Row
from finetune.data.tables import drop_nulls
from finetune.errors import DataError, FinetuneError, PlaceError, RecipeError
from finetune.recipe.schema import SourceSettings

__all__ = ["HubRows", "load_hub_rows"]

_BATCH_ROWS = 1000
_PAUSE_SECONDS = 1
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubRows:
    """One split of a dataset on the Hub.

    Attributes:
        dataset: as the library read it.
        commit: of the repository, where the library knows it; its cache's key otherwise.
        content: SHA-256 over name, commit, subset and split, which decide the rows.
    """

    dataset: datasets.Dataset
    commit: str
    content: str

    def read_rows(self, *, named: bool = False) -> Iterator[Row]:
        """Read the rows, each known by its place from 1.

        Args:
            named: give a class by its name, where the dataset has one, instead of its number; -1, the Hub's word
                for none, is then no value.
        """
        number = 0
        features = self.dataset.features.items() if named else ()
        classes = {column: one.names for column, one in features if isinstance(one, datasets.ClassLabel)}
        for table in self.dataset.with_format("arrow").iter(_BATCH_ROWS):
            for columns in table.to_pylist():
                number += 1
                given = drop_nulls(columns)
                for column in classes.keys() & given.keys():
                    place = given[column]
                    given[column] = classes[column][place] if place >= 0 else None
                yield Row(number, given)


def load_hub_rows(source: SourceSettings, setting: str) -> HubRows:
    """Download a split of a dataset, or take it from the cache.

    Raises:
        PlaceError: the Hub cannot be reached, the dataset is not there, or it is gated.
        RecipeError: the subset or split does not exist.
        DataError: the repository holds nothing that can be read.
    """
    split = source.split or "train"
    _check_reachable(source)
    builder = _find_builder(source, setting)
    commit = builder.hash or ""
    if source.revision and _COMMIT.fullmatch(source.revision) and commit != source.revision:
        # Offline the library falls back to the newest copy in its cache, whatever was asked.
        raise PlaceError(
            f"{source.path}: the cache holds commit {commit[:12]}; "
            f"`{setting}.revision` asks for {source.revision[:12]}.\n"
            "  Run once where the Hub can be reached."
        )
    try:
        builder.download_and_prepare()
    except (DatasetGenerationError, *_NETWORK) as error:
        raise _translate(error, source) from None
    try:
        dataset = builder.as_dataset(split=split)
    except ValueError:
        splits = ", ".join(builder.info.splits or ())
        raise RecipeError(
            f"{source.path}: no split `{split}`; its splits: {splits}.\n  Set `{setting}.split`."
        ) from None
    identity = "\0".join((source.path, commit, builder.config.name, split))
    return HubRows(dataset, commit, hashlib.sha256(identity.encode()).hexdigest())


def _check_reachable(source: SourceSettings) -> None:
    """Ask the Hub for a dataset that is not in the cache, twice for ten seconds at most.

    The library asks six times: 24 s where the Hub answers with an error, minutes where it is silent. What the
    Hub says of the dataset itself is left to the library.
    """
    cached = Path(datasets.config.HF_DATASETS_CACHE) / source.path.replace("/", "___")
    if datasets.config.HF_HUB_OFFLINE or cached.is_dir():
        return
    try:
        url = hf_hub_url(source.path, "README.md", repo_type="dataset", revision=source.revision)
        for is_last in (False, True):
            try:
                get_hf_file_metadata(url)
            except (httpx.TransportError, HfHubHTTPError) as error:
                if is_last or (isinstance(error, HfHubHTTPError) and error.response.status_code < 500):
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                return
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError):
        return
    except (httpx.TransportError, HfHubHTTPError) as error:
        raise _say_unreachable(source.path, error) from error


def _find_builder(source: SourceSettings, setting: str) -> datasets.DatasetBuilder:
    try:
        return datasets.load_dataset_builder(source.path, source.subset, revision=source.revision)
    except ValueError as error:
        raise RecipeError(f"{source.path}: {str(error).splitlines()[0]}\n  Set `{setting}.subset`.") from None
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise DataError(
            f"{source.path}: the dataset is made by a loading script, which is no longer run.\n"
            f"  Where the Hub has converted it: `{setting}.revision: refs/convert/parquet`."
        ) from None
    except (FileNotFoundError, *_NETWORK) as error:
        raise _translate(error, source) from None


_NETWORK = (ConnectionError, TimeoutError, httpx.HTTPError)  # the Hub library's own are of the last


def _translate(error: Exception, source: SourceSettings) -> FinetuneError:
    """Tell the user what stands between them and the rows, and the one thing to do about it.

    The library raises one class for absent, gated and an unknown revision, and drops the cause; its words
    are what tells them apart (a stand-in hub in the tests holds us to them).
    """
    path, words = source.path, str(error)
    page = f"https://huggingface.co/datasets/{path}"
    if isinstance(error, DatasetNotFoundError) and "gated" in words:
        if "must be authenticated" in words:
            return PlaceError(
                f"{path}: gated on the Hub, and you are not logged in.\n"
                f"  Accept its terms on {page}, then: hf auth login"
            )
        return PlaceError(f"{path}: gated on the Hub, and your account has no access yet.\n  Ask for it on {page}")
    if isinstance(error, DatasetNotFoundError) and "Revision" in words:
        return PlaceError(f"{path}: the Hub has no revision `{source.revision}` of it.\n  See {page}/tree/main")
    if isinstance(error, DatasetNotFoundError):
        return PlaceError(
            f"{path}: the Hub has no dataset of this name, or it is private; nor is there a file or folder here.\n"
            "  Check the name; for a private one: hf auth login"
        )
    if isinstance(error, DataFilesNotFoundError | EmptyDatasetError):
        return DataError(f"{path}: the repository on the Hub holds no data files that can be read.")
    if isinstance(error, DatasetGenerationError):
        return DataError(f"{path}: the files on the Hub cannot be read as one table ({error.__cause__ or error}).")
    return _say_unreachable(path, _find_cause(error))


def _find_cause(error: BaseException) -> HfHubHTTPError | httpx.HTTPError | None:
    """Find the Hub's own answer, or the network's, behind what the library raised."""
    found: HfHubHTTPError | httpx.HTTPError | None = None
    link: BaseException | None = error
    while link is not None:
        # Below the Hub's own class stands httpx's, which has the same status.
        if isinstance(link, HfHubHTTPError | httpx.HTTPError) and not isinstance(found, HfHubHTTPError):
            found = link
        link = link.__cause__ or link.__context__
    return found


def _say_unreachable(path: str, cause: HfHubHTTPError | httpx.HTTPError | None) -> PlaceError:
    fetch = f"hf download --repo-type dataset {path} --local-dir data/{path.rsplit('/', 1)[-1]}"
    nor_here = "nor is there a file or folder of this name here"
    if datasets.config.HF_HUB_OFFLINE:
        return PlaceError(
            f"{path}: not in the cache, and HF_HUB_OFFLINE is set ({nor_here}).\n"
            f"  Unset it, or fetch the rows elsewhere and name the folder: {fetch}"
        )
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError | httpx.HTTPStatusError) else None
    if status in (401, 403):
        return PlaceError(
            f"{path}: the Hub refuses it to your token ({status}), which lacks the right to read it.\n"
            "  A token that may: hf auth login"
        )
    if status is not None and status >= 500:
        return PlaceError(
            f"{path}: the Hub is out of order, it answers {status} time after time, and the cache has no copy.\n"
            "  Try again later: https://status.huggingface.co"
        )
    if isinstance(cause, httpx.TimeoutException):
        return PlaceError(
            f"{path}: the Hub did not answer in time, again and again, and the cache has no copy.\n"
            f"  Try again on a better network, or fetch the rows elsewhere and name the folder: {fetch}"
        )
    return PlaceError(
        f"{path}: the Hub cannot be reached or answers with an error, and the cache has no copy ({nor_here}).\n"
        f"  Try again with a network, or fetch the rows elsewhere and name the folder: {fetch}"
    )
