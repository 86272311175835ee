"""Train an adapter on its own sampled answers, each against the mean of the others (objective rloo).

`python -m finetune.rloo RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "rloo",
    objectives=("rloo",),
    summary="Train an adapter on its own sampled answers, each against the mean of the others (objective rloo).",
)

if __name__ == "__main__":
    main()
