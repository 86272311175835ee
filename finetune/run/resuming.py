"""Whether a run may be continued under today's recipe.

Goes in: the run's resolved.json and the resolved recipe of today. What changes the mathematics must
be as it was; a difference comes out as a CheckpointError with a table. What may differ is listed in
FREE_KEYS and nowhere else.
"""

import json
from typing import Any

from finetune.errors import CheckpointError
from finetune.run.folder import RunFolder

__all__ = ["FREE_KEYS", "find_differences", "refuse_other_recipe"]

# A key, or a whole section, that leaves losses and weights as they are. Anything not named here
# counts: also num_train_epochs and max_steps, which shape the learning rate of every step.
FREE_KEYS = frozenset(
    {
        "name",
        "output_dir",
        "evaluation",
        "training.logging_steps",
        "training.save_steps",
        "training.save_total_limit",
        "training.per_device_eval_batch_size",
        "training.report_to",
        "training.run_name",
        "training.dataloader_num_workers",
        "training.dataloader_pin_memory",
        "training.dataloader_persistent_workers",
        "training.dataloader_prefetch_factor",
        "training.project",
    }
)
_ABSENT = "(not set)"
_MOST_ROWS = 10  # a message has at most 15 lines
_MOST_CHARACTERS = 28


def refuse_other_recipe(folder: RunFolder, resolved: dict[str, Any]) -> None:
    """Compare today's resolved recipe with the one the run was started with; nothing written yet is no difference.

    Raises:
        CheckpointError: a key that changes the mathematics differs.
    """
    if not folder.resolved_path.exists():
        return
    then = json.loads(folder.resolved_path.read_text(encoding="utf-8"))
    # Through JSON once, so that both sides hold lists and strings where a recipe may hold tuples and paths.
    differences = find_differences(then, json.loads(json.dumps(resolved)))
    if not differences:
        return
    rows = [("setting", "of this run", "asked for now"), *differences[:_MOST_ROWS]]
    width_key, width_then = (max(len(row[column]) for row in rows) for column in (0, 1))
    table = "\n".join(f"  {key:<{width_key}}  {before:<{width_then}}  {now}" for key, before, now in rows)
    more = f"\n  and {len(differences) - _MOST_ROWS} more" if len(differences) > _MOST_ROWS else ""
    raise CheckpointError(
        f"{folder.path} was started with another recipe, so its checkpoints do not continue this one.\n{table}{more}\n"
        f"  Put these back and --resume, or train the new recipe under a name of its own: name=…"
    )


def find_differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the keys that count and differ, each with its value then and now, in the order of today's recipe."""
    before, today = _flatten(then), _flatten(now)
    keys = [*today, *(key for key in before if key not in today)]
    return [
        (key, _to_cell(before.get(key, _ABSENT)), _to_cell(today.get(key, _ABSENT)))
        for key in keys
        if before.get(key, _ABSENT) != today.get(key, _ABSENT) and not _is_free(key)
    ]


def _is_free(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:length]) in FREE_KEYS for length in range(1, len(parts) + 1))


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            flat |= _flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _to_cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
