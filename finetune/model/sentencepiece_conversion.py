"""A bare SentencePiece model to a tokenizer that gives the same ids.

In goes a `tokenizer.model`; out comes a tokenizer that Transformers saves and loads again. Transformers'
own conversion drops the pieces' scores, so runs of spaces come out otherwise than SentencePiece has
them (5.17: 184 of 5,000 Alpaca answers with Mistral's model); here they order the merges. Whatever is
converted is compared with SentencePiece on awkward strings before it is handed out.
"""

import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from finetune.errors import RecipeError

__all__ = ["convert_sentencepiece", "is_sentencepiece_name"]

_SPACE = "▁"  # SentencePiece writes a space so
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# Where conversions were seen to differ: runs, edges, bytes, joined emoji, the space sign itself.
_AWKWARD = (
    "",
    " ",
    "Hello world",
    " leading",
    "   three leading",
    "trailing   ",
    "a  b   c    d",
    "\n",
    "\n\n  indented\n\n\n",
    "\ttab\t\ttabs ",
    "def f(x):\n        return x  # eight\r\n",
    "naïve café — “quoted” …",
    "中文 日本語 한국어 العربية हिन्दी",
    "😀 👩‍👩‍👧 🇫🇷",
    "\u200b\ufeff\u00a0nbsp",
    "▁ a▁b ▁▁",
    "[INST] hi [/INST]",
    "x=1;y==2;z===3 ---- ======== ________",
    "1234567890 3.14 1,000,000",
    "\x00\x7f",
    *(" " * length + "x" for length in (13, 14, 15, 16, 17, 18, 30, 31, 32, 33, 47, 64, 100)),
    *(sign * 37 for sign in "-=_#*.\t\n"),
)


def is_sentencepiece_name(name: str) -> bool:
    """Say whether a file is called like a SentencePiece model: `tokenizer.model`, `x.model.v1`."""
    return re.search(r"\.model(\.v\d+)?$", name) is not None


def convert_sentencepiece(path: Path) -> PreTrainedTokenizerBase:
    """Convert a SentencePiece BPE model, its control pieces becoming special tokens.

    Raises:
        RecipeError: the model is of a kind that has no equal here, or gave other ids on a test string.
    """
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    _refuse_other_kinds(path, model)
    spec = model.trainer_spec
    names = {
        name: model.pieces[index].piece
        for name, index in (
            ("unk_token", spec.unk_id),
            ("bos_token", spec.bos_id),
            ("eos_token", spec.eos_id),
            ("pad_token", spec.pad_id),
        )
        if index >= 0
    }
    backend = _build_backend(model)
    if "bos_token" in names:
        # As Llama's and Mistral's own tokenizers do it: plain text begins with the beginning-of-sequence.
        bos = (names["bos_token"], spec.bos_id)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]} $B", special_tokens=[bos]
        )
    _refuse_other_ids(path, model, backend)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def _refuse_other_kinds(path: Path, model: Any) -> None:
    normalizer = model.normalizer_spec
    reasons = {
        "it is not of the BPE kind": model.trainer_spec.model_type != _BPE,
        "it rewrites characters": bool(normalizer.precompiled_charsmap),
        "it removes extra spaces": normalizer.remove_extra_whitespaces,
        "it writes spaces in a way of its own": not normalizer.escape_whitespaces
        or model.trainer_spec.treat_whitespace_as_suffix,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise _refusal(path, " and ".join(found))


def _refusal(path: Path, reason: str) -> RecipeError:
    return RecipeError(
        f"{path}: this SentencePiece model cannot be converted with equal ids: {reason}.\n"
        f"  Training on other ids than the base was trained on would spoil it without a word.\n"
        f"  Give a folder or Hub name that has a tokenizer.json: `model.tokenizer_name_or_path`."
    )


def _build_backend(model: Any) -> Tokenizer:
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    backend = Tokenizer(
        BPE(
            vocabulary,
            _find_merges({piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}),
            unk_token=model.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    steps: list[Any] = [normalizers.Replace(" ", _SPACE)]
    undo: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.insert(0, normalizers.Prepend(_SPACE))
        undo.append(decoders.Strip(content=" ", left=1))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(undo)
    backend.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != _USER_DEFINED)
            for piece in model.pieces
            if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    return backend


def _find_merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Find every way to join two pieces into a third, best score first.

    Among equal scores SentencePiece joins the leftmost pair. Mistral's runs of spaces all share one
    score, and there joining the longest left part first comes to the same.
    """
    merges = [
        (-score, -cut, cut - len(piece), piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def _refuse_other_ids(path: Path, model: Any, backend: Tokenizer) -> None:
    reference = SentencePieceProcessor(model_proto=model.SerializeToString())
    added = [f"a {piece.piece} b{piece.piece}" for piece in model.pieces if piece.type == _USER_DEFINED]
    texts = [*_AWKWARD, *added]
    for text, encoded in zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True):
        if encoded.ids != reference.encode(text):
            raise _refusal(path, f"{text!r} gets other ids than SentencePiece gives it")
