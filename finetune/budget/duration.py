"""How long training takes: operations, bytes moved, seconds.

In go shapes, a micro-batch and a device; out comes a `Work` with each term by itself. PERFORMANCE.md's formulas:

    linear layers    2N a token forward, 2N for the gradient of the input, 2N where weights are trained themselves,
                     2 (N - N_last) where they are recomputed
    LoRA             r (in + out) (6 + 2 rho) a linear and token
    attention        2 S D L (1 + 2.5 + rho) a token, S the document's length, D all heads' width; causal
    head             2 V d forward, 2 V d backward, of trained tokens alone where the loss is in chunks
    seconds          (operations / reached + bytes / (0.85 bandwidth) + dequantized bytes / (0.6 bandwidth)) / 0.85

N numbers in the linear layers, rho the share of layers recomputed. Training alone is counted: no start, no evaluation,
no checkpoint. That the host keeps up is taken for granted; below some thousand tokens a micro-batch it does not.
"""

from dataclasses import dataclass

from finetune.budget.devices import Device
from finetune.budget.memory import Setup
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
    again = _find_again(spending)
    weights = base.num_linear_weights * base.num_layers + sum(one.num_weights for one in base.head_linears)
    last = base.linears[-1].num_weights * base.num_layers if setup.computing.is_lean else 0
    whole = (adapter.num_parameters / base.num_parameters) if adapter.is_whole else 0.0
    linear = 2 * weights * (2 + whole + passes.extra_forwards) + 2 * (weights - last) * again
    low_rank = 0.0
    if adapter.r:
        widths = sum(one.in_features + one.out_features for one in base.linears if adapter.adapts(one))
        low_rank = adapter.r * widths * adapter.num_layers * (6 + 2 * again + 2 * passes.extra_forwards)
    seen = 2.0 if base.is_encoder else 1.0  # a causal token looks at half of its document
    width = base.num_heads * base.head_dim
    attention = 2 * document_tokens * seen * width * base.num_layers * (3.5 + again + passes.extra_forwards)
    head = 0.0
    if base.output is not None:
        passes_of_head = 2 + (1 if adapter.is_whole else 0) + passes.extra_forwards
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


def _find_again(spending: Spending) -> float:
    """Share of the layers that is computed twice; of one that keeps a part about half."""
    parts = spending.num_mlp_kept + spending.num_attention_kept
    return (spending.num_recomputed + 0.5 * parts) / max(spending.num_layers, 1)


def _estimate_moved(setup: Setup, again: float, passes: Passes) -> float:
    base = setup.architecture
    lean = 10 * base.hidden_size + 2 * (base.hidden_size + 2 * base.num_kv_heads * base.head_dim)
    lean += 4 * base.intermediate_size
    once, twice = (_MOVED_LEAN, _MOVED_LEAN_AGAIN) if setup.computing.is_lean else (_MOVED_PEFT, _MOVED_PEFT_AGAIN)
    scale = setup.holding.compute_bytes / 2
    return base.num_layers * lean * scale * (once + twice * (again + passes.extra_forwards))


def _estimate_dequantized(setup: Setup, spending: Spending, again: float, passes: Passes) -> float:
    """Forward, gradient, and recomputation where that does not share with the gradient; nothing where a copy lies."""
    if not is_quantized(setup.holding):
        return 0.0
    base = setup.architecture
    weights = base.num_linear_weights * base.num_layers
    times = 2 + passes.extra_forwards + (0.0 if setup.computing.is_lean else again)
    resident = spending.resident_bytes / setup.holding.compute_bytes
    return max(weights - resident, 0.0) * times * _DEQUANTIZED_BYTES[setup.holding.quantization]
