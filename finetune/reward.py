"""Train a reward model on pairs: an adapter and a head that scores answers (objective reward).

`python -m finetune.reward RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "reward",
    objectives=("reward",),
    summary="Train a reward model on pairs: an adapter and a head that scores answers (objective reward).",
)

if __name__ == "__main__":
    main()
