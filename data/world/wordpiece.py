"""An encoder's tokenizer: lower-case WordPiece of BERT's kind, trained on texts.

`python -m data.world.wordpiece --to FOLDER [--pieces 4096] TEXTS.jsonl.gz [...]` writes the folder that the recipe
`tiny_encoder` takes as `model.tokenizer_name_or_path`. Rows are JSON objects with a `text`.
"""

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
MAX_LENGTH_TOKENS = 256


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """Read the `text` of every row of JSON Lines files, gzipped or not."""
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def write_tokenizer(texts: Iterable[str], num_pieces: int, folder: Path) -> None:
    """Train on texts and write a tokenizer that transformers opens as BERT's."""
    from tokenizers.implementations import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(
        texts, vocab_size=num_pieces, special_tokens=[PAD, UNK, CLS, SEP, MASK], show_progress=False
    )
    tokenizer = BertTokenizerFast(
        tokenizer_object=trainer._tokenizer,
        do_lower_case=True,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
        model_max_length=MAX_LENGTH_TOKENS,
    )
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train an encoder's tokenizer on texts.")
    parser.add_argument("texts", nargs="+", type=Path, help="JSON Lines with a `text` each, .gz too")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    parser.add_argument("--pieces", type=int, default=4096, help="size of the vocabulary")
    arguments = parser.parse_args()
    write_tokenizer(read_texts(arguments.texts), arguments.pieces, arguments.to)


if __name__ == "__main__":
    main()
