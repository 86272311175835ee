"""The other rival: Unsloth, written as its notebooks are; run by a Python that has it.

    .venv-unsloth/bin/python -m benchmarks.speed_unsloth --model FOLDER --rows FILE --output FOLDER [--tuned] …

Default: `use_gradient_checkpointing="unsloth"`. Tuned: `checkpoint_skip_layers="max"` beside it, its own switch for
keeping every layer's activations; on a CPU checkpointing is switched off instead, which keeps them too. It is asked
for packing where rows are short, and its CPU path ignores that (unsloth 2026.10.9): there it trains the rows of a step
as one padded batch.
"""

# isort: off
from unsloth import FastLanguageModel  # before everything it changes

# isort: on
import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.speed_rows import to_prompt
from benchmarks.speed_steps import StepNotes

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def to_completion(row: dict[str, str]) -> dict[str, str]:
    """Put Alpaca's prompt before the answer."""
    return {"prompt": to_prompt(row["instruction"], row["input"]), "completion": row["output"]}


def to_pair(row: dict[str, str]) -> dict[str, str]:
    """Put Alpaca's prompt before both answers."""
    return {"prompt": to_prompt(row["prompt"]), "chosen": row["chosen"], "rejected": row["rejected"]}


def read_options() -> argparse.Namespace:
    """Read the command line."""
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
    parser.add_argument("--tuned", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Train the rows once and save the adapter."""
    options = read_options()
    on_cpu = options.device == "cpu"
    checkpointing: str | bool = False if options.tuned and on_cpu else "unsloth"
    model, _ = FastLanguageModel.from_pretrained(
        model_name=options.model,
        tokenizer_name=options.tokenizer,
        max_seq_length=options.max_length,
        dtype=torch.bfloat16,
        load_in_4bit=True,
        device_map={"": options.device},
        use_gradient_checkpointing=checkpointing,
    )
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    skipped = {"checkpoint_skip_layers": "max"} if options.tuned and not on_cpu else {}
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=LINEARS,
        use_gradient_checkpointing=checkpointing,
        random_state=options.seed,
        **skipped,
    )
    settings = {
        "output_dir": str(options.output / "trainer"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulation,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "max_length": options.max_length,
        "bf16": True,
        "use_cpu": on_cpu,
        "logging_steps": 1,  # the notes are taken from the log
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": options.seed,
    }
    rows = load_dataset("json", data_files=options.rows, split="train")
    built = {"model": model, "processing_class": tokenizer, "callbacks": [StepNotes(options.output / "steps.json")]}
    if options.objective == "sft":
        rows = rows.map(to_completion, remove_columns=rows.column_names)
        trainer = SFTTrainer(args=SFTConfig(packing=options.packing, **settings), train_dataset=rows, **built)
    else:
        rows = rows.map(to_pair, remove_columns=rows.column_names)
        trainer = DPOTrainer(args=DPOConfig(**settings), train_dataset=rows, **built)
    trainer.train()
    trainer.save_model(str(options.output / "adapter"))


if __name__ == "__main__":
    main()
