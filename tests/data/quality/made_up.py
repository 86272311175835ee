"""Rows of a few words for the checks: conversations, pairs, labelled texts, as loaded examples."""

import hashlib
from collections.abc import Sequence

import datasets

from finetune.data.examples import (
    AnyExample,
    Conversation,
    Document,
    Judged,
    Labelled,
    Message,
    Preference,
    to_json,
)
from finetune.data.quality.texts import RowTexts, to_texts
from finetune.data.sources import LoadedExamples


def chat(question: str, answer: str, *, given: str = "", system: str = "") -> Conversation:
    before = [Message("system", system)] if system else []
    return Conversation((*before, Message("user", question, given), Message("assistant", answer)))


def pair(question: str, chosen: str, rejected: str) -> Preference:
    return Preference(chat(question, chosen), chat(question, rejected))


def judged(question: str, answer: str, desirable: bool) -> Judged:
    return Judged(chat(question, answer), desirable)


def texts_of(question: str, answer: str) -> RowTexts:
    return to_texts(to_json(chat(question, answer)), "conversation")


def load(examples: Sequence[AnyExample], *, name: str = "rows.jsonl") -> LoadedExamples:
    """Load examples as the rows 1, 2, 3 … of a file."""
    rows = [to_json(example) for example in examples]
    dataset = datasets.Dataset.from_dict(
        {"example": rows, "source": [name] * len(rows), "row": list(range(1, len(rows) + 1))}
    )
    fingerprint = hashlib.sha256(repr((rows, name)).encode()).hexdigest()
    return LoadedExamples(dataset, {"sources": [{"path": name, "files": [name]}]}, fingerprint)


__all__ = ["Document", "Labelled", "chat", "judged", "load", "pair", "texts_of"]
