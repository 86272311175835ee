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
from functools import lru_cache
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
    quote,
)
from finetune.data.quality.language import UNKNOWN, find_main_language, find_other_answer, find_other_language
from finetune.data.quality.near import find_near_pairs, is_near
from finetune.data.quality.pairs import find_length_bias
from finetune.data.quality.reading import ReadRows, read_rows
from finetune.data.quality.repeats import find_conflicts, find_overlap, find_repeats, stack_keys
from finetune.data.quality.texts import RowTexts, to_texts
from finetune.data.row_cache import build_key
from finetune.data.sources import LoadedExamples
from finetune.errors import PlaceError
from finetune.recipe.row_kinds import KINDS_OF_FINDING, Kind

__all__ = ["find_faults"]

_TEXTS_KEPT = 2048  # of rows compared word by word, so that neighbours are not read again for each pair
# Below this share of the main language a set is of several, and the others are no accident.
_MIN_SHARE_OF_MAIN = 0.8
_SHARES_SHOWN = 8

_Pairs = Sequence[tuple[int, int]]


def find_faults(train: LoadedExamples, held_out: LoadedExamples | None, *, kind: Kind) -> list[Finding]:
    """Find every kind of fault that rows of this kind can show.

    Args:
        train: the examples to train on, at least one.
        held_out: those that the evaluation uses; None: there are none, and nothing overlaps.
        kind: of both.

    Returns:
        A finding for each kind that was found, in the order of `FINDING_NAMES`; the same for the same rows.

    Raises:
        PlaceError: the cache cannot be written.
    """
    sets = [train] if held_out is None else [train, held_out]
    # The names of files stand in the findings and not in the fingerprints.
    names = [[source.get("path"), source.get("files")] for one in sets for source in one.report["sources"]]
    key = build_key({"findings": [one.fingerprint for one in sets], "kind": kind, "names": names})
    path = Path(datasets.config.HF_DATASETS_CACHE) / "finetune_findings" / f"{key[:32]}.json"
    if path.is_file():
        return [_from_json(value) for value in json.loads(path.read_text(encoding="utf-8"))]
    findings = _Inspection(train.dataset, None if held_out is None else held_out.dataset, kind).find_all()
    _write_cached(path, findings)
    return findings


def _from_json(value: dict[str, Any]) -> Finding:
    examples = [FindingExample(**example) for example in value.pop("examples")]
    return Finding(**{**value, "rows": np.array(value["rows"], np.int64), "examples": examples})


def _write_cached(path: Path, findings: Sequence[Finding]) -> None:
    text = json.dumps([{**finding.to_json(), "rows": finding.rows.tolist()} for finding in findings])
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


class _Inspection:
    """One pass over the rows, and what each kind of finding makes of it."""

    def __init__(self, train: datasets.Dataset, held_out: datasets.Dataset | None, kind: Kind) -> None:
        self._train = train
        self._held_out = held_out
        self._kind = kind
        self._read = read_rows(train, kind, check=True, title="looking for faults")
        self._keys = stack_keys(self._read.keys)
        self._text_of = self._build_reader(train)
        self._repeats = find_repeats(self._keys["row"])
        self._other: ReadRows | None = None
        if held_out is not None:
            self._other = read_rows(held_out, kind, check=False, title="comparing held-out rows")

    def _build_reader(self, dataset: datasets.Dataset) -> Callable[[int], RowTexts]:
        return lru_cache(_TEXTS_KEPT)(lambda row: to_texts(dataset[row]["example"], self._kind))

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
        repeats = self._repeats
        yield self._build_of_pairs("duplicates", repeats, groups=len({first for _, first in repeats}))
        signed = self._read.signed
        near = []
        for place, earlier in find_near_pairs(self._read.signatures):
            pair = int(signed[place]), int(signed[earlier])
            one, other = map(self._text_of, pair)
            # Texts that differ in a word and in their label teach what the word does.
            if one.verdict == other.verdict and is_near(one, other):
                near.append(pair)
        yield self._build_of_pairs("near_duplicates", near)
        conflicts = find_conflicts(self._keys["question"], self._keys["answer"], self._read.scores)
        prompts = len({first for _, first in conflicts})
        yield self._build_of_pairs("conflicting_answers", conflicts, prompts=prompts)

    def _find_overlapping(self) -> Iterator[Finding]:
        """What rows share with held-out ones."""
        if self._other is None or self._held_out is None:
            return
        keys = stack_keys(self._other.keys)
        exact = find_overlap(self._keys["overlap"], keys["overlap"])
        known = set(keys["row"].tolist())
        same = sum(int(self._keys["row"][row]) in known for row, _ in exact)
        held_out = int(np.isin(keys["overlap"], self._keys["overlap"]).sum())
        yield self._build_of_pairs("eval_overlap", exact, self._held_out, held_out_rows=held_out, same_answer=same)
        text_of, signed, others = self._build_reader(self._held_out), self._read.signed, self._other.signed
        leaked = {row for row, _ in exact}
        near: list[tuple[int, int]] = []
        for row, other in find_near_pairs(self._read.signatures, self._other.signatures):
            pair = int(signed[row]), int(others[other])
            if pair[0] not in leaked and is_near(self._text_of(pair[0]), text_of(pair[1])):
                near.append(pair)
        # A row that repeats an earlier one was not signed, and leaks what that one leaks.
        first = dict(reversed(near))
        near += [(row, first[earlier]) for row, earlier in self._repeats if earlier in first]
        yield self._build_of_pairs(
            "near_eval_overlap", sorted(near), self._held_out, held_out_rows=len({other for _, other in near})
        )

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
        differences = (chosen - rejected) * (1 if bias.favours == "longer" else -1)
        examples = [
            FindingExample([self._place(row)], f"chosen {chosen[row]} characters, rejected {rejected[row]}")
            for row in np.argsort(-differences, kind="stable")[:MAX_EXAMPLES].tolist()
        ]
        finding = self._build("length_bias", [], examples, **asdict(bias))
        yield replace(finding, count=bias.pairs, severity="warning" if bias.is_strong else "note")

    def _place(self, row: int, dataset: datasets.Dataset | None = None) -> str:
        found = (self._train if dataset is None else dataset)[row]
        return f"{found['source']}:{found['row']}"

    def _build_of_pairs(
        self, name: FindingName, pairs: _Pairs, dataset: datasets.Dataset | None = None, **details: Any
    ) -> Finding:
        """Build the finding of rows that each have a counterpart, in `dataset` or among the training rows."""
        first = dict(reversed(pairs))  # the first counterpart of each row
        rows = sorted(first)
        examples = [
            FindingExample([self._place(row), self._place(first[row], dataset)], quote(self._text_of(row).words))
            for row in rows[:MAX_EXAMPLES]
        ]
        return self._build(name, rows, examples, **details)

    def _build(self, name: FindingName, rows: Sequence[int], examples: list[FindingExample], **details: Any) -> Finding:
        facts = FACTS[name]
        indices = np.array(rows, np.int64)
        return Finding(name, facts.severity, indices, len(indices), examples, facts.advice, details)
