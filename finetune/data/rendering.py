"""Examples to token ids, and which of them are trained: decided here and nowhere else.

In go conversations and documents; out come ids with a flag for each. A conversation is rendered to
one text and tokenized as a server does it; a token is trained if it begins within a trained span. The
prompt that chat and evaluation use is the same rendering, cut where the answer starts, and its ids are
the beginning of the training row's.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from finetune.data.control_tokens import Policy, build_control_tokens
from finetune.data.examples import Conversation, Document, Example, Message, Origin
from finetune.data.marked_jinja import MarkedText, Span
from finetune.data.templates import PromptTemplate, find_stop_token
from finetune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "Renderer", "TrainOn"]

TrainOn = Literal["answers", "last_answer", "everything"]

# Texts that a cut-off piece is encoded behind, to be encoded as a continuation and not as a beginning.
_ANCHORS = ("\n", ".", "a", "0", " ")


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of one example, whole, and for each whether it is trained."""

    input_ids: list[int]
    trained: list[bool]


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Token ids of one text, and for each trained span its first token and the one behind its last."""

    ids: list[int]
    spans: list[Span]


class Renderer:
    """Turns examples into tokens with one template and one tokenizer.

    Attributes:
        template: the prompt template.
        tokenizer: the tokenizer it was loaded for.
        train_on: which tokens carry loss; a message of weight 0 never does.
        special_tokens_in_data: what happens to control tokens in a row's text.
        stop_ids: the ids that end an answer: the template's end-of-turn token and the tokenizer's end token.
    """

    def __init__(
        self,
        template: PromptTemplate,
        tokenizer: "PreTrainedTokenizerBase",
        train_on: TrainOn = "answers",
        special_tokens_in_data: Policy = "escape",
    ) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.special_tokens_in_data = special_tokens_in_data
        # A copy, since whoever pads or truncates with the tokenizer leaves that switched on in its backend.
        backend = tokenizer.backend_tokenizer
        self._backend = type(backend).from_str(backend.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._control = build_control_tokens(tokenizer, self._backend, special_tokens_in_data)
        self._parts_at_answers = _splits_by_what_follows(self._backend)
        self.stop_ids = self._find_stop_ids()

    def _find_stop_ids(self) -> list[int]:
        answered = self.template.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        stop_token = find_stop_token(self.template, answered.text[slice(*answered.spans[-1])])
        return sorted({self.tokenizer.convert_tokens_to_ids(stop_token), self.tokenizer.eos_token_id})

    def render(self, examples: Sequence[Example]) -> list[Rendered]:
        """Render examples, in one call of the tokenizer; none is cut.

        Raises:
            DataError: the template has no place for something in a row, or the row holds a control token
                that may not be there; with the row's origin.
        """
        texts = [
            self._render_document(example) if isinstance(example, Document) else self._render_conversation(example)
            for example in examples
        ]
        return [
            self._mask_document(encoded) if isinstance(example, Document) else self._mask(example, encoded)
            for example, encoded in zip(examples, self._encode(texts), strict=True)
        ]

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Render messages up to where the assistant's next answer starts.

        Raises:
            DataError: as `render` does.
        """
        text = self._render_messages(messages, tools, "the prompt", add_generation_prompt=True)
        return self._encode([text])[0].ids

    def _render_document(self, document: Document) -> MarkedText:
        return MarkedText(self._control.guard(document.text, _name_place(document.origin)), [])

    def _render_conversation(self, conversation: Conversation) -> MarkedText:
        place = _name_place(conversation.origin)
        return self._render_messages(conversation.messages, conversation.tools, place, add_generation_prompt=False)

    def _render_messages(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], place: str, *, add_generation_prompt: bool
    ) -> MarkedText:
        self._refuse_tools(messages, tools, place)
        values = [self._to_values(message, place) for message in messages]
        offered = self._control.guard_all(tools, place)
        try:
            return self.template.render(values, offered, add_generation_prompt=add_generation_prompt)
        except (TemplateError, TypeError) as error:
            raise DataError(
                f"{place}: the template `{self.template.name}` cannot render this row: {error}.\n"
                f"  Change the row, or choose another `data.template`."
            ) from error

    def _refuse_tools(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], place: str) -> None:
        calls = any(message.tool_calls for message in messages)
        for name in (["tools"] if tools else []) + (["tool_calls"] if calls else []):
            if name not in self.template.reads:
                raise DataError(
                    f"{place}: the row has `{name}`, and the template `{self.template.name}` has no place for tools.\n"
                    f"  `chatml` has, and so have many tokenizers' own: `data.template: model`."
                )

    def _to_values(self, message: Message, place: str) -> dict[str, Any]:
        guard = self._control.guard
        values: dict[str, Any] = {"role": message.role, "content": guard(message.content, place)}
        if message.input:
            given = guard(message.input, place)
            if "input" in self.template.reads:
                values["input"] = given
            else:
                values["content"] += f"\n\n{given}"
        if message.tool_calls:
            values["tool_calls"] = self._control.guard_all(message.tool_calls, place)
        if message.tool_call_id:
            values["tool_call_id"] = guard(message.tool_call_id, place)
        if message.name:
            values["name"] = guard(message.name, place)
        return values

    def _mask_document(self, encoded: _Encoded) -> Rendered:
        """Put a document between the beginning and the end of sequence; all of it is trained."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = [*([] if bos is None else [bos]), *encoded.ids, eos]
        return Rendered(ids, [True] * len(ids))

    def _mask(self, conversation: Conversation, encoded: _Encoded) -> Rendered:
        answers = [message for message in conversation.messages if message.role == "assistant"]
        trained = [self.train_on == "everything"] * len(encoded.ids)
        # The template gives one span for each answer.
        for index, (answer, (first, end)) in enumerate(zip(answers, encoded.spans, strict=True)):
            is_chosen = self.train_on != "last_answer" or index == len(answers) - 1
            trained[first:end] = [is_chosen and answer.weight != 0] * (end - first)
        return Rendered(encoded.ids, trained)

    def _encode(self, texts: Sequence[MarkedText]) -> list[_Encoded]:
        """Encode texts so that the tokens before an answer are those of the prompt that is served.

        The prompt ends where the answer starts, and so must its last token.
        """
        if self._parts_at_answers:
            return self._encode_in_parts(texts)
        encodings = self._backend.encode_batch([text.text for text in texts], add_special_tokens=False)
        return [self._part_where_needed(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def _encode_in_parts(self, texts: Sequence[MarkedText]) -> list[_Encoded]:
        """Encode each text cut at every answer's start, all pieces in one call."""
        cuts = [[0, *(start for start, _ in text.spans), len(text.text)] for text in texts]
        pieces = [text.text[start:end] for text, at in zip(texts, cuts, strict=True) for start, end in pairwise(at)]
        encodings = iter(self._backend.encode_batch(pieces, add_special_tokens=False))
        encoded = []
        for text, at in zip(texts, cuts, strict=True):
            ids: list[int] = list(next(encodings).ids)
            spans: list[Span] = []
            for (start, end), following in zip(text.spans, at[2:], strict=True):
                answer = next(encodings)
                spans.append((len(ids), len(ids) + _find_token(answer, end - start, following - start)))
                ids += answer.ids
            encoded.append(_Encoded(ids, spans))
        return encoded

    def _part_where_needed(self, text: MarkedText, encoding: Any) -> _Encoded:
        """Find the tokens of each span, and part those that reach across an answer's start."""
        length = len(text.text)
        found = [
            (_find_token(encoding, start, length), _find_token(encoding, end, length)) for start, end in text.spans
        ]
        reaching = [
            start
            for (start, _), (first, _) in zip(text.spans, found, strict=True)
            if first and encoding.token_to_chars(first - 1)[1] > start
        ]
        if not reaching:
            return _Encoded(encoding.ids, found)
        ids: list[int] = []
        starts: list[int] = []
        cuts = [0, *reaching, length]
        for start, end in pairwise(cuts):
            for token, offset in self._encode_piece(text.text[start:end], is_continued=start > 0):
                ids.append(token)
                starts.append(start + offset)
        return _Encoded(ids, [(bisect_left(starts, start), bisect_left(starts, end)) for start, end in text.spans])

    def _encode_piece(self, piece: str, *, is_continued: bool) -> list[tuple[int, int]]:
        """Encode a piece to ids and the characters they begin at; a continuation gets no space put before it."""
        for anchor in _ANCHORS if is_continued else ("",):
            encoding = self._backend.encode(anchor + piece, add_special_tokens=False)
            tokens = list(zip(encoding.ids, encoding.offsets, strict=True))
            if all(end <= len(anchor) or start >= len(anchor) for _, (start, end) in tokens):
                return [(token, start - len(anchor)) for token, (start, _) in tokens if start >= len(anchor)]
        raise AssertionError(f"no anchor of {_ANCHORS} stays apart from {piece[:40]!r}")


def _splits_by_what_follows(backend: Any) -> bool:
    """Say whether where a token ends can hang on the text behind it, and a text may be cut without a trace.

    Byte-level tokenizers split by patterns that look ahead: a prompt's last line breaks are one token at
    a text's end, and others before an answer. SentencePiece's do not, and put a space before every text.
    """
    alone, behind = (backend.encode(text, add_special_tokens=False).ids for text in ("Go", "\nGo"))
    splits = type(backend.pre_tokenizer).__name__
    return splits not in ("NoneType", "Metaspace") and behind[-len(alone) :] == alone


def _find_token(encoding: Any, char: int, length: int) -> int:
    """Find the first token that begins at a character or behind it, in a text of `length` characters."""
    if char == length:
        return len(encoding)
    token = encoding.char_to_token(char)
    if token is None:  # white space that a control token swallowed
        return bisect_left([start for start, _ in encoding.offsets], char)
    reaches_across = encoding.token_to_chars(token)[0] < char
    return int(token) + int(reaches_across)


def _name_place(origin: Origin | None) -> str:
    return str(origin) if origin is not None else "a row"
