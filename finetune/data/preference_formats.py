"""Rows of preferences to pairs of conversations that share their prompt, and rows of verdicts to judged ones.

The format's name of each column goes in, whatever the row called it (`formats` maps them). A pair that
cannot teach a preference is a `RowError` whose reason can be counted: the prompts differ, an answer is
empty, both answers are equal.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from finetune.data.examples import Conversation, Judged, Message, Origin, Preference, RowError
from finetune.data.turns import (
    build_conversation,
    check_text,
    leave_untrained,
    read_json,
    to_messages,
    to_prompt,
    to_turns,
)

__all__ = [
    "from_dialogues",
    "from_judged",
    "from_judged_messages",
    "from_openai_preference",
    "from_orca",
    "from_preference",
    "from_prompt",
    "from_ranking",
    "from_sharegpt_preference",
    "unpair",
]

# A speaker's mark as Anthropic's HH has it; the space behind it belongs to the mark.
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[^\S\n]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_LABELS = {"true": True, "false": False}


def from_preference(row: Mapping[str, Any], origin: Origin) -> Preference:
    """Convert `prompt`, `chosen` and `rejected`: texts, messages, or whole conversations that repeat the prompt."""
    prompt = to_prompt(row["prompt"], origin)
    return _pair_answers(prompt, row["chosen"], row["rejected"], row, origin)


def from_openai_preference(row: Mapping[str, Any], origin: Origin) -> Preference:
    """Convert OpenAI's `input` (messages and tools), `preferred_output` and `non_preferred_output`."""
    given = row["input"]
    if isinstance(given, str):
        given = read_json(given, "`input`", origin)
    if not isinstance(given, dict) or given.get("messages") is None:
        raise RowError(origin, "`input` holds no `messages`")
    prompt = leave_untrained(to_messages(given["messages"], "input.messages", origin))
    chosen, rejected = (_list_of(row[name], name, origin) for name in ("preferred_output", "non_preferred_output"))
    return _pair_answers(prompt, chosen, rejected, {"tools": given.get("tools")}, origin)


def from_sharegpt_preference(row: Mapping[str, Any], origin: Origin) -> Preference:
    """Convert `conversations` that end before the answer, `chosen` and `rejected`: one turn each."""
    prompt = leave_untrained(to_turns(row["conversations"], origin))
    return _pair_answers(prompt, row["chosen"], row["rejected"], row, origin)


def from_orca(row: Mapping[str, Any], origin: Origin) -> Preference:
    """Convert `question`, `chosen` and `rejected`, all texts."""
    prompt = [Message("user", check_text(row["question"], "`question`", origin))]
    return _pair_answers(prompt, row["chosen"], row["rejected"], row, origin)


def from_dialogues(row: Mapping[str, Any], origin: Origin) -> Preference:
    """Convert two whole dialogues, HH's texts or lists of messages, that are the same up to their last answer."""
    (chosen_prompt, chosen), (rejected_prompt, rejected) = (
        _split_dialogue(row[side], side, origin) for side in ("chosen", "rejected")
    )
    if chosen_prompt != rejected_prompt:
        raise RowError(origin, "prompts differ", ": more than the last answers is not the same")
    prompt = _to_turns_of_text(chosen_prompt, origin) if isinstance(chosen_prompt, str) else chosen_prompt
    return _build_pair(leave_untrained(prompt), chosen, rejected, row, origin)


def from_ranking(row: Mapping[str, Any], origin: Origin) -> list[Preference]:
    """Convert `prompt` and `answers`, best first or by `scores` or `ranks`, to every pair of a better and a worse one.

    Equal scores or ranks make no pair.
    """
    prompt = to_prompt(row["prompt"], origin)
    answers = _list_of(row["answers"], "answers", origin)
    if len(answers) < 2:
        raise RowError(origin, "fewer than two answers to rank")
    grades = _read_grades(row, len(answers), origin)
    order = sorted(range(len(answers)), key=lambda index: -grades[index])
    pairs = [(better, worse) for better, worse in combinations(order, 2) if grades[better] > grades[worse]]
    if not pairs:
        raise RowError(origin, "all answers are ranked alike")
    return [_pair_answers(prompt, answers[better], answers[worse], row, origin) for better, worse in pairs]


def from_judged(row: Mapping[str, Any], origin: Origin) -> Judged:
    """Convert `prompt`, `completion` and `label`; prompt and completion are texts or lists of messages."""
    prompt, completion = _drop_prompt(
        to_prompt(row["prompt"], origin), _to_answer(row["completion"], "completion", origin), origin
    )
    _check_end(completion, "completion", origin)
    conversation = build_conversation([*prompt, *completion], row, origin)
    return Judged(conversation, _to_verdict(row["label"], origin), origin)


def from_judged_messages(row: Mapping[str, Any], origin: Origin) -> Judged:
    """Convert `messages` and `label`, which is about the last answer alone."""
    messages = to_messages(row["messages"], "messages", origin)
    _check_end(messages, "messages", origin)
    conversation = build_conversation([*leave_untrained(messages[:-1]), messages[-1]], row, origin)
    return Judged(conversation, _to_verdict(row["label"], origin), origin)


def from_prompt(row: Mapping[str, Any], origin: Origin) -> Conversation:
    """Convert `prompt`, and `answer` where there is one: the answer that a reward compares with."""
    prompt = to_prompt(row["prompt"], origin)
    answer = row.get("answer")
    if answer is not None and answer != "":
        prompt.append(Message("assistant", check_text(answer, "`answer`", origin)))
    return build_conversation(prompt, row, origin)


def unpair(preference: Preference) -> list[Judged]:
    """Make a preference two judged conversations: the chosen one desirable, the rejected one not."""
    return [
        Judged(preference.chosen, True, preference.origin),
        Judged(preference.rejected, False, preference.origin),
    ]


def _pair_answers(
    prompt: Sequence[Message], chosen: Any, rejected: Any, row: Mapping[str, Any], origin: Origin
) -> Preference:
    """Convert two answers to one prompt; either may repeat it."""
    chosen_prompt, chosen = _drop_prompt(prompt, _to_answer(chosen, "chosen", origin), origin)
    rejected_prompt, rejected = _drop_prompt(prompt, _to_answer(rejected, "rejected", origin), origin)
    if chosen_prompt != rejected_prompt:
        raise RowError(origin, "prompts differ", ": the system messages are not the same")
    return _build_pair(chosen_prompt, chosen, rejected, row, origin)


def _build_pair(
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    row: Mapping[str, Any],
    origin: Origin,
) -> Preference:
    _check_end(chosen, "chosen", origin)
    _check_end(rejected, "rejected", origin)
    if chosen == rejected:
        raise RowError(origin, "chosen equals rejected")
    return Preference(
        build_conversation([*prompt, *chosen], row, origin),
        build_conversation([*prompt, *rejected], row, origin),
        origin,
    )


def _to_answer(value: Any, side: str, origin: Origin) -> list[Message]:
    """Convert an answer: a text, one turn or a list of turns, as OpenAI or ShareGPT write them."""
    if isinstance(value, str):
        turns: list[Any] = [{"role": "assistant", "content": value}]
    else:
        turns = [value] if isinstance(value, dict) else value
    if isinstance(turns, list) and _is_empty(turns):
        raise RowError(origin, f"empty {side}")
    return _to_either(turns, side, origin)


def _is_empty(turns: list[Any]) -> bool:
    """Say whether the last turn says nothing and calls nothing."""
    if not turns or not isinstance(turns[-1], dict):
        return not turns
    if not turns[-1].keys() & {"role", "content", "from", "value"}:
        return False  # no turn at all, which is told as such
    content = turns[-1].get("content", turns[-1].get("value"))
    blank = content is None or (isinstance(content, str) and not content.strip())
    return blank and not turns[-1].get("tool_calls")


def _to_either(turns: Any, column: str, origin: Origin) -> list[Message]:
    """Convert turns in OpenAI's names or ShareGPT's, whichever the first one has."""
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]:
        return to_turns(turns, origin)
    return to_messages(turns, column, origin)


def _drop_prompt(
    prompt: Sequence[Message], answer: list[Message], origin: Origin
) -> tuple[Sequence[Message], list[Message]]:
    """Part an answer that is a whole conversation from the prompt it repeats, whose system message is kept."""
    if answer[0].role in ("assistant", "tool"):
        return prompt, answer
    system = answer[:1] if answer[0].role == "system" and prompt[:1] != answer[:1] else []
    repeated = [*system, *prompt]
    if leave_untrained(answer[: len(repeated)]) != repeated:
        raise RowError(origin, "prompts differ", ": a conversation does not begin with the prompt")
    return repeated, answer[len(repeated) :]


def _check_end(answer: Sequence[Message], column: str, origin: Origin) -> None:
    if not answer or answer[-1].role != "assistant":
        raise RowError(origin, f"no answer: `{column}` does not end with the assistant's turn")


def _split_dialogue(value: Any, side: str, origin: Origin) -> tuple[str | list[Message], list[Message]]:
    """Split a dialogue into what stands before its last answer (text where it is text) and that answer."""
    if not isinstance(value, str):
        messages = _to_answer(value, side, origin)
        return messages[:-1], messages[-1:]
    marks = list(_SPEAKER.finditer(value))
    if not marks or marks[0].start() or marks[0][1] != "Human":
        raise RowError(origin, f"`{side}` does not begin with `Human:`")
    if marks[-1][1] != "Assistant":
        raise RowError(origin, f"no answer: `{side}` does not end with the assistant's turn")
    return value[: marks[-1].start()], _to_answer(value[marks[-1].end() :], side, origin)


def _to_turns_of_text(text: str, origin: Origin) -> list[Message]:
    """Part a text where the speaker changes; a mark of the one who is speaking is part of what he says."""
    marks: list[re.Match[str]] = []
    for mark in _SPEAKER.finditer(text):
        if not marks or mark[1] != marks[-1][1]:
            marks.append(mark)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        Message(_ROLES[mark[1]], check_text(text[mark.end() : end], f"the {mark[1]} turn", origin))
        for mark, end in zip(marks, ends, strict=True)
    ]


def _list_of(value: Any, column: str, origin: Origin) -> list[Any]:
    """Convert a column to a list; tables that have no lists hold it as JSON text."""
    if isinstance(value, str):
        value = read_json(value, f"`{column}`", origin)
    if not isinstance(value, list):
        raise RowError(origin, f"`{column}` is not a list")
    return value


def _read_grades(row: Mapping[str, Any], num_answers: int, origin: Origin) -> list[float]:
    """Read how good each answer is, more being better: its score, its rank (1 is best) or its place in the list."""
    given = [name for name in ("scores", "ranks") if row.get(name) is not None]
    if len(given) == 2:
        raise RowError(origin, "both `scores` and `ranks`", ": one decides the order")
    if not given:
        return [float(-place) for place in range(num_answers)]
    (name,) = given
    values = _list_of(row[name], name, origin)
    if len(values) != num_answers:
        raise RowError(origin, f"another number of `{name}` than of answers", f": {len(values)} for {num_answers}")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise RowError(origin, f"`{name}` holds something that is not a number")
    return [float(value if name == "scores" else -value) for value in values]


def _to_verdict(value: Any, origin: Origin) -> bool:
    """Convert a label: true or false, 1 or 0, or the words, which is all that CSV can hold."""
    if isinstance(value, str):
        value = _LABELS.get(value.strip().lower(), value)
    if value not in (True, False):
        raise RowError(origin, "`label` is neither true nor false")
    return bool(value)
