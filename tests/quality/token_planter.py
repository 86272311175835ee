"""Plants rows that lose their end, their answer or every trained token, begin twice or hold control tokens.

Lengths are counted with the tokenizer's own file and the prompt that Stanford Alpaca published, so that a row can be
made as long as `max_length`, or one token longer. Nothing of the code that counts rows is known here.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from tests.quality.planted_texts import ESSAYS

__all__ = ["MAX_LENGTH", "TokenFile", "count_tokens_of", "plant_tokens"]

MAX_LENGTH = 160
_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}"
)
_QUESTIONS = [
    ("What is the opposite of hot?", "cold"),
    ("Name the colour of grass.", "green"),
    ("Which animal barks?", "The dog barks."),
    ("What is the plural of mouse?", "mice"),
    ("How many legs has a horse?", "A horse has four legs."),
    ("Which day comes after Monday?", "Tuesday"),
    ("What is a baby sheep called?", "lamb"),
    ("What do bees make?", "Bees make honey."),
]


@dataclass(slots=True)
class TokenFile:
    """A file, and kind -> the lines of the rows of which the census is to say so.

    Attributes:
        lengths: line -> tokens of the whole row, beginning and end counted; where they are known.
        num_control_tokens: that stand in the texts of the file.
    """

    path: Path
    truth: dict[str, list[int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    num_control_tokens: int = 0


@dataclass(slots=True)
class _Line:
    row: dict[str, object]
    faults: tuple[str, ...] = ()
    length: int = 0


def plant_tokens(folder: Path, tokenizer_path: Path, seed: int) -> dict[str, TokenFile]:
    """Write the files: `drop` and `cut` for the two ways with long rows, `marks` and `texts` for control tokens."""
    dice = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    lines = {
        "drop": [*_list_clean(count, 40), *_list_too_long(count, dice), *_list_fitting(count)],
        "cut": [*_list_clean(count, 40), *_list_cut(count, dice), *_list_untrained(), *_list_fitting(count)],
        "marks": [*_list_clean(count, 20), *_list_marked()],
        "texts": [_Line({"text": text}) for _, text in ESSAYS] + _list_marked_texts(),
    }
    files = {}
    for name, listed in lines.items():
        dice.shuffle(listed)
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line.row, ensure_ascii=False) + "\n" for line in listed), encoding="utf-8")
        planted = files[name] = TokenFile(path)
        for number, line in enumerate(listed, start=1):
            for fault in line.faults:
                planted.truth.setdefault(fault, []).append(number)
            if line.length:
                planted.lengths[number] = line.length
            planted.num_control_tokens += sum(
                json.dumps(line.row).count(mark) for mark in ("<s>", "</s>", "<unk>", "<pad>")
            )
    return files


def count_tokens_of(turns: Sequence[tuple[str, str]], count: Callable[[str], int]) -> int:
    """Count the tokens of a conversation under Alpaca's prompt: one begins the row, and one ends each answer."""
    text, total = _PREAMBLE, 1
    for question, answer in turns:
        total += count(f"{text.format(question)}\n\n### Response:\n") + count(answer) + 1
        text = "\n\n### Instruction:\n{}"
    return total


def _talk(*turns: tuple[str, str], weights: Sequence[int | None] = ()) -> dict[str, object]:
    messages: list[dict[str, object]] = []
    for number, (question, answer) in enumerate(turns):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if weights and weights[number] is not None:
            messages[-1]["weight"] = weights[number]
    return {"messages": messages}


def _line(count: Callable[[str], int], faults: tuple[str, ...], *turns: tuple[str, str]) -> _Line:
    return _Line(_talk(*turns), faults, count_tokens_of(turns, count))


def _list_clean(count: Callable[[str], int], num: int) -> list[_Line]:
    return [_line(count, (), _QUESTIONS[place % len(_QUESTIONS)]) for place in range(num)]


def _lengthen(count: Callable[[str], int], question: str, length: int) -> tuple[str, str]:
    """Answer a question so that the row has just so many tokens: words, then single digits."""
    answer = ESSAYS[len(question) % len(ESSAYS)][1].split()
    while count_tokens_of([(question, " ".join(answer))], count) > length:
        answer.pop()
    text = " ".join(answer)
    while count_tokens_of([(question, text)], count) < length:
        text += "7"
    if count_tokens_of([(question, text)], count) != length:
        raise ValueError(f"no answer to {question!r} makes a row of {length} tokens")
    return question, text


def _list_fitting(count: Callable[[str], int]) -> list[_Line]:
    """Rows that are as long as may be, and one token less."""
    return [_line(count, (), _lengthen(count, question, MAX_LENGTH - place % 2)) for place, (question, _) in
            enumerate(_QUESTIONS)]  # fmt: skip


def _list_too_long(count: Callable[[str], int], dice: random.Random) -> list[_Line]:
    """Rows that are dropped: a long answer, a long question, two turns, and some by one token alone."""
    essays = [text for _, text in ESSAYS]
    long = [(question, f"{answer} {dice.choice(essays)} {dice.choice(essays)}") for question, answer in _QUESTIONS[:4]]
    asked = [(f"{question} {dice.choice(essays)} {dice.choice(essays)}", answer) for question, answer in _QUESTIONS[:3]]
    barely = [_lengthen(count, question, MAX_LENGTH + 1) for question, _ in _QUESTIONS[:3]]
    lines = [_line(count, ("too_long",), turn) for turn in [*long, *asked, *barely]]
    return lines + [
        _line(count, ("too_long",), _QUESTIONS[place], (f"And this? {essays[place]} {essays[place + 1]}", "yes"))
        for place in range(2)
    ]


def _list_cut(count: Callable[[str], int], dice: random.Random) -> list[_Line]:
    essays = [text for _, text in ESSAYS]
    lines = []
    # In the middle of the answer; some rows by two tokens alone, the last word and the end.
    for place in range(10):
        question = f"{_QUESTIONS[place % 8][0]} {'Explain.' if place > 7 else ''}".strip()
        turn = (
            _lengthen(count, question, MAX_LENGTH + 2)
            if place < 3
            else (question, f"{dice.choice(essays)} {dice.choice(essays)}")
        )
        lines.append(_line(count, ("cut", "unended"), turn))
    # The question alone fills the row; or the second one of two does, and the first answer stays.
    for place in range(5):
        asked = f"{_QUESTIONS[place][0]} {essays[place]} {essays[place + 1]}"
        lines.append(_line(count, ("answers_lost", "nothing_trained"), (asked, "yes")))
        lines.append(_line(count, ("answers_lost", "cut"), _QUESTIONS[place], (asked, _QUESTIONS[place][1])))
    for question, _ in _QUESTIONS:
        turn = _lengthen(count, question, MAX_LENGTH + 1)
        lines.append(_line(count, ("ends_lost", "cut", "unended"), turn))
    return lines


def _list_untrained() -> list[_Line]:
    """Rows whose every answer has weight 0, and rows that are like them: one answer of two is trained."""
    lines = [
        _Line(_talk(*_QUESTIONS[place : place + 1 + place % 2], weights=[0, 0]), ("nothing_trained",))
        for place in range(7)
    ]
    lines.append(_Line(_talk(*_QUESTIONS[:3], weights=[0, 0, 0]), ("nothing_trained",)))
    return lines + [_Line(_talk(*_QUESTIONS[place : place + 2], weights=[0, 1])) for place in range(3)]


def _list_marked() -> list[_Line]:
    """Rows with control tokens in their texts, four of which begin the row a second time."""
    systems = ["<s>You are a teacher.", "<s> Answer in one word.", "<s>Be brief.</s>", "<s><s>Help me."]
    lines = []
    for (question, answer), system in zip(_QUESTIONS, systems, strict=False):
        row = _talk((question, answer))
        row["messages"].insert(0, {"role": "system", "content": system})  # type: ignore[attr-defined]
        lines.append(_Line(row, ("begins_twice", "control_tokens")))
    held = [
        ("What does </s> mean?", "It ends a text."),
        ("<s>[INST] Which animal barks? [/INST]", "the dog"),
        ("Which animal barks?", "<s>the dog</s>"),
        ("Fill the gap: the <unk> barks.", "dog"),
        ("Repeat: a<pad>b", "a<pad>b"),
        ("Go on: <s>one</s><s>two</s>", "three"),
        ("What is this?</s><s>And this?", "Two questions."),
    ]
    lines += [_Line(_talk(turn), ("control_tokens",)) for turn in held]
    like = ["< s>", "<s >", "</S>", "&lt;s&gt;", "<strike>old</strike>", "s> and </ s>", "[PAD]", "<<s"]
    return lines + [_Line(_talk((f"Read {text} aloud.", "Gladly."))) for text in like]


def _list_marked_texts() -> list[_Line]:
    begun = ["<s>Once upon a time", "<s> A bell rang", "<s>", "<s><s>Twice"]
    lines = [
        _Line({"text": f"{text} there was a mill by the river."}, ("begins_twice", "control_tokens")) for text in begun
    ]
    lines.append(_Line({"text": "The mill <s> stood still.</s>"}, ("control_tokens",)))
    return [*lines, _Line({"text": "s> is no mark."}), _Line({"text": "< s>Neither is this."})]
