"""Train an adapter on conversations (objective sft) or on plain text (objective pretrain).

`python -m finetune.sft RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "sft",
    objectives=("sft", "pretrain", "mlm"),
    summary="Train an adapter on the rows of a recipe: conversations (sft) or plain text (pretrain).",
)

if __name__ == "__main__":
    main()
