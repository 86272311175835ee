"""The same recipes trained through both backends, each in a process of its own, and what they leave to compare.

Unsloth changes the process it is imported in, so nothing here imports it. A backend's process starts in an empty folder
and has a cache of its own: neither can take rows from the other.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.small_runs import ROOT, TINY, build_values, read_json, read_lines, write_recipe

BACKENDS = ("transformers", "unsloth")
SAME_LOSS = 1e-3
_MOST_SECONDS = 840  # below the 900 that `make test-unsloth` gives a test; a quiet machine takes a sixth


@dataclass(frozen=True)
class Runs:
    """What one process left behind.

    Attributes:
        folder: of its runs.
        working_dir: where it was started.
        stdout: all it said on standard output.
        stderr: and on standard error.
    """

    folder: Path
    working_dir: Path
    stdout: str = field(repr=False)
    stderr: str = field(repr=False)

    def __getitem__(self, name: str) -> Path:
        """The folder of a finished run."""
        error = self.folder / f"{name}.error.txt"
        assert not error.exists(), error.read_text(encoding="utf-8")
        return self.folder / name

    def batches(self, name: str, where: str = "") -> list[dict[str, Any]]:
        """Every micro-batch of a run in its order; of training or of evaluation alone where it is said."""
        path = self[name].with_name(f"{name}.batches.jsonl")
        lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if where in ("", line["in"])]

    @property
    def process(self) -> dict[str, Any]:
        return read_json(self.folder / "process.json")


@dataclass(frozen=True)
class Both:
    """The same recipes through both backends."""

    transformers: Runs
    unsloth: Runs

    def __getitem__(self, name: str) -> tuple[Path, Path]:
        """The two folders of a recipe's runs."""
        return self.transformers[name], self.unsloth[name]


def build_tiny(**settings: Any) -> dict[str, Any]:
    """The small recipe on the tiny base in float32, with settings put over it as in `build_values`."""
    return build_values(Path("outputs"), **{"model": place_model(TINY)} | settings)


def build_stories(shared_data: Path, **settings: Any) -> dict[str, Any]:
    """The small recipe on stories260K with rows of Alpaca, with settings put over it."""
    on_alpaca = {
        "model": place_model(shared_data / "models" / "stories260K"),
        "data__train": {"path": f"{shared_data}/instructions/alpaca_cleaned_first5000.json", "limit": 120},
        "data__max_length": 512,
        "data__on_bad_rows": "skip",
        "training__learning_rate": 1e-3,
    }
    return build_values(Path("outputs"), **on_alpaca | settings)


def place_model(folder: Path, **settings: Any) -> dict[str, Any]:
    """The `model` section of a base in float32 on this machine's CPU."""
    held = {"quantization": "none", "compute_dtype": "float32", "device": "cpu"}
    return {"model_name_or_path": str(folder), **held, **settings}


def train_both(folder: Path, recipes: Mapping[str, dict[str, Any]]) -> Both:
    """Train recipes through both backends, the two processes at the same time."""
    started = [_start(folder / backend, recipes, "tests.unsloth.watched_run", backend) for backend in BACKENDS]
    return Both(*map(_wait, started))


def train_through_unsloth(folder: Path, recipes: Mapping[str, dict[str, Any]]) -> Runs:
    """Train recipes through Unsloth alone."""
    return _wait(_start(folder / "unsloth", recipes, "tests.unsloth.watched_run", "unsloth"))


def train_beside_rewritten(folder: Path, recipes: Mapping[str, dict[str, Any]]) -> Both:
    """Train recipes on TRL's trainers and, in place of Unsloth's models, on those that Unsloth rewrites."""
    stock = _start(folder / "stock", recipes, "tests.unsloth.watched_run", "transformers")
    rewritten = _start(folder / "rewritten", recipes, "tests.unsloth.rewritten_run")
    return Both(_wait(stock), _wait(rewritten))


def run_python(folder: Path, commands: Mapping[str, Sequence[str]]) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run Python with arguments, two processes at a time; what each of them said, by the name of its command."""

    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        process = start_python(*arguments, working_dir=folder / "empty", cache=folder / "cache")
        stdout, stderr = read_to_its_end(process)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(commands, pool.map(run, commands.values()), strict=True))


def start_python(*arguments: str, working_dir: Path, cache: Path) -> subprocess.Popen[str]:
    """Start Python on this repository's modules in a folder of its own."""
    working_dir.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=working_dir, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _start(
    folder: Path, recipes: Mapping[str, dict[str, Any]], module: str, *arguments: str
) -> tuple[Path, subprocess.Popen[str]]:
    folder.mkdir(parents=True)
    runs, typed = folder / "runs", folder / "typed"
    runs.mkdir()
    typed.mkdir()
    paths = [write_recipe(typed / f"{name}.yaml", values | {"name": name}) for name, values in recipes.items()]
    command = ["-m", module, *arguments, str(runs), *map(str, paths)]
    return folder, start_python(*command, working_dir=folder / "empty", cache=folder / "cache")


def read_to_its_end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process says until it ends; one that takes too long is not left running behind a failed test."""
    try:
        return process.communicate(timeout=_MOST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def _wait(started: tuple[Path, subprocess.Popen[str]]) -> Runs:
    folder, process = started
    stdout, stderr = read_to_its_end(process)
    assert process.returncode == 0, stderr
    return Runs(folder / "runs", folder / "empty", stdout, stderr)


# ---- what has to be the same


def assert_same_batches(both: Both, name: str, *, named: set[str], evaluates: bool = True) -> None:
    """Every micro-batch holds the same whole numbers, in training and where held-out rows are evaluated in batches."""
    ours, theirs = both.transformers.batches(name), both.unsloth.batches(name)
    assert all(named <= line["shapes"].keys() for line in ours)
    assert len({line["sha256"] for line in ours if line["in"] == "training"}) > 1
    assert {line["in"] for line in ours} == ({"training", "evaluation"} if evaluates else {"training"})
    assert theirs == ours


def assert_same_losses(both: Both, name: str, *, figures: tuple[str, ...] = ("loss", "eval_loss")) -> None:
    """Every figure that is logged is the same to a thousandth, at every step."""
    ours, theirs = map(read_lines, both[name])
    assert [line["step"] for line in theirs] == [line["step"] for line in ours]
    for figure in figures:
        expected = [(line["step"], line[figure]) for line in ours if figure in line]
        found = [(line["step"], line[figure]) for line in theirs if figure in line]
        assert len(expected) > 1, f"{figure} is not logged"
        assert [step for step, _ in found] == [step for step, _ in expected]
        for (step, value), (_, other) in zip(expected, found, strict=True):
            assert other == pytest.approx(value, abs=SAME_LOSS), f"{figure} of step {step}"


def read_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def read_adapter_config(run: Path) -> dict[str, Any]:
    """The adapter's config; the order of its target modules, which come from a set, says nothing."""
    config = read_json(run / "adapter" / "adapter_config.json")
    targets = config["target_modules"]
    return config | {"target_modules": targets if isinstance(targets, str) else sorted(targets)}


def assert_same_adapters(both: Both, name: str) -> None:
    """The two adapter folders hold the same files, tensors of the same shapes, and the same words to serve them."""
    ours, theirs = both[name]
    assert (
        read_json(theirs / "summary.json")["trainable_parameters"]
        == (read_json(ours / "summary.json")["trainable_parameters"])
    )
    assert describe_tensors(theirs) == describe_tensors(ours)
    assert read_adapter_config(theirs) == read_adapter_config(ours)
    files = sorted(path.name for path in (ours / "adapter").iterdir())
    assert sorted(path.name for path in (theirs / "adapter").iterdir()) == files
    served = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    # Plain text needs no template.
    templates = {"chat_template.jinja"} if read_json(ours / "resolved.json")["objective"] != "pretrain" else set()
    assert set(files) == served | templates | {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    for file in served | templates:
        assert (theirs / "adapter" / file).read_bytes() == (ours / "adapter" / file).read_bytes(), file


def describe_tensors(run: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in read_tensors(run).items()}
