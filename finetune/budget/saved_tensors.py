"""What each part of a decoder layer saves for the backward pass: every tensor with its shape and its dtype.

In goes a `Case`: shapes, and how they are computed; out come bytes, one function for each part of a layer. None is
fitted: a term stands for a tensor that autograd keeps, and for the reason it does. `activations` puts the parts
together; `benchmarks/plan_error.py` counts the same tensors in real models.

Letters: T tokens of the micro-batch, padding too; d hidden size; f width inside the MLP; r rank; H, K heads of queries
and of keys; D width of a head; c bytes of a number in the compute dtype. Half precision is autocast: what is trained
lies in float32, and its products are in c bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.budget.adapter import AdapterShape
from finetune.budget.computing import FLOAT32_BYTES, Computing
from finetune.budget.shapes import Architecture, Experts, Linear, Norm

__all__ = [
    "BatchShape",
    "Case",
    "count_tokens",
    "estimate_attention",
    "estimate_inputs",
    "estimate_mlp",
    "estimate_norm",
    "has_rule",
    "is_of_heads",
    "joins_output",
]

# On a CPU `model.document_attention` attends heads up to this width in float32, and fills documents of wider ones in
# 16 bits up to a multiple of so many tokens.
_DOCUMENT_MULTIPLE = 32
_NARROW_HEAD = 32
_VECTORS_BEFORE_TEXT = frozenset({"prompt_tuning", "p_tuning"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """A micro-batch by its sizes.

    Attributes:
        num_rows: rows of its tensors: of pairs two for each.
        row_tokens: length of a row with its padding; a flat micro-batch is one row.
        document_tokens: mean length of a document. Shorter than a row, a mask keeps documents or padding apart.
        trained_fraction: share of the tokens that are trained.
        is_packed: whether rows hold several documents, whose positions restart.
    """

    num_rows: int
    row_tokens: int
    document_tokens: float
    trained_fraction: float = 1.0
    is_packed: bool = False

    @property
    def num_tokens(self) -> int:
        """All places of the micro-batch."""
        return self.num_rows * self.row_tokens

    @property
    def has_mask(self) -> bool:
        """Whether some places of a row must not be seen by others beyond what causality hides."""
        return self.document_tokens < self.row_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the bytes of a layer follow from.

    Attributes:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        computing: how it is computed.
        stream_bytes: bytes of a number between the layers.
    """

    architecture: Architecture
    adapter: AdapterShape
    batch: BatchShape
    computing: Computing
    stream_bytes: int

    @property
    def tokens(self) -> int:
        """T, see `count_tokens`."""
        return count_tokens(self.adapter, self.batch)

    @property
    def c(self) -> int:
        """Bytes of a number in the compute dtype."""
        return self.computing.compute_bytes


def count_tokens(adapter: AdapterShape, batch: BatchShape) -> int:
    """T: all places of a micro-batch, vectors that are learned before each row among them."""
    return batch.num_tokens + batch.num_rows * adapter.num_virtual_tokens


def has_rule(architecture: Architecture, adapter: AdapterShape) -> bool:
    """Whether what is kept is counted tensor by tensor; else it is an estimate on the high side.

    There is a rule for decoders of the kind of Llama, with LoRA, DoRA without dropout, IA³, HRA, norms or vectors
    before the text trained, or all weights; none for mixtures of experts.
    """
    if architecture.is_encoder or not architecture.is_gated or architecture.experts is not None:
        return False
    if adapter.is_whole:
        return adapter.num_layers == architecture.num_layers
    if adapter.method in {"ia3", "hra", "ln_tuning", *_VECTORS_BEFORE_TEXT}:
        return True
    return adapter.method == "lora" and not (adapter.is_weight_decomposed and adapter.dropout)


# ---- norms


def is_of_heads(norm: Norm) -> bool:
    """Whether a norm is that of queries or of keys."""
    return norm.path.endswith(("q_norm", "k_norm"))


def estimate_norm(case: Case, norm: Norm) -> int:
    """RMS norm: its input and one root for each group; where its weight is trained, what that scales.

    By transformers' own forward the input is in float32, in which it is squared and multiplied.
    `model.lean_elementwise` keeps it as it came: from the stream, for queries and keys from a linear. What goes into a
    layer is thereby its first norm's input.
    """
    base = case.architecture
    groups = 1
    if is_of_heads(norm) and norm.size == base.head_dim:
        groups = base.num_heads if norm.path.endswith("q_norm") else base.num_kv_heads
    width = norm.size * groups
    number = FLOAT32_BYTES
    if case.computing.serves_norms(base, case.adapter):
        number = _find_inner_bytes(case) if is_of_heads(norm) else case.stream_bytes
    factor = case.stream_bytes * width if case.adapter.trains_norms else 0
    return case.tokens * (number * width + FLOAT32_BYTES * groups + factor)


# ---- linear layers


def estimate_inputs(case: Case, linears: Sequence[Linear], source: str, *, has_gradient: bool) -> int:
    """What linears with one input save: nothing where they are frozen, for their weights get no gradient.

    Args:
        case: shapes, and how they are computed.
        linears: that read the same tensor.
        source: `norm`, or `documents` that were put together: nobody else saves the tensor; `product`: of an MLP's
            branches, from which it is made again where both are served; `attention`: the attention saves it.
        has_gradient: whether their input needs one.
    """
    adapted = [linear for linear in linears if case.adapter.adapts(linear)]
    if not adapted:
        return 0
    if case.adapter.is_whole:
        return _whole(case, adapted, source)
    if case.adapter.method == "ia3":
        return sum(_ia3(case, linear, is_last=source == "product") for linear in adapted)
    if case.adapter.method == "hra":
        return sum(_hra(case, linear) for linear in adapted)
    saved = sum(_lora(case, linear, has_gradient=has_gradient) for linear in adapted)
    width = adapted[0].in_features
    if case.adapter.dropout:
        # Each adapter drops numbers of its own: what is left of the input, and what was dropped.
        if has_gradient:
            saved += len(adapted) * case.tokens * width * (FLOAT32_BYTES if case.computing.on_cpu else 1)
        return saved + len(adapted) * case.tokens * width * case.c
    has_detour = case.computing.has_detour and not case.computing.serves(case.adapter)
    is_float32 = source == "norm" and case.computing.is_mixed and case.stream_bytes == FLOAT32_BYTES
    if has_detour or is_float32:  # each adapter makes a copy of its own in the compute dtype
        return saved + len(adapted) * case.tokens * width * case.c
    is_made_again = source == "product" and has_gradient and _makes_product_again(case)
    return saved + (0 if source == "attention" or is_made_again else case.tokens * width * case.c)


def _makes_product_again(case: Case) -> bool:
    """Whether the lean path saves an MLP's product by what that is made from: not where it has to cast it."""
    computing = case.computing
    is_served = computing.serves(case.adapter) and computing.serves_mlp(case.architecture)
    return is_served and _find_inner_bytes(case) == case.c


def _whole(case: Case, linears: Sequence[Linear], source: str) -> int:
    """Linears trained whole: their input, of which autocast makes a copy for each behind a norm, and their weights."""
    width = linears[0].in_features
    is_mixed = case.computing.is_mixed
    num_inputs = len(linears) if is_mixed and source == "norm" else int(source != "attention")
    weights = sum(linear.num_weights for linear in linears) * case.c if is_mixed else 0
    return num_inputs * case.tokens * width * case.c + weights


def _lora(case: Case, linear: Linear, *, has_gradient: bool) -> int:
    """LoRA's own: the input of B, and under autocast A and B in the compute dtype; DoRA: the two it adds up."""
    r = case.adapter.r
    saved = case.tokens * r * case.c
    if case.computing.is_mixed:
        saved += r * linear.out_features * case.c
        saved += r * linear.in_features * case.c if has_gradient or case.computing.serves(case.adapter) else 0
    if case.adapter.is_weight_decomposed or not has_rule(case.architecture, case.adapter):
        saved += 2 * case.tokens * linear.out_features * case.c + 3 * linear.out_features * FLOAT32_BYTES
    return saved


def _hra(case: Case, linear: Linear) -> int:
    """HRA: for each mirror the matrix that it turns over, in by in, and the weight that comes of it; the input."""
    mirrors = (case.adapter.r + 1) * linear.in_features**2
    return (mirrors + linear.num_weights + case.tokens * linear.in_features) * case.c


def _ia3(case: Case, linear: Linear, *, is_last: bool) -> int:
    """IA³: what is scaled, which is a linear's output, and of the MLP's last one its input."""
    width = linear.in_features if is_last else linear.out_features
    if case.computing.is_quantized:
        number = FLOAT32_BYTES if case.computing.on_cpu else case.stream_bytes
    else:
        number = FLOAT32_BYTES if is_last else case.c
    return case.tokens * width * number


# ---- between the linear layers


def estimate_attention(case: Case, linears: Sequence[Linear]) -> int:
    """Attention itself: turned queries and keys, values, its output and the sum of each row's weights.

    A mask makes SDPA take keys and values repeated for all heads, and a copy of the mask in the compute dtype for every
    layer; within named documents there is none, but on a CPU narrow heads are attended in float32, and documents of
    others are filled up. Eager attention saves the weights of each pair of tokens, in float32 and rounded.
    """
    base, computing, row_tokens = case.architecture, case.computing, case.tokens // case.batch.num_rows
    queries, keys = base.num_heads * base.head_dim, base.num_kv_heads * base.head_dim
    if computing.attention == "eager":
        pairs = case.tokens * row_tokens * base.num_heads
        return case.tokens * 3 * queries * case.c + pairs * (FLOAT32_BYTES + (case.c if computing.is_mixed else 0))
    reads_mask = computing.attention == "sdpa" or (computing.attention == "documents" and not _is_flat(case))
    masked = case.batch.has_mask and reads_mask
    if masked and base.num_heads != base.num_kv_heads:
        keys_and_values = 2 * queries
    elif len(linears) == 2:  # queries, keys and values are one tensor, which the values keep
        keys_and_values = keys + linears[0].out_features
    else:
        keys_and_values = 2 * keys
    mask = case.tokens * row_tokens * case.c if masked else 0
    attended = _count_attended(case)
    rows = attended * base.num_heads * FLOAT32_BYTES
    number = FLOAT32_BYTES if _goes_one_by_one(case) and base.head_dim <= _NARROW_HEAD else case.c
    return attended * (2 * queries + keys_and_values) * number + rows + mask


def _count_attended(case: Case) -> int:
    """Tokens that attention computes with: where a document is filled up, on the mean by half of the multiple."""
    if not _goes_one_by_one(case) or case.architecture.head_dim <= _NARROW_HEAD or case.c == FLOAT32_BYTES:
        return case.tokens
    return case.tokens + round(case.tokens / case.batch.document_tokens * (_DOCUMENT_MULTIPLE - 1) / 2)


def _is_flat(case: Case) -> bool:
    """Whether the documents of one row are named to the kernel, see `data.batches`."""
    return case.batch.is_packed and case.batch.num_rows == 1


def _goes_one_by_one(case: Case) -> bool:
    """Whether one document is attended after the other, as on a CPU."""
    return case.computing.attention == "documents" and case.computing.on_cpu and _is_flat(case)


def joins_output(case: Case) -> bool:
    """Whether the attention's output is put together from what it saves: of eager weights, of documents on a CPU."""
    return case.computing.attention == "eager" or _goes_one_by_one(case)


def estimate_mlp(case: Case) -> int:
    """Inside the MLP: the input of the activation, and where a second branch is multiplied with it both factors.

    `model.lean_elementwise` computes the activation again.
    """
    base, num_gated = case.architecture, 2 if case.computing.serves_mlp(case.architecture) else 3
    width = base.num_active_mlps * base.intermediate_size * (num_gated if base.is_gated else 1)
    inside = case.tokens * width * _find_inner_bytes(case)
    return inside + (0 if base.experts is None else _estimate_experts(case, base.experts))


def _find_inner_bytes(case: Case) -> int:
    """Bytes of a number that a linear behind a norm answers with."""
    # A quantized linear answers in the dtype that it was asked in.
    if case.computing.is_quantized and (case.adapter.method == "ln_tuning" or case.adapter.trains_embeddings):
        return FLOAT32_BYTES
    return case.stream_bytes if case.adapter.method == "ia3" else case.c


def _estimate_experts(case: Case, experts: Experts) -> int:
    """Beside what their MLPs save: each token's input and output of every expert that it goes through, its scores."""
    width = 2 * experts.num_active * experts.hidden_size * case.c
    return case.tokens * (width + 3 * experts.number * FLOAT32_BYTES)
