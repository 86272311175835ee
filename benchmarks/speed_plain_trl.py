"""The rival: TRL + PEFT + bitsandbytes in one script, written as their users write it.

    python -m benchmarks.speed_plain_trl --model FOLDER --rows FILE --output FOLDER [--packing] [--no-checkpointing] …

Of the libraries' settings it states those below and leaves all others at their defaults: a loss over the trained tokens
in chunks (TRL 1.14), SDPA, fused AdamW, bfloat16 under autocast, gradient checkpointing. The three settings measured:

- as it comes: each row alone, padded to the longest of its batch; checkpointing on;
- packed as it comes: `packing=True` (best fit; the batch lies in one row, documents kept apart); checkpointing on;
- packed with checkpointing off, a packed row at a time: nothing is computed twice and the attended rows are short, its
  best setting where memory allows it.

DPO has no packing in TRL; its best setting there is checkpointing off with the reference's log-probabilities computed
before (`--cached-reference`).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.speed_rows import to_prompt
from benchmarks.speed_steps import StepNotes

NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
LORA = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def to_completion(row: dict[str, str]) -> dict[str, str]:
    """Put Alpaca's prompt before the answer; TRL trains the completion alone and ends it with the end token."""
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
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--cached-reference", action="store_true")
    return parser.parse_args()


def build_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Name what both trainers' configs are given."""
    return {
        "output_dir": str(options.output / "trainer"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulation,
        "gradient_checkpointing": not options.no_checkpointing,
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


def main() -> None:
    """Train the rows once and save the adapter."""
    options = read_options()
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    model = AutoModelForCausalLM.from_pretrained(
        options.model, quantization_config=NF4, dtype=torch.bfloat16, device_map={"": options.device}
    )
    rows = load_dataset("json", data_files=options.rows, split="train")
    settings = build_settings(options)
    built = {"model": model, "processing_class": tokenizer, "peft_config": LORA}
    built["callbacks"] = [StepNotes(options.output / "steps.json")]
    if options.objective == "sft":
        rows = rows.map(to_completion, remove_columns=rows.column_names)
        config = SFTConfig(packing=options.packing, **settings)
        trainer = SFTTrainer(args=config, train_dataset=rows, **built)
    else:
        rows = rows.map(to_pair, remove_columns=rows.column_names)
        config = DPOConfig(precompute_ref_log_probs=options.cached_reference, **settings)
        trainer = DPOTrainer(args=config, train_dataset=rows, **built)
    trainer.train()
    trainer.save_model(str(options.output / "adapter"))


if __name__ == "__main__":
    main()
