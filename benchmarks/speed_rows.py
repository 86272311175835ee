"""The rows and the bases of the speed benchmark: the same files for ours and for every rival.

In go a shape, a kind of rows and the folder of data of others; out come a JSON file of exactly as many rows as all
contenders train once, another of held-out rows, and what is counted of them (tokens, steps, rows a step). Where
the real rows are not beside the repository, the tiny world's stand in for them.

A row of SFT is Alpaca's `instruction`, `input` and `output`; a pair has `prompt`, `chosen` and `rejected`.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.recording import ROOT

__all__ = ["RowSet", "choose_rows_per_step", "to_prompt", "to_texts", "write_rows"]

ALPACA = Path("instructions") / "alpaca_cleaned_first5000.json"
PAIRS = Path("preference") / "orca_dpo_pairs_validation.jsonl"
TINY_WORLD = ROOT / "data" / "tiny_world"
# What TRL's trainers take in one micro-batch unless told otherwise; larger steps are accumulated of such.
MICRO_BATCH_ROWS = 8
MAX_ROWS_AT_ONCE = 16
_PREAMBLE = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
)
_WITH_INPUT = ", paired with an input that provides further context"

Count = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, slots=True)
class RowSet:
    """Rows as files, and what was counted of them.

    Attributes:
        train: the rows that each contender trains once.
        held_out: the rows that the referee measures.
        source: where the rows come from, in words.
        num_rows: of `train`.
        tokens: of `train` without padding; of a pair both answers, each behind its prompt.
        rows_per_step: of an optimizer step.
        micro_batch_rows: of a micro-batch where each row lies alone.
        mean_seen_tokens: tokens before and with a token in its document, on the mean over tokens, times two: S of the
            formula of attention.
        trained_fraction: tokens with a label over all.
    """

    train: Path
    held_out: Path
    source: str
    num_rows: int
    tokens: int
    rows_per_step: int
    micro_batch_rows: int
    mean_seen_tokens: float
    trained_fraction: float

    def to_json(self) -> dict[str, Any]:
        """Everything but the places, which mean nothing elsewhere."""
        return {name: value for name, value in asdict(self).items() if name not in ("train", "held_out")}


def to_prompt(instruction: str, further: str = "") -> str:
    """Write Stanford Alpaca's prompt, as users of TRL and Unsloth copy it into their scripts."""
    parts = [_PREAMBLE.format(_WITH_INPUT if further else ""), f"### Instruction:\n{instruction}"]
    parts += [f"### Input:\n{further}"] if further else []
    return "\n\n".join([*parts, "### Response:\n"])


def to_texts(row: dict[str, str]) -> list[tuple[str, str]]:
    """Turn a row into prompts with answers: one of SFT, two of a pair."""
    if "chosen" in row:
        prompt = to_prompt(row["prompt"])
        return [(prompt, row["chosen"]), (prompt, row["rejected"])]
    return [(to_prompt(row["instruction"], row["input"]), row["output"])]


def choose_rows_per_step(tokens_per_step: int, mean_tokens: float) -> tuple[int, int]:
    """Choose how many rows come nearest to the tokens of a step, and how many of them are a micro-batch."""
    rows = max(1, round(tokens_per_step / mean_tokens))
    if rows <= MAX_ROWS_AT_ONCE:
        return rows, rows
    return MICRO_BATCH_ROWS * round(rows / MICRO_BATCH_ROWS), MICRO_BATCH_ROWS


def write_rows(
    folder: Path,
    *,
    data_dir: Path,
    objective: str,
    full_tokens: int | None,
    max_tokens: int,
    tokens_per_step: int,
    num_steps: int,
    num_held_out: int,
    count: Count,
) -> RowSet:
    """Write the rows of one line of the table.

    Args:
        folder: to write into.
        data_dir: may hold ALPACA and PAIRS.
        objective: sft or dpo.
        full_tokens: make every row of more than this many tokens, which the contenders cut there; None: short rows.
        max_tokens: of a row; longer ones are left out.
        tokens_per_step: real tokens of an optimizer step, near enough.
        num_steps: steps that the rows are to last for.
        num_held_out: rows kept apart.
        count: texts -> tokens of each, with the marks of beginning and end.
    """
    rows, source = _read_rows(data_dir, objective)
    random.Random(0).shuffle(rows)
    if full_tokens is not None:
        rows, source = list(_lengthen(rows, full_tokens, count)), f"{source}, joined to rows of {full_tokens:,} tokens"
        sizes = [full_tokens] * len(rows)
        lengths, trained = [[full_tokens]] * len(rows), [1.0] * len(rows)
    else:
        lengths, trained = _measure(rows, count)
        kept = [index for index, one in enumerate(lengths) if max(one) <= max_tokens]
        rows = [rows[index] for index in kept]
        lengths, trained = [lengths[index] for index in kept], [trained[index] for index in kept]
        sizes = [sum(one) for one in lengths]
    rows_per_step, micro_batch_rows = choose_rows_per_step(tokens_per_step, sum(sizes) / len(sizes))
    num_rows = rows_per_step * num_steps
    if num_rows + num_held_out > len(rows):  # few rows, many steps: they come again
        again = -(-(num_rows + num_held_out) // len(rows))
        rows, lengths, trained, sizes = rows * again, lengths * again, trained * again, sizes * again
    folder.mkdir(parents=True, exist_ok=True)
    used = range(num_held_out, num_held_out + num_rows)
    for name, part in (("held_out", rows[:num_held_out]), ("train", rows[used.start : used.stop])):
        (folder / f"{name}.json").write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")
    tokens = sum(sizes[index] for index in used)
    return RowSet(
        train=folder / "train.json",
        held_out=folder / "held_out.json",
        source=source,
        num_rows=num_rows,
        tokens=tokens,
        rows_per_step=rows_per_step,
        micro_batch_rows=micro_batch_rows,
        mean_seen_tokens=sum(length**2 for index in used for length in lengths[index]) / tokens,
        trained_fraction=sum(trained[index] * sizes[index] for index in used) / tokens,
    )


def _read_rows(data_dir: Path, objective: str) -> tuple[list[dict[str, str]], str]:
    """Read the real rows, or the tiny world's."""
    if objective == "dpo":
        if (data_dir / PAIRS).exists():
            return [_to_pair(json.loads(line)) for line in _read_lines(data_dir / PAIRS)], "284 pairs of Intel's Orca"
        names = ("prompt", "chosen", "rejected")
        pairs = map(json.loads, _read_lines(TINY_WORLD / "preferences.jsonl"))
        return [{name: pair[name] for name in names} for pair in pairs], "the tiny world's pairs"
    real = (data_dir / ALPACA).exists()
    path = data_dir / ALPACA if real else TINY_WORLD / "train.json"
    rows = [
        {name: row.get(name) or "" for name in ("instruction", "input", "output")}
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]
    kept = [row for row in rows if row["output"].strip()]
    return kept, "Alpaca-cleaned's first 5,000 rows" if real else "the tiny world's rows"


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _to_pair(row: dict[str, Any]) -> dict[str, str]:
    """Turn OpenAI's form of a pair into texts."""
    prompt = "\n\n".join(message["content"] for message in row["input"]["messages"] if message["content"])
    chosen, rejected = (row[f"{name}_output"][0]["content"] for name in ("preferred", "non_preferred"))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _measure(rows: Sequence[dict[str, str]], count: Count) -> tuple[list[list[int]], list[float]]:
    """Count the tokens of each row's texts, and which share of them is an answer's."""
    texts = [to_texts(row) for row in rows]
    whole = iter(count([prompt + answer for row in texts for prompt, answer in row]))
    prompts = iter(count([prompt for row in texts for prompt, _ in row]))
    lengths = [[next(whole) for _ in row] for row in texts]
    asked = [sum(next(prompts) for _ in row) for row in texts]
    return lengths, [1 - one / sum(length) for one, length in zip(asked, lengths, strict=True)]


def _lengthen(rows: Sequence[dict[str, str]], full_tokens: int, count: Count) -> Iterator[dict[str, str]]:
    """Join the answers of rows that follow each other until they are longer than asked for, a tenth more for safety."""
    lengths = count([row["output"] for row in rows])
    joined: list[str] = []
    tokens = 0
    for row, length in zip(rows, lengths, strict=True):
        joined.append(row["output"])
        tokens += length
        if tokens > 1.1 * full_tokens:
            yield {"instruction": "Write on.", "input": "", "output": "\n\n".join(joined)}
            joined, tokens = [], 0
