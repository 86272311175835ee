"""Train a classifier of texts: an adapter and a head that gives labels or numbers (objective classify).

`python -m finetune.classify RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "classify",
    objectives=("classify",),
    summary="Train a classifier of texts: an adapter and a head that gives labels or numbers (objective classify).",
)

if __name__ == "__main__":
    main()
