"""The table of a comparison, as Markdown, as CSV and as lines for the console.

In go rows and results; a row a method with its best choice, then every choice, then whatever has no score. Numbers
that are shares (accuracy, F1, correlations) are shown times 100, as the literature of GLUE does.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.comparison.cells import Cell
from finetune.comparison.folder import Result
from finetune.comparison.scores import Row, Spread, find_best, is_lower_better, read_score

__all__ = [
    "Findings",
    "build_columns",
    "describe",
    "list_unfinished",
    "name_recipes",
    "pick_best_rows",
    "render_csv",
    "render_markdown",
    "to_cells",
    "to_words",
]

_COST_COLUMNS = ("trainable", "share", "peak memory", "seconds", "result on disk")


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the tables, the plot and the page are made from.

    Attributes:
        name: of the comparison.
        score: figure of summary.json that is compared.
        reference: the method that differences are taken to.
        tasks: in their order; one without a name where the comparison has none.
        methods: in their order.
        seeds: of every run in full.
        rows: of every point that is run in full.
        results: of the runs in full.
        probes: of the short runs.
        recommended: the row to begin with; None while nothing is scored.
        unmeasured: names of the choices that the time of the short runs was not enough for.
    """

    name: str
    score: str
    reference: str | None
    tasks: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    rows: Sequence[Row]
    results: Sequence[Result]
    probes: Sequence[Result]
    recommended: Row | None
    unmeasured: Sequence[str] = ()


def name_recipes(stem: str, findings: Findings) -> dict[str, str]:
    """The file of a recipe for each task: `STEM.yaml`, with tasks `STEM.TASK.yaml`."""
    return {task: f"{stem}.{task}.yaml" if task else f"{stem}.yaml" for task in findings.tasks}


def pick_best_rows(findings: Findings) -> list[Row]:
    """The best row of each method that has a score, in the methods' order."""
    best = [
        find_best([row for row in findings.rows if row.point.method == method], findings.score)
        for method in findings.methods
    ]
    return [row for row in best if row is not None]


def build_columns(findings: Findings) -> list[str]:
    """The names of the columns, as `to_cells` fills them."""
    columns = ["method"]
    columns += [task or findings.score for task in findings.tasks]
    if len(findings.tasks) > 1:
        columns.append("average")
    if findings.reference is not None:
        compared = f"to {findings.reference} (± s.e.)"
        columns += (
            [f"{name} {compared}" for name in (*findings.tasks, "average")] if len(findings.tasks) > 1 else [compared]
        )
    if any(row.majority for row in findings.rows):
        columns.append("majority")
    columns += _COST_COLUMNS
    if any(row.forgetting is not None for row in findings.rows):
        columns.append("forgetting (nats/token)")
    return [*columns, "settings"]


def to_cells(row: Row, findings: Findings, *, name: str | None = None) -> list[str]:
    """A row's text in each column."""
    score = findings.score
    cells = [name or row.point.method]
    cells += [_show(row.by_task.get(task, Spread.of([])), score) for task in findings.tasks]
    if len(findings.tasks) > 1:
        cells.append(_show(row.average, score))
    if findings.reference is not None:
        if len(findings.tasks) > 1:
            cells += [_show_difference(row.differences.get(task), score) for task in findings.tasks]
        cells.append(_show_difference(row.difference, score))
    if any(other.majority for other in findings.rows):
        always = [f"{100 * row.majority[task]:.1f}" if task in row.majority else "–" for task in findings.tasks]
        cells.append(" / ".join(always))
    cells += [
        "–" if row.trainable_parameters is None else f"{row.trainable_parameters:,}",
        "–" if row.trainable_fraction is None else f"{row.trainable_fraction:.2%}",
        "–" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:,.0f} MiB",
        "–" if row.seconds is None else f"{row.seconds:,.0f}",
        "–" if row.adapter_bytes is None else f"{row.adapter_bytes / 1e6:.2f} MB",
    ]
    if any(other.forgetting is not None for other in findings.rows):
        cells.append("–" if row.forgetting is None else f"{row.forgetting:+.3f}")
    return [*cells, _to_settings(row.point.chosen)]


def render_markdown(findings: Findings) -> str:
    """The whole table.md."""
    columns = build_columns(findings)
    lines = [f"# {findings.name}", "", *(f"{line}  " for line in describe(findings)), ""]
    lines += _render_rows(columns, [to_cells(row, findings) for row in pick_best_rows(findings)])
    if findings.recommended is not None:
        point = findings.recommended.point
        chosen = _to_settings(point.chosen)
        files = ", ".join(f"`{file}`" for file in name_recipes("recommended", findings).values())
        lines += ["", f"Recommended: **{point.method}**{f' ({chosen})' if chosen != '–' else ''}, in {files}."]
    if len(findings.rows) > len({row.point.method for row in findings.rows}):
        lines += ["", "## Every choice", ""]
        lines += _render_rows(columns, [to_cells(row, findings, name=row.point.name) for row in findings.rows])
    if findings.probes:
        lines += ["", "## Short runs", "", *_render_probes(findings)]
    unfinished = list_unfinished(findings)
    if unfinished:
        lines += ["", "## Without a score", "", *(f"- {line}" for line in unfinished)]
    return "\n".join(lines) + "\n"


def describe(findings: Findings) -> list[str]:
    """Say what the numbers are, in sentences."""
    seeds = ", ".join(map(str, findings.seeds))
    times = "times 100, " if _is_share(findings.score) else ""
    better = "lower is better" if is_lower_better(findings.score) else f"{times}higher is better"
    lines = [
        f"`{findings.score}` ({better}), mean ± sample standard deviation over the seeds {seeds}."
        if len(findings.seeds) > 1
        else f"`{findings.score}` ({better}) of one seed ({seeds}): no deviation can be told.",
        "Of each method the choice of its grid with the best mean, chosen on the held-out rows that are reported here; "
        "the score on rows that nothing was chosen on will be a little lower.",
    ]
    if len(findings.tasks) > 1:
        lines.append("The average is over the tasks, seed by seed; one choice per method stands for all tasks.")
    if findings.reference is not None:
        lines.append(
            f"Differences to the best choice of {findings.reference} are paired by seed, and by task, and given with "
            "their standard error (sample deviation / sqrt n)."
        )
    if findings.unmeasured:
        lines.append(
            f"The time of the short runs was spent before all were measured: {', '.join(findings.unmeasured)}."
        )
    return lines


def _render_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---" if column in ("method", "settings") else "---:" for column in columns]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def _render_probes(findings: Findings) -> list[str]:
    """A line for every short run: steps and score."""
    rows = []
    for result in findings.probes:
        cell, value = result.cell, read_score(result.summary, findings.score)
        state = "not measured" if cell.point.name in findings.unmeasured and result.state != "failed" else result.state
        shown = state if value is None else _show_number(value, findings.score)
        rows.append([cell.point.name, cell.task or "–", str(cell.probe_steps), shown])
    return _render_rows(["method", "task", "steps", findings.score], rows)


def list_unfinished(findings: Findings) -> list[str]:
    """A line for every run that has no score, with the reason."""
    lines = []
    for result in [*findings.probes, *findings.results]:
        if result.state == "done" and read_score(result.summary, findings.score) is None:
            lines.append(f"{result.cell.name}: finished, and its summary has no `{findings.score}`")
        elif result.state != "done":
            lines.append(f"{result.cell.name}: {result.state}{f': {result.reason}' if result.reason else ''}")
    return lines


def to_words(row: Row, findings: Findings) -> str:
    """A row in a line: method, choice and score."""
    chosen = _to_settings(row.point.chosen)
    scored = _show(row.average, findings.score)
    return f"{row.point.method}{f' with {chosen}' if chosen != '–' else ''}, {findings.score} {scored}"


_FIGURES = (
    "trainable_parameters", "total_parameters", "peak_memory_bytes", "seconds", "adapter_bytes", "steps",
    "majority_score", "eval_loss_before", "eval_loss", "general_loss_before", "general_loss",
)  # fmt: skip


def render_csv(findings: Findings) -> str:
    """Every run in full and every short one, a line each; scores as they are in summary.json, not times 100."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["cell", "stage", "task", "method", "settings", "seed", "state", findings.score, *_FIGURES, "reason"]
    )
    for result in [*findings.probes, *findings.results]:
        cell, summary = result.cell, result.summary
        figures = [_to_field(summary.get(name)) for name in _FIGURES]
        score = _to_field(read_score(summary, findings.score))
        writer.writerow([*_identify(cell), result.state, score, *figures, result.reason])
    return out.getvalue()


def _identify(cell: Cell) -> list[Any]:
    stage = "full" if cell.probe_steps is None else f"probe {cell.probe_steps}"
    chosen = json.dumps(dict(cell.point.chosen), ensure_ascii=False)
    return [cell.name, stage, cell.task, cell.point.method, chosen, cell.seed]


def _to_field(value: Any) -> Any:
    return "" if value is None else value


# ---- numbers


def _is_share(score: str) -> bool:
    return score in ("score", "exact_match", "preference_accuracy") or score.startswith("scores.")


def _show(spread: Spread, score: str) -> str:
    """A mean and its deviation: shares times 100 with one decimal, else four digits."""
    if spread.mean is None:
        return "–"
    deviation = "" if spread.deviation is None else f" ± {_show_number(spread.deviation, score)}"
    return f"{_show_number(spread.mean, score)}{deviation}"


def _show_number(value: float, score: str, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}" if _is_share(score) else f"{value:{sign}.4f}"


def _show_difference(difference: Spread | None, score: str) -> str:
    if difference is None or difference.mean is None:
        return "–"
    error = difference.standard_error
    return f"{_show_number(difference.mean, score, '+')}{'' if error is None else f' ± {_show_number(error, score)}'}"


def _to_settings(chosen: Mapping[str, Any]) -> str:
    """A choice in a line: `r 8, learning_rate 0.001`."""
    if not chosen:
        return "–"
    return ", ".join(f"{key.rpartition('.')[2]} {json.dumps(value).strip(chr(34))}" for key, value in chosen.items())
