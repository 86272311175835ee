"""What the rivals' scripts have in common: their command line, their rows, and what both trainers' configs are given.

In go the words of the command line; out come rows as TRL's trainers take them, and arguments of their configs. What
makes a rival what it is (model, adapter, trainer, checkpointing) stands in its own script. Imports no library that
Unsloth wants to change first.
"""

import argparse
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from benchmarks.speed_rows import to_prompt

__all__ = ["build_parser", "build_settings", "load_rows"]


def build_parser() -> argparse.ArgumentParser:
    """Build the command line of both; a script adds its own switches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--objective", choices=("sft", "dpo"), default="sft")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--packing", action="store_true")
    return parser


def load_rows(options: argparse.Namespace) -> Dataset:
    """Load the rows, each answer behind Alpaca's prompt; TRL trains answers alone and ends them with the end token."""
    rows = load_dataset("json", data_files=options.rows, split="train")
    to_texts = _to_completion if options.objective == "sft" else _to_pair
    return rows.map(to_texts, remove_columns=rows.column_names)


def _to_completion(row: dict[str, str]) -> dict[str, str]:
    return {"prompt": to_prompt(row["instruction"], row["input"]), "completion": row["output"]}


def _to_pair(row: dict[str, str]) -> dict[str, str]:
    return {"prompt": to_prompt(row["prompt"]), "chosen": row["chosen"], "rejected": row["rejected"]}


def build_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Name what the config of either trainer is given; all else stays at the libraries' defaults."""
    return {
        "output_dir": str(options.output / "trainer"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulation,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "max_length": options.max_length,
        "bf16": True,
        "use_cpu": options.device == "cpu",
        "logging_steps": 1,  # the notes are taken from the log
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": options.seed,
    }
