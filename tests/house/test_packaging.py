"""What is installed: pyproject, the constraints and the image say one thing."""

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.tree import PACKAGE, ROOT, find_files

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]


def read_pins(name: str) -> dict[str, Version]:
    pins = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            package, _, version = line.partition("==")
            pins[canonicalize_name(package)] = Version(version)
    return pins


def wanted(*extras: str) -> list[Requirement]:
    texts = list(PROJECT["dependencies"]) + [
        text for extra in extras for text in PROJECT["optional-dependencies"][extra]
    ]
    return [req for req in map(Requirement, texts) if req.name != PROJECT["name"]]


CONSTRAINTS = read_pins("constraints.txt")
COLAB = read_pins("constraints-colab.txt")


@pytest.mark.parametrize("requirement", wanted("notebook", "dev"), ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    assert CONSTRAINTS[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", wanted("notebook", "dev"), ids=lambda requirement: requirement.name)
def test_the_pin_is_what_runs_here(requirement: Requirement) -> None:
    installed = Version(metadata.version(requirement.name))
    assert installed.public == CONSTRAINTS[canonicalize_name(requirement.name)].public


def test_torch_is_pinned_without_a_build_tag_so_that_a_cuda_machine_gets_the_cuda_build() -> None:
    assert CONSTRAINTS["torch"].local is None
    assert CONSTRAINTS["torch"] >= Version("2.10")


def test_the_colab_variant_leaves_torch_and_numpy_alone_and_pins_the_rest_alike() -> None:
    assert not COLAB.keys() & {"torch", "numpy", "pandas", "ipykernel", "ipython", "matplotlib", "protobuf"}
    assert COLAB.items() <= CONSTRAINTS.items()
    assert COLAB.keys() >= {"transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate"}


def test_the_extras_are_those_that_are_promised() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"unsloth", "search", "track", "notebook", "dev"}
    pinned = [Requirement(text) for text in PROJECT["optional-dependencies"]["unsloth"]]
    assert all(str(req.specifier).startswith("==") for req in pinned)


def read_exact(texts: list[str]) -> dict[str, str]:
    """Packages by their one version."""
    pins = map(Requirement, texts)
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


UNSLOTH = PROJECT["optional-dependencies"]["unsloth"]


def test_the_extra_unsloth_is_one_set_of_versions_that_leaves_the_core_alone() -> None:
    pins = read_exact(UNSLOTH)
    assert {"unsloth", "unsloth-zoo", "cut-cross-entropy", "torchao", "tyro"} <= pins.keys()
    assert len(pins) == len(UNSLOTH), "a package is named twice"
    assert all(Version(version).public == version for version in pins.values())
    assert pins["unsloth"] == pins["unsloth-zoo"], "they are released together"
    assert not pins.keys() & CONSTRAINTS.keys(), "what the core pins would stand there twice"
    assert not pins.keys() & {"torch", "torchvision", "xformers", "triton"}


def test_the_page_of_unsloth_tells_the_command_with_the_pins_of_the_extra() -> None:
    page = (ROOT / "docs" / "unsloth.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (told,) = re.findall(r"-m pip install --no-deps (.*)", page)
    assert read_exact(told.split()) == read_exact(UNSLOTH)


def test_make_test_unsloth_fills_an_environment_of_its_own_from_the_extra_and_runs_its_suite_there() -> None:
    planned = subprocess.run(
        ["make", "--no-print-directory", "--always-make", "--dry-run", "test-unsloth"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    *installing, suite = planned.splitlines()
    assert suite == ".venv-unsloth/bin/python -m pytest -m unsloth --timeout 900 tests/unsloth"
    extra = next(number for number, line in enumerate(installing) if '["optional-dependencies"]["unsloth"]' in line)
    assert "pip --disable-pip-version-check --quiet install --no-deps" in installing[extra + 1]
    others = [line for line in installing[:extra] if "pip" in line and " install " in line]
    assert others
    assert all("--constraint constraints.txt" in line for line in others if "--upgrade pip" not in line)
    assert not re.search(r"(?<![\w-])\.venv/", planned), "the tests' own environment is left alone"
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ".venv-unsloth/" in ignored


def test_the_suite_of_unsloth_is_left_out_of_make_test_and_all_of_it_is_marked() -> None:
    options = PYPROJECT["tool"]["pytest"]["ini_options"]
    assert "not gpu and not unsloth and not slow" in options["addopts"]
    assert any(marker.startswith("unsloth: ") for marker in options["markers"])
    files = [ROOT / path for path in find_files() if path.parts[:2] == ("tests", "unsloth")]
    suites = [path.read_text(encoding="utf-8") for path in files if path.name.startswith("test_")]
    assert suites
    assert all(re.search(r"^pytestmark = .*pytest\.mark\.unsloth", suite, re.MULTILINE) for suite in suites)


def test_what_the_package_reads_travels_with_it() -> None:
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["finetune"]
    ours = {path for path in find_files() if path.parts[0] == "finetune"}
    data = {path.suffix for path in ours} - {".py"}
    assert data <= {".css", ".jinja", ".js", ".json"}, "a new kind of file in the package: see that the wheel holds it"


def test_the_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_ci_runs_the_checks_and_the_tests() -> None:
    path = ROOT / ".ci" / "run"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert [line for line in lines if line.startswith("make")] == [
        f"make {target}" for target in ("check", "test", "test-slow", "test-unsloth")
    ]
    assert os.access(path, os.X_OK)


def test_makefile_names_every_target_in_its_help() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for target in set(phony[1].split()) - {"help"}:
        assert f"make {target} " in shown.stdout


def test_make_says_which_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2' && exit 0\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    tried = subprocess.run(
        ["make", "--no-print-directory", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "quickstart"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 2
    assert f"Python 3.11 or newer is needed; {old} is Python 3.9.2." in tried.stderr
    assert "make PYTHON=/path/to/python3.12 quickstart" in tried.stderr


# The image, step by step. No container engine: the steps are read and held against what they are made from.


def read_steps() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


STEPS = read_steps()


def arguments_of(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def test_the_image_stands_on_a_cuda_runtime() -> None:
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu24\.04", arguments_of("FROM")[0])


def test_the_image_python_is_one_that_pyproject_takes() -> None:
    versions = set(re.findall(r"python(3\.\d+)", " ".join(arguments_of("RUN"))))
    assert len(versions) == 1
    assert versions.pop() in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_the_image_installs_torch_first_and_all_from_the_constraints() -> None:
    installs = [rest for rest in arguments_of("RUN") if "pip install" in rest]
    assert all("--constraint constraints.txt" in install for install in installs)
    assert installs[0].endswith(" torch")
    extras = re.search(r"\.\[(.*?)\]", installs[1])
    assert set(extras[1].split(",") if extras else ()) <= set(PROJECT["optional-dependencies"])


def test_the_image_copies_only_what_exists_and_what_the_build_needs() -> None:
    copied = [word for rest in arguments_of("COPY") for word in rest.split()[:-1] if not word.startswith("--")]
    top_level = {path.parts[0] for path in find_files()}
    assert set(copied) <= top_level, "copied, but not there"
    # What hatchling reads when it builds the package.
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], PACKAGE.name} <= set(copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert kept == set(copied), ".dockerignore lets through exactly what is copied"


def test_what_is_copied_comes_before_the_step_that_reads_it() -> None:
    names = [f"{name} {rest}" for name, rest in STEPS]
    first_install = next(i for i, step in enumerate(names) if "pip install" in step)
    build = next(i for i, step in enumerate(names) if step.endswith("constraints.txt ."))
    assert any("COPY constraints.txt" in step for step in names[:first_install])
    assert any("COPY finetune" in step for step in names[first_install:build])


def test_sigterm_reaches_the_run_and_the_user_is_not_root() -> None:
    assert arguments_of("ENTRYPOINT") == ['["python", "-m", "finetune"]'], (
        "exec form: no shell between docker stop and the run"
    )
    assert arguments_of("CMD") == []
    user = arguments_of("USER")[-1]
    assert user not in {"root", "0"}
    assert any(f"useradd --create-home --uid 10001 {user}" in rest for rest in arguments_of("RUN"))
    order = [name for name, _ in STEPS]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN")


def test_cache_and_outputs_are_volumes_and_the_cache_is_hugging_faces() -> None:
    (volumes,) = arguments_of("VOLUME")
    home = arguments_of("WORKDIR")[-1]
    assert f'"{home}/outputs"' in volumes
    environment = " ".join(arguments_of("ENV"))
    cache = re.search(r"HF_HOME=(\S+)", environment)
    assert cache
    assert f'"{cache[1]}"' in volumes
    assert any(f"chown -R finetune:finetune {cache[1]} outputs" in rest for rest in arguments_of("RUN"))
