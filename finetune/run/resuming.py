"""Whether a run may be continued under today's recipe, on today's base and rows.

Goes in: the run's resolved.json and identity.json, and the same of today. What changes the mathematics
must be as it was; a difference comes out as a CheckpointError with a table. What may differ is listed
in FREE_KEYS and nowhere else.
"""

import json
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.run.folder import RunFolder

__all__ = ["FREE_KEYS", "find_differences", "refuse_other_identity", "refuse_other_recipe", "write_identity"]

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
    """Compare today's resolved recipe with the one the run was started with.

    Raises:
        CheckpointError: a key that changes the mathematics differs.
    """
    _refuse_differences(folder, folder.resolved_path, resolved, "with another recipe", "train the new recipe")


def write_identity(folder: RunFolder, identity: dict[str, Any]) -> None:
    """Write what the recipe does not show and the mathematics depends on: identity.json.

    Args:
        folder: the run's.
        identity: `base_commit` of the base on the Hub (None for a folder), `data`, the hash of the rows' ids and
            masks, and `num_processes` of the launch.
    """
    folder.write_json(folder.identity_path, identity)


def refuse_other_identity(folder: RunFolder, identity: dict[str, Any]) -> None:
    """Compare what `write_identity` would write today with what it wrote when the run was started.

    Raises:
        CheckpointError: the base has another commit, the rows other tokens, the launch another size.
    """
    _refuse_differences(
        folder, folder.identity_path, identity, "on another base, other rows or other processes", "train on these"
    )


def _refuse_differences(folder: RunFolder, path: Path, today: dict[str, Any], how: str, instead: str) -> None:
    """Raise where the record at `path` differs from today's and there is something that would be continued."""
    if not (folder.finished or folder.has_checkpoint):
        return
    # A record that is gone differs in everything: what cannot be compared is not continued.
    then = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    # Through JSON once, so that both sides hold lists and strings where a recipe may hold tuples and paths.
    differences = find_differences(then, json.loads(json.dumps(today)))
    if not differences:
        return
    rows = [("setting", "of this run", "asked for now"), *differences[:_MOST_ROWS]]
    width_key, width_then = (max(len(row[column]) for row in rows) for column in (0, 1))
    table = "\n".join(f"  {key:<{width_key}}  {before:<{width_then}}  {now}" for key, before, now in rows)
    more = f"\n  and {len(differences) - _MOST_ROWS} more" if len(differences) > _MOST_ROWS else ""
    raise CheckpointError(
        f"{folder.path} was started {how}, so its checkpoints do not continue this one.\n{table}{more}\n"
        f"  Put these back and --resume, or {instead} under a name of its own: name=…"
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
