"""Train an adapter on pairs of answers, one chosen and one rejected (objective dpo).

`python -m finetune.dpo RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "dpo",
    objectives=("dpo",),
    summary="Train an adapter on pairs of answers, one chosen and one rejected (objective dpo).",
)

if __name__ == "__main__":
    main()
