"""Plain text to rows for masked-language modelling: as many as its length asks for, each with the encoder's own marks.

In go documents and a tokenizer; out come rows of `input_ids`, such as `[CLS] … [SEP]`, none longer than
`max_length`. Which tokens are masked is drawn anew each time a row is trained on (`batches.MaskedCollator`).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Features, List, Value

from finetune.data.account import ACCOUNT_FEATURES, build_account
from finetune.data.control_tokens import Policy, build_control_tokens
from finetune.data.examples import Document, Origin
from finetune.data.formats import from_json
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows, TooLong, finish_rows, hash_rows, map_examples, refuse_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["build_masked_rows"]

_FEATURES = Features({"input_ids": List(Value("int32")), **ACCOUNT_FEATURES})


def build_masked_rows(
    loaded: LoadedExamples,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    too_long: TooLong,
    special_tokens_in_data: Policy,
) -> TokenRows:
    """Tokenize documents into rows.

    Args:
        loaded: the documents of one split.
        tokenizer: of the encoder, one with a mask token.
        max_length: tokens of a row at most, the marks at both ends included.
        too_long: `split` a longer document into several rows, `truncate`, `drop` it, or stop (`error`).
        special_tokens_in_data: what happens to control tokens in a text.

    Raises:
        DataError: a document is too long under `error`, holds a control token that may not be there, or no row is left.
    """
    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    control = build_control_tokens(tokenizer, backend, special_tokens_in_data)
    num_marks = tokenizer.num_special_tokens_to_add(pair=False)
    cutting = type(backend).from_str(backend.to_str())  # a copy: the other one finds control tokens in whole texts
    cutting.enable_truncation(max_length)
    fingerprint = hash_rows(loaded, tokenizer, "masked", max_length, too_long, special_tokens_in_data)

    def convert(texts: Sequence[str], places: Sequence[Origin]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        documents = [from_json(text, place) for text, place in zip(texts, places, strict=True)]
        guards = [control.open_row(place) for place in places]
        guarded = [
            guard.guard(document.text)
            for document, guard in zip(documents, guards, strict=True)
            if isinstance(document, Document)
        ]
        for encoding, guard, place in zip(cutting.encode_batch(guarded), guards, places, strict=True):
            pieces = [encoding.ids, *(further.ids for further in encoding.overflowing)]
            num_words = sum(len(piece) - num_marks for piece in pieces)  # any of these tokens may be masked
            if too_long == "error" and len(pieces) > 1:
                raise refuse_length(place, num_words + num_marks, max_length)
            for ids, verdict in _choose_pieces(pieces, num_marks, too_long):
                account = build_account(
                    length=len(ids),
                    trained=max(len(ids) - num_marks, 0),
                    full_length=num_words + num_marks,
                    full_trained=num_words,
                    verdict=verdict,
                    control_tokens=guard.num_found,
                )
                yield place, {"input_ids": ids, **account}

    account = map_examples(loaded, _FEATURES, fingerprint, convert)
    reasons = ("too_long", "nothing_trained")
    columns = ("input_ids", "length")
    return finish_rows(loaded, account, fingerprint, max_length=max_length, reasons=reasons, columns=columns)


def _choose_pieces(pieces: list[list[int]], num_marks: int, too_long: TooLong) -> list[tuple[list[int], str]]:
    """Choose what stays of a document that was cut into pieces, and say what became of it."""
    if len(pieces[0]) <= num_marks:
        return [([], "nothing_trained")]
    if len(pieces) == 1:
        return [(pieces[0], "whole")]
    match too_long:
        case "drop":
            return [([], "too_long")]
        case "truncate":
            return [(pieces[0], "cut")]
        case _:
            return [(piece, "piece") for piece in pieces]
