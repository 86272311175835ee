"""Every check over every row: the findings of a set of training examples, cached by what decides them.

Rows are read once (`reading`); read again are only pairs that may be near repeats, rows that may be in another
language, and those that are quoted. Nothing is sampled: every row is looked at by every check of its kind.
"""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from finetune.data.quality.finding import (
    FACTS,
    FINDING_NAMES,
    MAX_EXAMPLES,
    Finding,
    FindingExample,
    FindingName,
    Group,
    quote,
)
from finetune.data.quality.language import UNKNOWN, find_main_language, find_other_answer, find_other_language
from finetune.data.quality.near import find_near_pairs, is_near
from finetune.data.quality.pairs import find_length_bias
from finetune.data.quality.reading import ReadRows, read_rows
from finetune.data.quality.repeats import find_conflicts, find_overlap, find_repeats, stack_keys
from finetune.data.quality.texts import RowTexts, to_texts, without_answers
from finetune.data.row_cache import build_key
from finetune.data.sources import LoadedExamples
from finetune.errors import PlaceError
from finetune.recipe.row_kinds import KINDS_OF_FINDING, Kind

__all__ = ["find_faults"]

_TEXTS_KEPT = 2048  # of rows compared word by word, so that neighbours are not read again for each pair
# Below this share of the main language a set is of several, and the others are no accident.
_MIN_SHARE_OF_MAIN = 0.8
_SHARES_SHOWN = 8
# What decides findings beside this layer's own code.
_LIBRARIES = ("ftfy", "py3langid", "datasketch")

# Kinds whose rows are prompts and what stands behind them, so that one can hold another's questions.
_OF_TURNS: frozenset[Kind] = frozenset({"conversation", "preference", "judged", "prompt"})

# A row, and where its counterpart stands.
_Placed = Sequence[tuple[int, str]]


def find_faults(train: LoadedExamples, held_out: Sequence[tuple[LoadedExamples, Kind]], *, kind: Kind) -> list[Finding]:
    """Find every kind of fault that rows of this kind can show.

    Args:
        train: the examples to train on, at least one.
        held_out: every set that an evaluation uses, with its own kind; without one nothing overlaps. Rows of turns are
            compared with each other, plain text and labelled texts with their like alone.
        kind: of the training examples.

    Returns:
        A finding for each kind that was found, in the order of `FINDING_NAMES`; the same for the same rows.

    Raises:
        PlaceError: the cache cannot be written.
    """
    held_out = [(one, other) for one, other in held_out if other == kind or {kind, other} <= _OF_TURNS]
    sets = [train, *(examples for examples, _ in held_out)]
    # The names of files stand in the findings and not in the fingerprints.
    names = [[source.get("path"), source.get("files")] for one in sets for source in one.report["sources"]]
    key = build_key(
        {
            "findings": [one.fingerprint for one in sets],
            "kinds": [kind, *(other for _, other in held_out)],
            "names": names,
            "libraries": {name: version(name) for name in _LIBRARIES},
            "kinds_of_finding": {name: sorted(kinds) for name, kinds in KINDS_OF_FINDING.items()},
        }
    )
    path = Path(datasets.config.HF_DATASETS_CACHE) / "finetune_findings" / f"{key[:32]}.json"
    if path.is_file():
        return [_from_json(value) for value in json.loads(path.read_text(encoding="utf-8"))]
    findings = _Inspection(train.dataset, [(one.dataset, other) for one, other in held_out], kind).find_all()
    _write_cached(path, findings)
    return findings


def _from_json(value: dict[str, Any]) -> Finding:
    examples = [FindingExample(**example) for example in value.pop("examples")]
    groups = [Group(rows, says) for rows, says in value["groups"]]
    return Finding(**{**value, "rows": np.array(value["rows"], np.int64), "examples": examples, "groups": groups})


def _write_cached(path: Path, findings: Sequence[Finding]) -> None:
    cached = [
        {**one.to_json(), "rows": one.rows.tolist(), "groups": [[group.rows, group.says] for group in one.groups]}
        for one in findings
    ]
    text = json.dumps(cached)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix="unfinished-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(unfinished).replace(path)
    except OSError as error:
        raise PlaceError(
            f"{path.parent}: the findings cannot be written there ({error.strerror or error}).\n"
            "  HF_DATASETS_CACHE names another folder for them."
        ) from None


def _build_reader(dataset: datasets.Dataset, kind: Kind) -> Callable[[int], RowTexts]:
    return lru_cache(_TEXTS_KEPT)(lambda row: to_texts(dataset[row]["example"], kind))


class _Inspection:
    """One pass over the rows, and what each kind of finding makes of it."""

    def __init__(self, train: datasets.Dataset, held_out: Sequence[tuple[datasets.Dataset, Kind]], kind: Kind) -> None:
        self._train = train
        self._held_out = held_out
        self._kind = kind
        self._read = read_rows(train, kind, check=True, title="looking for faults")
        self._keys = stack_keys(self._read.keys)
        self._text_of = _build_reader(train, kind)
        self._repeats = find_repeats(self._keys["row"])
        title = "comparing held-out rows"
        self._others = [
            read_rows(dataset, other, check=False, title=title, prompts_alone=other != kind)
            for dataset, other in held_out
        ]

    @cached_property
    def _read_prompts(self) -> ReadRows:
        """The training rows once more, to be compared with rows of other kinds."""
        return read_rows(self._train, self._kind, check=False, title="comparing prompts", prompts_alone=True)

    def find_all(self) -> list[Finding]:
        found = [*self._find_single(), *self._find_repeated(), *self._find_overlapping(), *self._find_of_the_set()]
        by_name = {finding.name: finding for finding in found if finding.count}
        return [by_name[name] for name in FINDING_NAMES if name in by_name and self._kind in KINDS_OF_FINDING[name]]

    def _find_single(self) -> Iterator[Finding]:
        """What one row shows alone."""
        for name, flagged in self._read.flagged.items():
            examples = [
                FindingExample([self._place(row)], text)
                for row, text in zip(flagged.rows, flagged.quotes, strict=False)
            ]
            yield self._build(name, flagged.rows, examples)

    def _find_repeated(self) -> Iterator[Finding]:
        """What rows show of each other."""
        yield self._build_of_groups("duplicates", self._repeats, groups=len(self._repeats))
        signed = self._read.signed
        near = []
        for place, earlier in find_near_pairs(self._read.signatures):
            pair = int(signed[place]), int(signed[earlier])
            one, other = map(self._text_of, pair)
            # Texts that differ in a word and in their label teach what the word does.
            if one.verdict == other.verdict and is_near(one, other):
                near.append(Group(sorted(pair)))
        yield self._build_of_groups("near_duplicates", near)
        conflicts = find_conflicts(self._keys["question"], self._keys["answer"], self._read.scores)
        yield self._build_of_groups("conflicting_answers", conflicts, prompts=len(conflicts))

    def _find_overlapping(self) -> Iterator[Finding]:
        """What rows share with held-out ones."""
        taught = {key for keys in self._read.keys for key in keys.taught} if self._others else set()
        exact: dict[int, str] = {}
        asked = same = 0
        for (dataset, _), other in zip(self._held_out, self._others, strict=True):
            pairs = find_overlap(self._read.keys, other.keys)
            known = {keys.row for keys in other.keys}
            asked += sum(keys.overlap in taught for keys in other.keys)
            same += sum(self._read.keys[row].row in known for row, _ in pairs if row not in exact)
            exact = {row: self._place(held_out, dataset) for row, held_out in pairs} | exact
        yield self._build_of_places("eval_overlap", list(exact.items()), held_out_rows=asked, same_answer=same)
        near: dict[int, str] = {}
        almost_asked = 0
        for (dataset, kind), other in zip(self._held_out, self._others, strict=True):
            found = {row: held_out for row, held_out in self._find_near(dataset, kind, other) if row not in exact}
            almost_asked += len(set(found.values()))
            # A row that repeats an earlier one was not signed, and leaks what that one leaks.
            for group in self._repeats:
                if group.rows[0] in found:
                    found |= dict.fromkeys(group.rows, found[group.rows[0]])
            near = {row: self._place(held_out, dataset) for row, held_out in found.items()} | near
        yield self._build_of_places("near_eval_overlap", list(near.items()), held_out_rows=almost_asked)

    def _find_near(self, dataset: datasets.Dataset, kind: Kind, other: ReadRows) -> Iterator[tuple[int, int]]:
        """Find the rows that are near a held-out one; of rows of different kinds, whose prompts are near."""
        is_same = kind == self._kind
        read = self._read if is_same else self._read_prompts
        text_of = _build_reader(dataset, kind)
        for place, held_out in find_near_pairs(read.signatures, other.signatures):
            row, other_row = int(read.signed[place]), int(other.signed[held_out])
            one, another = self._text_of(row), text_of(other_row)
            if not is_same:
                one, another = without_answers(one), without_answers(another)
            if is_near(one, another):
                yield row, other_row

    def _find_of_the_set(self) -> Iterator[Finding]:
        """What rows show only beside all others: languages, lengths."""
        main, counts = find_main_language(self._read.languages)
        rows: list[int] = []
        examples: list[FindingExample] = []
        others: Counter[str] = Counter()
        for row, ((asked, _), answered) in enumerate(zip(self._read.languages, self._read.answers, strict=True)):
            if asked in (main, UNKNOWN) and answered in (main, UNKNOWN):
                continue
            texts = self._text_of(row)
            find = find_other_answer if asked in (main, UNKNOWN) else find_other_language
            if (other := find(texts, main)) is None:
                continue
            rows.append(row)
            others[other] += 1
            if len(examples) < MAX_EXAMPLES:
                examples.append(FindingExample([self._place(row)], quote(texts.asked[-1] if texts.asked else "")))
        shares = {one: round(count / counts.total(), 4) for one, count in counts.most_common(_SHARES_SHOWN)}
        is_mixed = bool(counts) and counts[main] / counts.total() < _MIN_SHARE_OF_MAIN
        figures = {"main": main, "rows_of": dict(others.most_common()), "shares_of_prompts": shares}
        finding = self._build("other_language", rows, examples, **figures)
        yield replace(finding, severity="note") if is_mixed else finding
        if self._kind == "preference":
            yield from self._find_length_bias()

    def _find_length_bias(self) -> Iterator[Finding]:
        chosen, rejected = self._read.lengths.T
        bias = find_length_bias(chosen, rejected)
        if bias is None:
            return
        favoured = chosen > rejected if bias.favours == "longer" else chosen < rejected
        examples = [
            FindingExample([self._place(row)], f"chosen {chosen[row]} characters, rejected {rejected[row]}")
            for row in np.flatnonzero(favoured)[:MAX_EXAMPLES].tolist()
        ]
        finding = self._build("length_bias", [], examples, **asdict(bias))
        advice = f"{bias.to_words()} {finding.advice}"
        yield replace(finding, count=bias.pairs, severity="warning" if bias.is_strong else "note", advice=advice)

    def _place(self, row: int, dataset: datasets.Dataset | None = None) -> str:
        found = (self._train if dataset is None else dataset)[row]
        return f"{found['source']}:{found['row']}"

    def _build_of_groups(self, name: FindingName, found: Sequence[Group], **details: Any) -> Finding:
        """Build the finding of rows that each have a counterpart among the training rows: the first of their group."""
        first: dict[int, str] = {}
        for group in found:
            spare = [row for row in group.find_spare() if row not in first]
            if spare:
                first |= dict.fromkeys(spare, self._place(group.rows[0]))
        finding = self._build_of_places(name, list(first.items()), **details)
        return replace(finding, groups=list(found))

    def _build_of_places(self, name: FindingName, placed: _Placed, **details: Any) -> Finding:
        """Build the finding of rows that each have a counterpart somewhere."""
        placed = sorted(placed)
        examples = [
            FindingExample([self._place(row), place], quote(self._text_of(row).words))
            for row, place in placed[:MAX_EXAMPLES]
        ]
        return self._build(name, [row for row, _ in placed], examples, **details)

    def _build(self, name: FindingName, rows: Sequence[int], examples: list[FindingExample], **details: Any) -> Finding:
        facts = FACTS[name]
        indices = np.array(rows, np.int64)
        return Finding(name, facts.severity, indices, len(indices), examples, facts.advice, details)
