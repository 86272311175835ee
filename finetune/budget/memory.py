"""Peak memory by part: what lies on the device at the fullest moment of a step.

In go the shapes of base, adapter and micro-batch, how the base is held, the optimizer and what idle memory is spent on;
out comes a `Memory`, whose parts add up to the peak. Weights, adapter, gradients and optimizer are exact; activations
and what a layer holds in its backward pass are counted tensor by tensor (`activations`, `passes`); the context and
fragments are assumptions, named in `render_assumptions`.
"""

from dataclasses import dataclass, replace

from finetune.budget.activations import BatchShape, estimate_outside, has_rule
from finetune.budget.adapter import AdapterShape
from finetune.budget.computing import FLOAT32_BYTES, Computing
from finetune.budget.layer_options import estimate_part_bytes
from finetune.budget.optimizer_states import estimate_state_bytes
from finetune.budget.passes import estimate_pass
from finetune.budget.shapes import Architecture
from finetune.budget.spending import Spending
from finetune.budget.weights import Holding, estimate_base_bytes

__all__ = [
    "Memory",
    "Setup",
    "estimate_error",
    "estimate_memory",
    "find_trained_shapes",
    "render_assumptions",
    "to_gib",
]

_TOKEN_BYTES = 3 * 8  # ids, labels, and a mask or positions, each int64
# CUDA's context and the libraries' workspaces, which torch does not count; fragments, of all that torch holds.
_CONTEXT_BYTES = 800_000_000
_FRAGMENTS = 0.03
# On a CPU the measured figure is of the whole process: Python and the libraries, as a run on the smallest shape has it.
_PROCESS_BYTES = 750_000_000
# What the fullest moment of a pass had at worst beyond its estimate, as a share of the estimate: by rules, and with
# DoRA, which stands for what no rule counts, too. 9.4 and 16 % of what was counted, as
# benchmarks/results/plan_error_intel_xeon_processor_2_cores.md has it.
_TOO_LOW, _TOO_LOW_WITH_DORA = 0.104, 0.19


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What takes memory.

    Attributes:
        architecture: the base.
        adapter: what is trained.
        holding: how the base is held.
        batch: the largest micro-batch.
        computing: how a step is computed, of the base as `holding` has it.
        optimizer: its name as transformers knows it.
        may_recompute: whether activations may be computed twice (`gradient_checkpointing`).
        has_copy: whether a frozen copy of the adapter lies beside it, as the reference of a run that goes on with one.
    """

    architecture: Architecture
    adapter: AdapterShape
    holding: Holding
    batch: BatchShape
    computing: Computing
    optimizer: str
    may_recompute: bool
    has_copy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the fullest moment of a step.

    Attributes:
        weights: the base as it is held, and copies of it in the compute dtype where idle memory holds some.
        adapter: what is trained beside it.
        gradients: of what is trained.
        optimizer: its states.
        activations: kept from the forward pass to the backward one.
        logits: alive where the loss is computed; 0 where that is not the fullest moment.
        buffers: the batch, and what the layer in work holds: its tensors, and weights taken out of their 4 bits.
        fragmentation: context, workspaces and fragments; of a CPU the process with its libraries.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    fragmentation: int

    @property
    def peak_bytes(self) -> int:
        """All parts."""
        return self.held_bytes + self.fragmentation

    @property
    def held_bytes(self) -> int:
        """Tensors alone, as `torch.cuda.max_memory_allocated` counts them."""
        return (
            self.weights
            + self.adapter
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.buffers
        )

    def to_json(self) -> dict[str, int]:
        """By the names of the parts, in this order."""
        return {name: getattr(self, name) for name in self.__slots__}


def estimate_memory(setup: Setup, spending: Spending) -> Memory:
    """Estimate the peak of a step.

    Args:
        setup: what takes memory.
        spending: which layers keep their activations, and copies of weights.
    """
    base, adapter = setup.architecture, setup.adapter
    activations, logits, working = _estimate_pass(setup, spending)
    shapes = find_trained_shapes(base, adapter)
    trained_bytes = adapter.num_parameters * FLOAT32_BYTES
    beside_bytes = 0 if adapter.is_whole else trained_bytes + adapter.num_frozen * FLOAT32_BYTES
    memory = Memory(
        weights=estimate_base_bytes(base, adapter, setup.holding) + spending.resident_bytes,
        adapter=beside_bytes * (2 if setup.has_copy else 1),
        gradients=trained_bytes,
        optimizer=estimate_state_bytes(setup.optimizer, shapes),
        activations=activations,
        logits=logits,
        buffers=working + setup.batch.num_tokens * _TOKEN_BYTES,
        fragmentation=0,
    )
    allowance = _PROCESS_BYTES if setup.computing.on_cpu else _CONTEXT_BYTES + int(_FRAGMENTS * memory.held_bytes)
    return replace(memory, fragmentation=allowance)


def estimate_error(setup: Setup, memory: Memory) -> int:
    """Estimate the bytes by which a peak may be too low: what it was at worst where it was measured.

    Args:
        setup: what takes memory.
        memory: as it was estimated.
    """
    is_sure = has_rule(setup.architecture, setup.adapter) and not setup.adapter.is_weight_decomposed
    share = _TOO_LOW if is_sure else _TOO_LOW_WITH_DORA
    return round(share * (memory.activations + memory.logits + memory.buffers))


def find_trained_shapes(architecture: Architecture, adapter: AdapterShape) -> list[tuple[int, ...]]:
    """Find the shape of every tensor that is trained; of a part of the base, and of what is estimated, one for all."""
    if adapter.tensors:
        return [tensor.shape for tensor in adapter.tensors if tensor.is_trained]
    whole = list(architecture.find_shapes())
    if adapter.is_whole and adapter.num_parameters == architecture.num_parameters:
        return whole
    return [(adapter.num_parameters,)]


def _estimate_pass(setup: Setup, spending: Spending) -> tuple[int, int, int]:
    """Activations, logits, and what else is alive at the fullest moment of a forward and a backward pass.

    A layer of which a part is kept is one that is recomputed, and that part beside.
    """
    base, adapter, batch, computing = setup.architecture, setup.adapter, setup.batch, setup.computing
    num_recomputed = spending.num_layers - spending.num_kept
    whole = estimate_pass(
        base, adapter, batch, computing, num_recomputed=num_recomputed, may_recompute=setup.may_recompute
    )
    each = estimate_part_bytes(base, adapter, batch, computing)
    parts = spending.num_mlp_kept * (each.whole - each.attention)
    parts += spending.num_attention_kept * (each.whole - each.mlp)
    outside = estimate_outside(base, adapter, batch, computing, keeps_layers=spending.num_kept > 0)
    beside = whole.peak_bytes - whole.saved_bytes
    # Where more is alive in a layer's backward pass than at the loss, the logits are gone at the fullest moment.
    logits = outside.head_bytes if computing.loss != "head" and beside <= 2 * outside.head_bytes else 0
    logits = min(logits, beside)
    return whole.saved_bytes + parts, logits, beside - logits


def render_assumptions(*, on_cpu: bool) -> list[str]:
    """What of the memory is no count."""
    if on_cpu:
        return [f"memory: {_PROCESS_BYTES / 1e6:.0f} MB for Python and its libraries (a run on the smallest shape)"]
    return [
        f"memory: {_CONTEXT_BYTES / 1e6:.0f} MB for CUDA's context and workspaces, {_FRAGMENTS:.0%} for fragments",
    ]


def to_gib(num_bytes: float) -> str:
    """`10.5 GiB`; of less than a tenth of one `43.0 MiB`."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 0.1 * 2**30 else f"{num_bytes / 2**20:.1f} MiB"
