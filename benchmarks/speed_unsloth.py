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

import torch
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.speed_rivals import build_parser, build_settings, load_rows
from benchmarks.speed_steps import StepNotes

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = build_parser()
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
    settings = build_settings(options)
    built = {"model": model, "processing_class": tokenizer, "train_dataset": load_rows(options)}
    built["callbacks"] = [StepNotes(options.output / "steps.json")]
    if options.objective == "sft":
        trainer = SFTTrainer(args=SFTConfig(packing=options.packing, **settings), **built)
    else:
        trainer = DPOTrainer(args=DPOConfig(**settings), **built)
    trainer.train()
    trainer.save_model(str(options.output / "adapter"))


if __name__ == "__main__":
    main()
