"""The rows of the speed benchmark: the same files for ours and for every rival.

In go a shape, a kind of rows and the folder of data of others; out come a JSON file of exactly as many rows as all
contenders train once, another of held-out rows, and what is counted of them (tokens, rows a step). Where the real rows
are not beside the repository, the tiny world's stand in for them.

A row of SFT is Alpaca's `instruction`, `input` and `output`; a pair has `prompt`, `chosen` and `rejected`.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.recording import ROOT
from benchmarks.speed_sizes import StepSizes, choose_packed_sizes, choose_sizes_alone

__all__ = ["RowSet", "to_prompt", "to_texts", "write_rows"]

ALPACA = Path("instructions") / "alpaca_cleaned_first5000.json"
PAIRS = Path("preference") / "orca_dpo_pairs_validation.jsonl"
TINY_WORLD = ROOT / "data" / "tiny_world"
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
        sizes: of a step, whichever way a contender makes one.
        mean_seen_tokens: tokens before and with a token in its document, on the mean over tokens, times two: S of the
            formula of attention.
        trained_fraction: tokens with a label over all.
    """

    train: Path
    held_out: Path
    source: str
    num_rows: int
    tokens: int
    sizes: StepSizes
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


def write_rows(
    folder: Path,
    *,
    data_dir: Path,
    objective: str,
    full_tokens: int | None,
    max_tokens: int,
    tokens_per_step: int,
    packed_tokens: int,
    num_steps: int,
    num_held_out: int,
    count: Count,
) -> RowSet:
    """Write the rows of one line of the table: as many as the steps take, packed.

    Args:
        folder: to write into.
        data_dir: may hold ALPACA and PAIRS.
        objective: sft or dpo.
        full_tokens: make every row of more than this many tokens, which the contenders cut there; None: short rows.
        max_tokens: of a row; longer ones are left out.
        tokens_per_step: of an optimizer step of full packed rows.
        packed_tokens: of a packed row of short rows; a full row is one by itself.
        num_steps: steps that the rows are to last for.
        num_held_out: rows kept apart.
        count: texts -> tokens of each, with the marks of beginning and end.
    """
    rows, source = _read_rows(data_dir, objective)
    random.Random(0).shuffle(rows)
    if full_tokens is not None:
        rows, source = list(_lengthen(rows, full_tokens, count)), f"{source}, joined to rows of {full_tokens:,} tokens"
        lengths, trained = [[full_tokens]] * len(rows), [1.0] * len(rows)
    else:
        rows, lengths, trained = _keep_short(rows, max_tokens, count)
    tokens = [sum(one) for one in lengths]

    def take(start: int, num_rows: int) -> list[int]:  # few rows, many steps: they come again
        return [index % len(rows) for index in range(start, start + num_rows)]

    if objective == "dpo":  # no contender packs pairs
        num_rows, sizes = choose_sizes_alone(tokens, tokens_per_step=tokens_per_step, num_steps=num_steps)
    else:
        max_tokens, packed_tokens = full_tokens or max_tokens, full_tokens or packed_tokens
        packed_rows = max(1, tokens_per_step // packed_tokens)
        most = num_steps * packed_rows * (packed_tokens // min(tokens))  # were all as short as the shortest
        num_rows, sizes = choose_packed_sizes(
            [tokens[index] for index in take(num_held_out, most)],
            max_tokens=max_tokens, packed_tokens=packed_tokens, packed_rows=packed_rows, num_steps=num_steps,
        )  # fmt: skip
    used = take(num_held_out, num_rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("held_out", take(0, num_held_out)), ("train", used)):
        text = json.dumps([rows[index] for index in part], ensure_ascii=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    tokens_used = sum(tokens[index] for index in used)
    return RowSet(
        train=folder / "train.json",
        held_out=folder / "held_out.json",
        source=source,
        num_rows=num_rows,
        tokens=tokens_used,
        sizes=sizes,
        mean_seen_tokens=sum(length**2 for index in used for length in lengths[index]) / tokens_used,
        trained_fraction=sum(trained[index] * tokens[index] for index in used) / tokens_used,
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


def _keep_short(
    rows: Sequence[dict[str, str]], max_tokens: int, count: Count
) -> tuple[list[dict[str, str]], list[list[int]], list[float]]:
    """Keep rows whose texts are short enough, with what `_measure` counts of them."""
    lengths, trained = _measure(rows, count)
    kept = [index for index, one in enumerate(lengths) if max(one) <= max_tokens]
    return [rows[index] for index in kept], [lengths[index] for index in kept], [trained[index] for index in kept]


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
