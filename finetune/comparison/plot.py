"""plot.png: score against trainable parameters, the form in which the literature of GLUE compares methods.

In go rows, out comes one picture: a panel a task, a line a method over its sizes, bands of three standard deviations,
the majority's score as a dashed line. matplotlib's global state is left alone.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune.comparison.scores import Row, find_best
from finetune.comparison.table import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["build_figure", "draw_plot"]

_BAND = 3.0  # standard deviations to each side
_MAJORITY = "always the commonest label"
# Told apart by form as well as by colour.
_MARKERS = "osD^v<>ph*PX"
_COLOURS = (
    "#4477aa", "#cc6633", "#228833", "#aa3377", "#66aacc", "#999933", "#222222", "#ee99aa", "#7755bb", "#888888",
)  # fmt: skip


def draw_plot(findings: Findings) -> bytes:
    """Draw the picture.

    Returns:
        A PNG file's content.
    """
    out = io.BytesIO()
    build_figure(findings).savefig(out, format="png")
    return out.getvalue()


def build_figure(findings: Findings) -> "Figure":
    """Build the picture: a panel for each task; without any score they are empty."""
    # Half a second of import. `Figure` alone touches no global state.
    from matplotlib.figure import Figure

    num_tasks = len(findings.tasks)
    figure = Figure(figsize=(max(7.5, 5.0 * num_tasks + 2.0), 5.0), dpi=120, layout="constrained")
    panels = figure.subplots(1, num_tasks, squeeze=False)[0]
    for axes, task in zip(panels, findings.tasks, strict=True):
        for number, method in enumerate(findings.methods):
            rows = [row for row in findings.rows if row.point.method == method]
            _draw_method(axes, _pick_sizes(rows, findings.score), task, method, number)
        majorities = [row.majority[task] for row in findings.rows if task in row.majority]
        if majorities:
            axes.axhline(majorities[0], color="#444444", linestyle="--", linewidth=1, label=_MAJORITY)
        axes.set_xscale("log")
        axes.set_xlabel("trainable parameters")
        axes.set_ylabel(findings.score)
        axes.set_title(task or findings.name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    # A method may have its scores on some tasks alone.
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        order = [name for name in (*findings.methods, _MAJORITY) if name in named]
        figure.legend([named[name] for name in order], order, loc="outside right upper", frameon=False)
    if len(findings.seeds) > 1:
        figure.supxlabel(f"bands and bars: ± 3 standard deviations over {len(findings.seeds)} seeds", fontsize=8)
    return figure


def _pick_sizes(rows: Sequence[Row], score: str) -> list[Row]:
    """Of each number of trainable parameters the best choice, smallest first; the first where none has an average."""
    sizes = sorted({row.trainable_parameters for row in rows if row.trainable_parameters})
    by_size = [[row for row in rows if row.trainable_parameters == size] for size in sizes]
    return [find_best(own, score) or own[0] for own in by_size]


def _draw_method(axes: "Axes", rows: Sequence[Row], task: str, method: str, number: int) -> None:
    """Draw a method: a line with a band where it has several sizes, a point with a bar where it has one."""
    points = [
        (row.trainable_parameters, spread.mean, _BAND * (spread.deviation or 0.0))
        for row in rows
        if (spread := row.by_task.get(task)) is not None and spread.mean is not None
    ]
    if not points:
        return
    sizes, means, bands = zip(*points, strict=True)
    colour = _COLOURS[number % len(_COLOURS)]
    marker = _MARKERS[number % len(_MARKERS)]
    axes.plot(sizes, means, color=colour, marker=marker, linewidth=1.2, label=method)
    if len(points) == 1:
        axes.errorbar(sizes, means, yerr=bands, color=colour, capsize=3, linewidth=1)
    else:
        lows = [mean - band for mean, band in zip(means, bands, strict=True)]
        highs = [mean + band for mean, band in zip(means, bands, strict=True)]
        axes.fill_between(sizes, lows, highs, color=colour, alpha=0.15, linewidth=0)
