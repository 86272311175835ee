"""transformers and PEFT as they are: the backend that needs no start.

In go a recipe's `model` section and what `base` has chosen for it; out come the weights on their
device, and adapters on them.
"""

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from finetune.model.access import reaching, refuse_lacking
from finetune.model.backends import Chosen
from finetune.model.heads import SCORE_HEAD, SCORE_WEIGHT, put_score_head
from finetune.model.quantization import build_bnb_config, leave_unquantized, set_saved_compute_dtype
from finetune.model.random_weights import build_random_model
from finetune.recipe.schema import ModelSettings

__all__ = ["attach", "load", "take_over"]


def load(settings: ModelSettings, chosen: Chosen) -> PreTrainedModel:
    """Load a base, or draw the weights of one.

    Raises:
        PlaceError: the files are out of reach, or lack a tensor; a score is drawn where a seed for it is there.
    """
    quantization = build_bnb_config(settings.quantization, settings.double_quantization, chosen.dtype)
    if settings.weights == "random":
        return build_random_model(
            chosen.config,
            seed=chosen.seed,
            device=chosen.device,
            dtype=chosen.dtype,
            quantization=quantization,
            attention=chosen.attention,
            head=chosen.head,
            trust_remote_code=settings.trust_remote_code,
        )
    scores = chosen.head == "score"
    if chosen.saved_as in ("nf4", "fp4"):
        set_saved_compute_dtype(chosen.config, chosen.dtype)
    if chosen.saved_as != "none" and scores:
        leave_unquantized(chosen.config, SCORE_HEAD)
    loader = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    with reaching(chosen.name, settings.revision):
        model, found = loader.from_pretrained(
            chosen.name,
            config=chosen.config,
            revision=chosen.revision,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            dtype=chosen.dtype,
            device_map={"": chosen.device},
            attn_implementation=chosen.attention,
            quantization_config=quantization if chosen.saved_as == "none" else None,
        )
    missing = set(found["missing_keys"])
    is_drawn = scores and chosen.fresh_head and SCORE_WEIGHT in missing
    refuse_lacking(chosen.name, missing - {SCORE_WEIGHT} if is_drawn else missing)
    if scores:
        put_score_head(model, seed=chosen.seed if is_drawn else None)
    return model


def attach(model: PreTrainedModel, config: PeftConfig, *, seed: int, checkpointing: bool) -> PeftModel:
    """Attach a fresh adapter; the generators are set already, and the trainer switches checkpointing on."""
    return get_peft_model(model, config)


def take_over(model: PeftModel, *, checkpointing: bool) -> PeftModel:
    """Take an adapter that PEFT has opened, as it is."""
    return model
