"""Compare methods, sizes and learning rates by many runs of one recipe: a table, a plot, the best settings.

`python -m finetune.compare RECIPE [key=value ...] [--json] [--overwrite]`
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from finetune.cli import run_verb
from finetune.recipe.comparison import read_comparison

__all__ = ["main"]

EPILOG = """\
Example:
  python -m finetune.compare recipes/compare_small.yaml settings.training.max_steps=60 name=shorter

Stopped, killed or done: the same command goes on, and what is finished is not run again.
docs/compare.md tells every setting."""


def compare(
    recipe: Annotated[
        Path, typer.Argument(help="The YAML file of the comparison.", metavar="RECIPE", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="The comparison's settings; settings.SECTION.KEY=VALUE for the runs'.",
            metavar="KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object: the rows and what is recommended.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over: deletes the folder of this comparison.")
    ] = False,
) -> None:
    """Compare methods, sizes and learning rates by many runs of one recipe: a table, a plot, the best settings."""
    comparison = read_comparison(recipe, overrides or [])

    from finetune.comparison.comparing import compare as carry_out
    from finetune.comparison.comparing import raise_if_failed
    from finetune.comparison.console import print_findings, to_object

    findings = carry_out(comparison, overwrite=overwrite, say=lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps({"folder": str(comparison.folder), **to_object(findings)}))
    else:
        print_findings(findings, comparison.folder)
    raise_if_failed(findings, comparison.folder)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb."""
    run_verb(compare, arguments, epilog=EPILOG)


if __name__ == "__main__":
    main()
