"""Labelled texts to rows of tokens, and what is to be known of their labels.

In go labelled examples (`sources.load_examples`, `glue.load_glue_examples`) and a tokenizer; out come rows of ids
with the special tokens that the model was pretrained with, and a label's place in the model's outputs (or a
number). Every row read is kept or counted under the reason it is missing, as `tokens` does it.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import Dataset, Features, List, Value

from finetune.data.account import ACCOUNT_FEATURES, build_account
from finetune.data.control_tokens import Policy, build_control_tokens
from finetune.data.examples import Labelled, Origin, RowError, labelled_from_json
from finetune.data.labelled import read_number
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows, finish_rows, hash_rows, map_examples, refuse_length
from finetune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "build_label_rows",
    "count_labels",
    "find_labels",
    "find_majority_label",
    "has_pairs",
    "take_shots",
    "to_label_name",
]

FitLong = Literal["drop", "truncate", "error"]
_LABELS_SHOWN = 12
_VERDICTS = {"drop": "too_long", "truncate": "cut", "error": "refused"}  # on a row that is too long


def build_label_rows(
    loaded: LoadedExamples,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    labels: Sequence[str] | None,
    max_length: int,
    too_long: FitLong,
    needs_labels: bool = True,
    special_tokens_in_data: Policy = "escape",
) -> TokenRows:
    """Tokenize every text, or two as a pair, and write down the place of its label.

    Args:
        loaded: labelled examples of one split.
        tokenizer: of the base model; its own special tokens stand around and between the texts.
        labels: in the order of the model's outputs; None where a label is a number.
        max_length: tokens of a row at most, special tokens among them.
        too_long: `drop` the row, `truncate` it (of a pair the longer text, token by token), or stop (`error`).
        needs_labels: False for rows to be labelled by the model; labels they have are not read.
        special_tokens_in_data: control tokens such as [SEP] in a row's text: break them up, stop, or let them through.

    Returns:
        Rows of `input_ids`, `token_type_ids` where the model takes them, `length` in tokens and `label`: a place in
        `labels` (int64) or a number (float32). Without labels they have `source` and `row` instead, to be named by.

    Raises:
        DataError: a label that is not among `labels` or no number, a row too long under `error`, some rows with a
            second text and some without, or no row left.
    """
    encoder = _Encoder(tokenizer, max_length, too_long, special_tokens_in_data)
    read_label = _build_label_reader(labels)
    is_pair = has_pairs(loaded)
    features = {
        "input_ids": List(Value("int32")),
        **({"token_type_ids": List(Value("int32"))} if encoder.has_types else {}),
        **({"label": Value("float32" if labels is None else "int64")} if needs_labels else {}),
    }
    settings = [labels, max_length, too_long, needs_labels, special_tokens_in_data]
    sides = [tokenizer.truncation_side, encoder.has_types]
    fingerprint = hash_rows(loaded, tokenizer, "labelled", *settings, *sides)

    def convert(texts: Sequence[str], places: Sequence[Origin]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        examples = [labelled_from_json(text, place) for text, place in zip(texts, places, strict=True)]
        for place, example, row in zip(places, examples, encoder.encode(examples, places, is_pair), strict=True):
            yield place, {**row, **({"label": read_label(example.label, place)} if needs_labels else {})}

    account = map_examples(loaded, Features({**features, **ACCOUNT_FEATURES}), fingerprint, convert)
    columns = [*features, "length", *(() if needs_labels else ("source", "row"))]
    return finish_rows(loaded, account, fingerprint, max_length=max_length, reasons=("too_long",), columns=columns)


class _Encoder:
    """Texts to ids, with a tokenizer and a rule for those that are too long."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", max_length: int, too_long: FitLong, policy: Policy
    ) -> None:
        # Copies, since truncation switched on in the tokenizer's own backend would stay on.
        self._whole = _copy_backend(tokenizer)
        self._cutting = _copy_backend(tokenizer)
        self._cutting.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
        self._control = build_control_tokens(tokenizer, self._whole, policy)
        self._max_length = max_length
        self._too_long = too_long
        self.has_types = "token_type_ids" in tokenizer.model_input_names

    def encode(self, examples: Sequence[Labelled], places: Sequence[Origin], is_pair: bool) -> Iterator[dict[str, Any]]:
        """Encode texts and account for each; one that is dropped is left empty with the reason."""
        guards = [self._control.open_row(place) for place in places]
        texts = [
            tuple(guard.guard(text) for text in _list_texts(one, is_pair, place))
            for one, guard, place in zip(examples, guards, places, strict=True)
        ]
        encodings = self._whole.encode_batch(texts if is_pair else [text for (text,) in texts])
        for parts, encoding, guard, place in zip(texts, encodings, guards, places, strict=True):
            full_length = len(encoding.ids)
            verdict = "whole" if full_length <= self._max_length else _VERDICTS[self._too_long]
            if verdict == "refused":
                raise refuse_length(place, full_length, self._max_length)
            kept = self._cutting.encode(*parts) if verdict == "cut" else encoding
            ids, types = ([], []) if verdict == "too_long" else (kept.ids, kept.type_ids)
            yield {
                "input_ids": ids,
                **({"token_type_ids": types} if self.has_types else {}),
                # No token is trained: the label is.
                **build_account(
                    length=len(ids), full_length=full_length, verdict=verdict, control_tokens=guard.num_found
                ),
            }


def _copy_backend(tokenizer: "PreTrainedTokenizerBase") -> Any:
    backend = tokenizer.backend_tokenizer
    own = type(backend).from_str(backend.to_str())
    own.no_truncation()
    own.no_padding()
    return own


def _list_texts(example: Labelled, is_pair: bool, place: Origin) -> tuple[str, ...]:
    if is_pair != (example.text_pair is not None):
        has, first = ("no", "has one") if is_pair else ("a", "has none")
        raise DataError(
            f"{place}: the row has {has} `text_pair`, and the first row {first}.\n"
            "  All rows are single texts, or all are pairs."
        )
    return (example.text,) if example.text_pair is None else (example.text, example.text_pair)


def has_pairs(loaded: LoadedExamples) -> bool:
    """Whether the rows are pairs of texts; the first one decides."""
    return labelled_from_json(loaded.dataset[0]["example"]).text_pair is not None


def _build_label_reader(labels: Sequence[str] | None) -> Any:
    """Build the function from a row's label and place to what the model is to answer."""
    if labels is None:

        def read(label: str | float | None, place: Origin) -> float:
            if label is None:
                raise DataError(f"{place}: the row has no label.\n  Each row to train or to score on needs a number.")
            try:
                return read_number(label, place)
            except RowError as fault:
                raise DataError(
                    f"{fault}\n  Labels that are names: `classification.problem_type: single_label_classification`."
                ) from None

        return read
    place_of = {name: number for number, name in enumerate(labels)}
    known = ", ".join(f"`{name}`" for name in labels[:_LABELS_SHOWN]) + (" …" if len(labels) > _LABELS_SHOWN else "")

    def find(label: str | float | None, place: Origin) -> int:
        if label is None:
            raise DataError(f"{place}: the row has no label.\n  Each row to train or to score on needs one: {known}.")
        name = to_label_name(label)
        if name not in place_of:
            raise DataError(
                f"{place}: the label `{name}` is not among {known}.\n"
                "  `classification.labels` lists them; where it is left out they are those of the training rows."
            )
        return place_of[name]

    return find


def to_label_name(label: str | float) -> str:
    """Turn a label into its name; a table with gaps gives whole numbers as 1.0."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def count_labels(loaded: LoadedExamples) -> dict[str, int]:
    """Count the rows of each label, the labels sorted; rows without one are not counted."""
    read = (labelled_from_json(text).label for text in loaded.dataset["example"])
    counts = Counter(to_label_name(label) for label in read if label is not None)
    return {label: counts[label] for label in sorted(counts, key=_order)}


def _order(label: str) -> tuple[int, float, str]:
    """Order numbers by what they are worth, before words."""
    try:
        number = float(label)
    except ValueError:
        return (1, 0.0, label)
    return (0, number, label) if math.isfinite(number) else (1, 0.0, label)


def find_labels(loaded: LoadedExamples) -> list[str]:
    """Find the labels that rows have, sorted; numbers by what they are worth.

    Raises:
        DataError: fewer than two.
    """
    labels, path = list(count_labels(loaded)), loaded.report["sources"][0]["path"]
    if len(labels) > 2 and all(_is_fraction(label) for label in labels):
        raise DataError(
            f"{path}: the labels are numbers, such as {labels[0]} and {labels[1]}, and none is a whole one.\n"
            "  To predict them as numbers: classification.problem_type=regression"
        )
    if len(labels) < 2:
        found = f"only the label `{labels[0]}`" if labels else "no label"
        raise DataError(
            f"{path}: the rows have {found}, and a classifier needs two.\n"
            "  Where the column has another name, map it: `data.train.columns: {label: YOUR_COLUMN}`"
        )
    return labels


def _is_fraction(label: str) -> bool:
    kind, number, _ = _order(label)
    return kind == 0 and not number.is_integer()


def find_majority_label(loaded: LoadedExamples) -> str:
    """Find the label that most rows have; of several alike the first in order."""
    counts = count_labels(loaded)
    return max(counts, key=lambda label: counts[label])


def take_shots(loaded: LoadedExamples, shots: int, seed: int) -> LoadedExamples:
    """Take so many rows of each label, drawn by the seed, in the order in which they stood.

    Raises:
        DataError: a label has fewer rows.
    """
    rows_of: dict[str, list[int]] = {}
    for number, text in enumerate(loaded.dataset["example"]):
        example = labelled_from_json(text)
        if example.label is not None:
            rows_of.setdefault(to_label_name(example.label), []).append(number)
    draw = np.random.default_rng(seed)
    taken: list[int] = []
    for label in sorted(rows_of, key=_order):
        if len(rows_of[label]) < shots:
            raise DataError(
                f"{loaded.report['sources'][0]['path']}: the label `{label}` has {len(rows_of[label])} rows, and "
                f"`classification.shots` asks for {shots} of each."
            )
        taken += draw.choice(rows_of[label], shots, replace=False).tolist()
    dataset: Dataset = loaded.dataset.select(sorted(taken))
    key = json.dumps(["shots", loaded.fingerprint, shots, seed])
    return LoadedExamples(
        dataset=dataset,
        report={
            **loaded.report,
            "shots": {"of_each": shots, "rows": len(taken), "of": len(loaded.dataset), "seed": seed},
        },
        fingerprint=hashlib.sha256(key.encode()).hexdigest(),
    )
