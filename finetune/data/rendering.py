"""Examples to token ids, and which of them are trained: decided here and nowhere else.

In go conversations and documents; out come ids with a flag for each. A conversation is rendered to
one text and tokenized as a server does it; a token is trained if it begins within a trained span. The
prompt that chat and evaluation use is the same rendering, cut where the answer starts, and its ids are
the beginning of the training row's.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from finetune.data.control_tokens import Policy, RowGuard, build_control_tokens
from finetune.data.encoding import Encoded, Encoder
from finetune.data.examples import Conversation, Document, Example, Message, Origin
from finetune.data.marked_jinja import MarkedText, Span
from finetune.data.templates import PromptTemplate, find_stop_token
from finetune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Rendered", "Renderer", "TrainOn"]

TrainOn = Literal["answers", "last_answer", "everything"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example in tokens, whole.

    Attributes:
        input_ids: its tokens.
        spans: what is trained: the first token of each span and the one behind its last, in order, apart.
        answers: of each answer that carries loss, likewise; of a document it is the whole.
        num_control_tokens: those that stood in the example's own text, broken up or let through.
    """

    input_ids: list[int]
    spans: list[Span]
    answers: list[Span]
    num_control_tokens: int

    @property
    def trained(self) -> list[bool]:
        """For each token whether it is trained."""
        trained = [False] * len(self.input_ids)
        for start, end in self.spans:
            trained[start:end] = [True] * (end - start)
        return trained


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
        self._encoder = Encoder(tokenizer)
        self._control = build_control_tokens(
            tokenizer, self._encoder.backend, special_tokens_in_data, self._find_headers()
        )
        self.stop_ids = self._find_stop_ids()

    def _find_headers(self) -> set[int]:
        """Find the added tokens that the template writes around turns; some tokenizers do not call them special."""
        asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        probe = self.template.render([asked, answered, asked, answered])
        bounds = [0, *(bound for span in probe.spans for bound in span), len(probe.text)]
        around = [probe.text[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
        written = {token for piece in self._encoder.backend.encode_batch(around) for token in piece.ids}
        return written & set(self.tokenizer.added_tokens_decoder)

    def _find_stop_ids(self) -> list[int]:
        answered = self.template.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        stop_token = find_stop_token(self.template, answered.text[slice(*answered.spans[-1])])
        return sorted({self.tokenizer.convert_tokens_to_ids(stop_token), self.tokenizer.eos_token_id})

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids that no text of a row may have: the tokenizer's special tokens, and the template's between turns."""
        return self._control.ids

    @property
    def control_tokens(self) -> list[str]:
        """The same as they are written, sorted."""
        return sorted(self._control.texts)

    def render(self, examples: Iterable[Example]) -> list[Rendered]:
        """Render examples; none is cut.

        Raises:
            DataError: as `render_each` does.
        """
        return [rendered for _, rendered in self.render_each(examples)]

    def render_each(self, examples: Iterable[Example]) -> Iterator[tuple[Example, Rendered]]:
        """Render examples in their order, reading some hundreds ahead of what is given out; none is cut.

        Raises:
            DataError: the template has no place for something in a row, or the row holds a control token
                that may not be there; with the row's origin.
        """
        ahead: deque[tuple[Example, RowGuard]] = deque()

        def write_texts() -> Iterator[MarkedText]:
            for example in examples:
                guard = self._control.open_row(example.origin or "a row")
                ahead.append((example, guard))
                if isinstance(example, Document):
                    yield MarkedText(guard.guard(example.text), [])
                else:
                    yield self._render_messages(example.messages, example.tools, guard, add_generation_prompt=False)

        for encoded in self._encoder.encode(write_texts()):
            example, guard = ahead.popleft()
            if isinstance(example, Document):
                yield example, self._mask_document(encoded, guard.num_found)
            else:
                yield example, self._mask(example, encoded, guard.num_found)

    def render_prompts(self, asked: Sequence[Conversation]) -> list[Rendered]:
        """Render conversations up to where the assistant's next answer starts; nothing of them is trained.

        Raises:
            DataError: as `render` does.
        """
        guards = [self._control.open_row(one.origin or "a row") for one in asked]
        texts = (
            self._render_messages(one.messages, one.tools, guard, add_generation_prompt=True)
            for one, guard in zip(asked, guards, strict=True)
        )
        return [
            Rendered(encoded.ids, [], [], guard.num_found)
            for encoded, guard in zip(self._encoder.encode(texts), guards, strict=True)
        ]

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Render messages up to where the assistant's next answer starts.

        Raises:
            DataError: as `render` does.
        """
        guard = self._control.open_row("the prompt")
        text = self._render_messages(messages, tools, guard, add_generation_prompt=True)
        (encoded,) = self._encoder.encode([text])
        return encoded.ids

    def _render_messages(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        guard: RowGuard,
        *,
        add_generation_prompt: bool,
    ) -> MarkedText:
        self._refuse_tools(messages, tools, guard.place)
        values = [self._to_values(message, guard) for message in messages]
        offered = guard.guard_all(tools)
        try:
            return self.template.render(values, offered, add_generation_prompt=add_generation_prompt)
        except (TemplateError, TypeError) as error:
            raise DataError(
                f"{guard.place}: the template `{self.template.name}` cannot render this row: {error}.\n"
                f"  Change the row, or choose another `data.template`."
            ) from error

    def _refuse_tools(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], place: Origin | str) -> None:
        calls = any(message.tool_calls for message in messages)
        for name in (["tools"] if tools else []) + (["tool_calls"] if calls else []):
            if name not in self.template.reads:
                raise DataError(
                    f"{place}: the row has `{name}`, and the template `{self.template.name}` has no place for tools.\n"
                    f"  `chatml` has, and so have many tokenizers' own: `data.template: model`."
                )

    def _to_values(self, message: Message, guard: RowGuard) -> dict[str, Any]:
        values: dict[str, Any] = {"role": message.role, "content": guard.guard(message.content)}
        if message.input:
            given = guard.guard(message.input)
            if "input" in self.template.reads:
                values["input"] = given
            else:
                values["content"] += f"\n\n{given}"
        if message.tool_calls:
            values["tool_calls"] = guard.guard_all(message.tool_calls)
        if message.tool_call_id:
            values["tool_call_id"] = guard.guard(message.tool_call_id)
        if message.name:
            values["name"] = guard.guard(message.name)
        return values

    def _mask_document(self, encoded: Encoded, num_control_tokens: int) -> Rendered:
        """Put a document between the beginning and the end of sequence; all of it is trained."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = [*([] if bos is None else [bos]), *encoded.ids, eos]
        return Rendered(ids, [(0, len(ids))], [(0, len(ids))], num_control_tokens)

    def _mask(self, conversation: Conversation, encoded: Encoded, num_control_tokens: int) -> Rendered:
        answers = [message for message in conversation.messages if message.role == "assistant"]
        # The template gives one span for each answer.
        carries_loss = [
            answer.weight != 0 and (self.train_on != "last_answer" or answer is answers[-1]) for answer in answers
        ]
        trained = [span for span, is_on in zip(encoded.spans, carries_loss, strict=True) if is_on]
        spans = trained
        if self.train_on == "everything":
            left_out = [span for span, is_on in zip(encoded.spans, carries_loss, strict=True) if not is_on]
            bounds = [0, *(bound for span in left_out for bound in span), len(encoded.ids)]
            spans = [(start, end) for start, end in zip(bounds[::2], bounds[1::2], strict=True) if start < end]
        return Rendered(encoded.ids, spans, trained, num_control_tokens)
