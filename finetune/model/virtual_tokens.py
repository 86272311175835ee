"""Learned vectors in front of a row, as a part of the model itself: what a combination makes of a prompt method.

In goes a model with an embedding of tokens; out comes the same with PEFT's prompt encoder beside that embedding, and
two hooks around the whole. The first puts the V vectors in front of the embedded row wherever a row begins, and
lengthens mask, positions and the tokens' labels by them; the second takes their logits off again. So whoever calls the
model, for a loss, for answers with a cache, or for another method's sake, sees rows of the length they gave it. An
encoder's classifier reads its first place, or a mean of all, as behind PEFT's own virtual tokens; where a head reads a
place that is counted in the text, vectors in front of it are refused.
"""

import copy
import inspect
from typing import Any

import torch
from peft import PeftConfig, PromptEncoder, TaskType
from peft.tuners import PromptEmbedding
from peft.utils.other import _prepare_prompt_learning_config
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.model.heads import find_class
from finetune.model.output_tuner import OutputLayer

__all__ = ["PromptedEmbedding", "put_virtual_tokens_in_front"]

_IGNORED = -100  # a label that carries no loss


class PromptedEmbedding(OutputLayer):
    """The embedding of tokens, and what makes the vectors in front of them, by adapter, in float32."""

    adapter_layer_names = ("prompt_encoder",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prompt_encoder = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._active_adapter: list[str] = []
        # Vectors in front of the row that is in the model now.
        self.num_in_front = 0

    def update_layer(self, adapter_name: str, config: PeftConfig, active_adapters: list[str]) -> None:
        """Add an adapter's encoder: a table of vectors (prompt_tuning), or with a network behind it (p_tuning)."""
        if config.peft_type.value == "PROMPT_TUNING":
            encoder = PromptEmbedding(config, self.base_layer)
        else:
            # PEFT saves the vectors that the network makes and leaves it out; here it is saved, and trained on.
            with_network = copy.copy(config)
            with_network.inference_mode = False
            encoder = PromptEncoder(with_network)
        # Of the adapters beside it nothing changes, not even whether they are trained.
        is_trained = adapter_name in active_adapters and not config.inference_mode
        self.prompt_encoder[adapter_name] = encoder.float().requires_grad_(is_trained)
        self._active_adapter = list(active_adapters)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Embed tokens as ever."""
        return self.base_layer(x, *args, **kwargs)

    def make_vectors(self) -> Tensor | None:
        """Make the vectors of the active adapters, shape (V, D); None where there are none or all are off."""
        names = [name for name in self.active_adapters if name in self.prompt_encoder]
        if self.disable_adapters or not names:
            return None
        encoders = [self.prompt_encoder[name] for name in names]
        # PEFT's encoders take a batch of indices.
        vectors = [encoder(torch.arange(_size(encoder), device=_device(encoder))[None])[0] for encoder in encoders]
        return torch.cat(vectors)


def put_virtual_tokens_in_front(
    model: PreTrainedModel, adapter_name: str, config: PeftConfig, active_adapters: list[str]
) -> None:
    """Add a prompt method's adapter to a model; changes it in place.

    Args:
        model: a language model or an encoder's classifier, no encoder and decoder in one.
        adapter_name: of the adapter.
        config: PEFT's, of prompt_tuning or p_tuning; the sizes of the model are written into it.
        active_adapters: names of the adapters in use.

    Raises:
        ValueError: the model has two halves, or its head reads a place that is counted in the text.
    """
    if model.config.is_encoder_decoder:
        raise ValueError("virtual tokens stand in front of one row, and this model has an encoder and a decoder")
    _check_places(model, config)
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, PromptedEmbedding):
        name = next(name for name, module in model.named_modules() if module is embedding)
        embedding = PromptedEmbedding(embedding)
        model.set_submodule(name, embedding)
        # Another adapter's, whose layers are out of the tree by now, has left its hooks, and they serve this one.
        if _put_in_front not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(_put_in_front, with_kwargs=True)
            model.register_forward_hook(_take_off, with_kwargs=True)
    config.num_transformer_submodules = 1
    embedding.update_layer(adapter_name, _prepare_prompt_learning_config(config, model.config), active_adapters)


def _check_places(model: PreTrainedModel, config: PeftConfig) -> None:
    """Refuse heads that read a place counted in the text, which the vectors move."""
    kind, method, masked = model.config.model_type, config.peft_type.value.lower(), find_class(model.config, "masked")
    if config.task_type == TaskType.SEQ_CLS and masked is None:
        raise ValueError(
            f"{method}: behind virtual tokens a {kind} model no longer finds a row's last token, where it reads the "
            "label or the score"
        )
    if masked is not None and isinstance(model, masked):
        raise ValueError(
            f"{method}: virtual tokens move the masked places, which are the only places the head is asked about"
        )


def _put_in_front(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Lengthen a row that begins here; behind a cache, lengthen its mask and count its positions on."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, PromptedEmbedding):
        return None  # taken out of the model by now
    embedding.num_in_front = 0
    vectors_VD = embedding.make_vectors()
    if vectors_VD is None:
        return None
    given = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
    size = len(vectors_VD)
    cache = given.get("past_key_values")
    begins = cache is None or cache.get_seq_length() == 0
    for name, value in (("attention_mask", 1), ("labels", _IGNORED), ("shift_labels", _IGNORED), ("token_type_ids", 0)):
        held = given.get(name)
        is_one_a_row = name == "labels" and held is not None and held.dim() == 1
        if held is not None and not is_one_a_row and (begins or name == "attention_mask"):
            given[name] = _lengthen(name, held, size, value)
    positions = given.get("position_ids")
    if positions is not None:
        first = torch.arange(size, device=positions.device).expand(*positions.shape[:-1], -1)
        given["position_ids"] = torch.cat([first, positions + size], dim=-1) if begins else positions + size
    if begins:
        ids, embedded = given.pop("input_ids", None), given.get("inputs_embeds")
        embedded_BTD = embedding(ids) if embedded is None else embedded
        in_front = vectors_VD.to(embedded_BTD.dtype).expand(len(embedded_BTD), -1, -1)
        given["inputs_embeds"] = torch.cat([in_front.to(embedded_BTD.device), embedded_BTD], dim=1)
        embedding.num_in_front = size
    return (), given


def _take_off(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Take the logits of the vectors off, where the model has computed those of every position."""
    embedding = model.get_input_embeddings()
    size = embedding.num_in_front if isinstance(embedding, PromptedEmbedding) else 0
    logits = output.get("logits") if size else None
    if logits is not None and logits.dim() == 3 and logits.shape[1] == kwargs["inputs_embeds"].shape[1]:
        output["logits"] = logits[:, size:]
    return output


def _lengthen(name: str, given: Tensor, size: int, value: int) -> Tensor:
    if given.dim() != 2:
        raise ValueError(f"{name} has {given.dim()} dimensions; in front of rows that share one no vectors can stand")
    return torch.cat([given.new_full((len(given), size), value), given], dim=1)


def _size(encoder: nn.Module) -> int:
    return encoder.get_submodule("embedding").get_parameter("weight").shape[0]


def _device(encoder: nn.Module) -> torch.device:
    return encoder.get_submodule("embedding").get_parameter("weight").device
