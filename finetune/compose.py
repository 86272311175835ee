"""Make several adapters of one base into one: a weighted sum, TIES or DARE.

`python -m finetune.compose ADAPTER ADAPTER... --to DIR [--how cat] [--weights 0.5,0.5]`
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from finetune.cli import run_verb
from finetune.errors import RecipeError
from finetune.recipe.composing import How, MajoritySign

__all__ = ["main"]

EPILOG = """\
Examples:
  python -m finetune.compose outputs/poems outputs/law --to outputs/both
  python -m finetune.compose outputs/poems outputs/law --to outputs/both --how ties_svd --density 0.5 --weights 1,1
  python -m finetune.compose outputs/poems outputs/law --to outputs/less_law --weights 1,-0.5

How, on the change dW that each LoRA makes to a layer's weights:
  cat                        the weighted sum, exactly; the ranks add up (the default for LoRA)
  svd                        the same, cut to --rank, or to the largest rank of the adapters
  linear                     sums A and B matrices apart: cheap, and what lies between them (cross terms) comes in;
                             for IA3 the only one, and there exact
  ties, magnitude_prune      keep the largest numbers (--density) of A and of B; ties lets them vote on the sign
  dare_linear, dare_ties     drop numbers at random (--seed) and scale up the others
  ..._svd                    the same on dW in place of A and B, then as svd"""


def compose(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Two or more: run folders, adapter folders, or Hub names, all on the same base.",
            metavar="ADAPTER",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path, typer.Option("--to", help="The new adapter's folder, absent or empty.", metavar="DIR", show_default=False)
    ],
    how: Annotated[
        How | None, typer.Option(help="See below; by default cat for LoRA, linear for IA3.", show_default=False)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="One number per adapter, separated by commas; with cat and svd, one below 0 takes its change away. By "
            "default equal ones that sum to 1.",
            metavar="W,W...",
            show_default=False,
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Share of the numbers kept by ties, dare and magnitude_prune.", show_default=False),
    ] = None,
    majority_sign: Annotated[
        MajoritySign,
        typer.Option(help="With ties: a number's sign is voted by the sum, or one adapter one vote."),
    ] = "total",
    rank: Annotated[
        int | None, typer.Option(min=1, help="With svd: the rank of the result.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="With dare: draws what is dropped.")] = 42,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object: the folder and how it was made.")] = False,
) -> None:
    """Make several adapters of one base into one: a weighted sum, TIES or DARE."""
    typed = _read_weights(weights, len(adapters))

    from finetune.model.composable import Manner
    from finetune.model.composition import compose_adapters  # torch and the libraries: seconds
    from finetune.model.targets import find_target
    from finetune.run.logging import log_to_console

    with log_to_console():
        targets = [find_target(adapter) for adapter in adapters]
        chosen = how or ("linear" if targets[0].method == "ia3" else "cat")
        manner = Manner(chosen, typed, density, majority_sign, rank, seed)
        found_rank = compose_adapters(targets, manner, to)
    if as_json:
        made = {"adapters": adapters, "weights": typed, "how": chosen, "density": density, "rank": found_rank or None}
        print(json.dumps({"folder": str(to)} | made))
        return
    parts = " + ".join(f"{weight:g} x {adapter}" for adapter, weight in zip(adapters, typed, strict=True))
    held = targets[0].base.quantization
    print(
        f"{to}: {parts}, by {chosen}{f', rank {found_rank}' if found_rank else ''}.\n"
        f"Talk to it: python -m finetune.chat {to}" + (f" --quantization {held}" if held != "none" else "")
    )


def _read_weights(typed: str | None, num_adapters: int) -> tuple[float, ...]:
    if typed is None:
        return tuple([1 / num_adapters] * num_adapters)
    try:
        return tuple(float(number) for number in typed.split(","))
    except ValueError as error:
        raise RecipeError(
            f"--weights wants numbers separated by commas; found `{typed}`.\n  E.g. --weights 0.7,0.3"
        ) from error


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb."""
    run_verb(compose, arguments, epilog=EPILOG)


if __name__ == "__main__":
    main()
