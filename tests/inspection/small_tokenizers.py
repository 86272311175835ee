"""Tokenizers of the kinds there are, small enough to be checked by eye."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"


def build_byte_level() -> PreTrainedTokenizerFast:
    """One token for each byte, as GPT-2 and Llama-3 fall back to, and the end token 0."""
    vocabulary = {END: 0} | {sign: 1 + place for place, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def build_space_at_the_beginning_alone() -> PreTrainedTokenizerFast:
    """A space is put before a text, and not behind a control token, as newer Llama conversions do."""
    words = ["<s>", "▁", "a", "b", "▁a", "▁b"]
    merges = [("▁", "a"), ("▁", "b")]
    backend = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
