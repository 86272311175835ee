"""What a result is worth: its figures for a machine, and in the lines that a person reads."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.measuring import Measured, to_figures
from finetune.model.targets import Target
from finetune.prepare import Prepared
from finetune.recipe.schema import Recipe

__all__ = ["Evaluation", "render_evaluation"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run's result is worth.

    Attributes:
        recipe: of the run, with what was set otherwise.
        target: the result that was measured.
        prepared: the rows it was measured on.
        result: its figures.
        base: those of the base without its adapter, where they were asked for.
    """

    recipe: Recipe
    target: Target
    prepared: Prepared
    result: Measured
    base: Measured | None

    def to_object(self) -> dict[str, Any]:
        """Name all of it for a machine: `result` and `base` as metrics.jsonl names figures, and the answers."""
        return {
            "name": self.target.name,
            "objective": self.recipe.objective,
            "rows": self.num_rows,
            "questions": len(self.prepared.questions),
            "result": _without_nan(to_figures(self.result)),
            "base": None if self.base is None else _without_nan(to_figures(self.base)),
            "answers": [
                {"asked": one.question.asked, "answer": one.answer, "right": one.question.reference, "score": one.score}
                for one in self.result.samples
            ],
        }

    @property
    def num_rows(self) -> int:
        """Number of held-out rows, of all parts of a task: documents where they are packed, pairs where compared."""
        if self.prepared.labelled is not None:
            return sum(len(rows.dataset) for rows in self.prepared.labelled.held_out.values())
        held_out = self.prepared.held_out
        return 0 if held_out is None else int(held_out.report["census"]["rows"])


def _without_nan(figures: Mapping[str, float]) -> dict[str, float | None]:
    """The figures as JSON can hold them."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def render_evaluation(found: Evaluation) -> str:
    """Lay the figures out, a line each; with a base its figure stands in front."""
    figures = to_figures(found.result)
    before: Mapping[str, float] = {} if found.base is None else to_figures(found.base)
    rows = []
    for name, (said, to_text) in _IN_WORDS.items():
        if name in figures:
            change = f"{to_text(before[name])} -> " if name in before else ""
            rows.append((said, f"{change}{to_text(figures[name])}{_say_of(name, found)}"))
    for name, value in figures.items():
        if name.startswith("eval_scores/"):
            rows.append((name.removeprefix("eval_scores/").replace("_", " "), f"{value:.4f}"))
    width = max((len(said) for said, _ in rows), default=0)
    return "\n".join(f"{said:<{width}}  {text}" for said, text in rows)


def _say_of(name: str, found: Evaluation) -> str:
    """Say how many were measured, and a loss per token as a perplexity."""
    match name:
        case "eval_loss" if _is_of_tokens(found.recipe):
            perplexity = math.exp(min(found.result.held_out["eval_loss"], 700.0))
            return f" nats per token, perplexity {perplexity:,.3f}, {found.num_rows:,} rows"
        case "eval_loss" | "eval_reward":
            return f", {found.num_rows:,} rows"
        case "exact_match":
            return f" of {len(found.prepared.questions):,} questions"
        case "preference_accuracy" if found.prepared.pairs is not None:
            return f" of {len(found.prepared.pairs.dataset):,} pairs"
    return ""


def _is_of_tokens(recipe: Recipe) -> bool:
    """Whether the loss is the mean of what each token costs, and nothing else is in it."""
    fields = recipe.training.fields
    is_plain = fields.get("loss_type", "nll") in ("nll", "chunked_nll") and not fields.get("label_smoothing_factor")
    return recipe.objective in ("sft", "pretrain") and is_plain


def _to_number(value: float) -> str:
    return f"{value:.4f}"


def _to_share(value: float) -> str:
    return f"{value:.1%}"


# Figures by their name in metrics.jsonl: what they are called on a console, and how they are written.
_IN_WORDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "eval_loss": ("held-out loss", _to_number),
    "eval_reward": ("held-out reward", _to_number),
    "eval_score": ("held-out score", _to_number),
    "exact_match": ("exact match", _to_share),
    "answer_tokens": ("tokens of an answer", lambda value: f"{value:.1f}"),
    "preference_accuracy": ("pairs told apart", _to_share),
    "preference_margin": ("their margin", lambda value: f"{value:+.3f}"),
    "general_loss": ("loss of general text", _to_number),
}
