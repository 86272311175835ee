"""Train on conversations (sft), plain text (pretrain) or masked text (mlm).

`python -m finetune.sft RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "sft",
    objectives=("sft", "pretrain", "mlm"),
    summary="Train on conversations (sft), plain text (pretrain) or masked text (mlm).",
)

if __name__ == "__main__":
    main()
