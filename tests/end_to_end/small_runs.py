"""Runs of a second each, in this process: a Mistral of two layers, its weights drawn by the seed, on the tiny world.

Only the tokenizer of data/tiny_base is used, so that nothing here depends on what that model knows.
"""

import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import errors
from finetune.recipe.reading import build_recipe
from finetune.train import train

ROOT = Path(__file__).parents[2]
TINY = ROOT / "data" / "tiny_base"
ROWS = ROOT / "data" / "tiny_world" / "train.json"
CHATS = ROOT / "data" / "tiny_world" / "chat.jsonl"
RECIPE_TEXT = "# typed by a test\n"

SHAPE = {
    "model_type": "mistral",
    "vocab_size": 4096,  # of the tokenizer
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
SMALL = {
    "name": "small",
    "seed": 3,
    "model": {
        "weights": "random",
        "config": SHAPE,
        "tokenizer_name_or_path": str(TINY),
        "quantization": "nf4",
        "device": "cpu",
        "compute_dtype": "float32",
    },
    "adapter": {"method": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear"},
    "data": {"train": {"path": str(ROWS), "limit": 60}, "template": "alpaca", "max_length": 96, "packing": False},
    "evaluation": {"max_new_tokens": 3},
    "training": {
        "max_steps": 4,
        "save_steps": 100,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
    },
}


def build_values(output_dir: Path, **settings: Any) -> dict[str, Any]:
    """The small recipe's values with some put over them: `training__max_steps=3` for `training.max_steps`."""
    values: dict[str, Any] = deepcopy(SMALL) | {"output_dir": str(output_dir)}
    for path, value in settings.items():
        *sections, key = path.split("__")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return values


def run_small(
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    allow_mismatch: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Train the small recipe; the run's folder."""
    recipe = build_recipe(build_values(output_dir, **settings))
    flags = {"resume": resume, "overwrite": overwrite, "allow_mismatch": allow_mismatch}
    return train(recipe, recipe_text=RECIPE_TEXT, **flags)


def write_recipe(path: Path, values: dict[str, Any]) -> Path:
    """Write values as the YAML file that a command line takes."""
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


class _Signal(logging.Handler):
    """Sends this process a signal when a line of the log holds certain words: the same moment in every run."""

    def __init__(self, words: str, number: signal.Signals) -> None:
        super().__init__()
        self._words = words
        self._number = number

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            os.kill(os.getpid(), self._number)


@contextmanager
def stopped_at_evaluation(step: int, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """Expect the run inside to be stopped by a signal that comes as the held-out loss of a step is told."""
    ours = logging.getLogger("finetune")
    handler = _Signal(f"step {step} of ", number)
    # A signal that came after the run would end pytest.
    before = signal.signal(number, signal.SIG_IGN)
    ours.addHandler(handler)
    try:
        with pytest.raises(errors.Interrupted) as stopped:
            yield
    finally:
        ours.removeHandler(handler)
        signal.signal(number, before)
    assert stopped.value.exit_code == 128 + number


_OF_THE_MACHINE = ("seconds", "tokens_per_second", "peak_memory_bytes", "step_time", "profiling/total")


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_figures(run: Path) -> list[tuple[Any, ...]]:
    """What must be equal in two runs that are the same: all that is logged but the clock's and the memory's figures."""
    return [
        tuple((key, value) for key, value in sorted(line.items()) if not key.endswith(_OF_THE_MACHINE))
        for line in read_lines(run)
    ]


def read_weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def hash_files(run: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file of a run."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    return {str(path.relative_to(run)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
