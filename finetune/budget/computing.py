"""How a step is computed: in which numbers, by which kernels and paths, with which loss, on what kind of device.

In go facts that a recipe and a device settle, whatever the batch; `saved_tensors`, `activations` and `passes` read them
to say how many bytes a step holds.
"""

from dataclasses import dataclass
from typing import Literal

from finetune.budget.adapter import AdapterShape
from finetune.budget.shapes import Architecture
from finetune.recipe.heads import HEAD_OF_OBJECTIVE

__all__ = ["FLOAT32_BYTES", "Computing", "Loss", "find_loss"]

FLOAT32_BYTES = 4

# How a loss reads logits: of a few tokens at a time, all of them at once, or those of a head that has none of words.
Loss = Literal["chunks", "logits", "head"]
_SUPERVISED = frozenset({"sft", "pretrain"})
_CHUNKED = (None, "chunked_nll")


def find_loss(objective: str, loss_type: object) -> Loss:
    """Find how the loss of an objective reads the logits; a run and its plan ask here.

    Args:
        objective: the recipe's.
        loss_type: as the recipe has typed it; None: it has not. TRL (1.14) takes chunks then, and with the Liger
            kernels their own loss, which holds no more.
    """
    if HEAD_OF_OBJECTIVE[objective] in ("labels", "score"):
        return "head"
    return "chunks" if objective in _SUPERVISED and loss_type in _CHUNKED else "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Computing:
    """How a step is computed.

    Attributes:
        compute_bytes: bytes of a number in the compute dtype: 2 or 4.
        attention: the kernel's name as transformers knows it, or `documents`.
        loss: `chunks`: of a few tokens at a time; `logits`: of all logits at once, as DPO and its like do; `head`: of
            a classifier or a reward model, which has no logits of words. `find_loss` finds it.
        is_lean: whether `model.lean` may serve linears with LoRA; `serves` says whether it does.
        is_lean_elementwise: whether `model.lean_elementwise` may serve norms and gated MLPs, whatever is trained;
            `serves_norms` and `serves_mlp` say whether it does.
        is_quantized: whether bitsandbytes holds the base's linears in 4 or 8 bits.
        on_cpu: whether it runs on a CPU, where PEFT and torch's dropout keep more.
    """

    compute_bytes: int
    attention: str
    loss: Loss
    is_lean: bool
    is_lean_elementwise: bool
    is_quantized: bool
    on_cpu: bool

    @property
    def is_mixed(self) -> bool:
        """Whether autocast makes the products shorter than float32."""
        return self.compute_bytes < FLOAT32_BYTES

    @property
    def has_detour(self) -> bool:
        """Whether PEFT takes a linear's input to float32 first, from which autocast makes a copy for each adapter.

        Of a quantized linear it asks whether autocast is on for CUDA, whatever the device; of another one never.
        """
        return self.is_mixed and (self.on_cpu or not self.is_quantized)

    def serves(self, adapter: AdapterShape) -> bool:
        """Whether `model.lean` serves the linears with this adapter: with plain LoRA, without dropout."""
        is_plain = adapter.method == "lora" and not adapter.dropout and not adapter.is_weight_decomposed
        return self.is_lean and is_plain

    def serves_norms(self, architecture: Architecture, adapter: AdapterShape) -> bool:
        """Whether `model.lean_elementwise` serves the norms: of kinds that it knows, where their weights are frozen."""
        return self.is_lean_elementwise and architecture.has_lean_norms and not adapter.trains_norms

    def serves_mlp(self, architecture: Architecture) -> bool:
        """Whether it serves what lies between the linears of an MLP."""
        return self.is_lean_elementwise and architecture.has_lean_mlp
