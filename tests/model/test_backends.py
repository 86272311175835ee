"""Unsloth is started before all it changes and only when asked for; what it lacks is said before anything is loaded."""

import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from finetune import chat
from finetune.errors import PlaceError, RecipeError
from finetune.model.backends import check_backend, find_backend, start_backend
from finetune.model.base import check_base
from finetune.model.printing import printed_to_log
from finetune.recipe.schema import ModelSettings

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = {
    canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
    for pin in map(Requirement, PYPROJECT["project"]["optional-dependencies"]["unsloth"])
}
RECIPE = "recipes/quickstart.yaml"
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "bitsandbytes"}
BOTH_VERBS = pytest.mark.parametrize(
    "verb",
    [["finetune.sft", RECIPE, "model.backend=unsloth", "--dry-run"], ["finetune.chat", "a_run", "--backend=unsloth"]],
    ids=["sft", "chat"],
)

# What these tests stand on: an environment as `make test` fills it, without the extra.
without_unsloth = pytest.mark.skipif(find_spec("unsloth") is not None, reason="Unsloth is installed here")

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put packages on the path as an installer notes them: the pinned ones, some in other versions or left out."""

    def write(wants: str = "", **versions: str | None) -> Path:
        changed = {canonicalize_name(name): version for name, version in versions.items()}
        packages: Mapping[str, str | None] = PINS | changed
        for name, version in packages.items():
            if version is None:
                continue
            folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
            lines += [f"Requires-Dist: {wants}"] if wants and name == "unsloth" else []
            (folder / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    return write


def refusal_of(name: str) -> list[str]:
    """What is said instead of a start."""
    with pytest.raises(PlaceError) as error:
        start_backend(name)
    return str(error.value).splitlines()


def read_installing(line: str) -> dict[str, str]:
    """The packages of the command that is told, by their versions."""
    command, _, packages = line.strip().partition(" --no-deps ")
    assert command == f"{sys.executable} -m pip install"
    pairs = [package.split("==") for package in packages.split()]
    return {canonicalize_name(name): version for name, version in pairs}


# ---- what is missing


@without_unsloth
def test_without_unsloth_the_message_names_a_package_and_the_whole_command_of_the_extra() -> None:
    first, why, command, otherwise = refusal_of("unsloth")
    assert first == "`backend: unsloth` needs unsloth==2026.10.9, which is not installed, and 16 more."
    assert len(PINS) == 17
    assert "another torch" in why
    assert read_installing(command) == PINS
    assert otherwise == "  Or take the other backend: transformers."


@pytest.mark.parametrize(
    ("package", "version", "what"),
    [
        ("unsloth", "2026.9.1", "needs unsloth==2026.10.9; found 2026.9.1."),
        ("unsloth_zoo", "2026.11.1", "needs unsloth-zoo==2026.10.9; found 2026.11.1."),
        ("torchao", "0.17.0", "needs torchao==0.18.0; found 0.17.0."),
    ],
)
def test_another_version_is_told_with_what_was_found(install: Install, package: str, version: str, what: str) -> None:
    install(**{package: version})
    first, _, command, _ = refusal_of("unsloth")
    assert first == f"`backend: unsloth` {what}"
    assert read_installing(command) == PINS


@without_unsloth
def test_one_package_that_is_missing_is_told_alone(install: Install) -> None:
    install(tyro=None)
    assert refusal_of("unsloth")[0] == f"`backend: unsloth` needs tyro=={PINS['tyro']}, which is not installed."


def test_a_library_that_unsloth_does_not_fit_is_told_with_the_version_that_is_there(install: Install) -> None:
    install(wants="trl!=0.19.0,<=0.24.0")
    told = "\n".join(refusal_of("unsloth"))
    assert re.match(r"`backend: unsloth`: Unsloth \S+ works with trl\S*<=0.24.0\S*; found 1\.\d+\.\d+.\n", told)
    [fits] = re.findall(rf"{re.escape(sys.executable)} -m pip install '(trl\S+)'\n", told)
    both = Requirement(fits).specifier
    assert not both.contains("1.14.2"), "Unsloth's own limit"
    assert not both.contains("0.24.0"), "ours"
    assert told.endswith("Or take the other backend: transformers.")


# ---- as a person meets it


@without_unsloth
@BOTH_VERBS
def test_a_verb_answers_4_within_a_second_and_imports_nothing_heavy(verb: list[str]) -> None:
    start = os.times()
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", *verb], cwd=ROOT, capture_output=True, text=True)
    end = os.times()
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == 4, said
    assert {"finetune", "packaging"} <= imported
    assert not imported & HEAVY
    assert end.children_user + end.children_system - start.children_user - start.children_system < 1
    assert said[0].startswith("`backend: unsloth` needs ")
    assert read_installing(said[2]) == PINS
    assert len(said) == 4
    assert done.stdout == ""


# In the place of Unsloth: it notes what was there before it, and leaves.
NOTING = """
import json, os, sys
noted = {"modules": sorted(sys.modules), "switches": {k: v for k, v in os.environ.items() if k.startswith("UNSLOTH_")}}
open(os.environ["NOTED"], "w").write(json.dumps(noted))
sys.exit(77)
"""


@without_unsloth
@BOTH_VERBS
def test_unsloth_comes_before_what_it_changes_and_finds_its_switches(
    verb: list[str], install: Install, tmp_path: Path
) -> None:
    place = install()
    (place / "unsloth.py").write_text(NOTING)
    noted = tmp_path / "noted.json"
    environment = os.environ | {"PYTHONPATH": str(place), "NOTED": str(noted), "HOME": str(tmp_path)}
    environment["UNSLOTH_DPO_CHUNKED"] = "1"
    done = subprocess.run([sys.executable, "-m", *verb], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 77, done.stderr
    found: dict[str, Any] = json.loads(noted.read_text())
    assert not set(found["modules"]) & HEAVY
    switches = found["switches"]
    assert switches["UNSLOTH_DISABLE_STATISTICS"] == "1"
    assert switches["UNSLOTH_PREFERENCE_CHUNKED"] == "0"
    assert switches["UNSLOTH_DPO_CHUNKED"] == "0", "what decides a run's numbers is no matter of the shell's"
    code = Path(switches["UNSLOTH_COMPILE_LOCATION"])
    assert code.is_relative_to(tmp_path), "the user's own, not the folder it was started in"
    assert code.stat().st_mode & 0o077 == 0, "what is imported from there nobody else has written"


def test_transformers_needs_no_start() -> None:
    start_backend("transformers")
    assert "unsloth" not in sys.modules


def test_a_backend_that_there_is_not_is_2_with_those_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        chat.main(["a_run", "--backend", "vllm", "--prompt", "Hello"])
    assert left.value.code == 2
    told = capfd.readouterr().err
    assert "'vllm' is not one of 'transformers', 'unsloth'" in told


def test_a_backend_that_was_not_started_is_not_taken_up_behind_the_libraries_it_changes() -> None:
    with pytest.raises(PlaceError, match="has to be started before transformers, peft and trl are imported"):
        find_backend("unsloth")
    assert find_backend("transformers").__name__ == "finetune.model.plain"


# ---- what it cannot hold, where no recipe was read

HOW = {"backend": "unsloth", "model_name_or_path": "org/base"}
IN_FLOAT32: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.mark.parametrize(
    ("settings", "asked", "what"),
    [
        ({"quantization": "int8"}, {}, "it holds a base in nf4 or not quantized, and `quantization` is int8."),
        ({"quantization": "fp4"}, {}, "it holds a base in nf4 or not quantized, and `quantization` is fp4."),
        ({"double_quantization": False}, {}, "it always quantizes the 4-bit blocks' own scales, and `double_quant"),
        ({"weights": "random"}, {}, "it loads weights from files, and `weights` is random."),
        ({"attention": "eager"}, {}, "it attends with kernels of its own choice, and `attention` is eager."),
        ({}, {"head": "score"}, "it loads no model that scores."),
        ({}, {"device": torch.device("cuda")}, "it computes in 16 bits on a GPU, and `compute_dtype` is float32."),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_unsloth_cannot_hold_is_a_fault_of_the_recipe_and_none_of_the_other_backend(
    settings: dict[str, Any], asked: dict[str, Any], what: str
) -> None:
    with pytest.raises(RecipeError) as error:
        check_backend(ModelSettings(**HOW | settings), **IN_FLOAT32 | asked)
    assert str(error.value).startswith(f"`backend: unsloth`: {what}")
    assert str(error.value).endswith(".\n  Or take the other backend: transformers.")
    check_backend(ModelSettings(**HOW | settings | {"backend": "transformers"}), **IN_FLOAT32 | asked)


@pytest.mark.parametrize(
    "settings",
    [{}, {"quantization": "none"}, {"quantization": "none", "double_quantization": False}],
    ids=str,
)
def test_what_unsloth_can_hold_is_no_fault(settings: dict[str, Any]) -> None:
    check_backend(ModelSettings(**HOW | settings), **IN_FLOAT32)
    check_backend(ModelSettings(**HOW | settings), device=torch.device("cuda"), dtype=torch.float16)


def test_a_base_is_refused_before_it_is_looked_for() -> None:
    settings = ModelSettings(**HOW | {"model_name_or_path": "no/such", "quantization": "int8", "device": "cpu"})
    with pytest.raises(RecipeError, match="it holds a base in nf4"):
        check_base(settings)


# ---- what it says


def test_what_a_library_prints_goes_to_the_log_a_line_each(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with printed_to_log():
        print("==((====))==  Unsloth: Fast Mistral patching.\n   \\\\   /|\n\n", end="")
        print("Unsloth:", 4, "layers.", flush=True)
        print("begun and not ended", end="")
    print("the answer")
    assert capsys.readouterr().out == "the answer\n"
    ours = [record for record in caplog.records if record.name.startswith("finetune.")]
    assert [record.getMessage() for record in ours] == [
        "==((====))==  Unsloth: Fast Mistral patching.",
        "   \\\\   /|",
        "Unsloth: 4 layers.",
        "begun and not ended",
    ]
    assert {record.levelno for record in ours} == {logging.INFO}


def test_standard_output_is_given_back_where_a_library_stops_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), printed_to_log():
        raise ZeroDivisionError
    print("the answer")
    assert capsys.readouterr().out == "the answer\n"


def test_what_is_printed_before_there_is_a_log_is_told_when_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="finetune")
    with printed_to_log():
        print("Unsloth: no GPU found.")
    assert not caplog.records
    caplog.set_level(logging.INFO, logger="finetune")
    with printed_to_log():
        print("Unsloth: loaded.")
    assert [record.getMessage() for record in caplog.records] == ["Unsloth: no GPU found.", "Unsloth: loaded."]
