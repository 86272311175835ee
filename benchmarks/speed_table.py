"""What the speed benchmark says: measurements summed up by line, and the page of them.

In go the store's records; out come medians, ratios of pairs (one contender's and ours of the same round) with their
range, and a Markdown page whose first table holds the targets.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from benchmarks.speed_grid import Contender, Line
from benchmarks.speed_peak import estimate_flops_per_token

__all__ = ["render_page", "sum_up"]

_ROUNDS_TO_JUDGE = 3  # before, it is not said whether a goal is met
_MEDIANS = ("tokens_per_second", "seconds_per_step", "peak_memory_bytes", "rows_per_step", "steps", "steps_timed",
            "tokens_counted_share", "process_seconds")  # fmt: skip


def sum_up(
    line: Line,
    records: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Any],
    config: Mapping[str, Any],
    peak: float | None,
) -> dict[str, Any]:
    """Sum a line up.

    Args:
        line: of the table.
        records: of the store, this line's.
        rows: the rows' figures.
        config: of the base.
        peak: matmul peak of the machine, in operations a second; None: not measured.
    """
    by_contender: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        by_contender.setdefault(record["contender"], {})[record["round"]] = record
    flops = estimate_flops_per_token(
        config, rows["mean_seen_tokens"], rows["trained_fraction"], objective=line.objective
    )
    first = by_contender.get(line.contenders[0].name, {})
    summed = [
        {"name": contender.name, "title": contender.title, "target": contender.target,
         **_sum_contender(contender, by_contender.get(contender.name, {}), first, flops, peak)}
        for contender in line.contenders
    ]  # fmt: skip
    return {
        "line": line.name,
        "group": line.group,
        "objective": line.objective,
        "shape": line.shape.title,
        "full_tokens": line.full_tokens,
        "rows": dict(rows),
        "flops_per_token": round(flops),
        "contenders": summed,
    }


def _sum_contender(
    contender: Contender,
    rounds: Mapping[int, Mapping[str, Any]],
    first: Mapping[int, Mapping[str, Any]],
    flops_per_token: float,
    peak: float | None,
) -> dict[str, Any]:
    """Sum up one contender's rounds, and hold ours of the same rounds against them."""
    good = {number: one for number, one in rounds.items() if "failed" not in one}
    if not good:
        reasons = [one["failed"] for one in rounds.values() if "failed" in one]
        return {"rounds": 0, "failed": reasons[-1] if reasons else None}
    found: dict[str, Any] = {"rounds": len(good)}
    for name in _MEDIANS:
        found[name] = median(one[name] for one in good.values())
    pairs = [
        first[number]["tokens_per_second"] / one["tokens_per_second"]
        for number, one in sorted(good.items())
        if number in first and "failed" not in first[number]
    ]
    found["ours_over_it"] = _to_spread(pairs)
    if peak:
        found["share_of_peak"] = round(found["tokens_per_second"] * flops_per_token / peak, 4)
    planned = {
        "planned_over_measured": [
            one["predicted"]["peak_memory_bytes"] / one["peak_memory_bytes"]
            for one in good.values()
            if one.get("predicted") is not None
        ],
        "activations_planned_over_measured": [
            spent["predicted_step_bytes"] / spent["measured_step_bytes"]
            for one in good.values()
            if (spent := one.get("memory_spending")) and {"predicted_step_bytes", "measured_step_bytes"} <= spent.keys()
        ],
        "speed_planned_over_measured": [
            one["predicted"]["tokens_per_second"] / one["tokens_per_second"]
            for one in good.values()
            if one.get("predicted") is not None and one["predicted"]["tokens_per_second"] is not None
        ],
    }
    found |= {name: round(median(ratios), 4) for name, ratios in planned.items() if ratios}
    steps = {(first[number]["steps"], one["steps"]) for number, one in good.items() if "steps" in first.get(number, {})}
    found["unequal_steps"] = sorted([ours, its] for ours, its in steps if ours != its)
    losses = {number: one["held_out_loss"] for number, one in good.items() if "held_out_loss" in one}
    if losses:
        found["held_out_loss"] = round(mean(losses.values()), 4)
        apart = [
            first[number]["held_out_loss"] - loss
            for number, loss in losses.items()
            if "held_out_loss" in first.get(number, {})
        ]
        found["ours_less_it"] = _to_difference(apart)
        found["loss_spread"] = round(stdev(losses.values()), 4) if len(losses) > 1 else None
    return found


def _to_spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "median": round(median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "rounds": len(values),
    }


def _to_difference(values: Sequence[float]) -> dict[str, float | None] | None:
    """The mean difference over the seeds, and the standard error of it."""
    if not values:
        return None
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": round(mean(values), 5), "standard_error": None if error is None else round(error, 5)}


# ---------------------------------------------------------------- the page


def render_page(lines: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """Render the page: the machine, the targets, then every line with its contenders."""
    parts = ["# Speed: ours beside plain TRL and Unsloth", "", *_render_about(about), ""]
    targets = [line for line in lines if line["group"] == "targets"]
    if targets:
        parts += [*_render_targets(targets), ""]
    for line in lines:
        if any(one["rounds"] or one["failed"] for one in line["contenders"]):
            parts += [*_render_line(line), ""]
    return "\n".join(parts)


def _render_about(about: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    peak = about["matmul_flops_per_second"]
    said = f"Measured matmul peak: {peak / 1e12:.2f} TFLOP/s in bfloat16. " if peak else ""
    return [
        f"Machine: {about['machine']}. {versions}. Code `{about['tree']}`, commit `{about['commit']}`.",
        f"{said}Tokens are real ones: padding does not count. A line's contenders train the same rows once, as many a "
        "step on the mean as whole rows allow, in turn, each in a process of its own; figures are medians over the "
        "rounds, ratios those of pairs of the same round with their range. Peak memory is that of tensors on a GPU. On "
        "a CPU it is the most of the process that was ever resident: pages of Python and the libraries, the loading of "
        "rows and weights, and freed memory that the allocator keeps are in it. The plan that is held against it "
        "counts tensors, and for all of these one fixed sum. Activations, planned from shapes, are alike on both "
        "sides: on a GPU what a step holds at its fullest moment beyond what was there before it, by the allocator; on "
        "a CPU what it keeps for its backward pass, measured in the layers and by arithmetic outside of them. Of a "
        "speed there is a plan from the second run of such work on.",
    ]  # fmt: skip


def _render_targets(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ours over each setting of TRL that a target is set for."""
    goals = [(one["name"], one["title"], one["target"]) for one in lines[0]["contenders"] if one["target"]]
    header = " | ".join(f"over {title}: at least {target}x" for _, title, target in goals)
    rendered = [
        "## Targets (real tokens/s, equal rows a step)",
        "",
        f"| base | {header} | held-out loss, ours less theirs |",
    ]
    rendered.append("|---" * (len(goals) + 2) + "|")
    for line in lines:
        held = {one["name"]: one for one in line["contenders"]}
        cells = [_render_goal(held[name].get("ours_over_it"), target) for name, _, target in goals]
        apart = [_render_apart(held[name]) for name, _, _ in goals]
        rendered.append(f"| {line['shape']} | {' | '.join(cells)} | {'; '.join(apart)} |")
    return rendered


def _render_goal(ratio: Mapping[str, float] | None, target: float) -> str:
    if ratio is None:
        return "not measured"
    if ratio["rounds"] < _ROUNDS_TO_JUDGE:
        return f"{_render_spread(ratio)}, {ratio['rounds']} of {_ROUNDS_TO_JUDGE} rounds"
    return f"{_render_spread(ratio)} {'met' if ratio['median'] >= target else 'not met'}"


def _render_spread(ratio: Mapping[str, float] | None) -> str:
    return "–" if ratio is None else f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"


def _render_apart(one: Mapping[str, Any]) -> str:
    apart = one.get("ours_less_it")
    if apart is None:
        return "–"
    error = "" if apart["standard_error"] is None else f" ± {apart['standard_error']:.4f}"
    return f"{apart['mean']:+.4f}{error}"


def _render_line(line: Mapping[str, Any]) -> list[str]:
    rows = "short rows" if line["full_tokens"] is None else f"rows of {line['full_tokens']:,} tokens"
    figures = line["rows"]
    per_row = figures["tokens"] / figures["num_rows"]
    rendered = [
        f"## {line['shape']}: {line['objective']}, {rows} ({line['group']})",
        "",
        f"{figures['num_rows']} rows of {figures['source']}, {per_row:.0f} tokens each on the mean.",
        "",
        "| | rows a step | steps timed × rounds | real tokens/s | ours over it | peak memory | of the matmul peak "
        "| planned / measured: peak | activations | speed | held-out loss | ours less it |",
        "|" + "---|" * 12,
    ]
    for one in line["contenders"]:
        if not one["rounds"]:
            failed = one["failed"] or "not measured"
            rendered.append(f"| {one['title']} | {failed.replace('|', '/')} |" + " |" * 10)
            continue
        share, loss = one.get("share_of_peak"), one.get("held_out_loss")
        plans = [one.get(f"{name}planned_over_measured") for name in ("", "activations_", "speed_")]
        rendered.append(
            f"| {one['title']} | {one['rows_per_step']:.1f} | {one['steps_timed']:.0f} × {one['rounds']} "
            f"| {one['tokens_per_second']:,.0f} | {_render_spread(one['ours_over_it'])} "
            f"| {one['peak_memory_bytes'] / 2**20:,.0f} MiB | {'–' if share is None else f'{share:.1%}'} "
            f"| {' | '.join('–' if plan is None else f'{plan:.3f}' for plan in plans)} "
            f"| {'–' if loss is None else f'{loss:.4f}'} | {_render_apart(one)} |"
        )
    unequal = [
        f"ours took {ours} steps, {one['title']} {its}"
        for one in line["contenders"]
        for ours, its in one.get("unequal_steps", [])
    ]
    if unequal:
        rendered += ["", f"Rows a step were not equal, the same rows in other numbers of steps: {'; '.join(unequal)}."]
    return rendered
