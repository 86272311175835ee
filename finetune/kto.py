"""Train an adapter on answers judged good or bad, each on its own (objective kto).

`python -m finetune.kto RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "kto",
    objectives=("kto",),
    summary="Train an adapter on answers judged good or bad, each on its own (objective kto).",
)

if __name__ == "__main__":
    main()
