"""The formats of rows: which columns each has, how one is recognised, and a row to its example.

`auto` takes the first format of `FORMATS` whose columns are all there, so a set that carries
conversations beside flat columns is read as conversations. It looks among those that give the kind of
example that is wanted, so `messages` beside `label` are conversations to one and verdicts to another.
"""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.examples import (
    AnyExample,
    Conversation,
    Document,
    Message,
    Origin,
    Preference,
    RowError,
    from_json,
)
from finetune.data.labelled import from_labelled
from finetune.data.preference_formats import (
    from_dialogues,
    from_judged,
    from_judged_messages,
    from_openai_preference,
    from_orca,
    from_preference,
    from_prompt,
    from_ranking,
    from_sharegpt_preference,
    unpair,
)
from finetune.data.turns import build_conversation, check_text, to_messages, to_prompt, to_turns
from finetune.errors import DataError, RecipeError
from finetune.recipe.row_kinds import HOLDS, KIND_OF_OBJECTIVE, READ_FROM, Kind, find_formats

__all__ = [
    "FORMATS",
    "KINDS",
    "Format",
    "Kind",
    "KindFacts",
    "build_column_error",
    "check_mapping",
    "find_format",
    "from_json",
    "map_columns",
    "to_examples",
]


@dataclass(frozen=True, slots=True)
class KindFacts:
    """What is to be known of a kind of example.

    Attributes:
        plural: for messages.
        read_from: the kinds of format that give it, looked through in this order.
        usual_format: the one whose columns a mapping is proposed for.
    """

    plural: str
    read_from: tuple[Kind, ...]
    usual_format: str


KINDS: dict[Kind, KindFacts] = {
    "conversation": KindFacts("conversations", READ_FROM["conversation"], "alpaca"),
    "document": KindFacts("documents", READ_FROM["document"], "text"),
    "preference": KindFacts("preferences", READ_FROM["preference"], "preference"),
    "judged": KindFacts("judged answers", READ_FROM["judged"], "judged"),
    "prompt": KindFacts("prompts", READ_FROM["prompt"], "prompt"),
    "labelled": KindFacts("labelled texts", READ_FROM["labelled"], "labelled"),
}

# Names that other sets give to what we call instruction and output, for the mapping to try.
_SINGLE_TEXTS = ("sentence", "review", "sentence1", "premise", "question1", "tweet", "comment", "question")
_SECOND_TEXTS = ("sentence2", "hypothesis", "question2", "sentence", "text2", "answer")
_CLASSES = ("labels", "gold_label", "sentiment", "class", "category", "target", "score")
_USUAL_NAMES = {
    "instruction": ("question", "query", "prompt", "problem", "user", "input", "source"),
    "output": ("answer", "response", "completion", "solution", "assistant", "target", "reply", "chosen"),
    "text": ("content", "document", "body", "article", "story", "code", *_SINGLE_TEXTS),
    "text_pair": _SECOND_TEXTS,
    "prompt": ("question", "instruction", "query", "problem", "input"),
    "completion": ("answer", "response", "output"),
    "label": ("kto_tag", "desirable", "rating", "thumbs_up", *_CLASSES),
    "chosen": ("preferred", "better", "accepted", "positive", "winner"),
    "rejected": ("dispreferred", "worse", "refused", "negative", "loser"),
}


# Columns that only rows of a kind have, to say what rows are that another one was wanted of.
_OWN_COLUMNS: dict[Kind, set[str]] = {
    "preference": {"chosen", "rejected"},
    "labelled": {"text", "label"},
    "judged": {"label"},
}


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows.

    Attributes:
        required: columns that every row has.
        optional: columns that are read where they are.
        convert: columns to example; a ranking holds several.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Mapping[str, Any], Origin], AnyExample | list[Preference]]

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return self.required + self.optional


def _from_alpaca(row: Mapping[str, Any], origin: Origin) -> Conversation:
    given = row.get("input") or ""
    if not isinstance(given, str):
        check_text(given, "`input`", origin)
    instruction = check_text(row["instruction"], "`instruction`", origin)
    output = _check_answer(row["output"], "`output`", origin)
    question = Message("user", instruction, given if given.strip() else "")
    return build_conversation([question, Message("assistant", output)], row, origin)


def _check_answer(value: Any, what: str, origin: Origin) -> str:
    if isinstance(value, str) and not value.strip():
        raise RowError(origin, f"empty answer: {what} is empty")
    return check_text(value, what, origin)


def _from_sharegpt(row: Mapping[str, Any], origin: Origin) -> Conversation:
    return build_conversation(to_turns(row["conversations"], origin), row, origin)


def _from_messages(row: Mapping[str, Any], origin: Origin) -> Conversation:
    return build_conversation(to_messages(row["messages"], "messages", origin), row, origin)


def _from_prompt_completion(row: Mapping[str, Any], origin: Origin) -> Conversation:
    """Join prompt and completion, each a text or a list of messages; answers inside the prompt are not trained."""
    completion = row["completion"]
    asked = to_prompt(row["prompt"], origin)
    if isinstance(completion, list):
        answered = to_messages(completion, "completion", origin)
    else:
        answered = [Message("assistant", _check_answer(completion, "`completion`", origin))]
    if not any(message.role == "assistant" for message in answered):
        raise RowError(origin, "no answer: `completion` has no turn of the assistant")
    return build_conversation(asked + answered, row, origin)


def _from_text(row: Mapping[str, Any], origin: Origin) -> Document:
    return Document(check_text(row["text"], "`text`", origin), origin)


FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), ("tools", "system"), _from_messages),
    "sharegpt": Format(("conversations",), ("system", "tools"), _from_sharegpt),
    "alpaca": Format(("instruction", "output"), ("input", "system"), _from_alpaca),
    "prompt_completion": Format(("prompt", "completion"), ("system", "tools"), _from_prompt_completion),
    "text": Format(("text",), (), _from_text),
    "preference": Format(("prompt", "chosen", "rejected"), ("system", "tools"), from_preference),
    "openai_preference": Format(
        ("input", "preferred_output", "non_preferred_output"),
        (),
        from_openai_preference,
    ),
    "sharegpt_preference": Format(
        ("conversations", "chosen", "rejected"),
        ("system", "tools"),
        from_sharegpt_preference,
    ),
    "orca": Format(("question", "chosen", "rejected"), ("system",), from_orca),
    "dialogues": Format(("chosen", "rejected"), ("system", "tools"), from_dialogues),
    "ranking": Format(("prompt", "answers"), ("scores", "ranks", "system", "tools"), from_ranking),
    "judged": Format(("prompt", "completion", "label"), ("system", "tools"), from_judged),
    "judged_messages": Format(("messages", "label"), ("system", "tools"), from_judged_messages),
    "prompt": Format(("prompt",), ("answer", "system", "tools"), from_prompt),
    "labelled": Format(("text",), ("text_pair", "label"), from_labelled),
}


def map_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Name a row's columns as the format does; a column that was mapped is no longer found under its own name."""
    if not columns:
        return dict(row)
    taken = set(columns.values())
    mapped = {name: value for name, value in row.items() if name not in taken}
    return mapped | {name: row[own] for name, own in columns.items() if own in row}


def to_examples(
    row: Mapping[str, Any], format: str, columns: Mapping[str, str], origin: Origin, kind: Kind
) -> Sequence[AnyExample]:
    """Convert a row, to one example in most formats.

    Args:
        row: column -> value; null counts as absent.
        format: a name in `FORMATS`.
        columns: the format's column -> the row's.
        origin: where the row stands, for the examples and for faults.
        kind: what is wanted of the row, one that its format can give.

    Raises:
        RowError: a column is missing, or what it holds cannot be trained on.
    """
    shape = FORMATS[format]
    mapped = map_columns(row, columns)
    for name in shape.required:
        if mapped.get(name) is None:
            own = columns.get(name, name)
            expected = " + ".join(columns.get(part, part) for part in shape.required)
            found = f"; found {_list_names(row)}, expected {expected}"
            raise RowError(origin, f"no `{own}`" if own not in row else f"`{own}` is null", found)
    converted = shape.convert(mapped, origin)
    examples = converted if isinstance(converted, list) else [converted]
    return [part for example in examples for part in _to_kind(example, kind, origin)]


def _to_kind(example: AnyExample, kind: Kind, origin: Origin) -> Sequence[AnyExample]:
    """Check that an example serves as the kind that is wanted, or make it that."""
    if isinstance(example, Preference) and kind == "judged":
        return unpair(example)
    if isinstance(example, Conversation):
        roles = {message.role for message in example.messages}
        if kind == "conversation" and "assistant" not in roles:
            raise RowError(origin, "no answer: the assistant has no turn")
        if kind == "prompt" and "user" not in roles:
            raise RowError(origin, "no question: the user has no turn")
    return [example]


def find_format(columns: Collection[str], kind: Kind) -> str | None:
    """Find the first format that gives a kind and whose columns are all there."""
    return next((name for name, shape in _find_shapes(kind).items() if set(shape.required) <= set(columns)), None)


def _find_shapes(kind: Kind) -> dict[str, Format]:
    """Find the formats that give a kind, in the order in which they are tried."""
    return {name: FORMATS[name] for name in find_formats(kind)}


def check_mapping(columns: Mapping[str, str], format: str, setting: str) -> None:
    """Check that a mapping's names are columns of its format, or of any where `format` is auto.

    Raises:
        RecipeError: a name that no format reads.
    """
    shapes = FORMATS.values() if format == "auto" else [FORMATS[format]]
    known = list(dict.fromkeys(name for shape in shapes for name in shape.columns))
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise RecipeError(
                f"`{setting}.columns` maps `{name}`, which the format `{format}` does not read.\n"
                + (f"  Did you mean `{near[0]}`? " if near else "  ")
                + f"Its columns: {', '.join(known)}."
            )


def build_column_error(
    columns: Collection[str], *, mapping: Mapping[str, str], format: str, kind: Kind, place: str, setting: str
) -> DataError:
    """Build the error of rows that fit no format: the columns found, those expected, and the mapping to try."""
    absent = [own for own in mapping.values() if own not in columns]
    if absent:
        near = difflib.get_close_matches(absent[0], columns, 1)
        return DataError(
            f"{place}: no column `{absent[0]}`, which `{setting}.columns` names; found {_list_names(columns)}.\n"
            + (f"  Did you mean `{near[0]}`?" if near else f"  Name one of these under `{setting}.columns`.")
        )
    shapes = list(_find_shapes(kind).values()) if format == "auto" else [FORMATS[format]]
    needed = _find_needed(shapes, kind, columns)
    suggestion = f"`{setting}.columns: {_suggest(columns, needed)}`"
    if format == "auto" and kind == "conversation" and find_format(columns, "document"):
        return DataError(
            f"{place}: plain text has no answers to train on; found {_list_names(columns)}.\n"
            f"  Text alone is trained by `objective: pretrain`; else name the columns: {suggestion}"
        )
    other = next((one for one, own in _OWN_COLUMNS.items() if kind != one and own <= set(columns)), None)
    if format == "auto" and other is not None and kind != "judged":
        return DataError(
            f"{place}: these rows hold {HOLDS[other]}; found {_list_names(columns)}.\n"
            f"  They are trained by {' or '.join(f'`objective: {name}`' for name in _find_objectives(other))}; "
            f"else name the columns: {suggestion}"
        )
    if format == "auto" and kind in ("preference", "judged") and find_format(columns, "conversation"):
        return DataError(
            f"{place}: these rows say nothing of which answers are good; found {_list_names(columns)}.\n"
            f"  Answers alone are trained by `objective: sft`; else name the columns: {suggestion}"
        )
    return DataError(
        f"{place}: the columns fit no format: found {_list_names(columns)}.\n"
        f"  Expected: {', or '.join(' + '.join(shape.required) for shape in shapes)}.\n"
        f"  Where only the names differ, map them: {suggestion}"
    )


def _find_needed(shapes: Sequence[Format], kind: Kind, columns: Collection[str]) -> tuple[str, ...]:
    """Find the columns that a mapping is proposed for; of labelled texts the optional ones too, where they show."""
    if kind == "labelled":
        has_pair = any(name.lower() in _SECOND_TEXTS for name in columns)
        return ("text", *(("text_pair",) if has_pair else ()), "label")
    return shapes[0].required if len(shapes) == 1 else FORMATS[KINDS[kind].usual_format].required


def _find_objectives(kind: Kind) -> list[str]:
    return [name for name, read in KIND_OF_OBJECTIVE.items() if read == kind]


def _list_names(columns: Collection[str]) -> str:
    shown = [f"`{name}`" for name in columns][:12]
    return ", ".join(shown) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "") if shown else "none"


def _suggest(columns: Collection[str], needed: tuple[str, ...]) -> str:
    """Write a mapping from the names that come nearest: the same word, a usual one, or one spelt alike."""
    pairs: list[str] = []
    free = list(columns)
    for name in needed:
        lower = {column.lower(): column for column in free}
        usual = [lower[word] for word in (name, *_USUAL_NAMES.get(name, ())) if word in lower]
        alike = [lower[word] for word in difflib.get_close_matches(name, lower, 1)]
        found = (usual + alike + free)[:1] or [f"YOUR_{name.upper()}_COLUMN"]
        free = [column for column in free if column != found[0]]
        pairs.append(f"{name}: {found[0]}")
    return "{" + ", ".join(pairs) + "}"
