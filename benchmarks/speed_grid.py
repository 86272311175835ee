"""What the speed benchmark compares: shapes, kinds of rows, contenders, and in which order they are measured.

Nothing is run here. A `Line` is one line of the table: an objective on a kind of rows with a shape, and its contenders,
which train the same rows once, as many a step as whole rows allow. Settings hold the line's own sizes in braces,
filled in when it runs.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.speed_sizes import StepSizes
from finetune.recipe.schema import DataSettings, ModelSettings, TrainingSettings
from finetune.recipe.section import Section

__all__ = ["CPU_SHAPES", "CUDA_SHAPES", "GROUPS", "Contender", "Line", "Shape", "build_lines", "find_missing"]

Kind = Literal["ours", "trl", "unsloth"]
Group = Literal["targets", "ideas", "dpo", "full"]
GROUPS: tuple[Group, ...] = ("targets", "ideas", "dpo", "full")
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Shape:
    """A base, and how it is measured.

    Attributes:
        name: on the command line.
        title: in the table.
        base: the recipe in benchmarks/recipes whose random weights are drawn, or a folder: of the repository, or, where
            that has none, of the data beside it.
        learning_rate: of sft, at its peak.
        max_tokens: of a short row; longer ones are left out.
        packed_tokens: of a packed row.
        tokens_per_step: of an optimizer step of full packed rows; the rows that those hold are every contender's.
        warmup_steps: first steps that are not timed.
        timed_steps: steps that are.
        held_out_rows: measured by the referee.
        full_tokens: lengths of the full rows that it trains.
        saved_as: how random weights lie on the disk: large ones as the NF4 that all contenders quantize to.
    """

    name: str
    title: str
    base: str
    learning_rate: float
    max_tokens: int
    packed_tokens: int
    tokens_per_step: int
    warmup_steps: int = 5
    timed_steps: int = 20
    held_out_rows: int = 64
    full_tokens: tuple[int, ...] = ()
    saved_as: Literal["bfloat16", "nf4"] = "bfloat16"


CPU_SHAPES = (
    # Five packed rows of it hold 7.9 rows, four 6.3: steps of padded rows can be as large to one in a hundred.
    Shape("stories260K", "stories260K", "models/stories260K", 1e-3, 512, 512, 2560),
    Shape("tiny_base", "the tiny base, 4M", "data/tiny_base", 1e-3, 512, 1024, 2048),
    # A step of seconds: fewer of them.
    Shape(
        "mistral_125m", "Mistral of 125M, random", "mistral_125m_shape", 2e-4, 512, 1024, 2048, warmup_steps=2,
        timed_steps=6, held_out_rows=24,
    ),
    Shape("small", "Mistral of 6M, random", "mistral_small_shape", 1e-3, 512, 1024, 2048, full_tokens=(2048,)),
    # The same base, as the tiny one has 1,024 positions. A step of such a row takes 10 to 30 s, by estimate.
    Shape(
        "small_8k", "Mistral of 6M, random", "mistral_small_shape", 1e-3, 512, 1024, 2048, warmup_steps=2,
        timed_steps=6, held_out_rows=24, full_tokens=(8192,),
    ),
)  # fmt: skip
CUDA_SHAPES = tuple(
    Shape(name, title, base, 2e-4, 2048, 2048, 8192, full_tokens=(2048, 8192), saved_as="nf4", held_out_rows=16)
    for name, title, base in (
        ("mistral_7b", "Mistral-7B, random", "mistral_7b_shape"),
        ("llama2_13b", "Llama-2-13B, random", "llama2_13b_shape"),
        ("llama2_70b", "Llama-2-70B, random", "llama2_70b_shape"),
    )
)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to train the rows of a line.

    Attributes:
        name: in the store.
        title: in the table.
        kind: whose.
        settings: overrides of ours' recipe, or options of a rival's script.
        without: ideas that are switched off in the process, where no recipe does it: names of `speed_ours.IDEAS`.
        needs: what has to be there: `section.field` of a recipe, `section.field=choice`, or a module of ours.
        target: how many times its tokens/s ours are to reach on a CPU; None: none is set.
    """

    name: str
    title: str
    kind: Kind
    settings: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    target: float | None = None


_BUDGET = ("data.packing=true", "data.tokens_per_batch={tokens_per_batch}", "data.max_length={max_tokens}")
_PACKED = ("data.packing=true", "data.max_length={packed_tokens}")
_PACKED_BATCH = ("training.per_device_train_batch_size={packed_rows}",)
_ALONE = ("data.packing=false", "data.max_length={max_tokens}")
_ROW_BATCH = (
    "training.per_device_train_batch_size={micro_batch_rows}",
    "training.gradient_accumulation_steps={accumulation}",
)
_NEEDS = ("data.tokens_per_batch", "training.memory", "finetune.model.lean")

WHOLE = Contender(OURS, "ours, whole", "ours", _BUDGET, needs=_NEEDS)
_TRL_ALONE = ("--max-length={max_tokens}", "--batch-size={micro_batch_rows}", "--accumulation={accumulation}")
_TRL_PACKED = ("--packing", "--max-length={packed_tokens}", "--batch-size={packed_rows}")
TRL_ALONE = Contender("trl", "TRL as it comes: padded, checkpointing", "trl", _TRL_ALONE, target=2.5)
TRL_PACKED = Contender("trl_packed", "TRL packed as it comes: checkpointing", "trl", _TRL_PACKED, target=1.8)
TRL_BEST = Contender(
    "trl_packed_kept", "TRL packed, checkpointing off", "trl",
    # A packed row at a time: it lays those of a batch into one row, whose attention is the slower the longer it is.
    ("--packing", "--max-length={packed_tokens}", "--batch-size=1", "--accumulation={packed_rows}",
     "--no-checkpointing"), target=1.5,
)  # fmt: skip
# Unsloth's CPU path ignores packing: it gets the rows of a step as they are.
_UNSLOTH = {
    "cpu": ("--packing", *_TRL_ALONE),
    "cuda": _TRL_PACKED,
}

# Ours with one idea off at a time.
ABLATIONS = (
    Contender(
        "without_token_budget", "packed rows, no token budget", "ours", (*_PACKED, *_PACKED_BATCH), needs=_NEEDS[1:]
    ),
    Contender("without_packing", "each row alone, sorted by length", "ours", (*_ALONE, *_ROW_BATCH), needs=_NEEDS[1:]),
    Contender(
        "recompute_all", "everything recomputed (memory: recompute_all)", "ours",
        (*_BUDGET, "training.memory=recompute_all"), needs=_NEEDS,
    ),
    Contender(
        "without_resident", "no resident copies of frozen weights", "ours", _BUDGET, ("resident",),
        (*_NEEDS, "finetune.model.frozen_weights"),
    ),
    Contender("without_lean", "PEFT's own forward instead of the lean path", "ours", _BUDGET, ("lean",), _NEEDS),
    Contender(
        "without_lean_elementwise", "norms and MLPs as transformers has them", "ours", _BUDGET, ("lean_elementwise",),
        (*_NEEDS, "finetune.model.lean_elementwise"),
    ),
    Contender(
        "without_document_attention", "SDPA over the whole row (attention: sdpa)", "ours",
        (*_BUDGET, "model.attention=sdpa"), needs=(*_NEEDS, "model.attention=documents"),
    ),
    Contender(
        "without_trained_loss", "TRL's loss in chunks, the head's product made twice", "ours", _BUDGET,
        ("trained_loss",), _NEEDS,
    ),
    Contender(
        "loss_over_all_logits", "the model's own loss over all logits (loss_type: nll)", "ours",
        (*_BUDGET, "training.loss_type=nll"), needs=_NEEDS,
    ),
)  # fmt: skip

_PAIR_BATCH = (*_ROW_BATCH, "data.max_length={max_tokens}")
_TRL_PAIRS = ("--objective=dpo", *_TRL_ALONE)
DPO = (
    Contender(OURS, "ours, whole", "ours", _PAIR_BATCH, needs=_NEEDS[1:]),
    Contender(
        "cached_reference", "ours with a cached reference", "ours",
        (*_PAIR_BATCH, "training.precompute_ref_log_probs=true"), needs=_NEEDS[1:],
    ),
    Contender(
        "recompute_all", "ours, everything recomputed", "ours", (*_PAIR_BATCH, "training.memory=recompute_all"),
        needs=_NEEDS[1:],
    ),
    Contender("without_lean", "ours with PEFT's own forward", "ours", _PAIR_BATCH, ("lean",), _NEEDS[1:]),
    Contender(
        "without_shared_prompts", "ours, prompts computed for each answer", "ours",
        (*_PAIR_BATCH, "data.share_prompts=never"), needs=(*_NEEDS[1:], "data.share_prompts"),
    ),
    Contender("trl", "TRL as it comes: checkpointing", "trl", _TRL_PAIRS),
    Contender(
        "trl_kept", "TRL, checkpointing off, cached reference", "trl",
        (*_TRL_PAIRS, "--no-checkpointing", "--cached-reference"),
    ),
    Contender("unsloth", "Unsloth, default", "unsloth", _TRL_PAIRS),
    Contender("unsloth_tuned", "Unsloth, tuned", "unsloth", (*_TRL_PAIRS, "--tuned")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        group: what it is measured for.
        objective: sft or dpo.
        full_tokens: tokens of every row; None: short rows.
        shape: the base.
        contenders: the first is what the others are held against.
    """

    group: Group
    objective: Literal["sft", "dpo"]
    full_tokens: int | None
    shape: Shape
    contenders: tuple[Contender, ...]

    @property
    def name(self) -> str:
        """Its name in the store."""
        rows = "short" if self.full_tokens is None else f"full_{self.full_tokens}"
        return f"{self.group}/{self.objective}/{rows}/{self.shape.name}"

    @property
    def learning_rate(self) -> float:
        """At its peak; pairs want a twentieth of what texts do, with which they would leave the start for good."""
        return self.shape.learning_rate / (20 if self.objective == "dpo" else 1)

    @property
    def is_refereed(self) -> bool:
        """Whether the adapters' held-out losses are compared: between tools, where a seed changes something."""
        return self.group in ("targets", "dpo")

    def to_sizes(self, sizes: StepSizes) -> dict[str, Any]:
        """Name what the braces of settings stand for."""
        return asdict(sizes) | {"max_tokens": self.full_tokens or self.shape.max_tokens}


def build_lines(shapes: Sequence[Shape], device: Literal["cpu", "cuda"]) -> list[Line]:
    """List the lines in the order of what they are worth: what has a target first."""
    unsloth = (
        Contender("unsloth", "Unsloth, default", "unsloth", _UNSLOTH[device]),
        Contender("unsloth_tuned", "Unsloth, tuned", "unsloth", (*_UNSLOTH[device], "--tuned")),
    )
    with_target = [shape for shape in shapes if shape.name not in ("small", "small_8k")]  # of long rows alone
    # Ideas show on the largest shape whose steps are short: on a CPU 125M, on a GPU the 7B.
    of_ideas = [shape for shape in shapes if shape.name in ("mistral_125m", "tiny_base", "mistral_7b")]
    lines = [
        Line("targets", "sft", None, shape, (WHOLE, TRL_ALONE, TRL_PACKED, TRL_BEST, *unsloth)) for shape in with_target
    ]
    lines += [Line("ideas", "sft", None, shape, (WHOLE, *ABLATIONS)) for shape in of_ideas]
    lines += [Line("dpo", "dpo", None, shape, DPO) for shape in of_ideas]
    lines += [
        Line("full", "sft", tokens, shape, (WHOLE, TRL_PACKED, TRL_BEST, *unsloth))
        for shape in shapes
        for tokens in shape.full_tokens
    ]
    return lines


def find_missing(contender: Contender) -> str | None:
    """Find what a contender needs and this checkout has not got; None: all is there."""
    return next((need for need in contender.needs if not _is_there(need)), None)


def _is_there(need: str) -> bool:
    if need.startswith("finetune."):
        return importlib.util.find_spec(need) is not None
    sections: dict[str, type[Section]] = {"data": DataSettings, "model": ModelSettings, "training": TrainingSettings}
    place, _, choice = need.partition("=")
    section, field = place.split(".")
    info = sections[section].model_fields.get(field)
    return info is not None and (not choice or choice in str(info.annotation))


def find_base(shape: Shape, data_dir: Path, root: Path) -> Path | None:
    """Find a shape's folder; None where its weights are drawn, or where nothing is there (see `is_drawn`)."""
    folders: Iterable[Path] = (root / shape.base, data_dir / shape.base)
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def is_drawn(shape: Shape, root: Path) -> bool:
    """Whether a recipe of benchmarks/recipes says what its random weights are."""
    return (root / "benchmarks" / "recipes" / f"{shape.base}.yaml").is_file()
