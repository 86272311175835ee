"""Trains recipes on the trainers that Unsloth writes anew, which it otherwise does on a GPU alone.

`python -m tests.unsloth.rewritten_run FOLDER RECIPE.yaml ...`, as `watched_run`. The models are transformers' own: what
is shown is that our trainers stand on the rewritten classes as on TRL's.
"""

import os
import sys
from pathlib import Path

from finetune.model.backends import start_backend
from tests.unsloth.watched_run import train_each, write_process


def main(arguments: list[str]) -> None:
    folder, *recipes = arguments
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(Path(folder) / "rewritten")
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    start_backend("unsloth")
    rewrite_trainers()
    choose_as_for_unsloth()
    train_each("transformers", Path(folder), [Path(recipe) for recipe in recipes])
    write_process(Path(folder), {})


def rewrite_trainers() -> None:
    """Do what Unsloth's import does to TRL where it finds a GPU."""
    from unsloth.models import rl
    from unsloth.trainer import _patch_trl_trainer

    os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # at 1 the rewriting passes itself over
    rl.patch_trl_disable_gradient_checkpointing()
    rl.patch_trl_rl_trainers()
    _patch_trl_trainer()


def choose_as_for_unsloth() -> None:
    """Let the trainers' settings be chosen as for a recipe of Unsloth's; the models stay transformers' own."""
    from finetune import prepare

    build = prepare.RunArguments
    prepare.RunArguments = lambda **values: build(**values | {"backend": "unsloth"})


if __name__ == "__main__":
    main(sys.argv[1:])
