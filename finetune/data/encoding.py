"""Texts to token ids, cut so that the tokens before an answer are those of the prompt that is served.

In go rendered texts with the spans of their answers; out come ids and the spans in tokens, in the same order. The
tokenizer works in threads of its own, a few chunks of texts ahead of whoever reads the tokens.
"""

import json
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any

from finetune.data.marked_jinja import MarkedText, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Encoder"]

# Texts that a cut-off piece is encoded behind, to be encoded as a continuation and not as a beginning.
_ANCHORS = ("\n", ".", "a", "0", " ")

# What is given to the tokenizer at once: enough that its threads seldom wait for Python, and little enough that books
# as well as single sentences stay within some tens of megabytes.
_CHUNK_TEXTS = 1000
_CHUNK_CHARACTERS = 1_000_000
_CHUNKS_AHEAD = 2

_LINE_BY_LINE = {
    "type": "Split", "pattern": {"String": "\n"}, "behavior": "MergedWithPrevious", "invert": False
}  # fmt: skip
_PLAIN = {"add_special_tokens": False}  # a template writes those itself


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one text, and for each marked span its first token and the one behind its last."""

    ids: list[int]
    spans: list[Span]


@dataclass(frozen=True, slots=True)
class _Parts:
    """A text, the pieces of it that are encoded by themselves, and whether it is needed where their tokens stand."""

    text: MarkedText
    pieces: list[str]
    needs_offsets: bool


class Encoder:
    """A tokenizer's own copy that neither cuts nor pads.

    Attributes:
        backend: the copy.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        backend = tokenizer.backend_tokenizer
        parts = json.loads(backend.to_str())
        self._parts_at_lines = _keeps_lines_apart(parts)
        if self._parts_at_lines:
            # The same tokens line by line: a template's own lines come out of the model's cache, for a sixth less time.
            parts["pre_tokenizer"] = _LINE_BY_LINE
        # A copy, since whoever pads or truncates with the tokenizer leaves that switched on in its backend.
        self.backend = type(backend).from_str(json.dumps(parts))
        self.backend.no_truncation()
        self.backend.no_padding()
        self._parts_at_answers = not self._parts_at_lines and _splits_by_what_follows(self.backend)
        self._line_break_ids = self.backend.encode("\n", **_PLAIN).ids

    def encode(self, texts: Iterable[MarkedText]) -> Iterator[Encoded]:
        """Encode texts, reading them a few chunks ahead of what is given out.

        The prompt ends where the answer starts, and so must its last token.
        """
        chunks = (list(map(self._part, chunk)) for chunk in _build_chunks(texts))
        begin = list(islice(chunks, 2))
        if len(begin) < 2:  # starting threads takes longer than a prompt
            for parts in begin:
                yield from self._put_together(parts, self._encode_parts(parts))
            return
        # The tokenizer lets go of Python's lock: texts are written and tokens read while it works on both cores.
        with ThreadPoolExecutor(_CHUNKS_AHEAD) as pool:
            ahead: deque[tuple[list[_Parts], Future[Iterator[Any]]]] = deque()
            for parts in chain(begin, chunks):
                ahead.append((parts, pool.submit(self._encode_parts, parts)))
                if len(ahead) > _CHUNKS_AHEAD:
                    done, encodings = ahead.popleft()
                    yield from self._put_together(done, encodings.result())
            for done, encodings in ahead:
                yield from self._put_together(done, encodings.result())

    def _part(self, text: MarkedText) -> _Parts:
        """Part a text at its answers, where that leaves no trace in the tokens."""
        whole, spans = text.text, text.spans
        if not spans:
            return _Parts(text, [whole], needs_offsets=False)
        ends_the_text = len(spans) == 1 and spans[0][1] == len(whole)
        if self._parts_at_answers:
            pieces = [whole[start:end] for start, end in pairwise(_find_cuts(text))]
            return _Parts(text, pieces, needs_offsets=not ends_the_text)
        start = spans[0][0]
        if self._parts_at_lines and ends_the_text and whole.endswith("\n", 0, start):
            # Behind the line break again, as a text by itself would begin with a space.
            return _Parts(text, [whole[:start], whole[start - 1 :]], needs_offsets=False)
        return _Parts(text, [whole], needs_offsets=True)

    def _encode_parts(self, parts: Sequence[_Parts]) -> Iterator[Any]:
        """Encode all pieces; the characters that tokens stand for take a third more time, and few texts need them."""
        by_need = [
            iter(encode([piece for one in parts if one.needs_offsets == needed for piece in one.pieces], **_PLAIN))
            for encode, needed in ((self.backend.encode_batch_fast, False), (self.backend.encode_batch, True))
        ]
        return (next(by_need[one.needs_offsets]) for one in parts for _ in one.pieces)

    def _put_together(self, parts: Sequence[_Parts], pieces: Iterator[Any]) -> Iterator[Encoded]:
        for one in parts:
            if self._parts_at_answers or not one.text.spans:
                yield _join(one.text, pieces)
            elif one.needs_offsets:
                yield self._part_where_needed(one.text, next(pieces))
            else:
                yield self._join_lines(one.text, next(pieces).ids, next(pieces).ids)

    def _join_lines(self, text: MarkedText, ids: list[int], answer: list[int]) -> Encoded:
        """Join a prompt and its answer, which was encoded behind the prompt's last line break once more."""
        num_repeated = len(self._line_break_ids)
        if answer[:num_repeated] != self._line_break_ids:  # a control token that takes the line break along
            return self._part_where_needed(text, self.backend.encode(text.text, **_PLAIN))
        first = len(ids)
        ids += answer[num_repeated:]
        return Encoded(ids, [(first, len(ids))])

    def _part_where_needed(self, text: MarkedText, encoding: Any) -> Encoded:
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
            return Encoded(encoding.ids, found)
        ids: list[int] = []
        starts: list[int] = []
        cuts = [0, *reaching, length]
        for start, end in pairwise(cuts):
            for token, offset in self._encode_piece(text.text[start:end], is_continued=start > 0):
                ids.append(token)
                starts.append(start + offset)
        return Encoded(ids, [(bisect_left(starts, start), bisect_left(starts, end)) for start, end in text.spans])

    def _encode_piece(self, piece: str, *, is_continued: bool) -> list[tuple[int, int]]:
        """Encode a piece to ids and the characters they begin at; a continuation gets no space put before it."""
        for anchor in _ANCHORS if is_continued else ("",):
            encoding = self.backend.encode(anchor + piece, **_PLAIN)
            tokens = list(zip(encoding.ids, encoding.offsets, strict=True))
            if all(end <= len(anchor) or start >= len(anchor) for _, (start, end) in tokens):
                return [(token, start - len(anchor)) for token, (start, _) in tokens if start >= len(anchor)]
        raise AssertionError(f"no anchor of {_ANCHORS} stays apart from {piece[:40]!r}")


def _build_chunks(texts: Iterable[MarkedText]) -> Iterator[list[MarkedText]]:
    """Build chunks of so many texts or characters, the last one smaller."""
    chunk: list[MarkedText] = []
    num_characters = 0
    for text in texts:
        chunk.append(text)
        num_characters += len(text.text)
        if len(chunk) == _CHUNK_TEXTS or num_characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, num_characters = [], 0
    if chunk:
        yield chunk


def _find_cuts(text: MarkedText) -> list[int]:
    return [0, *(start for start, _ in text.spans), len(text.text)]


def _join(text: MarkedText, pieces: Iterator[Any]) -> Encoded:
    """Join the pieces of one text: what stands before its first answer, and each answer with what follows it."""
    ids: list[int] = list(next(pieces).ids)
    spans: list[Span] = []
    for (start, end), following in zip(text.spans, _find_cuts(text)[2:], strict=True):
        answer = next(pieces)
        spans.append((len(ids), len(ids) + _find_token(answer, end - start, following - start)))
        ids += answer.ids
    return Encoded(ids, spans)


def _splits_by_what_follows(backend: Any) -> bool:
    """Say whether where a token ends can hang on the text behind it, and a text may be cut without a trace.

    Byte-level tokenizers split by patterns that look ahead: a prompt's last line breaks are one token at
    a text's end, and others before an answer. SentencePiece's do not, and put a space before every text.
    """
    alone, behind = (backend.encode(text, **_PLAIN).ids for text in ("Go", "\nGo"))
    splits = type(backend.pre_tokenizer).__name__
    return splits not in ("NoneType", "Metaspace") and behind[-len(alone) :] == alone


def _keeps_lines_apart(parts: dict[str, Any]) -> bool:
    """Say whether a text can be cut behind any line break: SentencePiece's BPE where no piece holds one.

    Merges join neighbours into pieces, so what no piece holds is never reached across, and neither side of it has a
    bearing on the other. The normalizers let through write spaces in another way, and put one before a text.

    Args:
        parts: of a tokenizer.json.
    """
    steps, model = parts["normalizer"], parts["model"]
    steps = [] if steps is None else steps.get("normalizers", [steps])
    spaces = {"String": " "}
    return (
        all(step["type"] == "Prepend" or (step["type"], step.get("pattern")) == ("Replace", spaces) for step in steps)
        and parts["pre_tokenizer"] is None
        and model["type"] == "BPE"
        and model["byte_fallback"]  # else a line break is unknown, and one token with unknown neighbours
        and not model["ignore_merges"]
        and "<0x0A>" in model["vocab"]
        and not any("\n" in piece for piece in model["vocab"])
    )


def _find_token(encoding: Any, char: int, length: int) -> int:
    """Find the first token that begins at a character or behind it, in a text of `length` characters."""
    if char == length:
        return len(encoding)
    token = encoding.char_to_token(char)
    if token is None:  # white space that a control token swallowed
        return bisect_left([start for start, _ in encoding.offsets], char)
    reaches_across = encoding.token_to_chars(token)[0] < char
    return int(token) + int(reaches_across)
