"""Train an adapter on its own sampled answers, each against its group (objective grpo).

`python -m finetune.grpo RECIPE [section.key=value ...] [--resume] [--dry-run] [--overwrite]`
"""

from finetune.cli import training_verb

__all__ = ["main"]

main = training_verb(
    "grpo",
    objectives=("grpo",),
    summary="Train an adapter on its own sampled answers, each against its group (objective grpo).",
)

if __name__ == "__main__":
    main()
