"""Row 38: made-up secrets, looked for byte by byte in every file and both streams that a run leaves.

A run is trained, fails, or is refused with the secret where people have theirs: in the environment, among the
arguments, in the recipe, in a row. The rows' caches lie in the folder that is searched.
"""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from finetune.cli import _say
from finetune.errors import FinetuneError
from tests.faults.inputs_rows import cache_in
from tests.faults.measures import Outcome, Rig, register

__all__ = ["CANARY_PLACES", "Canaries", "judge_canary"]

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# Prefix, and how many characters follow.
_FORMS = (("hf_", 34), ("sk-", 48), ("ghp_", 36), ("wandb_v1_", 40), ("", 40))
_VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "MY_PASSWORD", "GITHUB_TOKEN")
# How a run ends -> the exit code. `stopped` is at its rows, before its folder is made; `failed` is in a step.
ENDS = {"trained": 0, "failed": 5, "stopped": 3, "refused": 2}
# Where the secret is -> how such a run has to end: nothing leaks of one that never began.
CANARY_PLACES = {
    "environment": "trained",
    "argument": "trained",
    "environment and argument, diverging": "failed",
    "environment and argument, diverging, --debug": "failed",
    "environment and argument, rows missing": "stopped",
    "environment and row, --debug": "stopped",
    "recipe comment": "refused",
    "recipe value": "refused",
    "override": "refused",
    "override, --debug": "refused",
}


def _draw_canary(dice: Random, *, known: bool) -> str:
    prefix, length = dice.choice(_FORMS[:-1] if known else _FORMS)
    return prefix + "".join(dice.choices(_ALPHABET, k=length))


def judge_canary(place: str, folder: Path, dice: Random) -> tuple[str, int]:
    """Run, fail or be refused with a canary in one place; what is wrong with that, and in how many places it was found.

    Args:
        place: one of `CANARY_PLACES`.
        folder: an empty one; what the person wrote lies in it, the run and the rows' caches in folders below.
        dice: draws the canary.
    """
    # Outside the environment only its form says what it is.
    canary = _draw_canary(dice, known="environment" not in place)
    variable = dice.choice(_VARIABLES)
    flag = dice.choice((["--hub-token", canary], [f"--api-key={canary}"], [canary], [f"training.x={canary}"]))
    arguments = ["finetune", "recipe.yaml", *(flag if "argument" in place else [])]
    environment = {"HF_DATASETS_CACHE": str(folder / "cache")}
    environment |= {variable: canary} if "environment" in place else {}
    streams = io.StringIO()
    with (
        patch.dict(os.environ, environment),
        patch.object(sys, "argv", arguments),
        patch.object(sys, "excepthook", sys.excepthook),  # a verb sets its own
        cache_in(folder / "cache"),
        contextlib.redirect_stdout(streams),
        contextlib.redirect_stderr(streams),
    ):
        code = _run_with_canary(place, canary, folder)
    wrong = _check_end(place, code, folder / "runs" / "small", streams.getvalue())
    told = [path for path in folder.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    told = [path for path in told if path.parent != folder]  # the recipe and the rows, which the person wrote
    found = len(told) + (canary in streams.getvalue())
    if found:
        names = [str(path.relative_to(folder)) for path in told]
        return f"found in {names}{' and in what was said' if canary in streams.getvalue() else ''}", found
    return wrong, 0


def _run_with_canary(place: str, canary: str, folder: Path) -> int:
    """Run the small recipe with the canary in its place, or with whatever environment and arguments hold; exit code.

    The verb itself does not start with an argument that is no setting, so that those with one call what it calls.
    """
    from tests.end_to_end.small_runs import build_values, run_small

    settings: dict[str, Any] = {"training__max_steps": 1}
    if "diverging" in place:
        settings = {"training__max_steps": 4, "training__learning_rate": 1e30}
    elif "rows missing" in place:
        settings["data__train"] = {"path": str(folder / "missing.jsonl")}
    elif "row" in place:
        # The message quotes the role that it does not know.
        turns = [{"role": canary, "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
        (folder / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
        settings["data__train"] = {"path": str(folder / "rows.jsonl")}
    elif place == "recipe value":
        settings["adapter__init_from"] = f"x/{canary}"
    if CANARY_PLACES[place] == "refused" or "--debug" in place:
        return _type_command(place, canary, folder, build_values(folder / "runs", **settings))
    try:
        run_small(folder / "runs", **settings)
    except FinetuneError as error:
        _say(str(error))
        return error.exit_code
    return 0


def _type_command(place: str, canary: str, folder: Path, values: dict[str, Any]) -> int:
    """Start the verb with a recipe file and the options of the place; its exit code."""
    import yaml

    from finetune.sft import main

    text = yaml.safe_dump(values, width=200) + (f"# token: {canary}\n" if place == "recipe comment" else "")
    (folder / "recipe.yaml").write_text(text)
    overrides = [f"model.model_name_or_path={canary}"] if place.startswith("override") else []

    typed = [str(folder / "recipe.yaml"), *overrides, *(["--debug"] if "--debug" in place else [])]
    try:
        with patch.object(sys, "argv", ["finetune", *typed]):
            main()
    except SystemExit as ended:
        return int(ended.code or 0)


def _check_end(place: str, code: int, run: Path, said: str) -> str:
    """Hold how the run ended against how it has to."""
    wanted, first = CANARY_PLACES[place], said.strip().splitlines()[:1]
    if code != ENDS[wanted]:
        return f"exit {code} instead of {ENDS[wanted]}: {first}"[:300]
    status = json.loads((run / "status.json").read_text())["status"] if run.exists() else "none"
    if status != {"trained": "done", "failed": "failed"}.get(wanted, "none"):
        return f"status {status} of a run that was {wanted}"
    has_traceback = "Traceback (most recent call last)" in said
    if has_traceback != ("--debug" in place):
        return "a traceback" if has_traceback else "no traceback"
    return ""


@register
class Canaries:
    """Made-up secrets in the environment, on the command line, in the recipe and in a row."""

    name = "canary_secrets"
    title = "canary secrets found in no file, cache or stream of a run: trained, failed in a step, stopped or refused"
    row = "38"
    target = 80
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline."""
        places = list(CANARY_PLACES)
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            place = places[case % len(places)]
            with TemporaryDirectory() as folder:
                wrong, found = judge_canary(place, Path(folder), rig.draw(self.name, case))
            figures = {"found": found, CANARY_PLACES[place]: 1}
            yield Outcome(case, passed=not wrong, drawn={"place": place}, detail=wrong, figures=figures)
