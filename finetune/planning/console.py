"""A plan as text: whether it fits, the parts of the memory, every device, and what stands on no count.

In go a `Plan` and its recipe; out comes text. Colour is not used, and the tables are as wide as their content.
"""

import json
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.budget.memory import to_gib
from finetune.budget.spending import Spending
from finetune.planning.planned import DevicePlan, Plan, Verdict
from finetune.planning.schedule import name_rows, packs_rows
from finetune.recipe.schema import Recipe
from finetune.run.disk import to_size
from finetune.run.progress import to_duration

__all__ = ["print_plan", "render_line", "render_verdict", "to_text"]

_GIB = 2**30
_MEANINGS = {
    "weights": "the base as it is held",
    "adapter": "what is trained beside it",
    "gradients": "of what is trained",
    "optimizer": "its states",
    "activations": "kept for the backward pass",
    "logits": "where the loss is computed",
    "buffers": "of the layer in work: its tensors, weights out of 4 bits",
    "fragmentation": "context, libraries and fragments",
}
_REMARKS: Mapping[Verdict, str] = {
    "fits": "",
    "may not fit": ", which may NOT fit: the plan may be wrong by more than is left",
    "does not fit": ", which is MORE than it has",
}
_WORDS: Mapping[Verdict, str] = {"fits": "yes", "may not fit": "maybe", "does not fit": "no"}


def to_text(plan: Plan) -> str:
    """The plan as JSON, one object."""
    return json.dumps(plan.to_json(), allow_nan=False)


def print_plan(plan: Plan, recipe: Recipe) -> None:
    """Print a plan to standard output."""
    console = Console(highlight=False, markup=False, emoji=False, width=120)
    console.print(render_verdict(plan, recipe), soft_wrap=True)
    console.print()
    _print_table(console, f"Peak memory on {plan.chosen.device.label}", _build_parts(plan))
    console.print()
    for name, text in _list_facts(plan, recipe):
        console.print(Text(f"{name:<12}{text}"), soft_wrap=True)
    console.print()
    if plan.others:
        _print_table(console, "Every device of the table", _build_devices(plan))
        console.print("all/part/none: layers that recompute all of their activations, their attention or MLP, nothing")
        console.print()
    for note in (*plan.estimates, *(f"not planned: {one}" for one in plan.not_planned)):
        console.print(Text(f"- {note}"), soft_wrap=True)
    console.print(Text("Assumed, not counted:"))
    for note in plan.assumptions:
        console.print(Text(f"- {note}"), soft_wrap=True)


def render_verdict(plan: Plan, recipe: Recipe) -> str:
    """Whether a run fits, in a line; where it does not, what most of it is and each way out."""
    chosen = plan.chosen
    needs, has = to_gib(chosen.memory.peak_bytes), to_gib(chosen.device.memory_bytes)
    if chosen.verdict == "fits":
        return f"{recipe.name} fits: it needs about {needs}, and {chosen.device.label} has {has}."
    ways = [f"  With {one.to_arguments()} ({one.costs}) it needs {to_gib(one.peak_bytes)}." for one in plan.changes]
    if chosen.verdict == "may not fit":
        first = f"{recipe.name} may not fit: it needs about {needs}, and {chosen.device.label} has {has}."
        return "\n".join([first, "  That is less room than the plan may be wrong by.", *ways])
    parts = chosen.memory.to_json()
    parts["activations"] += parts.pop("logits") + parts.pop("buffers")  # all that grows with the micro-batch
    most = max(parts, key=lambda name: parts[name])
    batch = f" at per_device_train_batch_size {recipe.training.per_device_train_batch_size}"
    lines = [
        f"This recipe needs about {needs} and {chosen.device.label} has {has}.",
        f"  Most of it is {most}: {to_gib(parts[most])}{batch if most == 'activations' else ''}.",
        *ways,
    ]
    if not plan.changes:
        larger = next((one.device.label for one in plan.others if one.fits), None)
        way = f"it fits on {larger}" if larger else "a smaller base would"
        lines.append(f"  No change of batch, length, precision or rank makes it fit; {way}.")
    return "\n".join(lines)


def render_line(plan: Plan) -> str:
    """The plan in one line, for the log of a run."""
    chosen = plan.chosen
    fits = _REMARKS[chosen.verdict]
    unknown = "time not known" if chosen.fits else "no time, as it does not fit"
    seconds = unknown if chosen.seconds is None else f"about {to_duration(chosen.seconds)} of training"
    is_any = chosen.spending.num_kept < chosen.spending.num_layers
    layers = f"; {_name_recomputed(chosen.spending)}" if is_any else ""
    return (
        f"Plan: {plan.schedule.steps:,} steps, {seconds}, peak memory about {to_gib(chosen.memory.peak_bytes)} of "
        f"{to_gib(chosen.device.memory_bytes)} on {chosen.device.label}{fits}{layers}"
    )


def _name_recomputed(spending: Spending) -> str:
    """What is recomputed: `recomputed of 32 layers: 9 nothing, 23 their attention`; kinds without a layer left out."""
    kinds = {
        "nothing": spending.num_kept,
        "their attention": spending.num_mlp_kept,
        "their MLP": spending.num_attention_kept,
        "all": spending.num_recomputed,
    }
    said = [f"{number} {kind}" for kind, number in kinds.items() if number]
    return f"recomputed of {spending.num_layers} layers: {', '.join(said)}"


def _build_parts(plan: Plan) -> Table:
    memory = plan.chosen.memory
    table = _build_table("part", ("GiB", "right"), "what it is")
    for name, num_bytes in memory.to_json().items():
        table.add_row(name, f"{num_bytes / _GIB:.3f}", _MEANINGS[name])
    table.add_row(
        "together", f"{memory.peak_bytes / _GIB:.3f}", f"the device has {plan.chosen.device.memory_bytes / _GIB:.3f}"
    )
    return table


def _list_facts(plan: Plan, recipe: Recipe) -> list[tuple[str, str]]:
    schedule, chosen, rows = plan.schedule, plan.chosen, plan.rows
    spending = chosen.spending
    copies = f"; {spending.num_resident} weights also in the compute dtype" if spending.num_resident else ""
    row_name = "documents" if packs_rows(recipe) else name_rows(recipe.objective, is_packed=False)
    unknown = "not known" if chosen.fits else "none: it does not fit"
    facts = [
        ("rows", f"{rows.num_rows:,} with {rows.num_tokens:,} tokens: {rows.origin}"),
        (
            "steps",
            f"{schedule.steps:,} of {schedule.rows_per_step:,.0f} {row_name}, {schedule.tokens_per_step:,.0f} tokens "
            "each",
        ),
        ("operations", f"{plan.flops:.3g} FLOP"),
        ("time", unknown if chosen.seconds is None else _to_time(plan)),
        ("price", unknown if chosen.cost is None else _to_price(chosen)),
        ("layers", f"{_name_recomputed(spending)}{copies}"),
        ("trained", f"{plan.trainable_parameters:,} of {plan.total_parameters:,} parameters"),
        (
            "disk",
            f"result {to_size(plan.adapter_bytes)}, a checkpoint {to_size(plan.checkpoint_bytes)}, "
            f"at most {to_size(plan.disk_bytes)} in the run's folder",
        ),
        ("base", f"its shape is from {plan.base_from}"),
    ]
    return facts if plan.adapter_from is None else [*facts, ("adapter", plan.adapter_from)]


def _to_time(plan: Plan) -> str:
    assert plan.chosen.seconds is not None and plan.tokens_per_second is not None
    return f"about {to_duration(plan.chosen.seconds)} of training, {plan.tokens_per_second:,.0f} tokens/s"


def _to_price(one: DevicePlan) -> str:
    assert one.cost is not None
    return f"about ${one.cost:,.2f}" if one.cost >= 0.01 else "below a cent"


def _build_devices(plan: Plan) -> Table:
    table = _build_table(
        "device", "fits", ("needs", "right"), ("has", "right"), ("all/part/none", "right"),
        ("hours", "right"), ("price", "right"), ("$/hour", "right"),
    )  # fmt: skip
    for one in plan.others:
        table.add_row(
            one.device.name,
            _WORDS[one.verdict],
            to_gib(one.memory.peak_bytes),
            to_gib(one.device.memory_bytes),
            f"{one.spending.num_recomputed}/{one.spending.num_partly_recomputed}/{one.spending.num_kept}",
            "-" if one.seconds is None else f"{one.seconds / 3600:,.2f}",
            "-" if one.cost is None else f"${one.cost:,.2f}",
            "-" if one.device.price_per_hour is None else f"{one.device.price_per_hour:.2f}",
        )
    return table


def _print_table(console: Console, title: str, table: Table) -> None:
    """Print a table below its title, without the blanks that fill its last column."""
    with console.capture() as captured:
        console.print(table)
    console.print(title)
    for line in captured.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)


def _build_table(*columns: str | tuple[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for column in columns:
        name, justify = column if isinstance(column, tuple) else (column, "left")
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    return table
