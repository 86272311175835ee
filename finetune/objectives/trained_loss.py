"""The loss of the tokens that carry one, in chunks: no logits of a whole batch, nor of a token that is not trained.

In go the decoder's hidden states, the head and the labels; out come the summed loss, how many tokens were guessed, and
how undecided the model is. The gradient is taken as the loss is computed, so that the head's product is made once: TRL
(1.14) makes it twice, and its entropy and accuracy at both times. Here both are read off the logarithms that the loss
has anyway, and stay on the device until a line is logged.

`use_trained_loss` puts it in the place of the causal model's own loss where its head is a plain linear layer, scaled
or capped as some architectures do; that this is so is tried on a few hidden states. Any other head keeps the way that
TRL has for it.

Shape suffixes: B rows, T tokens, K trained tokens, C of a chunk, H hidden size, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from trl import SFTTrainer

from finetune.data.batches import IGNORE_INDEX

__all__ = ["TrainedTokensTrainer", "sum_trained_loss", "use_trained_loss"]

# Large enough for the head's product to run at its full speed on two cores, and 32 MB of logits with 32,000 words.
_CHUNK_TOKENS = 256
# The last chunk's products are filled up to a multiple of so many rows: a CPU compiles kernels for each number.
_ROWS_MULTIPLE = 64
_TRIED_TOKENS = 4


@dataclass(frozen=True, slots=True)
class HeadForm:
    """What becomes of a head's logits before the loss sees them.

    Attributes:
        scale: they are multiplied by it.
        cap: then held between minus and plus this by a tanh; None: not held.
    """

    scale: float = 1.0
    cap: float | None = None


@dataclass
class TrainedLossOutput(CausalLMOutputWithPast):
    """A model's output without logits.

    Attributes:
        num_correct: trained tokens that were the likeliest.
        entropy: summed over the trained tokens, in nats.
        num_trained_tokens: of the batch.
    """

    num_correct: Tensor | None = None
    entropy: Tensor | None = None
    num_trained_tokens: int | None = None


class _SummedLoss(torch.autograd.Function):
    """Cross entropy summed over tokens, its gradient computed in the forward pass and scaled in the backward one.

    Unscaled, a gradient is a difference of probabilities and needs no loss scale, not in float16 either.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, labels_K: Tensor, form: HeadForm
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.promote_types(hidden_KH.dtype, torch.float32)
        sums = torch.zeros(2, dtype=exact, device=hidden_KH.device)  # loss, entropy
        num_correct = torch.zeros((), dtype=torch.long, device=hidden_KH.device)
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden_KH) if for_hidden else None
        weight_grad = torch.zeros_like(weight_VH, dtype=exact) if for_weight else None
        bias_grad = torch.zeros_like(bias_V, dtype=exact) if bias_V is not None and for_bias else None
        weight = weight_VH.to(hidden_KH.dtype)
        bias = None if bias_V is None else bias_V.to(hidden_KH.dtype)
        for chunk in _cut(len(hidden_KH)):
            hidden_CH, labels_C1 = hidden_KH[chunk], labels_K[chunk, None]
            logits_CV = _shape(_multiply(hidden_CH, weight, bias).to(exact), form)
            logps_CV = F.log_softmax(logits_CV, dim=-1)
            sums[0] -= logps_CV.gather(1, labels_C1).sum()
            num_correct += (logps_CV.argmax(-1) == labels_C1[:, 0]).sum()
            probabilities_CV = logps_CV.exp()
            sums[1] -= torch.linalg.vecdot(probabilities_CV, logps_CV).sum()
            if not any(ctx.needs_input_grad[:3]):
                continue
            grad_CV = probabilities_CV.scatter_add_(1, labels_C1, logps_CV.new_full((1, 1), -1.0).expand_as(labels_C1))
            if form.cap is not None:
                grad_CV *= 1 - (logits_CV / form.cap) ** 2
            if form.scale != 1.0:
                grad_CV *= form.scale
            grad = grad_CV.to(hidden_KH.dtype)
            if hidden_grad is not None:
                hidden_grad[chunk] = _multiply(grad, weight.t())
            if weight_grad is not None:
                weight_grad += grad.t() @ hidden_CH
            if bias_grad is not None:
                bias_grad += grad_CV.sum(0)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = (hidden_KH.dtype, weight_VH.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(num_correct)
        entropy = sums[1].clone()
        ctx.mark_non_differentiable(entropy)
        return sums[0].clone(), num_correct, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if one is None else (one * grad).to(dtype) for one, dtype in grads), None, None


def _cut(num_tokens: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK_TOKENS) for start in range(0, num_tokens, _CHUNK_TOKENS))


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows by a transposed weight, as `F.linear`, in few different shapes."""
    num_filled = -len(rows) % _ROWS_MULTIPLE
    filled = F.pad(rows, (0, 0, 0, num_filled)) if num_filled else rows
    return F.linear(filled, weight, bias)[: len(rows)]


def _shape(logits: Tensor, form: HeadForm) -> Tensor:
    if form.scale != 1.0:
        logits = logits * form.scale
    return logits if form.cap is None else form.cap * torch.tanh(logits / form.cap)


def sum_trained_loss(
    hidden_KH: Tensor, head: nn.Linear, labels_K: Tensor, form: HeadForm = HeadForm()
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the loss of trained tokens.

    Products are in the dtype that autocast asks for, else in that of the hidden states; the softmax is in float32, or
    in float64 where those are.

    Args:
        hidden_KH: what predicts each of them.
        head: of the model, frozen or trained.
        labels_K: the tokens.
        form: of the logits.

    Returns:
        The loss in nats, with a gradient; how many tokens were the likeliest; the entropy in nats. Each is a sum and
        has no dimension.
    """
    kind = hidden_KH.device.type
    if torch.is_autocast_enabled(kind):
        hidden_KH = hidden_KH.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        summed: tuple[Tensor, Tensor, Tensor] = _SummedLoss.apply(hidden_KH, head.weight, head.bias, labels_K, form)
    return summed


def find_trained(labels_BT: Tensor, num_trained_tokens: int | None) -> tuple[Tensor, Tensor]:
    """Find the tokens that carry loss, and the places that predict them, each (K,) and int64.

    Args:
        labels_BT: of the tokens themselves.
        num_trained_tokens: how many; with it a GPU is not asked and waited for.

    Returns:
        Places in B x T, and the labels to predict there.
    """
    next_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    is_trained = next_BT != IGNORE_INDEX
    count = int(is_trained.sum()) if num_trained_tokens is None else num_trained_tokens
    places_K = torch.argsort(is_trained.to(torch.int8), descending=True, stable=True)[:count]
    return places_K, next_BT[places_K]


# ---- in the place of a model's own loss


def use_trained_loss(model: PreTrainedModel) -> bool:
    """Let a causal model compute its loss so, from labels; without labels it does what it did.

    To be called where nothing takes gradients, dropout is off, and products are in the dtype of the steps.

    Args:
        model: without the wrapper of an adapter, changed in place.

    Returns:
        Whether it does; not where its head is something else than `HeadForm` can say.
    """
    form = _read_form(model)
    if not _is_of_form(model, form):
        return False
    own_forward = model.forward

    def forward(
        self: PreTrainedModel,
        *args: Any,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_trained_tokens: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None or args:
            return own_forward(*args, labels=labels, **kwargs)
        if kwargs.get("input_ids") is None:  # learned vectors in front of a row predict its first token
            num_trained_tokens = None
        outputs = self.base_model(**kwargs | {"use_cache": False})
        hidden_BTH = outputs.last_hidden_state
        places_K, labels_K = find_trained(labels, num_trained_tokens)
        hidden_KH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[places_K]
        head = _find_head(self)
        assert head is not None  # it was there when this forward was put in place
        loss, num_correct, entropy = sum_trained_loss(hidden_KH, head, labels_K, form)
        counted = max(len(labels_K), 1) if num_items_in_batch is None else num_items_in_batch
        return TrainedLossOutput(
            loss=loss / counted,
            hidden_states=outputs.hidden_states,
            num_correct=num_correct,
            entropy=entropy,
            num_trained_tokens=len(labels_K),
        )

    # What `generate` and PEFT hold their arguments against.
    forward.__signature__ = inspect.signature(own_forward.__func__)  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)
    return True


def _find_head(model: PreTrainedModel) -> nn.Linear | None:
    """Find the linear layer that the logits come from; None where it is something else, such as one with an adapter."""
    head = model.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):
        is_off = head.disable_adapters or not head.active_adapters
        head = head.original_module if is_off else head.modules_to_save[head.active_adapters[0]]
    return head if type(head) is nn.Linear else None


def _read_form(model: PreTrainedModel) -> HeadForm:
    """Read what an architecture makes of its logits, by the names that transformers (5.17) has for it."""
    fields = model.config.get_text_config().to_dict()
    scale = fields.get("logit_scale") or fields.get("output_multiplier") or 1.0  # Cohere, Muse Glimmer
    return HeadForm(float(scale) / float(fields.get("logits_scaling") or 1.0), fields.get("final_logit_softcapping"))


def _is_of_form(model: PreTrainedModel, form: HeadForm) -> bool:
    """Try whether the model's own logits are those of its last hidden states through its head, in this form."""
    head = _find_head(model)
    if head is None:
        return False
    ids_BT = torch.arange(_TRIED_TOKENS, device=head.weight.device)[None]
    own = model(input_ids=ids_BT, use_cache=False).logits
    hidden_BTH = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    ours = _shape(F.linear(hidden_BTH, head.weight, head.bias), form)
    tolerance = 2e-2 if own.dtype.itemsize == 2 else 1e-5
    return own.shape == ours.shape and torch.allclose(own, ours.to(own.dtype), rtol=tolerance, atol=tolerance)


class TrainedTokensTrainer(SFTTrainer):
    """TRL's SFTTrainer on a model of `use_trained_loss`, whose figures wait on the device until they are logged.

    Attributes:
        sums_trained_tokens: whether the model is one; else all is TRL's.
    """

    sums_trained_tokens = False

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of a micro-batch, and note its entropy and accuracy without asking the device for them."""
        if not self.sums_trained_tokens:
            inputs.pop("num_trained_tokens", None)
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        inputs.pop("_prediction_loss_only", None)
        loss, outputs = super(SFTTrainer, self).compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        figures = self._metrics["train" if self.model.training else "eval"]
        entropy, num_correct = outputs.entropy.detach(), outputs.num_correct.detach().to(outputs.entropy.dtype)
        sums = torch.stack([entropy, num_correct, torch.full_like(entropy, outputs.num_trained_tokens or 0)])
        if self.args.world_size > 1:  # of the rows of all processes, as TRL has it
            sums = self.accelerator.reduce(sums, "sum")
        means = sums[:2] / sums[2].clamp(min=1)
        figures["entropy"].append(means[0])
        figures["mean_token_accuracy"].append(means[1])
        return (loss, outputs) if return_outputs else loss

    def read_figures(self, mode: str) -> None:
        """Turn figures that wait on the device into numbers."""
        waiting = [
            (values, place, value)
            for values in self._metrics[mode].values()
            for place, value in enumerate(values)
            if isinstance(value, Tensor)
        ]
        if waiting:
            read = torch.stack([value.double() for _, _, value in waiting]).tolist()
            for (values, place, _), number in zip(waiting, read, strict=True):
                values[place] = number

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with entropy and accuracy."""
        self.read_figures("train" if self.model.training else "eval")
        super().log(logs, *args, **kwargs)
