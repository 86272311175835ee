"""Prompt templates: the shipped ones, the tokenizer's own, or a file; fitted to a tokenizer and checked.

In goes a name from the recipe; out comes a template that renders messages and says which characters
are trained: each answer with its end-of-turn token, and nothing else. A template is tried on a short
conversation when it is loaded, so one that cannot be trained on or served is refused before any row.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from finetune.data.marked_jinja import (
    MarkedText,
    Span,
    compile_template,
    find_names,
    has_marks,
    remove_marks,
    render_marked,
)
from finetune.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SHIPPED", "PromptTemplate", "find_stop_token", "load_template"]

_FOLDER = Path(__file__).with_name("prompt_templates")
SHIPPED = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))

# Formats with an end-of-turn token of their own. Where the tokenizer lacks it, its end token ends the turn:
# spelled out in plain text the format's token would be several ids, none of which could stop an answer.
_END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}

_PROBE = (
    {"role": "user", "content": "First question"},
    {"role": "assistant", "content": "First answer"},
    {"role": "user", "content": "Second question"},
    {"role": "assistant", "content": "Second answer"},
)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A chat template fitted to one tokenizer.

    Attributes:
        name: as in the recipe.
        source: Jinja, with `{% generation %}` marks unless it is a tokenizer's own without them.
        serving_source: the same without marks: what is saved as the tokenizer's `chat_template`.
        is_marked: whether the source has marks; else answers are found by rendering what stands before them.
        special_tokens: `bos_token`, `eos_token` … as the template reads them.
        end_tokens: finds the tokens that can end a turn.
        reads: names of what the template makes use of, among them `input`, `tools` and `tool_calls`.
    """

    name: str
    source: str
    serving_source: str
    is_marked: bool
    special_tokens: Mapping[str, str]
    end_tokens: re.Pattern[str]
    reads: frozenset[str]

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), *, add_generation_prompt: bool = False
    ) -> MarkedText:
        """Render messages to text, with one span for each of the assistant's.

        Raises:
            jinja2.TemplateError: the template refuses them, or does not say where an answer stands.
        """
        rendered = self._render(messages, tools, add_generation_prompt)
        if not self.is_marked:
            rendered = MarkedText(rendered.text, self._find_answers(messages, tools, rendered.text))
        num_answers = sum(message["role"] == "assistant" for message in messages)
        if len(rendered.spans) != num_answers:
            raise TemplateError(f"it marks {len(rendered.spans)} spans for {num_answers} answers; one each is needed")
        return rendered

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], add_generation_prompt: bool
    ) -> MarkedText:
        values = {
            **self.special_tokens,
            "messages": messages,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return render_marked(compile_template(self.source), values)

    def _find_answers(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], text: str) -> list[Span]:
        """Find each answer as what it adds to the prompt before it, up to the token that ends it."""
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], tools, True).text
            through = self._render(messages[: index + 1], tools, False).text
            ends = [found.end() for found in self.end_tokens.finditer(through) if found.end() > len(prompt)]
            if not ends:
                raise TemplateError("an answer has no end token, so the model would never learn to stop")
            if not through.startswith(prompt) or not text.startswith(through[: ends[-1]]):
                raise TemplateError(
                    "a conversation's beginning does not stay as it is when the next turn follows, so where an answer "
                    "stands cannot be told; a .jinja file with {% generation %} marks can say it"
                )
            spans.append((len(prompt), ends[-1]))
        return spans


# Jinja's own refusals, the sandbox's among them, and what a template's arithmetic and look-ups can raise.
_REFUSED = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


def load_template(name: str, tokenizer: "PreTrainedTokenizerBase") -> PromptTemplate:
    """Load a template by its name (`SHIPPED`), the tokenizer's own (`model`), or from a .jinja file.

    Raises:
        RecipeError: there is none of that name, or it cannot be trained on with this tokenizer.
    """
    try:
        template = _build_template(name, _read_source(name, tokenizer), tokenizer)
        if name not in SHIPPED and _lacks_beginning(template, tokenizer):
            # The comment's end keeps the source at the start of a line, where Jinja trims blocks.
            template = _build_template(name, "{{ bos_token }}{# as before any text #}\n" + template.source, tokenizer)
        _check(template, tokenizer)
    except TemplateSyntaxError as error:
        raise RecipeError(f"{name}:{error.lineno}: the template is no Jinja: {error.message}.") from error
    except _REFUSED as error:
        raise _refusal(name, " ".join(f"{error}".split()) or type(error).__name__) from error
    return template


def _refusal(name: str, reason: str) -> RecipeError:
    return RecipeError(
        f"data.template: `{name}` cannot be trained on with this tokenizer: {reason}.\n"
        f"  Choose another: {', '.join(SHIPPED)}, or a .jinja file of your own."
    )


def _read_source(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    if name in SHIPPED:
        return _fit(name, (_FOLDER / f"{name}.jinja").read_text("utf-8"), tokenizer)
    if name == "model":
        if tokenizer.chat_template is None:
            raise RecipeError(
                f"data.template: `model` means the tokenizer's own template, and this tokenizer has none.\n"
                f"  Choose one: {', '.join(SHIPPED)}, or a .jinja file of your own."
            )
        return str(tokenizer.get_chat_template())
    path = Path(name).expanduser()
    if path.is_file():
        return path.read_text("utf-8")
    if path.suffix == ".jinja":
        raise RecipeError(f"data.template: there is no file {name}.\n  Relative paths start where the command is run.")
    nearest = difflib.get_close_matches(name, [*SHIPPED, "model"], n=1)
    raise RecipeError(
        f"data.template: there is no template `{name}`.\n"
        + (f"  Did you mean `{nearest[0]}`? " if nearest else "  ")
        + f"There are {', '.join(SHIPPED)}, `model` (the tokenizer's own) and paths to .jinja files."
    )


def _fit(name: str, source: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Put in front of a shipped template what it needs to know of the tokenizer."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    own = _END_OF_TURN.get(name)
    lines = ["{%- set end_of_turn = " + (repr(own) if own in known else "eos_token") + " -%}"]
    if "word_start" in source:
        lines.append("{%- set word_start = " + repr(_find_word_start(tokenizer)) + " -%}")
    return "\n".join([*lines, source])


def _find_word_start(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Find what must stand between a control token and a text that shall begin as a text on its own does.

    SentencePiece puts a space before a text. Some tokenizers made from it do so behind every control
    token too; others do not, and there the template has to write that space.
    """
    control = tokenizer.bos_token or tokenizer.eos_token
    alone = _encode(tokenizer, "Go")
    behind = [_encode(tokenizer, f"{control}{space}Go")[1:] for space in ("", " ")]
    return " " if behind[1] == alone != behind[0] else ""


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _build_template(name: str, source: str, tokenizer: "PreTrainedTokenizerBase") -> PromptTemplate:
    ends = {token.content for token in tokenizer.added_tokens_decoder.values()} | {tokenizer.eos_token}
    return PromptTemplate(
        name=name,
        source=source,
        serving_source=remove_marks(source),
        is_marked=has_marks(source),
        special_tokens=dict(tokenizer.special_tokens_map),
        end_tokens=re.compile("|".join(map(re.escape, sorted(ends, key=len, reverse=True)))),
        reads=find_names(source),
    )


def _lacks_beginning(template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Say whether the tokenizer begins every plain text with a token that the template leaves out."""
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("Go")["input_ids"][0] != bos:
        return False
    return _encode(tokenizer, template.render(_PROBE).text)[0] != bos


def _check(template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Try a template on two turns.

    Raises:
        jinja2.TemplateError: with what it does wrong.
    """
    rendered = template.render(_PROBE)
    bos = tokenizer.bos_token_id
    if bos is not None and _encode(tokenizer, rendered.text)[:2] == [bos, bos]:
        raise TemplateError(f"it writes the beginning-of-sequence {tokenizer.bos_token} twice")
    for turn, span in enumerate(rendered.spans):
        prompt = template.render(_PROBE[: 2 * turn + 1], add_generation_prompt=True).text
        if not rendered.text.startswith(prompt) or span[0] < len(prompt):
            raise TemplateError("the prompt it serves is not the one that stands before a trained answer")
        find_stop_token(template, rendered.text[slice(*span)])
    unmarked = render_marked(compile_template(template.serving_source), _to_values(template, _PROBE))
    if unmarked.text != rendered.text:
        raise TemplateError("without its {% generation %} marks it renders another text")


def _to_values(template: PromptTemplate, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    nothing = {"tools": None, "documents": None, "add_generation_prompt": False}
    return {**template.special_tokens, "messages": messages, **nothing}


def find_stop_token(template: PromptTemplate, trained: str) -> str:
    """Find the token that ends a trained span; white space may follow it.

    Raises:
        jinja2.TemplateError: there is none, so the model would never learn to stop.
    """
    found = list(template.end_tokens.finditer(trained.rstrip()))
    if not found or found[-1].end() != len(trained.rstrip()):
        raise TemplateError("the token that ends an answer is not within what is trained, so no answer would ever end")
    return found[-1].group()
