"""The census: what became of every row, in numbers, with the first places of what a user may want to see.

In goes the account that `tokens` keeps of every row read; out comes what `data_report.json` holds as `census`. It is
counted over the columns of the account, so a million rows cost no more memory than their lengths.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from finetune.data.examples import Origin

__all__ = ["KEPT", "build_census", "find_verdicts"]

KEPT = ("whole", "cut", "piece")  # the verdicts of rows that stay; any other is the reason why one is dropped

_PLACES_SHOWN = 5
_BARS = 16  # of the histogram
_PERCENTILES = {"p10": 10, "median": 50, "p90": 90, "p99": 99}
_KEEPING = {"99%": 0.99, "99.9%": 0.999}
_FLAGS = {"answers_lost": "answer_lost", "ends_lost": "end_lost", "unended": "unended", "begins_twice": "begins_twice"}


def find_verdicts(account: Dataset) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Find the verdict on every row, and the indices of those kept."""
    verdicts = np.asarray(account.with_format("numpy")["verdict"][:])
    return verdicts, np.flatnonzero(np.isin(verdicts, KEPT))


def build_census(account: Dataset, *, max_length: int, reasons: Sequence[str], tokens_column: str) -> dict[str, Any]:
    """Count the rows and their tokens.

    Args:
        account: one or more rows for each example, with the columns of `tokens.ACCOUNT_FEATURES`.
        max_length: tokens of a row at most.
        reasons: those that a row can be dropped for, counted even where none is.
        tokens_column: how many tokens a row holds.

    Returns:
        `rows` kept, `tokens`, `trained_tokens` and `trained_share`; the same for each of `sources`; `lengths` and
        `histogram`, in tokens before anything was cut; `max_length` and the smallest one that would keep 99 and
        99.9 % of the rows whole; `dropped` by reason and `cut`; `answers_lost` (rows of which the cut took at least
        one whole answer), `ends_lost` (the cut took an answer's end token and none of its words), `unended` (a trained
        answer stays whose end token is not trained), `begins_twice` (two beginning-of-sequence tokens);
        `control_tokens` in the rows' texts; `first_places` of each of these.
    """
    columns = account.with_format("numpy")
    verdicts, kept = find_verdicts(account)
    sources, source_of = _number_sources(account)
    begins = _find_beginnings(verdicts, source_of, np.asarray(columns["row"][:]))
    lengths = np.asarray(columns["full_length"][:])[begins]
    tokens, trained = (np.asarray(columns[name][:], dtype=np.int64) for name in (tokens_column, "trained"))
    control = np.where(begins, np.asarray(columns["control_tokens"][:]), 0)
    flagged = {name: np.flatnonzero(np.asarray(columns[column][:])) for name, column in _FLAGS.items()}
    of_interest = {
        **{reason: np.flatnonzero(verdicts == reason) for reason in (*reasons, "cut")},
        **flagged,
        "control_tokens": np.flatnonzero(control),
    }
    places = {name: _find_first_places(account, indices) for name, indices in of_interest.items()}
    return {
        "rows": len(kept),
        "tokens": int(tokens.sum()),
        "trained_tokens": int(trained.sum()),
        "trained_share": round(float(trained.sum() / max(tokens.sum(), 1)), 4),
        "sources": _count_by_source(sources, source_of, verdicts, tokens, trained),
        "lengths": _find_percentiles(lengths),
        "histogram": _build_histogram(lengths),
        "max_length": max_length,
        "max_length_keeping": {name: _find_length_keeping(lengths, share) for name, share in _KEEPING.items()},
        "dropped": {reason: len(of_interest[reason]) for reason in reasons},
        "cut": len(of_interest["cut"]),
        **{name: len(indices) for name, indices in flagged.items()},
        "control_tokens": {"rows": int((control > 0).sum()), "tokens": int(control.sum())},
        "first_places": {name: found for name, found in places.items() if found},
    }


def _number_sources(account: Dataset) -> tuple[list[str], NDArray[np.int64]]:
    """Number the sources in the order in which they first stand; a name for each row would take its length again."""
    encoded = account.with_format("arrow")["source"][:].combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _find_beginnings(
    verdicts: NDArray[np.str_], source_of: NDArray[np.int64], row_of: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Find the first piece of each example: what is counted of its whole is counted there."""
    begins = np.ones(len(verdicts), dtype=bool)
    same = (source_of[1:] == source_of[:-1]) & (row_of[1:] == row_of[:-1])
    begins[1:] = ~(same & (verdicts[1:] == "piece") & (verdicts[:-1] == "piece"))
    return begins


def _count_by_source(
    sources: Sequence[str],
    source_of: NDArray[np.int64],
    verdicts: NDArray[np.str_],
    tokens: NDArray[np.int64],
    trained: NDArray[np.int64],
) -> list[dict[str, Any]]:
    kept = np.isin(verdicts, KEPT)
    rows, num_tokens, num_trained = (
        np.bincount(source_of, weights=values, minlength=len(sources)).astype(int).tolist()
        for values in (kept, tokens, trained)
    )
    return [
        {"path": path, "rows": rows[one], "tokens": num_tokens[one], "trained_tokens": num_trained[one],
         "trained_share": round(num_trained[one] / max(num_tokens[one], 1), 4)}
        for one, path in enumerate(sources)
    ]  # fmt: skip


def _find_percentiles(lengths: NDArray[np.int64]) -> dict[str, int]:
    if len(lengths) == 0:
        return dict.fromkeys(("min", *_PERCENTILES, "max"), 0)
    found = {name: int(np.percentile(lengths, percentile)) for name, percentile in _PERCENTILES.items()}
    return {"min": int(lengths.min()), **found, "max": int(lengths.max())}


def _find_length_keeping(lengths: NDArray[np.int64], share: float) -> int:
    """Find the smallest length that at least this share of the rows does not exceed."""
    if len(lengths) == 0:
        return 0
    # A share times a count may come out a hair above the whole number that it is.
    place = int(np.ceil(share * len(lengths) - 1e-9)) - 1
    return int(np.sort(lengths)[max(place, 0)])


def _build_histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """Count the rows in bars of equal width, the last of which holds all that lies beyond the 99th percentile."""
    if len(lengths) == 0:
        return []
    width = max(1, int(np.ceil((np.percentile(lengths, 99) + 1) / (_BARS - 1))))
    counts = np.bincount(np.minimum(lengths // width, _BARS - 1), minlength=1)
    ends = [(bar + 1) * width - 1 for bar in range(len(counts))]
    if len(counts) == _BARS:
        ends[-1] = max(ends[-1], int(lengths.max()))
    return [
        {"from": bar * width, "to": end, "rows": int(count)}
        for bar, (end, count) in enumerate(zip(ends, counts, strict=True))
    ]


def _find_first_places(account: Dataset, indices: NDArray[np.int64]) -> list[str]:
    """Name the first places, each once: one row of the data may have given several of these."""
    places: dict[str, None] = {}
    for index in indices:
        row = account[int(index)]
        places[str(Origin(row["source"], row["row"]))] = None
        if len(places) == _PLACES_SHOWN:
            break
    return list(places)
