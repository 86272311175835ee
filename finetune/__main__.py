"""`python -m finetune`: the verbs, one line each; `finetune VERB ...` runs one.

A verb is a module of this package; its line here is the first line of its docstring, read from the
file so that listing the verbs imports none of them.
"""

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import RecipeError
from finetune.recipe.nearest import find_nearest

__all__ = ["VERBS", "find_summaries", "main"]

# In the order of a run.
VERBS = (
    "plan", "preview", "sft", "dpo", "kto", "orpo", "reward", "rloo", "grpo", "classify", "evaluate", "chat", "compose",
    "compare", "export",
)  # fmt: skip

_HELP = ("-h", "--help")


def find_summaries() -> dict[str, str]:
    """Each verb's first docstring line."""
    folder = Path(__file__).parent
    docstrings = {verb: ast.get_docstring(ast.parse((folder / f"{verb}.py").read_text("utf-8"))) for verb in VERBS}
    return {verb: (docstring or "").partition("\n")[0] for verb, docstring in docstrings.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """List the verbs, or run the one that is named.

    Args:
        arguments: the verb and what belongs to it; by default the process's.
    """
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if verb in VERBS:
        sys.argv = [f"finetune {verb}", *rest]
        runpy.run_module(f"finetune.{verb}", run_name="__main__", alter_sys=True)
    elif verb in ("", *_HELP):
        try:
            _list_verbs()
            sys.stdout.flush()
        except BrokenPipeError:
            from finetune.cli import leave_readerless_output  # typer and pydantic, which a list needs not

            raise SystemExit(leave_readerless_output()) from None
    else:
        near = find_nearest(verb, VERBS)
        meant = f"Did you mean `{near[0]}`? " if near else ""
        print(f"There is no verb `{verb}`.\n  {meant}Verbs: {', '.join(VERBS)}.", file=sys.stderr)
        raise SystemExit(RecipeError.exit_code)


def _list_verbs() -> None:
    width = max(len(verb) for verb in VERBS)
    print("Usage: python -m finetune.VERB ...     or, installed: finetune VERB ...\n")
    for verb, summary in find_summaries().items():
        print(f"  {verb:<{width}}  {summary}")
    print("\nExample: python -m finetune.sft recipes/quickstart.yaml     --help after a verb says more.")


if __name__ == "__main__":
    main()
