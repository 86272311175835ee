"""An example to the texts that the checks read: what was asked, what was answered, and how they are compared.

In goes the JSON of an example (`examples.to_json`) and its kind; out come plain texts. Two texts are the same here
when they are after NFC, without signs of no width and with single spaces inside a line: case, indentation and line
breaks can be what a row teaches. What asks the same, or says the same answer, is told without them (`fold_loosely`).
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

__all__ = ["RowTexts", "fold", "fold_answer", "fold_loosely", "hash_texts", "to_texts", "without_answers"]

# Signs that cannot be seen and change nothing: zero-width ones, the word joiner, the byte order mark, soft hyphens.
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
# Not what else Python strips, such as U+0085, which is damage.
_EDGE = " \t\r\n\u00a0\u3000"
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
        weights: of each answer of a conversation, 0 where it is not trained.
        taught: the prompt of every answer that is trained; the same without system message and tools, where it has
            them, since a held-out question may be asked without.
    """

    prompt: str
    said: str
    asked: tuple[str, ...]
    tails: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]
    last_asked: str = ""
    verdict: str = ""
    label: float | None = None
    weights: tuple[int, ...] = ()
    taught: tuple[str, ...] = ()

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


def without_answers(texts: RowTexts) -> RowTexts:
    """The same row as a prompt alone, which rows of other kinds can be compared with."""
    return replace(texts, tails=(), answers=(), verdict="")


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
        prompt="\n".join([*tools, _to_prompt(before)]),
        said="\n".join(_to_text(message) for message in before if message.role != "system"),
        asked=tuple(message.content for message in users),
        tails=tails,
        answers=answers,
        last_asked=_to_text(users[-1]) if users else "",
        verdict=verdict,
        weights=tuple(
            0 if message.weight == 0 else 1 for message in conversation.messages if message.role == "assistant"
        ),
        taught=_find_taught(before, tools, has_trained=bool(answers)),
    )


def _find_taught(before: Sequence[Message], tools: Sequence[str], *, has_trained: bool) -> tuple[str, ...]:
    trained = [message.role == "assistant" and message.weight != 0 and has_trained for message in before]
    taught = []
    for end in [*(place for place, is_trained in enumerate(trained) if is_trained), len(before)]:
        whole = "\n".join([*tools, _to_prompt(before[:end])])
        bare = _to_prompt([message for message in before[:end] if message.role != "system"])
        taught += [whole] if whole == bare or not bare else [whole, bare]
    return tuple(taught)


def _to_prompt(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message.role}\n{_to_text(message)}" for message in messages)


def _to_text(message: Message) -> str:
    calls = [json.dumps(message.tool_calls, ensure_ascii=False)] if message.tool_calls else []
    parts = [message.content, *([message.input] if message.input else []), *calls]
    # Joined, what begins a part would be taken for the indentation of its line.
    return "\n".join(part.strip(_EDGE) for part in parts)


def fold(text: str) -> str:
    """Fold a text to what it is the same by: NFC, nothing unseen, single spaces but where a line is indented."""
    lines = _to_visible(text).replace("\r\n", "\n").replace("\r", "\n").strip().split("\n")
    return "\n".join(map(_fold_line, lines))


def _to_visible(text: str) -> str:
    return text if text.isascii() else _UNSEEN.sub("", unicodedata.normalize("NFC", text))


def _fold_line(line: str) -> str:
    bare = line.lstrip()
    return line[: len(line) - len(bare)] + " ".join(bare.split()) if bare else ""


def fold_loosely(text: str) -> str:
    """Fold a text to what it asks: no case, and every white space is one space."""
    return " ".join(_to_visible(text).casefold().split())


def fold_answer(text: str) -> str:
    """Fold an answer to what it says: "7" and "7." say the same, and "Yes" and "yes"."""
    return fold_loosely(text).strip(_END_MARKS)


def hash_texts(*texts: str) -> int:
    """Hash texts to 64 bits, the same in every process."""
    digest = blake2b(digest_size=8)
    for text in texts:
        # Lengths keep ("ab", "c") apart from ("a", "bc"); JSON can hold halves of surrogate pairs.
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return int.from_bytes(digest.digest(), "big")
