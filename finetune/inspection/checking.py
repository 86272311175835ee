"""Whether today's libraries and files train the tokens that a run trained.

In go a run's records (`resolved.json`, `data_report.json`, `environment.json`) and the report of the same rows prepared
today; out comes what differs, from the content of the files to the masks, and the versions that changed meanwhile.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from finetune.data.census import KEPT
from finetune.data.examples import Origin
from finetune.data.label_hash import BLOCK_ROWS
from finetune.errors import CheckpointError, PlaceError, RecipeError
from finetune.recipe.reading import build_recipe
from finetune.recipe.schema import EvalFraction, Recipe
from finetune.run.layout import RunLayout, name_runs_beside

__all__ = ["Comparison", "RunRecord", "compare_tokens", "read_run", "without_cached_rows", "without_evaluation"]

_ROWS_FOLDER = "finetune_rows"  # of data.row_cache, in the cache of `datasets`


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run wrote down of its tokens.

    Attributes:
        path: the run's folder.
        recipe: as it was resolved.
        report: of the rows it trains on.
        packages: versions of the libraries it ran with, by name.
    """

    path: Path
    recipe: Recipe
    report: Mapping[str, Any]
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a run trained against what would be trained today.

    Attributes:
        run: its folder.
        then: the run's label hash.
        now: today's.
        differences: what differs, the causes first; empty where the tokens are the same.
        changed_packages: versions then and now, by library.
    """

    run: Path
    then: str
    now: str
    differences: tuple[str, ...]
    changed_packages: Mapping[str, tuple[str, str]]

    @property
    def is_equal(self) -> bool:
        """Whether every id and every mask is the same."""
        return self.then == self.now

    def to_object(self) -> dict[str, Any]:
        """The comparison as plain values."""
        return {
            "run": str(self.run),
            "equal": self.is_equal,
            "label_hash": {"run": self.then, "today": self.now},
            "differences": list(self.differences),
            "changed_packages": {
                name: {"run": then, "today": now} for name, (then, now) in self.changed_packages.items()
            },
        }

    def describe_packages(self) -> str:
        """Say which versions changed, in one line."""
        changed = [f"{name} {then} → {now}" for name, (then, now) in self.changed_packages.items()]
        return f"changed since the run: {', '.join(changed)}" if changed else "no library changed since the run"

    def to_words(self) -> str:
        """Say that the tokens are the same."""
        return f"{self.run}: today the very same tokens would be trained ({self.describe_packages()})."

    def refuse(self) -> CheckpointError:
        """Build the error of a run whose tokens today would be others."""
        found = "\n".join(f"  {difference}" for difference in self.differences)
        packages = self.describe_packages()
        return CheckpointError(
            f"{self.run}: today other tokens would be trained than this run trained.\n{found}\n"
            f"  {packages[0].upper()}{packages[1:]}.\n"
            f"  Put back what changed (files, versions) to repeat or resume the run, or train anew under another name."
        )


def read_run(path: Path) -> RunRecord:
    """Read a run's records.

    Args:
        path: the run's folder.

    Raises:
        PlaceError: there is no run.
        CheckpointError: it recorded no label hash, or its recipe cannot be read today.
    """
    layout = RunLayout(path)
    if not layout.resolved_path.is_file():
        raise PlaceError(f"{path} holds no run (resolved.json).\n  {name_runs_beside(path)}")
    try:
        recipe = build_recipe(_read(layout.resolved_path))
    except RecipeError as error:
        raise CheckpointError(f"{layout.resolved_path}: the run's recipe cannot be read today.\n{error}") from error
    report = _read(layout.data_report_path)["train"] if layout.data_report_path.is_file() else {}
    if not {"label_hash", "ids_hash", "label_hash_blocks", "census"} <= set(report):
        raise CheckpointError(
            f"{layout.data_report_path} records no label hash, so there is nothing to compare with.\n"
            f"  The run was made by an older version, or stopped before its rows were recorded."
        )
    environment = _read(layout.environment_path) if layout.environment_path.is_file() else {"packages": {}}
    return RunRecord(path, recipe, report, environment["packages"])


def _read(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}.\n  A run's record is written whole; restore it."
        ) from error
    return value


@contextmanager
def without_cached_rows() -> Iterator[None]:
    """Let no row be taken from the cache, so that today's libraries make each; rows made meanwhile go at the end.

    The cache's key knows the versions that it asks about, and not a library that was changed in its place. What the
    library of datasets keeps of the Hub's stays within reach: those are the rows as they were downloaded.

    Raises:
        PlaceError: the cache's folder cannot be written.
    """
    configured = datasets.config.HF_DATASETS_CACHE
    usual = Path(configured)
    try:
        usual.mkdir(parents=True, exist_ok=True)
        # Beside the usual rows, since that is the disk that has room for them.
        emptied = tempfile.TemporaryDirectory(prefix="check-", dir=usual)
    except OSError as error:
        raise PlaceError(
            f"{usual}: rows cannot be written there ({error.strerror or error}).\n"
            "  HF_DATASETS_CACHE names another folder for them."
        ) from None
    with emptied as folder:
        for kept in usual.iterdir():
            if kept.name != _ROWS_FOLDER and not kept.name.startswith("check-"):
                (Path(folder) / kept.name).symlink_to(kept.resolve())
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE = configured


def without_evaluation(recipe: Recipe) -> Recipe:
    """The recipe without the files that are only evaluated on or labelled; a fraction held out of the rows stays."""
    data = recipe.data if isinstance(recipe.data.eval, EvalFraction) else recipe.data.model_copy(update={"eval": None})
    nothing_asked = dict.fromkeys(("questions", "preferences", "general_text"))
    return recipe.model_copy(
        update={
            "data": data,
            "evaluation": recipe.evaluation.model_copy(update=nothing_asked),
            "classification": recipe.classification.model_copy(update={"predict": None}),
        }
    )


def compare_tokens(
    run: RunRecord, report: Mapping[str, Any], account: Dataset, packages: Mapping[str, str]
) -> Comparison:
    """Compare what a run trained with the rows prepared today.

    Args:
        run: its records.
        report: of today's rows to train on.
        account: of today's rows, to name the first that differ.
        packages: versions of today's libraries, by name.
    """
    then, now = run.report, report
    differences = [] if then["label_hash"] == now["label_hash"] else _find_differences(then, now, account)
    changed = {
        name: (run.packages.get(name, "not there"), packages.get(name, "not there"))
        for name in sorted({*run.packages, *packages})
        if run.packages and run.packages.get(name) != packages.get(name)
    }
    return Comparison(run.path, then["label_hash"], now["label_hash"], tuple(differences), changed)


def _find_differences(then: Mapping[str, Any], now: Mapping[str, Any], account: Dataset) -> list[str]:
    differences = []
    if then["content_fingerprint"] != now["content_fingerprint"]:
        files = list(dict.fromkeys(one["path"] for one in _find_changed_sources(then["sources"], now["sources"])))
        differences.append(f"the rows' content: {', '.join(files) or 'what is taken of the files'} changed")
    else:
        differences.append("the files hold the same rows: template, tokenizer, a library or our own code changed")
    names = {"rows": "rows trained on", "tokens": "tokens", "trained_tokens": "trained tokens"}
    for name, words in names.items():
        before, today = then["census"][name], now["census"][name]
        if before != today:
            differences.append(f"{words}: {before:,} in the run, {today:,} today")
    if then["ids_hash"] == now["ids_hash"]:
        differences.append("the ids are the same; which of them are trained is not")
    differences += _place_first_difference(then["label_hash_blocks"], now["label_hash_blocks"], account)
    return differences


def _find_changed_sources(
    then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Find the sources that stand in another place of the list today, or were read with another content."""
    return [
        today or before or {}
        for before, today in zip_longest(then, now)
        if before is None
        or today is None
        or (before["path"], before.get("sha256")) != (today["path"], today.get("sha256"))
    ]


def _place_first_difference(then: Sequence[str], now: Sequence[str], account: Dataset) -> list[str]:
    """Name the rows of the first block that is not the same."""
    shared = min(len(then), len(now))
    block = next((place for place in range(shared) if then[place] != now[place]), shared)
    verdicts = account.select_columns(["verdict"])["verdict"]
    kept = [index for index, verdict in enumerate(verdicts) if verdict in KEPT]
    rows = kept[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
    if not rows:
        return []
    first, last = (account[index] for index in (rows[0], rows[-1]))
    start = block * BLOCK_ROWS + 1
    return [
        f"the first difference is among rows {start:,} to {start - 1 + len(rows):,} trained on: "
        f"{Origin(first['source'], first['row'])} to {Origin(last['source'], last['row'])}"
    ]
