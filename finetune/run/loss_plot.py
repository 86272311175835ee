"""loss.png: the curve of a run, training and held-out loss against steps.

Goes in: its metrics.jsonl. Comes out: one picture, made without touching matplotlib's global state.
"""

from pathlib import Path

from finetune.run.metrics import read_metrics

__all__ = ["write_loss_plot"]

_SMOOTHED_FROM = 60  # points from which a smoothed line is drawn over the raw one


def write_loss_plot(metrics_path: Path, png_path: Path) -> None:
    """Draw training and held-out loss against steps; without a logged loss nothing is drawn."""
    # Half a second of import that only the end of a run needs. `Figure` alone touches no global state.
    from matplotlib.figure import Figure

    lines = read_metrics(metrics_path)
    train = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    held_out = [(line["step"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
    if not train and not held_out:
        return
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if train:
        steps, losses = zip(*train, strict=True)
        is_long = len(train) >= _SMOOTHED_FROM
        axes.plot(steps, losses, color="#4477aa", linewidth=1, alpha=0.3 if is_long else 1.0,
                  marker="." if len(train) == 1 else None, label="training")  # fmt: skip
        if is_long:
            axes.plot(steps, _smooth(losses), color="#4477aa", linewidth=2, label="training, smoothed")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#cc6633", linewidth=1.5, marker="o", label="held out")
        best = min(held_out, key=lambda point: point[1])
        axes.annotate(f"{best[1]:.3f}", best, xytext=(0, 7), textcoords="offset points", ha="center", color="#cc6633")
    axes.set_title(f"Loss of {metrics_path.parent.name}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(png_path)


def _smooth(losses: tuple[float, ...]) -> list[float]:
    """Exponential mean over about a thirtieth of the run, without the pull towards a start at 0."""
    keep = 1 - 1 / max(2.0, len(losses) / 30)
    smoothed, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return smoothed
