"""The base's tokenizer: a SentencePiece model trained on the world's own text, and the same as a `tokenizer.json`.

The two must give the same ids on every text, odd ones included, so the second is built from the pieces and scores of
the first and not left to a library's converter. A test compares them.
"""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_PIECES = 4096
BOS, EOS, UNK, PAD = "<s>", "</s>", "<unk>", "<pad>"
MAX_LENGTH_TOKENS = 1024

# Only the tokenizer sees this: the words of the usual Alpaca preamble, so that a prompt costs few tokens.
PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n\n### Response:\n",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n\n### Input:\n\n### Response:\n",
)


def train_sentencepiece(texts: list[str]) -> bytes:
    """A byte-pair SentencePiece model with byte fallback, single digits and no normalisation, as Mistral's is."""
    import sentencepiece

    # Every line in its own sentence: a piece never spans a line, and a newline is the byte 0x0A as in Mistral's model.
    lines = [line for text in texts for line in text.split("\n") if line]
    lines += [line for preamble in PREAMBLE for line in preamble.split("\n") if line] * 40
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=NUM_PIECES,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_piece=UNK,
        bos_piece=BOS,
        eos_piece=EOS,
        pad_piece=PAD,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def to_fast_tokenizer(model: bytes) -> "Tokenizer":
    """A `tokenizers.Tokenizer` with the ids of the SentencePiece model, and one `<s>` put in front.

    Merges are listed by the rank of the piece they make: SentencePiece always joins the best-scored pair first.
    """
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    plain = {
        piece
        for piece, i in vocabulary.items()
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))
    }
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted((p for p in plain if len(p) > 1), key=lambda piece: -pieces.get_score(vocabulary[piece]))
        for cut in range(1, len(piece))
        if piece[:cut] in plain and piece[cut:] in plain
    ]
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (UNK, BOS, EOS, PAD)])
    return fast


def write_tokenizer(texts: list[str], folder: Path) -> None:
    """Write `tokenizer.model`, `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
    model = train_sentencepiece(texts)
    (folder / "tokenizer.model").write_bytes(model)
    to_fast_tokenizer(model).save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH_TOKENS,
        "padding_side": "right",
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", names)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
