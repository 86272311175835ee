"""One template on every path: training, chat, evaluation, and what a server makes of the exported one.

In goes a renderer; a fixed set of conversations is rendered on each path, and the ids are compared. Out comes
nothing, or the first token at which two paths part. It proves too that a row begins once, that an answer's mask
begins where the prompt that is served ends, that the token which ends an answer is trained, and that no text can
make a control token together with what the template writes beside it.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from finetune.data.examples import Conversation, Message
from finetune.data.rendering import Rendered, Renderer
from finetune.data.serving import History
from finetune.data.templates import SHIPPED, find_stop_token, load_template
from finetune.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["build_parity_conversations", "check_parity"]

_SYSTEM = Message("system", "You are terse.\n")
_TWO_TURNS = (
    Message("user", "First question?"),
    Message("assistant", "First answer."),
    Message("user", "Second question?"),
    Message("assistant", "Second answer."),
)
_FIXED = {
    "one turn": _TWO_TURNS[:2],
    "two turns": _TWO_TURNS,
    "a system message": (_SYSTEM, *_TWO_TURNS[:2]),
    "a system message and two turns": (_SYSTEM, *_TWO_TURNS),
    "an input": (Message("user", "Sum.", "1\n2"), Message("assistant", "3")),
    "inputs in two turns": (
        Message("user", "Sum.", "  1\n\n2 "),
        Message("assistant", "3"),
        Message("user", "\nThese too:", "\n4"),
        Message("assistant", "7"),
    ),
    "white space at the edges": (
        Message("user", "  ask \n"),
        Message("assistant", " say  \n"),
        Message("user", "\n\nask more\t"),
        Message("assistant", "\n\nsay more "),
    ),
    "answers that begin with a line break": (
        Message("user", "ask"),
        Message("assistant", "\nyes"),
        Message("user", "more"),
        Message("assistant", "\n\nyes"),
    ),
    "answers that begin with spaces": (
        Message("user", "ask"),
        Message("assistant", " yes"),
        Message("user", "more"),
        Message("assistant", "   yes"),
    ),
    "signs beyond ASCII": (
        Message("user", "naïve — 中文 عربى 👩‍👩‍👧?"),
        Message("assistant", "😀 été"),
        Message("user", "😀"),
        Message("assistant", "中"),
    ),
    "code": (
        Message("user", "Mend:\n\ndef f(x):\n\treturn  x\n"),
        Message("assistant", "```py\ndef f(x):\n    return x\n\n\nf( 1 )\n```"),
    ),
}
# What templates write between turns; in a user's text it means nothing.
_MARKERS = (
    "### Instruction:", "### Input:", "### Response:", "[INST]", "[/INST]", "<<SYS>>", "USER:", "ASSISTANT:",
    "<|user|>", "<|assistant|>", "<|im_start|>assistant", "<|start_header_id|>assistant<|end_header_id|>",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Case:
    """A conversation of the fixed set, and its row as training has it.

    Attributes:
        prompts: for each answer, the ids in which evaluation asks for it.
    """

    name: str
    messages: tuple[Message, ...]
    row: Rendered
    prompts: list[list[int]]


def build_parity_conversations(renderer: Renderer) -> dict[str, tuple[Message, ...]]:
    """Build the fixed set: single and several turns, edges, signs, and texts that look like the template's own.

    Conversations with a system message are left out where the template takes none.
    """
    fixed = {name: messages for name, messages in _FIXED.items() if messages[0].role != "system"}
    try:
        renderer.render([Conversation(_FIXED["a system message"])])
    except DataError:
        pass  # as rows with a system message would be refused, each by its line
    else:
        fixed = dict(_FIXED)
    # What the tokenizer knows as one token is a control token, and broken up in a row.
    plain = " ".join(renderer.template.end_tokens.sub("", marker) for marker in _MARKERS)
    fixed["markers of templates"] = _quote(plain)
    fixed["the template's own marks"] = _quote(_find_own_marker(renderer))
    return fixed


def _quote(marker: str) -> tuple[Message, ...]:
    return (
        Message("user", f"{marker}First answer."),
        Message("assistant", "First answer."),
        Message("user", f"What is{marker}", f"{marker}"),
        Message("assistant", f"It is{marker} and no more."),
    )


def _find_own_marker(renderer: Renderer) -> str:
    """Find what the template writes between a question and its answer, but for control tokens."""
    question = "Which one of them?"
    asked = renderer.template.render([{"role": "user", "content": question}, {"role": "assistant", "content": "b"}])
    written = asked.text[: asked.spans[0][0]].rpartition(question)[2]
    return renderer.template.end_tokens.sub("", written)


def check_parity(renderer: Renderer) -> None:
    """Check that one template means the same ids in training, chat, evaluation and wherever it is exported to.

    Costs about as much as 100 short rows; no weights are needed.

    Raises:
        RecipeError: with the conversation, the paths, and the first token at which they part.
    """
    _check_borders(renderer)
    answers = copy.copy(renderer)
    answers.train_on = "answers"
    exported = copy.copy(renderer.tokenizer)
    exported.chat_template = renderer.template.serving_source
    chat = _build_chat(renderer, exported)
    bos = renderer.tokenizer.bos_token_id
    begins = bos is not None and renderer.tokenizer("Go")["input_ids"][0] == bos
    for case in _render_cases(answers):
        # A tokenizer may name such a token and put none before a text: then all rows have it, or none.
        begins = begins or case.row.input_ids[0] == bos
        _check_beginning(renderer, case, begins=begins)
        _compare_prompts("evaluation", renderer, case, case.prompts)
        _check_mask(renderer, case)
        _check_ends(renderer, chat, case)
        _compare_prompts("chat", renderer, case, _ask_in_chat(chat, renderer, case))
        _check_exported(renderer, exported, case)


def _check_borders(renderer: Renderer) -> None:
    """Check that no control token can be made of a row's text and the template's own beside it.

    Control tokens are broken up field by field, so a template that writes `<` before a text would let `/s>` end a turn.
    """
    control = [token for token in renderer.control_tokens if len(token) > 1]
    # Letters that no template writes; the fields of the roles that it has a place for.
    texts = ["Qx1Zj", "Qx2Zj", "Qx3Zj", "Qx4Zj"]
    values = [{"role": "user", "content": texts[0], "input": texts[1]}, {"role": "assistant", "content": texts[2]}]
    for opening in ([], [{"role": "system", "content": texts[3]}]):
        try:
            written = renderer.template.render([*opening, *values, *values]).text
        except (TemplateError, TypeError):
            continue  # as such a conversation's rows would be refused
        first, *between, last = re.split("|".join(texts), written)
        for token in control:
            starts, ends = tuple(accumulate(token[:-1])), tuple(token[-n:] for n in range(1, len(token)))
            if (
                any(piece.endswith(starts) for piece in (first, *between))
                or any(piece.startswith(ends) for piece in (*between, last))
                or any(piece in token[1:-1] for piece in between)
            ):
                reason = f"it writes a part of the control token {token} beside a row's text, which can add the rest"
                raise _refuse(renderer, reason, "a system message and two turns" if opening else "two turns")


def _refuse(renderer: Renderer, reason: str, case: _Case | str) -> RecipeError:
    name = case if isinstance(case, str) else case.name
    return RecipeError(
        f"data.template: `{renderer.template.name}` cannot be trained on with this tokenizer: {reason}.\n"
        f"  Found in the conversation `{name}`, of a set on which training, chat, evaluation and export must agree.\n"
        f"  Mend the template, or choose another: {', '.join(SHIPPED)}."
    )


def _build_chat(renderer: Renderer, exported: "PreTrainedTokenizerBase") -> Renderer:
    """Build the renderer that chat has of the exported template, sharing the tokenizer's copy with this one."""
    chat = copy.copy(renderer)
    try:
        chat.template = load_template("model", exported)
    except RecipeError as error:
        reason = f"chat cannot load it as it is saved with the tokenizer ({str(error).splitlines()[0].rstrip('.')})"
        raise _refuse(renderer, reason, "two turns") from error
    answered = chat.template.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    stop_token = find_stop_token(chat.template, answered.text[slice(*answered.spans[-1])])
    chat.stop_ids = sorted({chat.tokenizer.convert_tokens_to_ids(stop_token), chat.tokenizer.eos_token_id})
    return chat


def _render_cases(renderer: Renderer) -> list[_Case]:
    """Render the fixed set in training, and in evaluation what is asked for each of its answers."""
    conversations = build_parity_conversations(renderer)
    asked = [(name, messages[:place]) for name, messages in conversations.items() for place in _find_answers(messages)]
    try:
        rows = renderer.render([Conversation(messages) for messages in conversations.values()])
        prompts = renderer.render_prompts([Conversation(messages) for _, messages in asked])
    except DataError as error:
        raise _refuse(renderer, _to_reason(error), _find_refused(renderer, conversations)) from error
    of_case: dict[str, list[list[int]]] = {name: [] for name in conversations}
    for (name, _), prompt in zip(asked, prompts, strict=True):
        of_case[name].append(prompt.input_ids)
    return [
        _Case(name, messages, row, of_case[name])
        for (name, messages), row in zip(conversations.items(), rows, strict=True)
    ]


def _find_refused(renderer: Renderer, conversations: Mapping[str, tuple[Message, ...]]) -> str:
    """Find the first conversation that cannot be rendered or asked by itself."""
    for name, messages in conversations.items():
        try:
            renderer.render([Conversation(messages)])
            renderer.render_prompts([Conversation(messages[:place]) for place in _find_answers(messages)])
        except DataError:
            return name
    raise AssertionError("together they are refused, and each by itself is not")


def _to_reason(error: DataError) -> str:
    return str(error).splitlines()[0].removeprefix("a row: ").removeprefix("the prompt: ").rstrip(".")


def _find_answers(messages: Sequence[Message]) -> list[int]:
    return [place for place, message in enumerate(messages) if message.role == "assistant"]


def _check_beginning(renderer: Renderer, case: _Case, *, begins: bool) -> None:
    bos = renderer.tokenizer.bos_token_id
    if case.row.input_ids[:2] == [bos, bos]:
        raise _refuse(renderer, f"a row begins with {renderer.tokenizer.bos_token} twice", case)
    if begins and case.row.input_ids[0] != bos:
        raise _refuse(renderer, f"a row does not begin with {renderer.tokenizer.bos_token}", case)


def _compare_prompts(path: str, renderer: Renderer, case: _Case, prompts: Sequence[Sequence[int]]) -> None:
    """Check that each answer is asked for on a path with the very tokens that stand before it in training."""
    for turn, prompt in enumerate(prompts, 1):
        row = case.row.input_ids[: len(prompt)]
        if row != list(prompt):
            raise _refuse(renderer, _tell_apart(renderer, row, prompt, path, f"the prompt of answer {turn}"), case)
        if len(prompt) != len(case.prompts[turn - 1]):
            raise _refuse(renderer, f"{path} ends the prompt of answer {turn} elsewhere than evaluation", case)


def _find_first_difference(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    return next(place for place, (one, other) in enumerate(zip_longest(ours, theirs)) if one != other)


def _tell_apart(renderer: Renderer, ours: Sequence[int], theirs: Sequence[int], path: str, what: str) -> str:
    place = _find_first_difference(ours, theirs)
    shown = [
        f"{renderer.tokenizer.convert_ids_to_tokens(ids[place])!r} ({ids[place]})" if place < len(ids) else "no token"
        for ids in (ours, theirs)
    ]
    return f"token {place + 1} of {what} is {shown[0]} in training and {shown[1]} in {path}"


def _check_mask(renderer: Renderer, case: _Case) -> None:
    """Check that what is trained begins where each prompt ends, whatever the user's text holds."""
    starts = [start for start, _ in case.row.spans]
    expected = [len(prompt) for prompt in case.prompts]
    for turn, (start, prompt) in enumerate(zip_longest(starts, expected), 1):
        if start is None or prompt is None:
            reason = f"{len(starts)} spans are trained where there are {len(expected)} answers"
            raise _refuse(renderer, reason, case)
        if start != prompt:
            where = "before" if start < prompt else "behind"
            reason = f"what is trained of answer {turn} begins {abs(start - prompt)} tokens {where} the prompt's end"
            raise _refuse(renderer, reason, case)


def _check_ends(renderer: Renderer, chat: Renderer, case: _Case) -> None:
    """Check that the last token trained of each answer is one that chat stops at; white space may follow it."""
    for turn, (start, end) in enumerate(case.row.spans, 1):
        ids = case.row.input_ids[start:end]
        while ids and ids[-1] not in chat.stop_ids and not renderer.tokenizer.decode(ids[-1:]).strip():
            ids.pop()
        if not ids or ids[-1] not in chat.stop_ids:
            raise _refuse(renderer, f"the token that ends answer {turn} is not trained, so it would never end", case)


def _ask_in_chat(chat: Renderer, renderer: Renderer, case: _Case) -> list[list[int]]:
    """Ask turn by turn as chat does, each answer kept as it stands in the row."""
    system = case.messages[0].content if case.messages[0].role == "system" else None
    history = History(chat, None, system)
    prompts = []
    try:
        for message in case.messages:
            if message.role == "user":
                prompts.append(history.ask(message.content, message.input)[0])
            elif message.role == "assistant":
                history.keep(message.content)
    except DataError as error:
        raise _refuse(renderer, f"chat cannot render it: {_to_reason(error)}", case) from error
    return prompts


def _check_exported(renderer: Renderer, exported: "PreTrainedTokenizerBase", case: _Case) -> None:
    """Check what Transformers makes of the exported template: its text everywhere, and its ids.

    A server tokenizes a whole history anew, and a tokenizer whose patterns look ahead may then join or part the white
    space at the start of an earlier answer otherwise than the model wrote it. Only behind such an answer, where the
    server's own prompt does not stay the beginning of what follows, its text alone is compared.
    """
    served = _Served(exported, _to_dicts(case.messages, takes_input="input" in renderer.template.reads))
    ours, theirs = renderer.template.render(served.messages).text, served.render_text()
    if ours != theirs:
        at = _find_first_difference(ours, theirs)
        quotes = f"{ours[at : at + 20]!r} in training and {theirs[at : at + 20]!r} in the exported template"
        raise _refuse(renderer, f"from character {at + 1} on the text is {quotes}", case)
    prompts: list[list[int]] = []
    for place, asked in zip(_find_answers(case.messages), case.prompts, strict=True):
        prompt = served.tokenize(place, add_generation_prompt=True)
        if prompt != asked and all(prompt[: len(earlier)] == earlier for earlier in prompts):
            what = f"the prompt of answer {len(prompts) + 1}"
            raise _refuse(renderer, _tell_apart(renderer, asked, prompt, "the exported template", what), case)
        prompts.append(prompt)
    row = served.tokenize(len(case.messages), add_generation_prompt=False)
    if row != case.row.input_ids and all(row[: len(prompt)] == prompt for prompt in prompts):
        reason = _tell_apart(renderer, case.row.input_ids, row, "the exported template", "the row")
        raise _refuse(renderer, reason, case)


def _to_dicts(messages: Sequence[Message], *, takes_input: bool) -> list[dict[str, str]]:
    """Convert messages to what a server is sent; an `input` joins the text where the template has no block for it."""
    dicts = []
    for message in messages:
        values = {"role": message.role, "content": message.content}
        if message.input and takes_input:
            values["input"] = message.input
        elif message.input:
            values["content"] += f"\n\n{message.input}"
        dicts.append(values)
    return dicts


@dataclass(frozen=True, slots=True)
class _Served:
    """A conversation as Transformers renders and tokenizes it with the template that a tokenizer carries."""

    tokenizer: "PreTrainedTokenizerBase"
    messages: list[dict[str, Any]]

    def render_text(self) -> str:
        return str(self.tokenizer.apply_chat_template(self.messages, tokenize=False))

    def tokenize(self, count: int, *, add_generation_prompt: bool) -> list[int]:
        ids: list[int] = self.tokenizer.apply_chat_template(
            self.messages[:count],
            add_generation_prompt=add_generation_prompt,
            return_dict=False,
            tokenizer_kwargs={"verbose": False},  # no warning of a length that no model is asked for
        )
        return ids
