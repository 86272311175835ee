"""loss.png: the curves of a run against steps: training and held-out loss, and what else the objective watches.

Goes in: its metrics.jsonl. Comes out: one picture, made without touching matplotlib's global state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.run.metrics import read_metrics

__all__ = ["write_loss_plot"]

Panel = tuple[str, tuple[tuple[str, str], ...]]

_SMOOTHED_FROM = 60  # points from which a smoothed line is drawn over the raw one
# What is drawn below the loss where a run has it: the axis' name, and each curve's key in metrics.jsonl with its label.
_PANELS: tuple[Panel, ...] = (
    ("reward margin", (("rewards/margins", "training"), ("eval_rewards/margins", "held out"))),
    ("score margin", (("margin", "training"), ("eval_margin", "held out"))),
    ("share of pairs right", (
        ("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held out"),
        ("accuracy", "training"), ("eval_accuracy", "held out"),
    )),
    ("log-probability (nats)", (("logps/chosen", "chosen"), ("logps/rejected", "rejected"))),
    ("reward", (("reward", "training"), ("eval_reward", "held out"))),
    ("score", (("eval_score", "held out"),)),
    ("KL from the start (nats)", (("kl", "training"),)),
    ("tokens of an answer", (("completions/mean_length", "training"),)),
)  # fmt: skip
_COLOURS = ("#4477aa", "#cc6633")


def write_loss_plot(metrics_path: Path, png_path: Path) -> None:
    """Draw a panel for the loss, and one for each further figure that the run logged; nothing without a loss."""
    # Half a second of import that only the end of a run needs. `Figure` alone touches no global state.
    from matplotlib.figure import Figure

    lines = read_metrics(metrics_path)
    if not _read_curve(lines, "loss") and not _read_curve(lines, "eval_loss"):
        return
    panels: list[Panel] = [("loss (nats per token)", (("loss", "training"), ("eval_loss", "held out")))]
    panels += [panel for panel in _PANELS if any(_read_curve(lines, key) for key, _ in panel[1])]
    if len(panels) > 1 or any(key.startswith(("preference_", "eval_reward")) for line in lines for key in line):
        panels[0] = ("loss", panels[0][1])  # of a preference or of a reward, whose unit is not a token's
    figure = Figure(figsize=(8, 4.5 + 2.5 * (len(panels) - 1)), dpi=120, layout="constrained")
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, curves) in zip(all_axes, panels, strict=True):
        drawn = [(label, curve) for key, label in curves if (curve := _read_curve(lines, key))]
        for colour, (label, curve) in zip(_COLOURS, drawn, strict=False):
            _draw(axes, curve, label, colour)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    held_out = _read_curve(lines, "eval_loss")
    if held_out:
        best = min(held_out, key=lambda point: point[1])
        all_axes[0].annotate(f"{best[1]:.3f}", best, xytext=(0, 7), textcoords="offset points", ha="center",
                             color=_COLOURS[1])  # fmt: skip
    all_axes[0].set_title(f"Curves of {metrics_path.parent.name}")
    all_axes[-1].set_xlabel("optimizer step")
    figure.savefig(png_path)


def _read_curve(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def _draw(axes: Any, curve: Sequence[tuple[int, float]], label: str, colour: str) -> None:
    """Draw one curve: few points with a mark each, many with a smoothed line over them."""
    steps, values = zip(*curve, strict=True)
    is_long = len(curve) >= _SMOOTHED_FROM
    marker = "o" if label == "held out" else "." if len(curve) == 1 else None
    axes.plot(steps, values, color=colour, linewidth=1, alpha=0.3 if is_long else 1.0, marker=marker, label=label)
    if is_long:
        axes.plot(steps, _smooth(values), color=colour, linewidth=2, label=f"{label}, smoothed")


def _smooth(losses: tuple[float, ...]) -> list[float]:
    """Exponential mean over about a thirtieth of the run, without the pull towards a start at 0."""
    keep = 1 - 1 / max(2.0, len(losses) / 30)
    smoothed, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed
