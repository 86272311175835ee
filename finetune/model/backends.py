"""The library that loads and runs the model: found by its name, and started before all others.

Unsloth changes transformers, peft and trl when it is imported, and wants to come before them; it is imported here,
and only when a recipe or the command line asks for it. What is missing for it is known without importing anything.
"""

import importlib
import logging
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from packaging.requirements import Requirement

from finetune.errors import PlaceError, RecipeError
from finetune.model.printing import printed_to_log
from finetune.recipe.backend_limits import OTHERWISE, find_unserved_base_settings
from finetune.recipe.schema import BackendName, ModelSettings

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

    from finetune.recipe.heads import Head

__all__ = ["Backend", "Chosen", "Loaded", "check_backend", "find_backend", "start_backend", "translating"]

_OURS = "qlora-finetune"
_MODULES = {"transformers": "finetune.model.plain", "unsloth": "finetune.model.unsloth"}
# Unsloth's switches, read when it is imported. It counts every load by fetching a page from the Hub, and waits for it
# where there is no network. It sums a policy's log-probabilities from other numbers than a kept reference's, and keeps
# a float32 base in bfloat16, where a shell asks for it.
_SWITCHES = {
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_DPO_CHUNKED": "0",
    "UNSLOTH_PREFERENCE_CHUNKED": "0",
    "UNSLOTH_CPU_FROZEN_BF16": "0",
}
# Where it writes code on a GPU, and imports it from; the current folder unless it is told.
_CODE_FOLDER = "UNSLOTH_COMPILE_LOCATION"
# Packages of ours that Unsloth reaches into, and therefore fits only some versions of.
_CHANGED_BY_UNSLOTH = frozenset({"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate"})


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is settled before a weight is read.

    Attributes:
        name: of the base, a folder or on the Hub; a shape without files has none to load.
        revision: the commit of the config: the newest may have moved on since.
        config: of the model.
        device: the one device.
        dtype: of the products.
        saved_as: how the files hold the weights: nf4, fp4, int8, or none where in full.
        attention: transformers' name of the kernel; None: its own choice.
        max_length: tokens of a row at most.
        head: what the model ends with.
        head_modules: those of a classifier's head, which stay in full and may be lacking.
        seed: draws what the files do not hold.
        fresh_head: whether they may lack the head.
        checkpointing: whether activations are computed twice instead of kept, which Unsloth wants to know twice.
        is_pickled: whether the weights are pickles, opened as tensors alone.
    """

    name: str
    revision: str | None
    config: "PreTrainedConfig"
    device: "torch.device"
    dtype: "torch.dtype"
    saved_as: str
    attention: str | None
    max_length: int
    head: "Head"
    head_modules: tuple[str, ...]
    seed: int
    fresh_head: bool
    checkpointing: bool
    is_pickled: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device, and what of it no file holds.

    Attributes:
        model: with its weights.
        drawn: modules of the head whose numbers were drawn from the seed.
    """

    model: "PreTrainedModel"
    drawn: tuple[str, ...] = ()


class Backend(Protocol):
    """What a library does with a model; the modules `plain` and `unsloth` are the two of them."""

    def load(self, settings: ModelSettings, chosen: Chosen) -> Loaded:
        """Load a base onto its device."""

    def attach(self, model: "PreTrainedModel", config: "PeftConfig", *, seed: int, checkpointing: bool) -> "PeftModel":
        """Attach a fresh adapter."""

    def take_over(self, model: "PeftModel", *, checkpointing: bool) -> "PeftModel":
        """Take an adapter that PEFT has opened."""


def start_backend(name: BackendName) -> None:
    """Import the library behind a backend, so that it comes before the libraries it changes.

    Raises:
        PlaceError: its packages are not installed, not in the versions it is used with here, or do not work here.
    """
    if name == "transformers" or _MODULES[name] in sys.modules:
        return
    _check_packages()
    os.environ |= _SWITCHES
    if _CODE_FOLDER not in os.environ:
        os.environ[_CODE_FOLDER] = str(_make_private_folder())
    root = logging.getLogger()
    handlers = list(root.handlers)
    try:
        with printed_to_log(), translating("Unsloth cannot be imported here"):
            importlib.import_module(_MODULES[name])
    finally:
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)  # a second one: every line of ours would stand there twice


def find_backend(name: BackendName) -> Backend:
    """Find a backend that is started.

    Raises:
        PlaceError: it is not.
    """
    if name != "transformers" and _MODULES[name] not in sys.modules:
        raise PlaceError(
            f"`backend: {name}` has to be started before transformers, peft and trl are imported.\n"
            "  Before finetune.train: finetune.model.backends.start_backend('unsloth')"
        )
    return cast("Backend", importlib.import_module(_MODULES[name]))


def check_backend(
    settings: ModelSettings, *, device: "torch.device", dtype: "torch.dtype", head: "Head" = "words"
) -> None:
    """Check that a backend can hold a base so; the reader of recipes has told most of it, with line numbers.

    Raises:
        RecipeError: it cannot.
    """
    if settings.backend != "unsloth":
        return
    faults = [f"it {one.why}, and `{one.name}` is {one.value}" for one in find_unserved_base_settings(dict(settings))]
    if head != "words":
        faults.append("it loads no model that scores" if head == "score" else "it loads language models alone here")
    if device.type == "cuda" and str(dtype) == "torch.float32":
        faults.append("it computes in 16 bits on a GPU, and `compute_dtype` is float32")
    if faults:
        raise RecipeError(f"`backend: unsloth`: {faults[0]}.\n  {OTHERWISE}")


class translating:
    """Translate what Unsloth itself cannot do here: a driver, a compiler, an architecture.

    Args:
        what: happened, in words.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        understood = ImportError | RuntimeError | ValueError | TypeError | AssertionError  # NotImplementedError too
        if isinstance(error, understood) and not _is_out_of_memory(error):
            reason = " ".join(str(error).split())[:300]
            raise PlaceError(f"{self._what}: {reason}\n  {OTHERWISE}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def _make_private_folder() -> Path:
    """Make a folder for code that only this user can put anything into."""
    folder = Path.home() / ".cache" / "finetune" / "unsloth"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise PlaceError(
            f"{folder} cannot be made ({error.strerror}); Unsloth writes code there.\n"
            f"  Name a folder of your own in the environment: {_CODE_FOLDER}=…"
        ) from error
    return folder


def _check_packages() -> None:
    pinned = _find_pinned()
    lacks = [lack for requirement in pinned if (lack := _find_lack(requirement))]
    if lacks:
        raise PlaceError(
            f"`backend: unsloth` needs {lacks[0]}"
            + (f", and {len(lacks) - 1} more.\n" if len(lacks) > 1 else ".\n")
            + "  Install its tested set as it is; what its packages ask for would bring another torch:\n"
            f"  {sys.executable} -m pip install --no-deps {' '.join(map(str, pinned))}\n"
            f"  {OTHERWISE}"
        )
    for requirement in _read_required("unsloth"):
        if requirement.name in _CHANGED_BY_UNSLOTH and (lack := _find_lack(requirement)):
            fits = _find_fitting(requirement)
            raise PlaceError(
                f"`backend: unsloth`: Unsloth {metadata.version('unsloth')} works with {lack}.\n"
                f"  Install one that fits both: {sys.executable} -m pip install '{fits}'\n"
                f"  {OTHERWISE}"
            )


def _find_fitting(requirement: Requirement) -> Requirement:
    """Find what fits Unsloth and this package at once."""
    ours = [one.specifier for one in _read_required(_OURS) if one.name == requirement.name]
    fitting = Requirement(requirement.name)
    fitting.specifier = requirement.specifier
    for specifier in ours:
        fitting.specifier &= specifier
    return fitting


def _find_pinned() -> list[Requirement]:
    """Find what our extra `unsloth` asks for; of a copy that was never installed, Unsloth in any version."""
    try:
        without = {str(requirement) for requirement in _read_required(_OURS)}
        pinned = [one for one in _read_required(_OURS, extra="unsloth") if str(one) not in without]
        return sorted(pinned, key=lambda one: (not one.name.startswith("unsloth"), one.name))
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
