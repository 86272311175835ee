"""The command line: arguments become a recipe, and a FinetuneError becomes one message and an exit code.

A verb is a function with typed parameters, run by `run_verb`; the verbs that train share their
parameters and are made by `training_verb`. What is heavy is imported once the arguments are read, so
that `--help` and a fault in a recipe are answered at once.

Exit codes: 0 done, 1 our bug, 2 usage or recipe, 3 data, 4 environment, 5 diverged, 6 checkpoint,
130 Ctrl-C, 143 SIGTERM.
"""

import contextlib
import functools
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from finetune.errors import FinetuneError, PlaceError, RecipeError
from finetune.recipe.reading import read_recipe_with_notices
from finetune.recipe.schema import Recipe
from finetune.recipe.section import Section

__all__ = ["escape_what_cannot_be_encoded", "leave_readerless_output", "run_verb", "to_text", "training_verb"]

MAX_MESSAGE_LINES = 15

# click's, which newer typers carry under a name of their own.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
# Objectives that a verb of another name serves: a recipe handed to the wrong verb is answered with the right one.
_VERB_OF_OBJECTIVE = {"pretrain": "sft", "mlm": "sft"}


def run_verb(main: Callable[..., object], arguments: Sequence[str] | None = None, epilog: str = "") -> NoReturn:
    """Run a verb and leave with its exit code.

    Args:
        main: the verb; its parameters, annotated for typer, are the command line's, its docstring the help.
            `--debug` is added: with it a message of ours comes with its traceback.
        arguments: those behind the verb, by default the process's.
        epilog: lines below the help's options, kept as they are.
    """
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
    # \b in front of a paragraph keeps typer from joining its lines.
    kept = "\n\n".join(f"\b\n{paragraph}" for paragraph in epilog.split("\n\n")) if epilog else None
    escape_what_cannot_be_encoded()
    app.command(epilog=kept, context_settings=settings)(_answer_faults(main))
    try:
        code = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except _USAGE_ERROR as error:
        from finetune.run.secrets import mask_text

        usage = cast(typer.BadParameter, error)
        usage.message = mask_text(usage.message)  # it repeats what was typed
        usage.show()
        raise SystemExit(usage.exit_code) from None
    raise SystemExit(code or 0)


def _answer_faults(main: Callable[..., object]) -> Callable[..., None]:
    """The verb with a `--debug` option, its faults turned into a message and an exit code."""

    @functools.wraps(main)
    def guarded(*, debug: bool, **parameters: Any) -> None:
        from finetune.run.early_signals import EndNow, end_now, forget_signals, name_signal
        from finetune.run.secrets import masked_tracebacks, print_masked_traceback

        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            # Process 1 of a container never hears a SIGTERM that it has no handler for.
            signal.signal(signal.SIGTERM, end_now)
            with masked_tracebacks():  # typer's own would show secrets
                main(**parameters)
                sys.stdout.flush()
        except FinetuneError as error:
            _hear_no_more(before)
            if debug:
                print_masked_traceback(type(error), error, error.__traceback__)
            _say(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            _hear_no_more(before)
            number = error.number if isinstance(error, EndNow) else signal.SIGINT
            _say(f"Stopped by {name_signal(number)}.")
            raise typer.Exit(128 + number) from None  # as shells count
        except BrokenPipeError:
            raise typer.Exit(leave_readerless_output()) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            forget_signals()

    option = typer.Option("--debug", help="Show where in the program a message comes from.")
    annotation = Annotated[bool, option]
    signature = inspect.signature(main, eval_str=True)
    parameter = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
    guarded.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), parameter], return_annotation=None
    )
    guarded.__annotations__ = {**inspect.get_annotations(main, eval_str=True), "debug": annotation, "return": None}
    return guarded


def _hear_no_more(numbers: Iterable[int]) -> None:
    """Ignore signals: what has ended is told in full, where another one would leave a traceback and its own code."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _say(message: str) -> None:
    from finetune.run.secrets import mask_text

    lines = mask_text(message).splitlines()
    if len(lines) > MAX_MESSAGE_LINES:
        lines = [*lines[: MAX_MESSAGE_LINES - 1], f"And {len(lines) - MAX_MESSAGE_LINES + 1} more lines."]
    with contextlib.suppress(BrokenPipeError):  # nobody reads it any more; the exit code says the same
        print("\n".join(lines), file=sys.stderr, flush=True)


def escape_what_cannot_be_encoded() -> None:
    """Let output whose encoding lacks a character (a C locale's) show its escape instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # `to_text` reads them


def to_text(typed: str) -> str:
    """Turn what was typed into text: bytes that a C locale knows no character for are read as UTF-8."""
    return typed.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def leave_readerless_output() -> int:
    """Send standard output into the void: whoever read it has left, and Python would complain once more at its end.

    Returns:
        The exit code for that.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PlaceError.exit_code


def training_verb(name: str, *, objectives: Sequence[str], summary: str) -> Callable[[], NoReturn]:
    """Build the `main` of a verb that trains.

    Args:
        name: the verb, as in `python -m finetune.NAME`.
        objectives: values of the recipe's `objective` that it serves.
        summary: what it does, the first line of its help.
    """

    def train_verb(
        recipe: Annotated[Path, typer.Argument(help="The YAML file of the run.", metavar="RECIPE", show_default=False)],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(help="Settings overriding the recipe's.", metavar="SECTION.KEY=VALUE", show_default=False),
        ] = None,
        resume: Annotated[
            bool,
            typer.Option("--resume", help="Continue from the newest whole checkpoint; from step 0 if there is none."),
        ] = False,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run",
                help="Check recipe, base, device, rows and settings, and plan the run; no weights are loaded, no run "
                "folder is made.",
            ),
        ] = False,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Start over if there is a run of this name: deletes its folder.")
        ] = False,
        allow_mismatch: Annotated[
            list[str] | None,
            typer.Option(
                "--allow-mismatch",
                help="With --resume: go on although this key has another value than the run had; may be repeated.",
                metavar="KEY",
                show_default=False,
            ),
        ] = None,
    ) -> None:
        options = {"resume": resume, "dry_run": dry_run, "overwrite": overwrite}
        _train(name, objectives, recipe, overrides or [], **options, allow_mismatch=allow_mismatch or [])

    train_verb.__doc__ = summary
    return lambda: run_verb(train_verb, epilog=_describe_recipe(name))


def _train(
    verb: str,
    objectives: Sequence[str],
    path: Path,
    overrides: list[str],
    *,
    resume: bool,
    dry_run: bool,
    overwrite: bool,
    allow_mismatch: list[str],
) -> None:
    """Read the recipe, check that it is this verb's, and train."""
    reading = read_recipe_with_notices(path, overrides)
    objective = reading.recipe.objective
    if objective not in objectives:
        served_by = f"python -m finetune.{_VERB_OF_OBJECTIVE.get(objective, objective)} {path}"
        raise RecipeError(f"{path}: `objective: {objective}` is not what {verb} trains.\n  Type: {served_by}")
    from finetune.run.folder import refuse_both

    refuse_both(resume=resume, overwrite=overwrite)  # asked here too, before torch is waited for
    if allow_mismatch and not resume:
        raise RecipeError(
            "command line: --allow-mismatch is for a run that is continued.\n"
            f"  Type: --resume --allow-mismatch {allow_mismatch[0]}"
        )
    for notice in reading.notices:
        print(notice, file=sys.stderr)

    from finetune.model.backends import start_backend

    start_backend(reading.recipe.model.backend)  # before the libraries that it may change
    from finetune.train import train  # torch and the libraries: seconds

    train(
        reading.recipe,
        recipe_text=reading.text,
        resume=resume,
        dry_run=dry_run,
        overwrite=overwrite,
        allow_mismatch=allow_mismatch,
    )


def _describe_recipe(verb: str) -> str:
    """The example, and every setting of our own by section."""
    sections = {
        field: annotation
        for field, info in Recipe.model_fields.items()
        if isinstance(annotation := info.annotation, type) and issubclass(annotation, Section)
    }
    top = [name for name in Recipe.model_fields if name not in sections]
    margin = max(map(len, ("recipe", *sections))) + 4
    lines = [*_wrap("recipe", top, margin)]
    for section, settings in sections.items():
        lines += _wrap(section, list(settings.model_fields), margin)
    example = "quickstart" if verb == "sft" else f"quickstart_{verb}"
    return "\n".join(
        [
            "Example:",
            f"  python -m finetune.{verb} recipes/{example}.yaml training.learning_rate=1e-4 name=slower",
            "",
            "Settings; `adapter` also takes its method's own, `training` TRL's. docs/recipe.md describes each:",
            *lines,
        ]
    )


def _wrap(section: str, names: Sequence[str], margin: int, width: int = 80) -> list[str]:
    """One section's settings, a comma between, in lines of the width; `margin` columns are the section's."""
    lines = [f"  {section + ':':<{margin - 2}}"]
    for name in names:
        if len(lines[-1]) + len(name) + 2 > width:
            lines.append(" " * margin)
        lines[-1] += f"{name}, "
    return [line.rstrip(" ") for line in [*lines[:-1], lines[-1].removesuffix(", ")]]
