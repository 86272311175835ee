"""Measure a finished run again: on the rows it held out, or on others; its adapter beside the bare base.

`python -m finetune.evaluate RUN_OR_ADAPTER [KEY=VALUE ...] [--rows FILE] [--recipe FILE] [--base] [--json]`
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from finetune.cli import run_verb

__all__ = ["main"]

EPILOG = """\
Example:
  python -m finetune.evaluate outputs/quickstart
  python -m finetune.evaluate outputs/quickstart --rows my_rows.jsonl --base
  python -m finetune.evaluate outputs/mine evaluation.questions.path=exam.jsonl --json
  python -m finetune.evaluate somebody/adapter --recipe recipes/mistral_alpaca.yaml
  python -m finetune.evaluate outputs/reviews classification.predict.path=new.csv --predictions labels

The figures are those of the run's end, taken by the same code; nothing in its folder changes. A template, or
rows held out by a fraction, that are no longer the run's are refused. Rows of another form name their columns:
'data.eval.columns={instruction: question, output: reply}'. --json holds answers too, evaluation.num_samples of them."""


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="A finished run's folder, or its result's; with --recipe any adapter or model, here or on the Hub.",
            metavar="RUN_OR_ADAPTER",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings that may differ from the run's: data.eval, data.on_bad_rows, evaluation, "
            "classification.predict, classification.metric, training.per_device_eval_batch_size, model.device.",
            metavar="SECTION.KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="Rows to measure on instead of those held out: a file, or a dataset on the Hub.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="For an adapter made elsewhere: the recipe that gives rows, template and settings.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Measure the base without its adapter too.")] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="For a classifier: write the labels of classification.predict's rows into this new folder.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    any_base: Annotated[
        bool,
        typer.Option("--any-base", help="Go on even if the base's folder holds other weights than the run's."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object: figures and answers.")] = False,
) -> None:
    """Measure a finished run again: on the rows it held out, or on others; its adapter beside the bare base."""
    from finetune.evaluating.asking import read_evaluated
    from finetune.evaluating.figures import render_evaluation
    from finetune.evaluating.measurement import evaluate as measure  # the libraries: seconds
    from finetune.run.logging import log_to_console

    with log_to_console():
        asked = read_evaluated(target, overrides or [], rows=rows, recipe_path=recipe)
        found = measure(asked, with_base=base, with_answers=as_json, predictions_dir=predictions, any_base=any_base)
    if as_json:
        print(json.dumps(found.to_object(), ensure_ascii=False, allow_nan=False))
    else:
        print(render_evaluation(found))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the verb."""
    run_verb(evaluate, arguments, epilog=EPILOG)


if __name__ == "__main__":
    main()
