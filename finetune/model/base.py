"""The base model: found, held against the recipe, loaded frozen onto one device.

In goes the recipe's `model` section; out comes a `BaseModel`, nothing of it trainable, or the
reason why not. `check_base` gives the same reasons without a weight, in about a second.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune.errors import RecipeError
from finetune.model.access import check_folder, check_reachable, check_weights, reaching
from finetune.model.attention import check_attention, choose_attention
from finetune.model.backends import Chosen, check_backend, find_backend
from finetune.model.devices import choose_compute_dtype, choose_device
from finetune.model.heads import (
    LabelSpace,
    check_head,
    find_builder,
    find_class,
    find_head_modules,
    set_labels,
)
from finetune.model.quantization import agree_on_quantization, check_quantization, close_cpu_gradient_trap
from finetune.model.random_weights import build_config
from finetune.recipe.heads import Head
from finetune.recipe.places import expand
from finetune.recipe.schema import BackendName, ModelSettings

__all__ = [
    "BaseModel",
    "check_base",
    "check_vocabulary",
    "find_position_limit",
    "load_base",
    "load_config",
]

# Kinds of rotary scaling whose `factor` stretches the positions beyond what the config states. The others
# (llama3, longrope) state the stretched number. yarn stretches the original one.
_FACTOR_STRETCHES = {"linear": "max_position_embeddings", "dynamic": "max_position_embeddings", "yarn": "original"}

# RoBERTa and its kind number positions from behind the pad token's id: of 514 rows of the table 512 are positions.
_COUNT_BEHIND_PADDING = frozenset(
    {"camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta"}
    | {"xlm-roberta-xl", "xmod"}
)

# Of a conversation with a model that nothing limits: Unsloth wants a number.
_POSITIONS_WITHOUT_A_LIMIT = 8192


@dataclass(frozen=True)
class BaseModel:
    """A frozen base on its device.

    Attributes:
        model: every parameter without gradient, in eval mode.
        device: the one device it lives on.
        compute_dtype: of its products, and of what is not quantized: embeddings, norms, head.
        quantization: as found: nf4, fp4, int8 or none.
        attention: the kernel's name as transformers knows it.
        commit: of the Hub's repository; None for a folder.
        stored_dtype: of the base's files, in which a whole trained model is saved again; bfloat16 where
            there are no files and the config names none.
        head: what it ends with.
        labels: what it tells apart, where it ends with labels.
        head_modules: full names of what is trained of a classifier's head beside an adapter: what no file held, or
            all of it where the files held it whole.
        backend: the library that loaded it, and attaches what goes on it.
    """

    model: PreTrainedModel
    device: torch.device
    compute_dtype: torch.dtype
    quantization: str
    attention: str
    commit: str | None
    stored_dtype: torch.dtype
    head: Head = "words"
    labels: LabelSpace | None = None
    head_modules: tuple[str, ...] = ()
    backend: BackendName = "transformers"


def check_base(
    settings: ModelSettings, *, max_length: int | None = None, head: Head = "words", virtual_tokens: int = 0
) -> None:
    """Check all that can be known before a weight is fetched.

    Args:
        settings: the recipe's `model` section.
        max_length: tokens of a training row, held against the model's positions.
        head: what it is to end with.
        virtual_tokens: that a prompt method puts before each row.

    Raises:
        PlaceError: the device lacks what is asked for, or the base is out of reach.
        RecipeError: the base is not of a kind that can be trained so.
    """
    _choose(settings, max_length, seed=0, head=head, labels=None, fresh_head=True, checkpointing=False)
    if virtual_tokens and max_length is not None:
        _check_positions(settings, load_config(settings), max_length, virtual_tokens)


def load_base(
    settings: ModelSettings,
    *,
    max_length: int | None = None,
    seed: int = 42,
    head: Head = "words",
    labels: LabelSpace | None = None,
    fresh_head: bool = True,
    checkpointing: bool = False,
) -> BaseModel:
    """Load the base onto its device, quantized as the recipe says, and freeze it.

    What is not quantized stays in the compute dtype, as QLoRA practice has it today: the norms
    compute in float32 inside, and casting them, the embeddings and the head (`prepare_model_for_kbit_training`)
    costs 4 bytes for each of their parameters and float32 logits, and gains nothing on a frozen base.

    A decoder with a score or labels finds the last token of a row by the pad token, which its user sets, being the
    tokenizer's: `model.config.get_text_config().pad_token_id`. A base built with it would draw other random numbers.

    Args:
        settings: the recipe's `model` section.
        max_length: tokens of a training row, held against the model's positions.
        seed: draws the numbers of `weights: random`, and those of a head that the files do not hold.
        head: what it is to end with; labels and a score are not quantized, and a score is held in float32.
        labels: what it is to tell apart, where the head is `labels`; None: what its config names.
        fresh_head: whether the files may lack the head; a model to score with holds its own.
        checkpointing: whether activations will be computed twice instead of kept; Unsloth wants to know it here.

    Raises:
        PlaceError: the device lacks what is asked for, or the base is out of reach.
        RecipeError: the base is not of a kind that can be trained so.
    """
    chosen = _choose(settings, max_length, seed, head, labels, fresh_head, checkpointing)
    stored_dtype = _find_stored_dtype(chosen.config, settings.weights)  # before the libraries write theirs over it
    loaded = find_backend(settings.backend).load(settings, chosen)
    model = loaded.model
    model.requires_grad_(False)
    close_cpu_gradient_trap(model)
    return BaseModel(
        model=model,
        device=chosen.device,
        compute_dtype=chosen.dtype,
        quantization=settings.quantization,
        attention=model.config._attn_implementation,
        commit=chosen.config._commit_hash,
        stored_dtype=stored_dtype,
        head=head,
        labels=labels,
        head_modules=loaded.drawn or chosen.head_modules,
        backend=settings.backend,
    )


def _choose(
    settings: ModelSettings,
    max_length: int | None,
    seed: int,
    head: Head,
    labels: LabelSpace | None,
    fresh_head: bool,
    checkpointing: bool,
) -> Chosen:
    """Choose where, in which precision and on which kernel; refuse what cannot be, the device's own lacks first."""
    device = choose_device(settings.device)
    dtype = choose_compute_dtype(settings.compute_dtype, device)
    check_backend(settings, device=device, dtype=dtype, head=head)
    check_attention(settings.attention, device, dtype)
    check_quantization(settings.quantization, device)
    config = load_config(settings)
    saved_as = _check_config(settings, config, max_length, head)
    if labels is not None:
        set_labels(config, labels)
    attention = choose_attention(
        settings.attention,
        device,
        dtype,
        find_class(config, head),
        may_be_packed=head == "words" and settings.backend == "transformers",
    )
    is_pickled = settings.weights == "pretrained" and not check_weights(
        _name(settings), settings.revision, allow_pickles=settings.allow_pickled_weights
    )
    return Chosen(
        name=_name(settings) if settings.weights == "pretrained" else "",
        revision=config._commit_hash or settings.revision,
        config=config,
        device=device,
        dtype=dtype,
        saved_as=saved_as,
        attention=attention,
        max_length=max_length or find_position_limit(config) or _POSITIONS_WITHOUT_A_LIMIT,
        head=head,
        head_modules=find_head_modules(config, trust_remote_code=settings.trust_remote_code)
        if head == "labels"
        else (),
        seed=seed,
        fresh_head=fresh_head,
        checkpointing=checkpointing,
        is_pickled=is_pickled,
    )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the model has an embedding for every id of the tokenizer.

    Raises:
        RecipeError: it has not; the first row with such an id would end in an index error.
    """
    num_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise RecipeError(
            f"The tokenizer has {len(tokenizer)} tokens and the model embeddings for {num_embeddings}.\n"
            f"  They do not belong together: check `model.tokenizer_name_or_path`, or `vocab_size` of `model.config`."
        )


def find_position_limit(config: PreTrainedConfig) -> int | None:
    """Find how many tokens a model has positions for; None where nothing limits them.

    A sliding window limits how far a token sees, not how long a row may be.
    """
    text_config = config.get_text_config()
    fields = text_config.to_dict()
    limit = fields.get(text_config.attribute_map.get("max_position_embeddings", "max_position_embeddings"))
    if limit is None:
        return None
    if config.model_type in _COUNT_BEHIND_PADDING:
        return int(limit) - int(fields["pad_token_id"]) - 1
    rope = fields.get("rope_parameters") or {}
    stretched = _FACTOR_STRETCHES.get(str(rope.get("rope_type")))
    if stretched is None or "factor" not in rope:
        return int(limit)
    if stretched == "original":
        limit = rope.get("original_max_position_embeddings") or limit
    return int(limit * rope["factor"])


def _find_stored_dtype(config: PreTrainedConfig, weights: str) -> torch.dtype:
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    # Files that say nothing are of the days when float32 went without saying.
    return torch.float32 if weights == "pretrained" else torch.bfloat16


def _name(settings: ModelSettings) -> str:
    if settings.model_name_or_path is None:
        raise RecipeError(
            "`model.model_name_or_path`: no base model is named.\n"
            "  A Hub name or a folder: model.model_name_or_path=mistralai/Mistral-7B-v0.1"
        )
    return expand(settings.model_name_or_path)


def load_config(settings: ModelSettings) -> PreTrainedConfig:
    """Load the base's config: from its folder or the Hub, or build it from the recipe's fields.

    Raises:
        PlaceError: it is out of reach.
        RecipeError: no such architecture, or a field that it has not got.
    """
    fields_or_place = settings.config if settings.weights == "random" else None
    if isinstance(fields_or_place, dict):
        return build_config(fields_or_place)
    source = _name(settings) if fields_or_place is None else expand(fields_or_place)
    if not Path(source).is_file():
        check_folder(source)
        check_reachable(source, settings.revision)
    with reaching(source, settings.revision):
        try:
            return AutoConfig.from_pretrained(
                source, revision=settings.revision, trust_remote_code=settings.trust_remote_code
            )
        except ValueError as error:
            # transformers' own words: an unknown model_type, or code of the repository's own.
            raise RecipeError(f"{source}: {str(error).splitlines()[0]}") from error


def _check_config(settings: ModelSettings, config: PreTrainedConfig, max_length: int | None, head: Head) -> str:
    """Check a config against the recipe; gives how the saved weights are held."""
    name = settings.model_name_or_path or "`model.config`"
    if head == "score":
        config.num_labels = 1
    if find_builder(head).__name__ not in (config.to_dict().get("auto_map") or {}):  # code of the repository's own
        check_head(config, name, head)
    if max_length is not None:
        _check_positions(settings, config, max_length, 0)
    return "none" if settings.weights == "random" else agree_on_quantization(config, settings, name)


def _check_positions(settings: ModelSettings, config: PreTrainedConfig, max_length: int, virtual_tokens: int) -> None:
    """Check that a row, and learned vectors before it, fit into the model's positions."""
    limit = find_position_limit(config)
    if limit is None or max_length + virtual_tokens <= limit:
        return
    before = f", {virtual_tokens} learned vectors stand before a row" if virtual_tokens else ""
    raise RecipeError(
        f"`data.max_length` is {max_length} tokens{before}, and {settings.model_name_or_path or '`model.config`'} has "
        f"positions for {limit}.\n"
        f"  Beyond them it computes without meaning. Set data.max_length={limit - virtual_tokens} or less."
    )
