"""A BERT tokenizer of thirty words, for rows that can be checked by eye."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *("a", "an", "the", "film", "play", "was", "is", "not", "good", "bad", "dull", "fine", "great", "old", "new"),
    *("one", "two", "three", "four", "five", "six", "seven", "[", "]", "sep"),
]
PAD, UNK, CLS, SEP, MASK = range(5)


def ids_of(*words: str) -> list[int]:
    return [(SPECIAL + WORDS).index(word) for word in words]


def build_tokenizer(*, with_types: bool = True) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=names if with_types else ["input_ids", "attention_mask"],
    )
