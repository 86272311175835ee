"""An example to the texts that the checks read: what was asked, what was answered, and how they are compared.

In goes the JSON of an example (`examples.to_json`) and its kind; out come plain texts. Two texts are the
same here when they are after NFC, case folding and whitespace folding.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from finetune.data.examples import (
    Conversation,
    Document,
    Message,
    from_json,
    judged_from_json,
    labelled_from_json,
    preference_from_json,
)
from finetune.recipe.row_kinds import Kind

__all__ = ["RowTexts", "fold", "fold_answer", "hash_texts", "to_texts"]

# Signs that cannot be seen and change nothing: zero-width ones, the word joiner, the byte order mark, soft hyphens.
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_END_MARKS = " .!\"'`*"


@dataclass(frozen=True, slots=True)
class RowTexts:
    """The texts of one example.

    Attributes:
        prompt: all that stands before the last answer, roles and tools included; of rows without an answer the text.
        said: the same without the system message and the tools, which many rows share.
        asked: each of the user's texts without its `input`, which may be in any language; of documents and labelled
            texts each text.
        tails: what stands behind the prompt: the answer, the chosen and the rejected one, or the second text.
        answers: those that are trained on as good, each behind the user's text that it answers.
        last_asked: the last of the user's texts, `input` included; of documents and labelled texts empty.
        verdict: a label, or whether the answer was found good; empty where rows have none.
        label: the label where it is a number.
    """

    prompt: str
    said: str
    asked: tuple[str, ...]
    tails: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    last_asked: str = ""
    verdict: str = ""
    label: float | None = None

    @property
    def whole(self) -> str:
        """Every text of the row."""
        return "\n".join((self.prompt, *self.tails))

    @property
    def words(self) -> str:
        """Every text that is compared word by word."""
        return "\n".join((self.said, *self.tails))


def to_texts(example: str, kind: Kind) -> RowTexts:
    """Convert an example's JSON to its texts."""
    match kind:
        case "labelled":
            labelled = labelled_from_json(example)
            pair = () if labelled.text_pair is None else (labelled.text_pair,)
            number = float(labelled.label) if isinstance(labelled.label, int | float) else None
            verdict = "" if labelled.label is None else json.dumps(labelled.label)
            return RowTexts(
                labelled.text, labelled.text, (labelled.text, *pair), pair, (), verdict=verdict, label=number
            )
        case "preference":
            preference = preference_from_json(example)
            chosen, rejected = preference.chosen, preference.rejected
            tails = (_to_text(chosen.messages[-1]), _to_text(rejected.messages[-1]))
            return _to_texts(chosen, chosen.messages[:-1], tails, _find_answers(chosen.messages))
        case "judged":
            judged = judged_from_json(example)
            messages = judged.conversation.messages
            good = _find_answers(messages) if judged.desirable else ()
            verdict = "good" if judged.desirable else "bad"
            return _to_texts(judged.conversation, messages[:-1], (_to_text(messages[-1]),), good, verdict)
    read = from_json(example)
    if isinstance(read, Document):
        return RowTexts(read.text, read.text, (read.text,), (), ())
    last = max((place for place, message in enumerate(read.messages) if message.role == "assistant"), default=None)
    if last is None or (kind == "prompt" and last < len(read.messages) - 1):
        return _to_texts(read, read.messages, (), ())
    answers = () if kind == "prompt" else _find_answers(read.messages)
    return _to_texts(read, read.messages[:last], (_to_text(read.messages[last]),), answers)


def _find_answers(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """Find the answers that are trained, each behind what it answers; calls of tools are no answers."""
    answers = []
    asked = ""
    for message in messages:
        if message.role == "user":
            asked = _to_text(message)
        elif message.role == "assistant" and message.weight != 0 and not message.tool_calls:
            answers.append((asked, message.content))
    return tuple(answers)


def _to_texts(
    conversation: Conversation,
    before: Sequence[Message],
    tails: tuple[str, ...],
    answers: tuple[tuple[str, str], ...],
    verdict: str = "",
) -> RowTexts:
    users = [message for message in before if message.role == "user"]
    tools = [json.dumps(conversation.tools, ensure_ascii=False)] if conversation.tools else []
    return RowTexts(
        prompt="\n".join([*tools, *(f"{message.role}\n{_to_text(message)}" for message in before)]),
        said="\n".join(_to_text(message) for message in before if message.role != "system"),
        asked=tuple(message.content for message in users),
        tails=tails,
        answers=answers,
        last_asked=_to_text(users[-1]) if users else "",
        verdict=verdict,
    )


def _to_text(message: Message) -> str:
    calls = [json.dumps(message.tool_calls, ensure_ascii=False)] if message.tool_calls else []
    return "\n".join([message.content, *([message.input] if message.input else []), *calls])


def fold(text: str) -> str:
    """Fold a text to what it is compared by: NFC, no case, single spaces, nothing unseen."""
    if not text.isascii():
        text = _UNSEEN.sub("", unicodedata.normalize("NFC", text))
    return " ".join(text.casefold().split())


def fold_answer(text: str) -> str:
    """Fold an answer further: "7" and "7." say the same."""
    return fold(text).strip(_END_MARKS)


def hash_texts(*texts: str) -> int:
    """Hash texts to 64 bits, the same in every process."""
    digest = blake2b(digest_size=8)
    for text in texts:
        # Lengths keep ("ab", "c") apart from ("a", "bc"); JSON can hold halves of surrogate pairs.
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return int.from_bytes(digest.digest(), "big")
