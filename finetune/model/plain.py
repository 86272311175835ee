"""transformers and PEFT as they are: the backend that needs no start.

In go a recipe's `model` section and what `base` has chosen for it; out come the weights on their
device, and adapters on them.
"""

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from finetune.model.access import reaching, refuse_lacking
from finetune.model.backends import Chosen, Loaded
from finetune.model.heads import SCORE_HEAD, find_builder, put_score_head
from finetune.model.quantization import build_bnb_config, leave_unquantized, set_saved_compute_dtype
from finetune.model.random_weights import build_random_model
from finetune.model.tensor_files import telling_malformed
from finetune.recipe.schema import ModelSettings

__all__ = ["attach", "load", "take_over"]


def load(settings: ModelSettings, chosen: Chosen) -> Loaded:
    """Load a base, or draw the weights of one.

    Raises:
        PlaceError: the files are out of reach, or lack a tensor; those of a head are drawn where they may be lacking.
    """
    in_full = (SCORE_HEAD,) if chosen.head == "score" else chosen.head_modules
    quantization = build_bnb_config(
        settings.quantization, settings.double_quantization, chosen.dtype, in_full=chosen.head_modules
    )
    if settings.weights == "random":
        model = build_random_model(
            chosen.config,
            seed=chosen.seed,
            device=chosen.device,
            dtype=chosen.dtype,
            quantization=quantization,
            attention=chosen.attention,
            head=chosen.head,
            trust_remote_code=settings.trust_remote_code,
        )
        return Loaded(model, in_full)
    if chosen.saved_as in ("nf4", "fp4"):
        set_saved_compute_dtype(chosen.config, chosen.dtype)
    if chosen.saved_as != "none":
        leave_unquantized(chosen.config, in_full)
    draws_head = in_full != () and chosen.fresh_head
    if draws_head:
        torch.manual_seed(chosen.seed)  # transformers draws what is lacking from the global generator
    with reaching(chosen.name, settings.revision), telling_malformed(chosen.name):
        model, found = find_builder(chosen.head).from_pretrained(
            chosen.name,
            config=chosen.config,
            revision=chosen.revision,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=not chosen.is_pickled,
            weights_only=True,
            output_loading_info=True,
            dtype=chosen.dtype,
            device_map={"": chosen.device},
            attn_implementation=chosen.attention,
            quantization_config=quantization if chosen.saved_as == "none" else None,
            ignore_mismatched_sizes=draws_head,  # a head of another task's
        )
    lacking = set(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]}
    drawn = [one for one in in_full if draws_head and any(name.startswith(f"{one}.") for name in lacking)]
    refuse_lacking(chosen.name, {name for name in lacking if not name.startswith(tuple(f"{one}." for one in drawn))})
    if chosen.head == "score":
        put_score_head(model, seed=chosen.seed if drawn else None)
    return Loaded(model, tuple(drawn))


def attach(model: PreTrainedModel, config: PeftConfig, *, seed: int, checkpointing: bool) -> PeftModel:
    """Attach a fresh adapter; the generators are set already, and the trainer switches checkpointing on."""
    return get_peft_model(model, config)


def take_over(model: PeftModel, *, checkpointing: bool) -> PeftModel:
    """Take an adapter that PEFT has opened, as it is."""
    return model
