"""Runs a verb of ours with ideas switched off that no recipe switches off, in this process alone.

    python -m benchmarks.speed_ours [--without IDEA …] VERB RECIPE [key=value …]

The recipe stays what users have: what is always on is taken out here by replacing one function of a module before the
rest of the package is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["IDEAS"]

# Idea -> module, function, and what it does when the idea is off; before those modules that import it by name.
IDEAS: Mapping[str, tuple[str, str, Callable[..., Any]]] = {
    "lean": ("finetune.model.lean", "use_lean_path", lambda model: 0),
    "lean_elementwise": ("finetune.model.lean_elementwise", "use_lean_elementwise", lambda model: 0),
    # Nothing is found that a copy could be kept of.
    "resident": ("finetune.model.frozen_weights", "find_quantized", lambda layer: []),
    # No head is of a form that it serves, so that TRL's own loss is left.
    "trained_loss": ("finetune.objectives.trained_loss", "_is_of_form", lambda model, form: False),
}


def main() -> None:
    """Switch the ideas off and run the verb with the rest of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", action="append", default=[], choices=IDEAS)
    parser.add_argument("verb")
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args()
    for idea, (place, function, off) in IDEAS.items():
        if idea not in given.without:
            continue
        module = importlib.import_module(place)
        if function not in vars(module):
            raise SystemExit(f"{place} has no {function} any more: benchmarks/speed_ours.py is to be mended.")
        setattr(module, function, off)
    sys.argv = [given.verb, *given.arguments]
    importlib.import_module(f"finetune.{given.verb}").main()


if __name__ == "__main__":
    main()
