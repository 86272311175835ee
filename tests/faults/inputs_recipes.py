"""Rows 30 to 33: recipes fuzzed, misspelled, oddly typed or hostile, and what the reader makes of each.

Judged through the function that the command line calls, in this process: either a recipe that says the same once it
is written out and read again, or one message of at most 15 lines with exit code 2; within a second and 200 MB.
"""

import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from finetune.errors import FinetuneError
from finetune.recipe.reading import build_recipe, read_recipe_with_notices, to_resolved
from finetune.recipe.schema import Recipe
from finetune.recipe.yaml_lines import read_yaml, to_plain
from tests.faults.inputs_fuzzing import draw_recipe
from tests.faults.inputs_hostile import draw_hostile
from tests.faults.inputs_typos import judge as judge_typo
from tests.faults.inputs_typos import list_typos
from tests.faults.inputs_values import CASES, judge_value
from tests.faults.measures import Outcome, Rig, register

__all__ = ["FuzzedRecipes", "HostileFiles", "MisspelledKeys", "OddValues", "Verdict", "judge_recipe", "peak_bytes"]

MAX_LINES = 15
MAX_SECONDS = 1.0
MAX_BYTES = 200_000_000
_PLACE = re.compile(r"(?s)(command line|.*recipe\.yaml(?::(?P<line>\d+))?): .")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one recipe.

    Attributes:
        wrong: what is not as it has to be; "" where all is.
        accepted: whether the reader made a recipe of it.
        has_line: whether a refusal names a line of the file.
        seconds: of this thread's processor time, so that neighbours on the machine do not count.
    """

    wrong: str
    accepted: bool
    has_line: bool = False
    seconds: float = 0.0


def judge_recipe(path: Path, overrides: Sequence[str] = (), *, baseline_bytes: int | None = None) -> Verdict:
    """Read a file as the command line does, and hold what comes out against what has to.

    Args:
        path: named `recipe.yaml`.
        overrides: `section.key=value`.
        baseline_bytes: this process's memory before the first case: a peak never falls, so that of the case before
            would hide as much again. By default that before this one.
    """
    before = peak_bytes() if baseline_bytes is None else baseline_bytes
    start = time.thread_time()
    recipe, message = None, ""
    try:
        recipe = read_recipe_with_notices(path, overrides).recipe
    except FinetuneError as error:
        message, wrong = str(error), "" if error.exit_code == 2 else f"exit {error.exit_code}"
    except Exception as error:  # the traceback that must not be
        return Verdict(f"{type(error).__name__}: {error}"[:300], False)
    else:
        wrong = _check_round_trip(recipe)
    seconds = time.thread_time() - start
    wrong = wrong or (_check_message(message, path) if message else "")
    if not wrong and seconds > MAX_SECONDS:
        wrong = f"took {seconds:.2f} s"
    if not wrong and peak_bytes() - before > MAX_BYTES:
        wrong = f"took {(peak_bytes() - before) / 1e6:.0f} MB"
    return Verdict(wrong, recipe is not None, re.search(r"recipe\.yaml:\d+: ", message) is not None, seconds)


def peak_bytes() -> int:
    """Read the most memory that this process held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Quoting(yaml.SafeDumper):
    """Writes every text in quotes, as YAML 1.1 and 1.2 differ in what the others are."""


_Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _check_round_trip(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML and read it again."""
    text = yaml.dump(to_resolved(recipe), Dumper=_Quoting, allow_unicode=False, width=10**6)
    try:
        tree, faults = read_yaml(text, "resolved.yaml")
        again = build_recipe(to_plain(tree))
    except Exception as error:  # whatever it is, it is no round trip
        return f"accepted, and refused when read again: {type(error).__name__}: {error}"[:300]
    if faults:
        return f"accepted, and not well written out: {faults[0].what}"
    return "" if again == recipe else "accepted, and another recipe when read again"


def _check_message(message: str, path: Path) -> str:
    lines = message.split("\n")
    if len(message.splitlines()) > MAX_LINES:
        return f"{len(message.splitlines())} lines: {lines[0]}"
    if not all(character.isprintable() or character == "\n" for character in message):
        return f"a character that cannot be shown: {message!r}"[:300]
    num_lines = len(path.read_bytes().splitlines()) + 1
    for line in lines:
        place = _PLACE.match(line)
        if not place and not line.startswith(("  ", "And ")):
            return f"a line without a place: {line}"[:300]
        if place and place["line"] and not 1 <= int(place["line"]) <= num_lines:
            return f"a line that the file does not have: {line}"[:300]
    return ""


@register
class FuzzedRecipes:
    """Shipped recipes changed at random, with random overrides."""

    name = "fuzzed_recipes"
    title = "fuzzed recipes answered by a recipe that reads the same again or by one message, never a traceback"
    row = "33"
    target = 10_000
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline."""
        baseline_bytes = peak_bytes()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "recipe.yaml"
            for case in _until(first_case, deadline):
                drawn = draw_recipe(rig.draw(self.name, case))
                path.write_bytes(drawn.content)
                verdict = judge_recipe(path, drawn.overrides, baseline_bytes=baseline_bytes)
                yield Outcome(
                    case,
                    passed=not verdict.wrong,
                    drawn={"from": drawn.recipe, "changes": drawn.mutations, "overrides": drawn.overrides},
                    detail=verdict.wrong,
                    figures={
                        "accepted": int(verdict.accepted),
                        "refused": int(not verdict.accepted),
                        "refused_with_line": int(verdict.has_line),
                    },
                )


def _until(first_case: int, deadline: float, last_case: float = float("inf")) -> Iterator[int]:
    for case in count(first_case):
        if time.monotonic() >= deadline or case > last_case:
            return
        yield case


@register
class MisspelledKeys:
    """Every single-edit typo of every key, two drawn letters at each place."""

    name = "misspelled_keys"
    title = "single-edit typos of every key of the schema answered at their line with the right key as the first one"
    row = "30"
    target = 45_000
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline; behind the last typo there is none."""
        typos = list_typos(rig.seed)
        with TemporaryDirectory() as folder:
            for case in _until(first_case, deadline, len(typos) - 1):
                typo = typos[case]
                is_right, said = judge_typo(typo, Path(folder))
                where = ".".join(map(str, typo.key.path))
                drawn = {"section": where, "key": typo.key.name, "typed": typo.typed, "kind": typo.kind}
                yield Outcome(case, passed=is_right, drawn=drawn, detail=said, figures={typo.kind: 1})


@register
class OddValues:
    """What YAML 1.1 reads otherwise, in fields of every type."""

    name = "odd_values"
    title = "values such as 2e-4, no, 0o7, 1_000 and dates taken as what they are, or refused with the type wanted"
    row = "31"
    target = len(CASES)
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline; behind the last one there is none."""
        with TemporaryDirectory() as folder:
            for case in _until(first_case, deadline, len(CASES) - 1):
                one = CASES[case]
                wrong = judge_value(one, Path(folder))
                yield Outcome(case, passed=not wrong, drawn={"setting": one.setting, "typed": one.typed}, detail=wrong)


@register
class HostileFiles:
    """Files made to crash, stall, fill or take over a reader of YAML."""

    name = "hostile_recipes"
    title = "hostile YAML refused with exit 2 in under 1 s and 200 MB, nothing executed"
    row = "32"
    target = 300
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline."""
        baseline_bytes = peak_bytes()
        with TemporaryDirectory() as folder:
            path, trap = Path(folder) / "recipe.yaml", Path(folder) / "executed"
            for case in _until(first_case, deadline):
                kind, content = draw_hostile(rig.draw(self.name, case), str(trap))
                wrong = judge_hostile(path, content, trap, baseline_bytes=baseline_bytes)
                yield Outcome(case, passed=not wrong, drawn={"kind": kind, "bytes": len(content)}, detail=wrong)


def judge_hostile(path: Path, content: bytes, trap: Path, *, baseline_bytes: int | None = None) -> str:
    """Read hostile bytes; what is wrong with the answer, "" where nothing is.

    Args:
        path: to write them to.
        content: the bytes.
        trap: a file that they make where anything of them is executed.
        baseline_bytes: as of `judge_recipe`.
    """
    path.write_bytes(content)
    verdict = judge_recipe(path, baseline_bytes=baseline_bytes)
    if trap.exists():
        trap.unlink()
        return "executed"
    return verdict.wrong or ("accepted" if verdict.accepted else "")
