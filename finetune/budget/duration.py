"""How long training takes: operations, bytes moved, seconds.

In go shapes, a micro-batch and a device; out comes a `Work` with each term by itself. PERFORMANCE.md's formulas:

    linear layers    2N a token forward, 2N for the gradient of the input, 2N where weights are trained themselves,
                     2N of those that are computed again, but for the last one of each stretch that the lean path serves
    LoRA             6 r (in + out) a linear and token, 2 r (in + out) where it is computed again
    attention        2 S D a layer and token forward, 2.5 times as much backward, and once more where it is computed
                     again; S the document's length, D all heads' width; causal
    head             2 V d forward, 2 V d backward, 2 V d where its weights are trained, of trained tokens alone where
                     the loss is in chunks
    seconds          (operations / reached + bytes / (0.85 bandwidth) + dequantized bytes / (0.6 bandwidth)) / 0.85

N numbers in the linear layers. What is computed again depends on what each layer keeps: nothing, its attention, its
MLP or all. Training alone is counted: no start, no evaluation,
no checkpoint. That the host keeps up is taken for granted; below some thousand tokens a micro-batch it does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.budget.devices import Device
from finetune.budget.memory import Setup
from finetune.budget.shapes import Linear
from finetune.budget.spending import Spending
from finetune.budget.weights import is_quantized

__all__ = ["ASSUMPTIONS", "HOST_KEEPS_UP", "LEAST_HOST_TOKENS", "Passes", "Work", "estimate_seconds", "estimate_work"]

# Share of the bandwidth that passes over memory reach, and dequantizations; and of the whole what an implementation
# reaches: fused stacks' published speeds are 0.74-0.86 of this model's, plain ones' 0.56-0.70.
_STREAMED = 0.85
_DEQUANTIZED = 0.6
_REACHED = 0.85
# Bytes that norms, turning, activation and adapter move, as multiples of what a lean layer saves for its backward pass
# (10 d + 2 (d + 2 k) + 4 f bytes a token): counted for Mistral-7B, with the lean adapter path and with PEFT's own, and
# what a recomputed layer adds to it.
_MOVED_LEAN, _MOVED_LEAN_AGAIN = 15.3, 4.9
_MOVED_PEFT, _MOVED_PEFT_AGAIN = 18.5, 8.1
_DEQUANTIZED_BYTES = {"nf4": 2.516, "fp4": 2.516, "int8": 3.0}  # read and written for a weight

ASSUMPTIONS = (
    "speed: 85 % of what products, 85 % of the bandwidth for passes over memory and 60 % for dequantization give",
    "speed: passes over memory counted for Mistral-7B and scaled by width; training steps alone",
)
HOST_KEEPS_UP = "speed: the host keeps up"
# Tokens of a micro-batch below which it may not: each step's kernels are launched in more time than they take.
LEAST_HOST_TOKENS = 4000


@dataclass(frozen=True, slots=True)
class Passes:
    """How often a micro-batch goes through the base.

    Attributes:
        extra_forwards: forward passes without a gradient beside the trained one: a reference's, KTO's others.
        trained_fraction: share of the tokens whose loss is computed; 1 where all logits are.
    """

    extra_forwards: float = 0.0
    trained_fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class _Recomputed:
    """What the backward pass computes a second time, of all layers together.

    Attributes:
        weights: numbers of the matrices that are multiplied again.
        dequantized: of these, those that are dequantized for it.
        low_rank: inputs and outputs of the adapted linears among them, which LoRA's rank multiplies.
        num_attentions: layers whose attention looks over its documents again.
        moved: bytes for a token in 16 bits that a lean layer's passes over memory read and write, see `_MOVED_LEAN`.
    """

    weights: int
    dequantized: int
    low_rank: int
    num_attentions: int
    moved: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one micro-batch takes.

    Attributes:
        flops: operations of products, recomputation included.
        moved_bytes: by passes over memory outside the products.
        dequantized_bytes: read and written to take weights out of their 4 or 8 bits.
    """

    flops: float
    moved_bytes: float
    dequantized_bytes: float


def estimate_work(setup: Setup, spending: Spending, passes: Passes, *, tokens: float, document_tokens: float) -> Work:
    """Estimate what a micro-batch of so many tokens takes.

    Args:
        setup: base, adapter and how they are held; its batch is not read, being the largest one.
        spending: which layers are recomputed, which weights lie ready.
        passes: what goes through the base beside the trained pass.
        tokens: of the micro-batch, padding included.
        document_tokens: that a token can look at, on the mean twice as far as it does.
    """
    base, adapter = setup.architecture, setup.adapter
    again = _sum_recomputed(setup, spending)
    once = base.num_linear_weights * base.num_layers + sum(one.num_weights for one in base.head_linears)
    once += base.num_active_expert_weights * base.num_layers
    whole = (adapter.num_parameters / base.num_parameters) if adapter.is_whole else 0.0
    linear = 2 * once * (2 + whole + passes.extra_forwards) + 2 * again.weights
    widths = _sum_widths(setup, base.linears) * adapter.num_layers
    low_rank = adapter.r * (widths * (6 + 2 * passes.extra_forwards) + 2 * again.low_rank)
    seen = 2.0 if base.is_encoder else 1.0  # a causal token looks at half of its document
    num_attentions = base.num_layers * (3.5 + passes.extra_forwards) + again.num_attentions
    attention = 2 * document_tokens * seen * base.num_heads * base.head_dim * num_attentions
    head = 0.0
    if base.output is not None:
        passes_of_head = 2 + (1 if adapter.trains_output else 0) + passes.extra_forwards
        head = 2 * base.output.num_weights * passes_of_head * passes.trained_fraction
    return Work(
        flops=tokens * (linear + low_rank + attention + head),
        moved_bytes=tokens * _estimate_moved(setup, again, passes),
        dequantized_bytes=_estimate_dequantized(setup, spending, again, passes),
    )


def estimate_seconds(work: Work, device: Device) -> float | None:
    """Estimate the seconds of a micro-batch; None where the device's speed is not known."""
    if device.flops_per_second is None:
        return None
    if device.bytes_per_second is None:  # measured over whole steps, everything included
        return work.flops / device.flops_per_second
    products = work.flops / device.flops_per_second
    moved = work.moved_bytes / (_STREAMED * device.bytes_per_second)
    dequantized = work.dequantized_bytes / (_DEQUANTIZED * device.bytes_per_second)
    return (products + moved + dequantized) / _REACHED


def _sum_recomputed(setup: Setup, spending: Spending) -> _Recomputed:
    """Sum up what is computed a second time, by what each layer keeps."""
    base, adapter = setup.architecture, setup.adapter
    attention, mlp = ([one for one in base.linears if one.part == part] for part in ("attention", "mlp"))
    moved_by_attention, moved_by_mlp = _find_lean_bytes(setup)
    experts = base.num_active_expert_weights
    # The stretches that are computed again, how many layers compute each, and whether the attention is in it.
    stretches = [
        (spending.num_recomputed, [*attention, *mlp], experts, True, moved_by_attention + moved_by_mlp),
        (spending.num_mlp_kept, attention, 0, True, moved_by_attention),
        (spending.num_attention_kept, mlp, experts, False, moved_by_mlp),
    ]
    weights = dequantized = low_rank = num_attentions = 0
    moved = 0.0
    for number, linears, of_experts, has_attention, moved_bytes in stretches:
        kept_products = linears[:-1] if _ends_early(setup, linears) else linears
        weights += number * (sum(one.num_weights for one in kept_products) + of_experts)
        dequantized += number * sum(one.num_weights for one in linears if not _is_served(setup, one))
        low_rank += number * _sum_widths(setup, linears)
        num_attentions += number if has_attention else 0
        moved += number * moved_bytes
    share = adapter.num_layers / base.num_layers  # an adapter may sit on some of the layers alone
    return _Recomputed(weights, dequantized, round(low_rank * share), num_attentions, moved)


def _is_served(setup: Setup, linear: Linear) -> bool:
    return setup.computing.serves(setup.adapter) and setup.adapter.adapts(linear)


def _ends_early(setup: Setup, linears: Sequence[Linear]) -> bool:
    """Whether the last base product of a stretch is left out: the lean path makes it behind all that is saved."""
    followed_by_experts = setup.architecture.experts is not None
    return bool(linears) and not followed_by_experts and _is_served(setup, linears[-1])


def _sum_widths(setup: Setup, linears: Sequence[Linear]) -> int:
    """Inputs and outputs of the linears with an adapter."""
    return sum(one.in_features + one.out_features for one in linears if setup.adapter.adapts(one))


def _find_lean_bytes(setup: Setup) -> tuple[int, int]:
    """Bytes a token that a lean layer saves in 16 bits: of its attention and of its MLP, each with its norm."""
    base = setup.architecture
    d, k, f = base.hidden_size, base.num_kv_heads * base.head_dim, base.intermediate_size * base.num_active_mlps
    return 6 * d + 2 * (d + 2 * k), 4 * d + 4 * f


def _estimate_moved(setup: Setup, again: _Recomputed, passes: Passes) -> float:
    once, twice = (_MOVED_LEAN, _MOVED_LEAN_AGAIN) if setup.computing.is_lean else (_MOVED_PEFT, _MOVED_PEFT_AGAIN)
    scale = setup.holding.compute_bytes / 2
    lean = setup.architecture.num_layers * sum(_find_lean_bytes(setup))
    return scale * (lean * (once + twice * passes.extra_forwards) + again.moved * twice)


def _estimate_dequantized(setup: Setup, spending: Spending, again: _Recomputed, passes: Passes) -> float:
    """Forward, gradient, and recomputation where that does not share with the gradient; nothing where a copy lies."""
    if not is_quantized(setup.holding):
        return 0.0
    base = setup.architecture
    weights = base.num_linear_weights * base.num_layers
    resident = spending.resident_bytes / setup.holding.compute_bytes
    by_blocks = max(1 - resident / weights, 0.0)
    times = weights * (2 + passes.extra_forwards) + again.dequantized
    return by_blocks * times * _DEQUANTIZED_BYTES[setup.holding.quantization]
