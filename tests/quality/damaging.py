"""What happens to a row on its way: it is copied, copied with changes, contradicted, or its letters suffer."""

import random
import re
from collections.abc import Callable, Sequence

from tests.quality.planted_texts import ACCENTED, ADDED_SENTENCES, ANSWERS_BEGIN, SYNONYMS

__all__ = ["DAMAGES", "contradict", "copy_exactly", "copy_nearly", "damage", "recase"]

Row = dict[str, str]

_WAYS_OF_COPYING = [
    {},
    {"output": lambda text: f"{text}\n"},
    {"output": lambda text: text.replace(" ", "  ")},
    {"instruction": lambda text: f"  {text} "},
    {},
    {"output": lambda text: text.replace("\n", "\r\n")},
    {"instruction": lambda text: text.replace(" ", "\u00a0", 2), "output": lambda text: f"\t{text}"},
    {"output": lambda text: text.replace("\n", " \n"), "input": lambda text: f" {text}"},
]
_WAYS_OF_RECASING = [
    {"instruction": str.lower},
    {"instruction": str.upper},
    {"instruction": str.lower, "input": str.lower, "output": str.lower},
    {"output": lambda text: text.replace("\n", "\n\n").upper()},
    {"instruction": str.title},
    {"output": str.upper},
    {"input": str.upper, "output": lambda text: f" {text.lower()}  "},
]


def copy_exactly(row: Row, turn: int) -> Row:
    """Copy a row, in most turns with other white space."""
    return _change(row, _WAYS_OF_COPYING[turn % len(_WAYS_OF_COPYING)])


def recase(row: Row, turn: int) -> Row:
    """Copy a row in another case, some with other line breaks: the same words, and maybe another meaning."""
    return _change(row, _WAYS_OF_RECASING[turn % len(_WAYS_OF_RECASING)])


def _change(row: Row, changes: dict[str, Callable[[str], str]]) -> Row:
    return {name: changes.get(name, str)(text) if text.strip() else text for name, text in row.items()}


def copy_nearly(row: Row, turn: int, dice: random.Random) -> Row:
    """Copy a row with a few words, a sentence or the punctuation changed; no name and no number is.

    At most four words are changed, and no more than one of 30 words.
    """
    ways = _WAYS_OF_CHANGING[turn % len(_WAYS_OF_CHANGING)]
    changed = dict(row)
    for way in ways:
        changed = way(changed, dice)
    # A row without a word that has a synonym, or without a last sentence that is short, is changed in another way.
    if ways != (_repunctuate,) and _words_of(changed) == _words_of(row):
        changed = _add_sentence(dict(row), dice)
    assert changed != row
    return changed


def _words_of(row: Row) -> list[str]:
    return re.findall(r"\w+", " ".join(row.values()).lower())


def _num_changes(row: Row) -> int:
    return max(1, min(4, len(_words_of(row)) // 30))


def _swap_words(row: Row, dice: random.Random) -> Row:
    text = row["output"]
    places = [match for match in re.finditer(r"(?<![\w'’])[a-z]+(?![\w'’])", text) if match.group() in SYNONYMS]
    chosen = dice.sample(places, min(_num_changes(row), len(places)))
    for match in sorted(chosen, key=lambda found: -found.start()):
        text = text[: match.start()] + SYNONYMS[match.group()] + text[match.end() :]
    return row | {"output": text}


def _mistype(row: Row, dice: random.Random) -> Row:
    text = row["output"]
    places = list(re.finditer(r"(?<!\w)[a-z]{6,}(?!\w)", text))
    for match in sorted(dice.sample(places, min(2, _num_changes(row), len(places))), key=lambda found: -found.start()):
        word = match.group()
        cut = dice.randrange(1, len(word) - 2)
        text = text[: match.start()] + word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :] + text[match.end() :]
    return row | {"output": text}


def _repunctuate(row: Row, dice: random.Random) -> Row:
    instruction = row["instruction"].rstrip(" .:?") + dice.choice(["", "...", "!", " :", ";"])
    output = re.sub(r",(?= )", "", row["output"], count=4)
    output = re.sub(r"(?<=[a-z])\.(?= )", dice.choice(["!", " .", ";"]), output, count=3).rstrip(".")
    return row | {"instruction": instruction, "output": output}


def _add_sentence(row: Row, dice: random.Random) -> Row:
    return row | {"output": f"{row['output'].rstrip()} {dice.choice(ADDED_SENTENCES)}"}


def _drop_sentence(row: Row, dice: random.Random) -> Row:
    """Leave out the last sentence, where it is no more than a tenth of the row."""
    kept, mark, last = row["output"].rstrip(" .").rpartition(". ")
    if not mark or len(last.split()) * 10 > len(_words_of(row)) or "\n" in last:
        return row
    return row | {"output": f"{kept}."}


def _begin_otherwise(row: Row, dice: random.Random) -> Row:
    return row | {"output": dice.choice(ANSWERS_BEGIN) + row["output"]}


def _ask_politely(row: Row, dice: random.Random) -> Row:
    asked = row["instruction"]
    return row | {
        "instruction": f"Please {asked[:1].lower()}{asked[1:]}" + dice.choice(["", " Thank you!", " Thanks."])
    }


_WAYS_OF_CHANGING = [
    (_swap_words,),
    (_add_sentence,),
    (_repunctuate,),
    (_mistype,),
    (_drop_sentence,),
    (_begin_otherwise, _swap_words),
    (_ask_politely,),
    (_ask_politely, _add_sentence),
    (_repunctuate, _mistype),
]


_OPPOSITES = [
    ("true", "false"), ("yes", "no"), ("positive", "negative"), ("non-fiction", "fiction"), ("unhealthy", "healthy"),
    ("fact", "opinion"), ("subjective", "objective"), ("simile", "metaphor"), ("animal", "vegetable"),
    ("declarative", "interrogative"), ("carnivore", "omnivore"), ("man-made", "natural"), ("politics", "sports"),
]  # fmt: skip


def contradict(answer: str, others: Sequence[str], dice: random.Random) -> str:
    """Answer otherwise: the opposite, another number, or another of the short answers."""
    for pair in _OPPOSITES:
        for word, opposite in (pair, pair[::-1]):
            found = re.search(rf"(?i)\b{word}\b", answer)
            if found:
                upper = found.group()[0].isupper()
                return answer[: found.start()] + (opposite.capitalize() if upper else opposite) + answer[found.end() :]
    bare = answer.strip(" .").lower()
    if bare.isdigit():
        return str(int(bare) + dice.randint(1, 5))
    return dice.choice([other for other in others if other.strip(" .").lower() != bare])


def _read_as_cp1252(text: str) -> str:
    """Read UTF-8 as a browser reads cp1252: the five bytes that it does not hold stay control characters."""
    return "".join(_to_cp1252(byte) for byte in text.encode())


def _to_cp1252(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


def _replace_one(text: str) -> str:
    place = next(number for number, letter in enumerate(text) if ord(letter) > 127)
    return text[:place] + "\ufffd" + text[place + 1 :]


# The way a text goes wrong -> how. C1: cp1252's own marks read as Latin-1 become control characters.
DAMAGES = {
    "cp1252": _read_as_cp1252,
    "latin1": lambda text: text.encode().decode("latin-1"),
    "twice": lambda text: _read_as_cp1252(_read_as_cp1252(text)),
    "twice latin1": lambda text: text.encode().decode("latin-1").encode().decode("latin-1"),
    "ascii": lambda text: text.encode().decode("ascii", "replace"),
    "one mark": _replace_one,
    "utf8 of cp1252": lambda text: text.encode("cp1252").decode("utf-8", "replace"),
    "c1": lambda text: text.encode("cp1252").decode("latin-1"),
}


def damage(row: Row, way: str, dice: random.Random) -> Row:
    """Damage the letters of a row beyond ASCII, which it is given where it has none: curly marks, or a sentence."""
    column = dice.choice(["output", "output", "output", "input" if row["input"] else "instruction"])
    text = row[column]
    curly = re.sub(r"(?<=\w)'(?=\w)", "’", re.sub(r'"([^"\n]+)"', r"“\1”", text))
    sentences = [
        sentence
        for sentence in ACCENTED
        if (way != "c1" or set(sentence) & set("’“”–—…€")) and (way not in ("c1", "utf8 of cp1252") or _fits(sentence))
    ]
    if curly == text or not _fits(curly) or dice.random() < 0.3:
        curly = f"{text.rstrip()} {dice.choice(sentences)}"
    if not _fits(curly) and way in ("c1", "utf8 of cp1252"):
        curly = dice.choice(sentences)
    damaged = DAMAGES[way](curly)
    assert damaged != curly
    return row | {column: damaged}


def _fits(text: str) -> bool:
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True
