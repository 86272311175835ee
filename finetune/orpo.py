"""Train an adapter on pairs without a reference, by TRL's experimental ORPO trainer (objective orpo).

`python -m finetune.orpo RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "orpo",
    objectives=("orpo",),
    summary="Train an adapter on pairs without a reference, by TRL's experimental ORPO trainer (objective orpo).",
)

if __name__ == "__main__":
    main()
