"""The library that loads and runs the model, started before all others.

Unsloth changes transformers, peft and trl when it is imported, and wants to come before them; it is imported here,
and only when a recipe or the command line asks for it. What is missing for it is known without importing anything.
"""

import contextlib
import importlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from finetune.errors import PlaceError, RecipeError
from finetune.recipe.schema import ModelSettings

__all__ = ["check_backend", "said_to_log", "start_backend"]

log = logging.getLogger("finetune.model.backends")

_OURS = "qlora-finetune"
# Its switches, read when it is imported; one that somebody has set stays.
_SWITCHES = {
    # It asks the Hub for a page at every load, to be counted, and waits where there is no network.
    "UNSLOTH_DISABLE_STATISTICS": "1",
    # Trainers that it writes anew on a GPU would lie in the folder the command is given in.
    "UNSLOTH_COMPILE_LOCATION": str(Path(tempfile.gettempdir()) / f"finetune_unsloth_{os.getuid()}"),
    # Its trainers of preferences sum a policy's log-probabilities from other numbers than a kept reference's.
    "UNSLOTH_DPO_CHUNKED": "0",
    "UNSLOTH_PREFERENCE_CHUNKED": "0",
}
# Packages of ours that Unsloth reaches into, and therefore fits only some versions of.
_CHANGED_BY_UNSLOTH = frozenset({"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate"})


def start_backend(name: str) -> None:
    """Import the library behind a backend, so that it comes before the libraries it changes.

    Args:
        name: `model.backend` of a recipe; `transformers` needs no start.

    Raises:
        PlaceError: its packages are not installed, or not in the versions it is used with here.
        RecipeError: no such backend.
    """
    if name == "transformers":
        return
    if name != "unsloth":
        raise RecipeError(f"There is no backend `{name}`. There are: transformers, unsloth.")
    pinned = _find_pinned()
    lacks = [lack for requirement in pinned if (lack := _find_lack(requirement))]
    if lacks:
        raise PlaceError(
            f"`model.backend: unsloth` needs {lacks[0]}"
            + (f" and {len(lacks) - 1} more packages.\n" if len(lacks) > 1 else ".\n")
            + "  Install its tested set as it is; what its packages ask for would bring another torch:\n"
            f"  {sys.executable} -m pip install --no-deps {' '.join(map(str, pinned))}\n"
            "  Or train without it: model.backend=transformers"
        )
    for requirement in _read_required("unsloth"):
        if requirement.name in _CHANGED_BY_UNSLOTH and (lack := _find_lack(requirement)):
            raise PlaceError(
                f"`model.backend: unsloth`: Unsloth {metadata.version('unsloth')} works with {lack}.\n"
                f"  The versions both backends are tested with: pip install -c constraints.txt {requirement.name}\n"
                "  Or train without it: model.backend=transformers"
            )
    for switch, value in _SWITCHES.items():
        os.environ.setdefault(switch, value)
    root = logging.getLogger()
    handlers = list(root.handlers)
    with said_to_log():
        importlib.import_module("finetune.model.unsloth")
    root.handlers = handlers  # it brings one of its own: every line of ours would stand there twice


def check_backend(settings: ModelSettings, *, head: str = "words", in_float32_on_gpu: bool = False) -> None:
    """Check that a backend can hold a base so; the reader of recipes has told most of it with line numbers.

    Raises:
        RecipeError: it cannot.
    """
    if settings.backend != "unsloth":
        return
    found = None
    if settings.quantization not in ("nf4", "none"):
        found = f"holds no base in {settings.quantization}"
    elif settings.quantization == "nf4" and not settings.double_quantization:
        found = "quantizes the 4-bit blocks' scales too"
    elif settings.weights == "random":
        found = "loads weights and draws none"
    elif head == "score":
        found = "loads no model that scores"
    elif in_float32_on_gpu:
        found = "computes in 16 bits on a GPU"
    if found is not None:
        raise RecipeError(f"`backend: unsloth`: Unsloth {found}.\n  Take the other backend: transformers")


@contextlib.contextmanager
def said_to_log() -> Iterator[None]:
    """Log what a library prints: standard output is for results."""
    with contextlib.redirect_stdout(_LinesToLog()):
        yield


class _LinesToLog(io.TextIOBase):
    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            log.info("%s", line.rstrip())
        return len(text)


def _find_pinned() -> list[Requirement]:
    """Find what our extra `unsloth` asks for; of a copy that was never installed, Unsloth in any version."""
    try:
        without = {str(requirement) for requirement in _read_required(_OURS)}
        return [one for one in _read_required(_OURS, extra="unsloth") if str(one) not in without]
    except metadata.PackageNotFoundError:
        return [Requirement("unsloth"), Requirement("unsloth_zoo")]


def _read_required(package: str, *, extra: str = "") -> list[Requirement]:
    """Read what an installed package asks for on this machine, with one of its extras."""
    wanted = []
    for requirement in map(Requirement, metadata.requires(package) or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            wanted.append(requirement)
    return wanted


def _find_lack(requirement: Requirement) -> str | None:
    """Say what is wanted and what is there instead, where a requirement is not met."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement}, which is not installed"
    return None if requirement.specifier.contains(found, prereleases=True) else f"{requirement}; found {found}"
