"""The baseline: what a careful user of TRL writes by hand today for the same run, in the documented way.

`python -m tests.faults.plain_trl --model FOLDER --rows FILE --output FOLDER [--jit-checkpoint]`: SFTTrainer with a LoRA
adapter, a checkpoint every 5 steps of which two are kept, and `resume_from_checkpoint=True` when the output folder
holds one (transformers' `get_last_checkpoint`, as its example scripts do it), so that the same command continues. The
numbers are those of the fault programme's 32-bit recipe; model, tokenizer and rows are files, as a user has them. With
`--jit-checkpoint` transformers' own answer to SIGTERM is on, `TrainingArguments(enable_jit_checkpoint=True)`.

Beside what a user would write it holds one thing: a callback that notes each step's loss, learning rate and gradient
norm, which is what the programme compares. The trainer keeps the same numbers, but only in its checkpoints.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer


class Noted(TrainerCallback):
    """Notes what each step logged; behind a resumed step it begins anew, as the package's metrics.jsonl does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        *lines, _torn = self._path.read_text().split("\n") if self._path.exists() else [""]
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        beside = self._path.with_name(f".{self._path.name}.part")  # a kill in here must cost no line
        beside.write_text("".join(f"{line}\n" for line in kept))
        beside.replace(self._path)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            figures = {key: logs[key] for key in ("loss", "learning_rate", "grad_norm")}
            with self._path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **figures}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jit-checkpoint", action="store_true")
    options = parser.parse_args()

    arguments = SFTConfig(
        output_dir=str(options.output),
        seed=3,
        max_steps=30,
        save_steps=5,
        save_total_limit=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=False,
        learning_rate=1e-2,
        warmup_steps=3,
        max_length=96,
        bf16=False,
        use_cpu=True,
        report_to="none",
        enable_jit_checkpoint=options.jit_checkpoint,
    )
    # As transformers' example scripts do: TRL draws the adapter's start before its trainer sets the seed.
    set_seed(arguments.seed)
    rows = load_dataset("json", data_files=options.rows, split="train")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
        args=arguments,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Noted(options.output / "metrics.jsonl")],
    )
    options.output.mkdir(parents=True, exist_ok=True)
    # True where there is one: the documented way to continue.
    trainer.train(resume_from_checkpoint=True if get_last_checkpoint(str(options.output)) else None)
    trainer.save_model(str(options.output / "adapter"))


if __name__ == "__main__":
    main()
