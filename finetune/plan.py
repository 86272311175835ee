"""Plan a run before it is paid for: memory by part, steps, hours, price, what fits where; no weight is loaded.

`python -m finetune.plan RECIPE [KEY=VALUE ...] [--device NAME] [--price DOLLARS] [--tflops N] [--json]`
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from finetune.cli import run_verb
from finetune.recipe.reading import read_recipe_with_notices

__all__ = ["main"]

EPILOG = """\
Example:
  python -m finetune.plan recipes/mistral_alpaca.yaml
  python -m finetune.plan recipes/mistral_alpaca.yaml --device t4 training.per_device_train_batch_size=4
  python -m finetune.plan recipes/llama2_13b_alpaca.yaml --device a100-40gb --price 1.10 --json

Devices: t4, l4, rtx4090, a100-40gb, a100-80gb, h100, h200, and cpu, which is this machine's.
Neither a GPU nor the weights are needed. docs/plan.md explains what is counted and what is assumed."""


def plan(
    recipe: Annotated[Path, typer.Argument(help="The YAML file of the run.", metavar="RECIPE", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings overriding the recipe's.", metavar="SECTION.KEY=VALUE", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Plan for this device; by default this machine's GPU, or the smallest in the table on which it fits.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1e6,
            help="US dollars that the device costs per hour, instead of the table's.",
            metavar="DOLLARS",
            show_default=False,
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            max=1e6,
            help="TFLOP/s that whole steps reach on this CPU, which no table knows; a finished run measures it.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object and nothing else.")] = False,
) -> None:
    """Plan a run before it is paid for: memory by part, steps, hours, price, what fits where; no weight is loaded."""
    reading = read_recipe_with_notices(recipe, overrides or [])
    for notice in reading.notices:
        print(notice, file=sys.stderr)

    from finetune.budget.devices import CPU, find_device
    from finetune.planning.console import print_plan, to_text
    from finetune.planning.estimate import estimate_plan
    from finetune.planning.machine import find_cpu

    wanted = None
    if device is not None and device.lower() != CPU:
        wanted = find_device(device)
        if tflops is not None:
            raise typer.BadParameter(f"--tflops is a CPU's speed; that of {wanted.name} is in the table.")
    elif device is not None or tflops is not None:
        wanted = find_cpu(teraflops=tflops)
    planned = estimate_plan(reading.recipe, device=wanted, recipe_path=recipe, price_per_hour=price)
    if as_json:
        print(to_text(planned))
    else:
        print_plan(planned, reading.recipe)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb."""
    run_verb(plan, arguments, epilog=EPILOG)


if __name__ == "__main__":
    main()
