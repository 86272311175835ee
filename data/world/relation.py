"""What a relation is: one kind of fact, and every way of putting it into words.

Goes in: nothing. Comes out: `Fact`, `Relation`, and `sentence`, which the other modules of the world build on.

The wordings of a relation fall into three groups that never share a line:

- base      what the pretraining text says and asks (`statements`, `questions`, `phrases`);
- train     what the instructions of the training set ask (`train_questions`, `train_phrases`);
- test      what the held-out instructions ask (`test_questions`, `test_phrases`).

A phrase names the thing asked for ("the plural of mouse") and is put into a frame ("Tell me {phrase}."), so a
handful of phrases gives many wordings. In every wording `{x}` is the subject; `{y}`, the answer, stands in
statements only: a wording that asks must not hold its answer.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One thing that is true in the world.

    Args:
        subject: what is asked about, as it stands in a sentence ("a lemon").
        answer: the whole answer ("yellow").
        key: what the split holds out. Two facts that give each other away, such as hot/cold and cold/hot, share
            one key, so both fall on the same side.
    """

    subject: str
    answer: str
    key: str


@dataclass(frozen=True)
class Relation:
    """One kind of fact with its wordings; the name is the `task` column of the data sets.

    Args:
        name: short name of the task.
        facts: every fact of this kind.
        label: the heading under which a notebook lists the answer ("colour").
        stand_ins: what replaces the subject where it is given apart from the question: for the base, for training
            and for the test ("the thing on the card", "this thing", "the given thing").
    """

    name: str
    facts: tuple[Fact, ...]
    label: str
    stand_ins: tuple[str, str, str]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    phrases: tuple[str, ...]
    train_questions: tuple[str, ...]
    train_phrases: tuple[str, ...]
    test_questions: tuple[str, ...]
    test_phrases: tuple[str, ...]


def read_pairs(block: str) -> list[tuple[str, str]]:
    """Pairs from a block of text in which `;` stands between pairs and `=` between the two sides."""
    pairs = [entry.split("=") for entry in block.replace("\n", " ").split(";") if entry.strip()]
    return [(left.strip(), right.strip()) for left, right in pairs]


def read_wordings(block: str) -> dict[str, tuple[str, ...]]:
    """The groups of wordings in a block of text: a line `group: one / another`, further lines continue it."""
    groups: dict[str, str] = {}
    for entry in re.split(r"\n(?! )", block.strip()):
        group, _, groups[group] = entry.partition(":")
    return {
        group.replace(" ", "_"): tuple(wording.strip() for wording in " ".join(text.split()).split("/"))
        for group, text in groups.items()
    }


def build_relation(
    name: str,
    pairs: list[tuple[str, str]],
    wordings: str,
    label: str,
    stand_ins: tuple[str, str, str],
    family: str | None = None,
) -> Relation:
    """A relation from its pairs and its block of wordings.

    A fact's key is the family and both sides in alphabetical order, so a pair and its reverse share it, also across
    relations of one family. Without a family the name serves.
    """
    facts = tuple(Fact(x, y, _to_key(family or name, x, y)) for x, y in pairs)
    return Relation(name, facts, label, stand_ins, **read_wordings(wordings))


def _to_key(family: str, subject: str, answer: str) -> str:
    """`family: one / other`; the letter A and A count as the same."""
    return f"{family}: " + " / ".join(sorted((subject.removeprefix("the letter "), answer)))


def sentence(text: str) -> str:
    """The text with its first letter in upper case; the rest stays as it is."""
    return text[:1].upper() + text[1:]
