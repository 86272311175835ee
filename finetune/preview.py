"""Show rows exactly as they will be trained, token by token, and the census of all of them; no weight is loaded.

`python -m finetune.preview RECIPE [KEY=VALUE ...] [--rows N] [--row N|FILE:LINE] [--ids] [--html FILE] [--json]`
`python -m finetune.preview --check RUN [--json]`
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from finetune.cli import run_verb
from finetune.errors import CheckpointError, DataError, PlaceError, RecipeError
from finetune.recipe.reading import read_recipe_with_notices
from finetune.recipe.schema import Recipe

__all__ = ["main"]

EPILOG = """\
Example:
  python -m finetune.preview recipes/quickstart.yaml --rows 5 --ids
  python -m finetune.preview recipes/quickstart.yaml --html preview.html
  python -m finetune.preview --check outputs/quickstart

The rows come from the code that training runs; the tokenizer is enough, weights are not read.
What is trained stands in brackets and, on a terminal, in colour. docs/preview.md tells the rest."""

_ROWS_PRINTED = 3
_ROWS_ON_A_PAGE = 50


def preview(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            help="The YAML file of the run; with --check it may be left out.", metavar="RECIPE", show_default=False
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings overriding the recipe's.", metavar="SECTION.KEY=VALUE", show_default=False),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Rows to show: the first that are trained on; {_ROWS_PRINTED}, on a page {_ROWS_ON_A_PAGE}.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(
            help="The Nth example of the training side, or a file's line; also one dropped by its length, and why.",
            metavar="N|FILE:LINE",
            show_default=False,
        ),
    ] = None,
    ids: Annotated[bool, typer.Option("--ids", help="List each token with its id.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write one page that needs no other file.", metavar="FILE", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object: rows, census, sources, findings, label hash.")
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Say whether today the very tokens of this run would be trained; exit code 6 where not.",
            metavar="RUN",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show rows exactly as they will be trained, token by token, and the census of all of them; no weight is loaded."""
    _check_options(recipe, rows=rows, row=row, ids=ids, html=html, check=check)
    wanted = _read(recipe, overrides or [])
    if check is not None:
        _check_run(check, wanted, as_json=as_json)
        return
    assert wanted is not None, "without --check a recipe is asked for"

    from finetune.inspection.showing import Showing
    from finetune.planning.rows import write_census
    from finetune.prepare import prepare  # the tokenizer's libraries: seconds
    from finetune.run.logging import log_to_console
    from finetune.run.writing import write_text

    with log_to_console():
        prepared, model, data = prepare(wanted), wanted.model, wanted.data
        write_census(wanted, prepared.train.report["census"])
        showing = Showing(
            name=wanted.name,
            objective=wanted.objective,
            about=[
                ("tokenizer", str(model.tokenizer_name_or_path or model.model_name_or_path)),
                *([("template", data.template)] if prepared.renderer is not None else []),
            ],
            max_length=data.max_length,
            mask_fraction=data.mask_fraction,
            tokenizer=prepared.tokenizer,
            headers=() if prepared.renderer is None else prepared.renderer.control_ids,
            train=prepared.train,
            held_out=prepared.held_out,
            labels=None if prepared.labelled is None else prepared.labelled.labels.names,
        )
    count = rows if rows is not None else _ROWS_PRINTED if html is None else _ROWS_ON_A_PAGE
    shown = showing.take_first(count) if row is None else showing.find(row)
    if html is not None:
        write_text(html, showing.to_page(shown, is_one=row is not None))
        num_rows = prepared.train.report["census"]["rows"]
        print(f"{html}: {len(shown)} of {num_rows:,} rows, and the census of all.", file=sys.stderr)
    if as_json:
        print(json.dumps(showing.to_object(shown)))
    elif html is None:
        showing.print(shown, is_one=row is not None, shows_ids=ids)


def _check_options(
    recipe: Path | None, *, rows: int | None, row: str | None, ids: bool, html: Path | None, check: Path | None
) -> None:
    if recipe is None and check is None:
        raise RecipeError(
            "command line: a RECIPE is wanted, or --check RUN.\n  Recipes that come with this: recipes/*.yaml"
        )
    if rows is not None and row is not None:
        raise RecipeError(
            "command line: --rows and --row exclude each other.\n  --rows N: the first N. --row N: that one."
        )
    if row is not None and not re.fullmatch(r"(.+:)?[0-9]+", row):
        raise RecipeError(f"--row {row}: that is neither a number nor a place.\n  E.g. --row 7 or --row rows.jsonl:12")
    if check is not None and (rows is not None or row is not None or ids or html is not None):
        raise RecipeError(
            "command line: --check compares and shows no rows.\n  Leave out --rows, --row, --ids and --html."
        )
    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        found = "is a folder" if html.is_dir() else f"cannot be written: there is no folder {html.parent}"
        raise PlaceError(f"{html} {found}.\n  Name a file to write in a folder that is there: --html preview.html")


def _read(path: Path | None, overrides: Sequence[str]) -> Recipe | None:
    if path is None:
        return None
    reading = read_recipe_with_notices(path, overrides)
    for notice in reading.notices:
        print(notice, file=sys.stderr)
    return reading.recipe


def _check_run(path: Path, recipe: Recipe | None, *, as_json: bool) -> None:
    """Prepare the run's rows today, and compare; a recipe that is given has to be the run's."""
    from finetune.inspection.checking import compare_tokens, read_run, without_cached_rows
    from finetune.prepare import prepare
    from finetune.run.environment import read_environment
    from finetune.run.logging import log_to_console

    run = read_run(path)
    if recipe is not None:
        _check_same_recipe(path, run.recipe, recipe)
    with log_to_console(), without_cached_rows():
        try:
            rows = prepare(run.recipe).train
        except (DataError, RecipeError) as error:
            what = "what the run evaluates on" if _can_train(run.recipe) else "the run's rows"
            raise CheckpointError(f"{path}: today {what} cannot be made into tokens.\n{error}") from error
        found = compare_tokens(run, rows.report, rows.account, read_environment()["packages"])
    if as_json:
        print(json.dumps(found.to_object()))
    if not found.is_equal:
        raise found.refuse()
    if not as_json:
        print(found.to_words())


def _can_train(recipe: Recipe) -> bool:
    """Whether the rows to train on can be prepared where what is evaluated on is left aside."""
    from finetune.inspection.checking import without_evaluation
    from finetune.prepare import prepare

    try:
        prepare(without_evaluation(recipe))
    except (DataError, RecipeError):
        return False
    return True


def _check_same_recipe(path: Path, of_run: Recipe, given: Recipe) -> None:
    from finetune.recipe.reading import to_resolved
    from finetune.run.resuming import find_differences

    differences = find_differences(to_resolved(of_run), to_resolved(given))
    if differences:
        told = "\n".join(f"  {key}: {then} in the run, {now} here" for key, then, now in differences[:10])
        raise RecipeError(
            f"{path} was made by another recipe than this one.\n{told}\n"
            f"  To check the run by its own recipe leave this one out: --check {path}"
        )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb."""
    run_verb(preview, arguments, epilog=EPILOG)


if __name__ == "__main__":
    main()
