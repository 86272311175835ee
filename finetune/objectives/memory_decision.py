"""A decision on idle memory as it is told in a line, and as a checkpoint carries it."""

import json
from dataclasses import dataclass
from pathlib import Path

from finetune.budget.memory import to_gib
from finetune.budget.spending import Spending, to_spending
from finetune.objectives.training_state import refused_as_state

__all__ = ["Decision", "describe", "read_decision", "write_decision"]

DECISION_NAME = "memory_decision.json"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a run goes on with.

    Attributes:
        spending: of the memory.
        max_layers: layers that may keep anything since memory ran out; None: it never did.
        is_news: whether the log is yet to say so.
        device: that it was taken on, by `free_memory.name_memory`.
    """

    spending: Spending
    max_layers: int | None
    is_news: bool
    device: str


def write_decision(folder: Path, decision: Decision) -> None:
    """Write a decision into a checkpoint."""
    values = {
        "spending": decision.spending.to_json(),
        "max_layers": decision.max_layers,
        "is_news": decision.is_news,
        "device": decision.device,
    }
    (folder / DECISION_NAME).write_text(json.dumps(values) + "\n", encoding="utf-8")


def read_decision(folder: Path) -> Decision | None:
    """Read the decision of a checkpoint; None where it holds none.

    Raises:
        CheckpointError: the file holds something else.
    """
    path = folder / DECISION_NAME
    if not path.exists():
        return None
    with refused_as_state(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        spending, max_layers = to_spending(values["spending"]), values["max_layers"]
        if not isinstance(max_layers, int | None):
            raise ValueError("it is not a decision on memory")
        return Decision(spending, max_layers, bool(values["is_news"]), str(values["device"]))


def describe(
    spending: Spending,
    *,
    num_weights: int,
    free_bytes: int | None = None,
    measured_bytes: int | None = None,
    predicted_bytes: int | None = None,
) -> str:
    """Say a decision in one line.

    Args:
        spending: the decision.
        num_weights: 4-bit weights that could be kept in full.
        free_bytes: before anything was spent.
        measured_bytes: that the measured step held.
        predicted_bytes: that it was estimated to hold.
    """
    said = []
    if spending.num_layers:
        layers = f"{spending.num_kept} of {spending.num_layers} layers recompute nothing"
        if spending.num_mlp_kept:
            layers += f", {spending.num_mlp_kept} their attention alone"
        if spending.num_attention_kept:
            layers += f", {spending.num_attention_kept} their MLP alone"
        if spending.num_recomputed:
            layers += f", {spending.num_recomputed} everything"
        said.append(f"{layers} (+{to_gib(spending.layer_bytes)})")
    if num_weights:
        copies = f"{spending.num_resident} of {num_weights} 4-bit weights kept in full"
        said.append(f"{copies} (+{to_gib(spending.resident_bytes)})")
    if not said:
        said.append("nothing to spend it on")
    if free_bytes is not None:
        said.append(f"{to_gib(free_bytes)} were free")
    if measured_bytes is not None:
        predicted = "" if predicted_bytes is None else f", {to_gib(predicted_bytes)} predicted"
        said.append(f"a step held {to_gib(measured_bytes)}{predicted}")
    return "; ".join(said)
