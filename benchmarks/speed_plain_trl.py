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

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.speed_rivals import build_parser, build_settings, load_rows
from benchmarks.speed_steps import StepNotes

NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
LORA = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = build_parser()
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--cached-reference", action="store_true")
    return parser.parse_args()


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
    settings = {**build_settings(options), "gradient_checkpointing": not options.no_checkpointing}
    built = {"model": model, "processing_class": tokenizer, "peft_config": LORA, "train_dataset": load_rows(options)}
    built["callbacks"] = [StepNotes(options.output / "steps.json")]
    if options.objective == "sft":
        trainer = SFTTrainer(args=SFTConfig(packing=options.packing, **settings), **built)
    else:
        config = DPOConfig(precompute_ref_log_probs=options.cached_reference, **settings)
        trainer = DPOTrainer(args=config, **built)
    trainer.train()
    trainer.save_model(str(options.output / "adapter"))


if __name__ == "__main__":
    main()
