"""The tokenizer of a run.

In goes the recipe's `model` section; out comes a tokenizer with an end and a pad token that the
model's embeddings already hold. A bare SentencePiece model is converted, or refused, in
`sentencepiece_conversion`.
"""

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.errors import PlaceError, RecipeError
from finetune.model.access import fetch, reaching
from finetune.model.sentencepiece_conversion import convert_sentencepiece, is_sentencepiece_name
from finetune.recipe.places import expand, reads_as_path
from finetune.recipe.schema import ModelSettings

__all__ = ["choose_pad_token", "find_pad_id", "load_tokenizer"]

# Tokens that models ship for padding, or reserve and never train; the unknown token comes after them,
# since byte fallback leaves it unused in Llama's and Mistral's models.
_PAD_CANDIDATES = (
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
    "<|fim_pad|>",
    "<|vision_pad|>",
)


def load_tokenizer(model: ModelSettings, *, ends_answers: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the recipe names, from a folder, the Hub or a SentencePiece file.

    Args:
        model: the recipe's section.
        ends_answers: whether it has to have an end token; an encoder's has none.

    Raises:
        PlaceError: it is neither here nor reachable.
        RecipeError: none is named, or it cannot be used as it is.
    """
    name = model.tokenizer_name_or_path or model.model_name_or_path
    if name is None:
        raise RecipeError(
            "`model.tokenizer_name_or_path`: no tokenizer is named, and there is no base model to take one from.\n"
            "  Name a Hub repository, a folder or a SentencePiece `tokenizer.model`."
        )
    # The revision pins the model's repository; another repository does not have that commit.
    revision = model.revision if name == model.model_name_or_path else None
    name = expand(name)
    bare = _find_bare_sentencepiece(name, revision)
    if bare is not None:
        tokenizer = convert_sentencepiece(bare)
        _adopt_settings(tokenizer, bare.parent)
    else:
        tokenizer = _load_saved(name, revision, model.trust_remote_code)
    if ends_answers and tokenizer.eos_token_id is None:
        raise RecipeError(
            f"{name}: the tokenizer has no end-of-sequence token, so no answer could ever end.\n"
            f"  Name the tokenizer of a language model: `model.tokenizer_name_or_path`."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = choose_pad_token(tokenizer)
    tokenizer.padding_side = "right"
    return tokenizer


def choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Choose a pad token among those the vocabulary has, so that the embeddings keep their size.

    The end token is the last resort: code that masks every pad token from the loss, as many collators
    do, would then mask the end of each answer, and the model would never learn to stop.
    """
    vocabulary = tokenizer.get_vocab()
    candidates = [*_PAD_CANDIDATES, tokenizer.unk_token]
    found = [token for token in candidates if token in vocabulary and token != tokenizer.eos_token]
    return str(found[0] if found else tokenizer.eos_token)


def _find_bare_sentencepiece(name: str, revision: str | None) -> Path | None:
    """Find a SentencePiece model that no tokenizer.json stands beside."""
    path = Path(name)
    if path.is_file():
        if not is_sentencepiece_name(path.name):
            raise RecipeError(
                f"{name} is a file, and not called like a SentencePiece model (`tokenizer.model`, `….model.v1`).\n"
                f"  Give the folder that holds the tokenizer's files."
            )
        return path
    if path.is_dir():
        return None if (path / "tokenizer.json").exists() else _find_model_in(path)
    if reads_as_path(name):
        raise PlaceError(f"{name}: there is no such folder or file.\n  Relative paths start where the command is run.")
    if fetch(name, "tokenizer.json", revision) is not None:
        return None
    return fetch(name, "tokenizer.model", revision)


def _find_model_in(folder: Path) -> Path | None:
    found = sorted(path for path in folder.iterdir() if is_sentencepiece_name(path.name))
    if len(found) > 1 and folder / "tokenizer.model" not in found:
        raise RecipeError(
            f"{folder} holds several SentencePiece models: {', '.join(path.name for path in found)}.\n"
            f"  Name the file itself: `model.tokenizer_name_or_path: {found[0]}`."
        )
    return folder / "tokenizer.model" if folder / "tokenizer.model" in found else next(iter(found), None)


def _load_saved(name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        with reaching(name, revision):
            tokenizer = AutoTokenizer.from_pretrained(
                name,
                revision=revision,
                trust_remote_code=trust_remote_code,
                # With mistral-common installed a Mistral repository would give its backend, which has no chat template.
                mistral_format=False,
            )
    except (OSError, ValueError) as error:
        raise PlaceError(
            f"{name} holds no tokenizer that can be read: {str(error).splitlines()[0]}\n"
            f"  It takes a tokenizer.json or a SentencePiece tokenizer.model.\n"
            f"  Where the model has none of its own, name another's: `model.tokenizer_name_or_path`."
        ) from error
    if not tokenizer.is_fast:
        raise RecipeError(
            f"{name}: the tokenizer is of the slow kind ({type(tokenizer).__name__}), which cannot say where a token "
            f"stands in the text.\n  Give a folder or Hub name that has a tokenizer.json."
        )
    return tokenizer


def _adopt_settings(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Adopt the chat template that lies beside a bare model; refuse tokens added to it."""
    template_path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text("utf-8")) if config_path.exists() else {}
    added = [token["content"] for token in config.get("added_tokens_decoder", {}).values()]
    unknown = [token for token in added if token not in tokenizer.get_vocab()]
    if unknown or (folder / "added_tokens.json").exists():
        raise RecipeError(
            f"{folder}: tokens were added to this SentencePiece model ({', '.join(unknown) or 'added_tokens.json'}), "
            f"which its conversion would lose.\n  Give a folder or Hub name that has a tokenizer.json."
        )
    if template_path.exists():
        tokenizer.chat_template = template_path.read_text("utf-8")
    elif isinstance(config.get("chat_template"), str):
        tokenizer.chat_template = config["chat_template"]


def find_pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Find the id of the pad token, which no tokenizer of `load_tokenizer` lacks."""
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int), "load_tokenizer leaves no tokenizer without a pad token"
    return pad_id
