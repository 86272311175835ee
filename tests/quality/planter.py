"""Plants faults among clean rows, writes the files, and tells which line of which file holds what.

It knows nothing of the code that finds faults: what counts as one is written here and in `planted_texts` and
`near_misses` by hand, as real sets have them. In go clean Alpaca rows and a seed; out come files and the truth.
"""

import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from tests.quality import damaging, near_misses, planted_texts
from tests.quality.row_files import join_rows, render_row

__all__ = ["PlantedFile", "plant"]

# How many faults of each kind stand in each file, those that want long rows first. With the ten biased sets of pairs
# and the 64 faults of tokens (`token_planter`) they are 500.
COUNTS: dict[str, dict[str, int]] = {
    "rows.json": {
        "near_duplicates": 34, "near_eval_overlap": 28, "conflicting_answers": 30, "duplicates": 30, "eval_overlap": 28,
        "empty_answers": 16, "short_answers": 26, "refusals": 32, "boilerplate": 26, "template_leftovers": 30,
        "other_language": 21, "encoding_damage": 30,
    },
    "chats.jsonl": {
        "near_duplicates": 3, "duplicates": 3, "empty_answers": 4, "short_answers": 4, "refusals": 4, "boilerplate": 4,
        "template_leftovers": 5, "other_language": 2, "encoding_damage": 4,
    },
    "table.csv": {
        "near_duplicates": 3, "conflicting_answers": 3, "duplicates": 3, "empty_answers": 4, "short_answers": 4,
        "refusals": 4, "boilerplate": 4, "template_leftovers": 5, "other_language": 2, "encoding_damage": 4,
    },
    "pairs.jsonl": {
        "near_duplicates": 3, "duplicates": 3, "boilerplate": 3, "template_leftovers": 3, "encoding_damage": 3,
    },
    "texts.jsonl": {"near_duplicates": 3, "duplicates": 3, "other_language": 2, "encoding_damage": 3},
}  # fmt: skip
_KINDS = {"pairs.jsonl": "preference", "texts.jsonl": "document"}
_SHARES = {"rows.json": 0.8, "chats.jsonl": 0.06, "table.csv": 0.06, "pairs.jsonl": 0.05, "texts.jsonl": 0.03}
# A question that has one answer; of others two answers may both be good.
_CLOSED = re.compile(r"(?i)\b(classify|categori[sz]e|identify|true or false|which|determine|calculate|how many)\b")
_LONG_WORDS = 80  # of a row that a near duplicate is made of

Row = dict[str, str]  # instruction, input, output


@dataclass(slots=True)
class PlantedFile:
    """A file with its faults.

    Attributes:
        path: of the training rows.
        held_out: of the evaluation rows; None where nothing is held out.
        kind: what the rows are read as.
        truth: kind of fault -> the lines at which such rows begin.
        near_misses: kind -> the lines of rows that are only like it.
        clean: line -> which of the clean rows given stands there.
        texts: line -> the row, for messages.
    """

    path: Path
    kind: str
    held_out: Path | None = None
    truth: dict[str, list[int]] = field(default_factory=dict)
    near_misses: dict[str, list[int]] = field(default_factory=dict)
    clean: dict[int, int] = field(default_factory=dict)
    texts: dict[int, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Item:
    """A row, where it goes (`place`, between 0 and 1), and what it is: a fault, like one, or clean row `number`."""

    row: Row
    place: float
    fault: str = ""
    like: str = ""
    number: int = -1


class _Shelf:
    """The rows of one file while they are put together."""

    def __init__(self, clean: Sequence[tuple[int, Row]], known: Collection[int], dice: random.Random) -> None:
        self.dice = dice
        self.items = [_Item(row, dice.random(), number=number) for number, row in clean]
        # Rows with faults of their own lend nothing, and no row lends twice.
        self._free = [item for item in self.items if item.number not in known]
        dice.shuffle(self._free)

    def borrow(self, fits: Callable[[Row], bool]) -> _Item:
        """Choose a clean row that stays where it is."""
        for place, item in enumerate(self._free):
            if fits(item.row):
                return self._free.pop(place)
        raise ValueError("there are too few clean rows to plant so many faults")

    def take(self, fits: Callable[[Row], bool]) -> Row:
        """Choose a clean row and take it out of the set."""
        item = self.borrow(fits)
        self.items.remove(item)
        return item.row

    def add(self, row: Row, fault: str, after: float = 0.0) -> None:
        self.items.append(_Item(row, self.dice.uniform(after, 1.0), fault=fault))

    def mark(self, item: _Item, fault: str) -> None:
        item.fault, item.number = fault, -1


def plant(
    rows: Sequence[Row], folder: Path, seed: int, *, known: Collection[int] = (), share: float = 1.0
) -> dict[str, PlantedFile]:
    """Plant faults of every kind but biased pairs, and write the files.

    Args:
        rows: clean rows of `instruction`, `input` and `output`.
        folder: where the files go.
        seed: equal seeds plant equal files.
        known: places of rows that hold faults already; they stay and lend nothing.
        share: of the faults in `COUNTS`, at least one of each.

    Returns:
        The files, by name.
    """
    dice = random.Random(seed)
    order = dice.sample(range(len(rows)), len(rows))
    wordings = _Wordings(dice)
    files, start = {}, 0
    for name, counts in COUNTS.items():
        end = start + int(_SHARES[name] * len(rows))
        clean = [(number, dict(rows[number])) for number in order[start:end]]
        if not any(_is_long(row) for _, row in clean):
            clean += [(-2 - place, essay) for place, essay in enumerate(_essays())]
        shelf, start = _Shelf(clean, known, dice), end
        held_out: list[Row] = []
        for kind, count in counts.items():
            for turn in range(max(1, round(count * share))):
                _PLANTERS[kind](shelf, wordings, turn, held_out)
        if name == "rows.json":
            held_out += [shelf.take(_is_any) for _ in range(len(clean) // 40)]
        if name == "chats.jsonl":
            _add_earlier_turns(shelf)
        if name == "pairs.jsonl":
            _add_ranked(shelf)
        if name not in _KINDS:
            _add_near_misses(shelf)
        files[name] = _write(folder, name, shelf, held_out)
    return files


def _essays() -> list[Row]:
    return [{"instruction": question, "input": "", "output": text} for question, text in planted_texts.ESSAYS]


def _num_words(row: Row) -> int:
    return sum(len(text.split()) for text in row.values())


def _is_long(row: Row) -> bool:
    # A near duplicate of code is a matter of taste.
    return _num_words(row) >= _LONG_WORDS and len(row["output"].split()) >= 40 and "```" not in row["output"]


def _is_short_answer(row: Row) -> bool:
    return 0 < len(row["output"].split()) <= 3 and _CLOSED.search(row["instruction"]) is not None


def _is_asked_openly(row: Row) -> bool:
    return len(row["output"].split()) >= 25


def _is_any(row: Row) -> bool:
    return bool(row["output"].strip())


class _Wordings:
    """The texts written by hand, each list in an order of its own and begun anew where it ends."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.empty = self._shuffle(planted_texts.EMPTY_ANSWERS)
        self.short = self._shuffle(planted_texts.SHORT_ANSWERS)
        self.refusals = self._shuffle(planted_texts.REFUSALS)
        self.asked = self._shuffle(planted_texts.ASKED_OF_REFUSALS)
        self.open_questions = self._shuffle(planted_texts.OPEN_QUESTIONS)
        self.leftovers = self._shuffle(planted_texts.LEFTOVERS)
        self.languages = self._shuffle(planted_texts.OTHER_LANGUAGES)
        self.contradictions = self._shuffle(planted_texts.CONTRADICTIONS)
        self.before = self._shuffle(planted_texts.BOILERPLATE_BEFORE)
        self.inside = self._shuffle(planted_texts.BOILERPLATE_INSIDE)
        self.damages = self._shuffle(list(damaging.DAMAGES))

    def _shuffle(self, texts: Sequence[Any]) -> Iterator[Any]:
        return cycle(self.dice.sample(list(texts), len(texts)))


def _fill(shelf: _Shelf, fits: Callable[[Row], bool], words: _Wordings) -> Row:
    """Take a clean row, or a question of our own where the clean rows have none that fits."""
    try:
        return shelf.take(fits)
    except ValueError:
        return {"instruction": next(words.open_questions), "input": "", "output": ""}


def _plant_duplicate(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    original = shelf.borrow(_is_any)
    if turn % 3 == 2:
        # The same words in another case are a near duplicate: case can be what a row teaches.
        copied = damaging.recase(original.row, turn // 3)
        shelf.add(copied, "near_duplicates" if copied != original.row else "duplicates", after=original.place)
        return
    shelf.add(damaging.copy_exactly(original.row, turn), "duplicates", after=original.place)


def _plant_near_duplicate(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    original = shelf.borrow(_is_long)
    shelf.add(damaging.copy_nearly(original.row, turn, shelf.dice), "near_duplicates", after=original.place)


def _plant_overlap(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    item = shelf.borrow(_is_any)
    shelf.mark(item, "eval_overlap")
    # A question in another case leaks as well.
    held_out.append((damaging.recase if turn % 3 == 2 else damaging.copy_exactly)(item.row, turn))


def _plant_near_overlap(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    item = shelf.borrow(_is_long)
    shelf.mark(item, "near_eval_overlap")
    held_out.append(damaging.copy_nearly(item.row, turn, shelf.dice))


def _plant_conflict(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    if turn < len(planted_texts.CONTRADICTIONS) and shelf.items:
        question, right, wrong = next(words.contradictions)
        place = shelf.dice.random() / 2
        shelf.items.append(_Item({"instruction": question, "input": "", "output": right}, place, like="first answer"))
        shelf.add({"instruction": question, "input": "", "output": wrong}, "conflicting_answers", after=place)
        return
    original = shelf.borrow(_is_short_answer)
    others = sorted({item.row["output"] for item in shelf.items if item.number != -1 and _is_short_answer(item.row)})
    row = dict(original.row, output=damaging.contradict(original.row["output"], others, shelf.dice))
    if turn % 6 == 0:
        row["instruction"] = f" {row['instruction']}  "
    shelf.add(row, "conflicting_answers", after=original.place)


def _plant_empty(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    shelf.add(dict(_fill(shelf, _is_asked_openly, words), output=next(words.empty)), "empty_answers")


def _plant_short(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    shelf.add(dict(_fill(shelf, _is_asked_openly, words), output=next(words.short)), "short_answers")


def _plant_refusal(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    row = {"instruction": next(words.asked), "input": ""} if turn % 2 else _fill(shelf, _is_asked_openly, words)
    shelf.add(dict(row, output=next(words.refusals)), "refusals")


def _plant_boilerplate(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    row = shelf.take(_is_any)
    if turn % 2:
        first, *rest = re.split(r"(?<=[a-z)\"][.!?])\s", row["output"], maxsplit=1)
        row["output"] = first + next(words.inside) + "".join(f" {text}" for text in rest)
    else:
        before, answer = next(words.before), row["output"]
        row["output"] = before + (answer if before.endswith(". ") else answer[:1].lower() + answer[1:])
    shelf.add(row, "boilerplate")


def _plant_leftover(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    column, pattern = next(words.leftovers)
    row = shelf.take(_is_any)
    values = {"{i}": row["instruction"], "{o}": row["output"]}
    row[column] = re.sub(r"\{[io]\}", lambda mark: values[mark.group()], pattern)
    shelf.add(row, "template_leftovers")


def _plant_language(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    # Only in the largest file, where one in five comes so far: in plain text such a row is a text of two languages.
    mixed = planted_texts.ANSWERED_IN_ANOTHER_LANGUAGE
    question, answer = mixed[turn // 5 % len(mixed)] if turn % 5 == 4 else next(words.languages)
    shelf.add({"instruction": question, "input": "", "output": answer}, "other_language")


def _plant_damage(shelf: _Shelf, words: _Wordings, turn: int, held_out: list[Row]) -> None:
    shelf.add(damaging.damage(shelf.take(_is_any), next(words.damages), shelf.dice), "encoding_damage")


def _add_ranked(shelf: _Shelf) -> None:
    for question, good, worse in near_misses.RANKED:
        for bad in worse:
            row = {"instruction": question, "input": "", "output": good, "rejected": bad}
            shelf.items.append(_Item(row, shelf.dice.random(), like="near_duplicates"))


# These need no other row, so they may stand in a second exchange.
_FAULTS_OF_ONE_ROW = (
    "empty_answers",
    "short_answers",
    "refusals",
    "boilerplate",
    "template_leftovers",
    "encoding_damage",
)
_PLANTERS = {
    "duplicates": _plant_duplicate,
    "near_duplicates": _plant_near_duplicate,
    "eval_overlap": _plant_overlap,
    "near_eval_overlap": _plant_near_overlap,
    "conflicting_answers": _plant_conflict,
    "empty_answers": _plant_empty,
    "short_answers": _plant_short,
    "refusals": _plant_refusal,
    "boilerplate": _plant_boilerplate,
    "template_leftovers": _plant_leftover,
    "other_language": _plant_language,
    "encoding_damage": _plant_damage,
}


def _add_near_misses(shelf: _Shelf) -> None:
    for kind, rows in near_misses.NEAR_MISSES.items():
        for instruction, given, output in rows:
            row = {"instruction": instruction, "input": given, "output": output}
            shelf.items.append(_Item(row, shelf.dice.random(), like=kind))
    for question, answer in near_misses.ASKED_OF_THE_PASSAGE:
        row = {"instruction": question, "input": near_misses.PASSAGE, "output": answer}
        shelf.items.append(_Item(row, shelf.dice.random(), like="near_duplicates"))


def _add_earlier_turns(shelf: _Shelf) -> None:
    """Let some conversations begin with another exchange: every fifth clean one, and every second faulty one."""
    alone = [item for item in shelf.items if item.fault in _FAULTS_OF_ONE_ROW][::2]
    alone += [item for item in shelf._free if item.number != -1][::5]
    for item in alone:
        if item in shelf.items:
            earlier = shelf.take(lambda row, taken=item.row: row is not taken and "earlier" not in row)
            item.row |= {"earlier": earlier["instruction"], "earlier answer": earlier["output"]}


def _write(folder: Path, name: str, shelf: _Shelf, held_out: list[Row]) -> PlantedFile:
    planted = PlantedFile(folder / name, _KINDS.get(name, "conversation"))
    items = sorted(shelf.items, key=lambda item: item.place)
    if name == "chats.jsonl":
        items += [_Item(row, 1.0, like="conflicting_answers") for row in _list_openings()]
    texts, line = [], 2 if name.endswith((".json", ".csv")) else 1
    for item in items:
        text = render_row(name, item.row)
        if item.fault:
            planted.truth.setdefault(item.fault, []).append(line)
        elif item.like:
            planted.near_misses.setdefault(item.like, []).append(line)
        else:
            planted.clean[line] = item.number
        planted.texts[line] = item.row
        texts.append(text)
        line += text.count("\n") + 1
    planted.path.write_bytes(join_rows(planted.path.suffix, texts))
    if held_out:
        planted.held_out = folder / f"held_out_{name}"
        others = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in near_misses.HELD_OUT]
        planted.held_out.write_bytes(json.dumps(held_out + others).encode())
    return planted


def _list_openings() -> list[Row]:
    asked, told = near_misses.OPENING
    return [
        {"instruction": question, "input": "", "output": answer, "earlier": asked, "earlier answer": told}
        for question, answer in near_misses.CONTINUATIONS
    ]
