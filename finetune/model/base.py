"""The base model: found, held against the recipe, loaded frozen onto one device.

In goes the recipe's `model` section; out comes a `BaseModel`, nothing of it trainable, or the
reason why not. `check_base` gives the same reasons without a weight, in about a second.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune.errors import PlaceError, RecipeError
from finetune.model.access import check_folder, check_reachable, check_weights, reaching
from finetune.model.attention import check_attention, choose_attention
from finetune.model.backends import check_backend
from finetune.model.devices import choose_compute_dtype, choose_device
from finetune.model.heads import SCORE_HEAD, SCORE_WEIGHT, Head, check_score_head, put_score_head
from finetune.model.quantization import (
    agree_on_quantization,
    build_bnb_config,
    close_cpu_gradient_trap,
    leave_unquantized,
    set_saved_compute_dtype,
)
from finetune.model.random_weights import build_config, build_random_model
from finetune.recipe.places import expand
from finetune.recipe.schema import ModelSettings

__all__ = [
    "BaseModel",
    "check_base",
    "check_vocabulary",
    "choose_compute_dtype",
    "choose_device",
    "find_position_limit",
    "load_base",
    "load_config",
]

# Kinds of rotary scaling whose `factor` stretches the positions beyond what the config states. The others
# (llama3, longrope) state the stretched number. yarn stretches the original one.
_FACTOR_STRETCHES = {"linear": "max_position_embeddings", "dynamic": "max_position_embeddings", "yarn": "original"}

# Unsloth wants a number of tokens; for a model that nothing limits, to be talked to.
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
        head: the words it goes on with, or the score of a reward model.
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
    backend: str = "transformers"


def check_base(settings: ModelSettings, *, max_length: int | None = None, head: Head = "words") -> None:
    """Check all that can be known before a weight is fetched.

    Args:
        settings: the recipe's `model` section.
        max_length: tokens of a training row, held against the model's positions.
        head: what it is to end with.

    Raises:
        PlaceError: the device lacks what is asked for, or the base is out of reach.
        RecipeError: the base is not of a kind that can be trained so.
    """
    _decide(settings, max_length, head)


def load_base(
    settings: ModelSettings,
    *,
    max_length: int | None = None,
    seed: int = 42,
    head: Head = "words",
    fresh_head: bool = True,
) -> BaseModel:
    """Load the base onto its device, quantized as the recipe says, and freeze it.

    What is not quantized stays in the compute dtype, as QLoRA practice has it today: the norms
    compute in float32 inside, and casting them, the embeddings and the head (`prepare_model_for_kbit_training`)
    costs 4 bytes for each of their parameters and float32 logits, and gains nothing on a frozen base.

    A base with a score finds the last token of a row by the pad token, which its user sets, being the tokenizer's:
    `model.config.get_text_config().pad_token_id`. A base built with it would draw other random numbers.

    Args:
        settings: the recipe's `model` section.
        max_length: tokens of a training row, held against the model's positions.
        seed: draws the numbers of `weights: random`, and those of a score that the files do not hold.
        head: what it is to end with; a score is not quantized, and is held in float32.
        fresh_head: whether the files may lack the score; a model to score with holds its own.

    Raises:
        PlaceError: the device lacks what is asked for, or the base is out of reach.
        RecipeError: the base is not of a kind that can be trained so.
    """
    found = _decide(settings, max_length, head)
    config, dtype = found.config, found.dtype
    stored_dtype = _find_stored_dtype(config, settings.weights)  # before the libraries write theirs over it
    quantization = build_bnb_config(settings.quantization, settings.double_quantization, dtype)
    if settings.backend == "unsloth":
        model = _load_through_unsloth(settings, found, max_length)
    elif settings.weights == "random":
        model = build_random_model(
            config,
            seed=seed,
            device=found.device,
            dtype=dtype,
            quantization=quantization,
            attention=found.attention,
            head=head,
            trust_remote_code=settings.trust_remote_code,
        )
    else:
        if found.saved_as in ("nf4", "fp4"):
            set_saved_compute_dtype(config, dtype)
        if found.saved_as != "none" and head == "score":
            leave_unquantized(config, SCORE_HEAD)
        model = _load_weights(
            settings,
            config,
            head,
            seed=seed if fresh_head else None,
            dtype=dtype,
            device_map={"": found.device},
            attn_implementation=found.attention,
            quantization_config=quantization if found.saved_as == "none" else None,
        )
    model.requires_grad_(False)
    close_cpu_gradient_trap(model)
    return BaseModel(
        model=model,
        device=found.device,
        compute_dtype=dtype,
        quantization=settings.quantization,
        attention=model.config._attn_implementation,
        commit=config._commit_hash,
        stored_dtype=stored_dtype,
        head=head,
        backend=settings.backend,
    )


@dataclass(frozen=True, slots=True)
class _Decisions:
    """What is settled before a weight is read; `saved_as` is how the files hold them, `none` where in full."""

    device: torch.device
    dtype: torch.dtype
    config: PreTrainedConfig
    saved_as: str
    attention: str | None


def _decide(settings: ModelSettings, max_length: int | None, head: Head) -> _Decisions:
    """Decide where, in which precision and on which kernel; refuse what cannot be, the device's own lacks first."""
    device = choose_device(settings.device)
    dtype = choose_compute_dtype(settings.compute_dtype, device)
    check_backend(settings, head=head, in_float32_on_gpu=device.type == "cuda" and dtype == torch.float32)
    check_attention(settings.attention, device, dtype)
    config = load_config(settings)
    saved_as = _check_config(settings, config, max_length)
    if head == "score":
        config.num_labels = 1
        check_score_head(config, settings.model_name_or_path or "`model.config`")
    attention = choose_attention(settings.attention, device, dtype, _find_class(config, head))
    if settings.weights == "pretrained":
        check_weights(_name(settings), settings.revision)
    return _Decisions(device, dtype, config, saved_as, attention)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the model has an embedding for every id of the tokenizer.

    Raises:
        RecipeError: it has not; the first row with such an id would end in an index error.
    """
    num_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise RecipeError(
            f"The tokenizer has {len(tokenizer)} tokens and the model embeddings for {num_embeddings}.\n"
            f"  They are not of one model: see `model.tokenizer_name_or_path`, or `vocab_size` of `model.config`."
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


def _check_config(settings: ModelSettings, config: PreTrainedConfig, max_length: int | None) -> str:
    """Check a config against the recipe; gives how the saved weights are held."""
    name = settings.model_name_or_path or "`model.config`"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not _has_own_code(config):
        raise RecipeError(
            f"{name} is a {config.model_type} model: no causal language model, it continues no text.\n"
            "  Name a model of the kind of Mistral, Llama or Qwen."
        )
    limit = find_position_limit(config)
    if max_length is not None and limit is not None and max_length > limit:
        raise RecipeError(
            f"`data.max_length` is {max_length} tokens, and {name} has positions for {limit}.\n"
            f"  Beyond them it computes without meaning. Set data.max_length={limit} or less."
        )
    return "none" if settings.weights == "random" else agree_on_quantization(config, settings, name)


def _has_own_code(config: PreTrainedConfig) -> bool:
    return "AutoModelForCausalLM" in (config.to_dict().get("auto_map") or {})


def _find_class(config: PreTrainedConfig, head: Head) -> type[PreTrainedModel] | None:
    if head == "score":
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return None if _has_own_code(config) else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _load_weights(
    settings: ModelSettings, config: PreTrainedConfig, head: Head, *, seed: int | None, **how: object
) -> PreTrainedModel:
    """Load the weights; a score that the files lack is drawn by the seed, and missed like any other without one."""
    name = _name(settings)
    loader = AutoModelForSequenceClassification if head == "score" else AutoModelForCausalLM
    with reaching(name, settings.revision):
        model, found = loader.from_pretrained(
            name,
            config=config,
            # The commit of the config: the newest may have moved on since.
            revision=config._commit_hash or settings.revision,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **how,
        )
    missing = set(found["missing_keys"])
    is_drawn = head == "score" and seed is not None and SCORE_WEIGHT in missing
    _refuse_lacking(name, missing - {SCORE_WEIGHT} if is_drawn else missing)
    if head == "score":
        put_score_head(model, seed=seed if is_drawn else None)
    return model


def _load_through_unsloth(settings: ModelSettings, found: _Decisions, max_length: int | None) -> PreTrainedModel:
    from finetune.model.unsloth import load_model  # started by then: `backends`

    name, revision = _name(settings), found.config._commit_hash or settings.revision
    tokenizer = settings.tokenizer_name_or_path
    with reaching(name, settings.revision):
        # Unsloth does not say which tensors the files lack. On no device they are compared and none is read.
        _, compared = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            trust_remote_code=settings.trust_remote_code,
            device_map={"": "meta"},
            output_loading_info=True,
        )
        _refuse_lacking(name, set(compared["missing_keys"]))
        return load_model(
            name,
            revision=revision,
            tokenizer_name=None if tokenizer is None or Path(expand(tokenizer)).is_file() else expand(tokenizer),
            trust_remote_code=settings.trust_remote_code,
            in_4_bits=settings.quantization == "nf4",
            dtype=found.dtype,
            device=found.device,
            max_length=max_length or find_position_limit(found.config) or _POSITIONS_WITHOUT_A_LIMIT,
            attention=found.attention,
        )


def _refuse_lacking(name: str, missing: Set[str]) -> None:
    """Refuse files that lack tensors: transformers would fill them with random numbers and go on."""
    if missing:
        raise PlaceError(
            f"The weights of {name} lack {len(missing)} of the model's tensors, the first {min(missing)}.\n"
            "  They are another model's, or only a part. Fetch them anew: hf download NAME --local-dir FOLDER"
        )
