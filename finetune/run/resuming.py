"""Whether a run may be continued under today's recipe, on today's base and rows.

Goes in: the run's resolved.json and identity.json, a checkpoint's record, and the same of today. What changes the
mathematics must be as it was, or be accepted key by key; a difference comes out as a CheckpointError with a table.
What may differ unasked is listed in FREE_KEYS, what nobody can accept in FIXED_KEYS, and nowhere else. Where a recipe
says `auto`, what that came to counts: it stands in identity.json, and a machine on which it comes to something else is
another one.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError, RecipeError
from finetune.recipe.nearest import find_nearest
from finetune.recipe.reading import flatten
from finetune.run.checkpoints import read_record
from finetune.run.folder import RunFolder
from finetune.run.own_files import read_object

__all__ = [
    "FIXED_KEYS",
    "FREE_KEYS",
    "Mismatch",
    "check_allowed_keys",
    "find_differences",
    "has_other_recipe",
    "hash_recipe",
    "read_accepted",
    "refuse_other_identity",
    "refuse_other_origin",
    "refuse_other_recipe",
    "write_identity",
]

log = logging.getLogger("finetune.run.resuming")

# A key, or a whole section, that leaves losses and weights as they are. Anything not named here
# counts: also num_train_epochs and max_steps, which shape the learning rate of every step.
FREE_KEYS = frozenset(
    {
        "name",
        "output_dir",
        "evaluation",
        "adapter.any_base",
        "data.assumed",
        "training.non_finite",
        "training.max_skipped_steps",
        "training.rehearsal",
        "training.memory",
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
# A key, or a section, that no --allow-mismatch accepts, and why. Those of _FITTING are let through again.
FIXED_KEYS: Mapping[str, str] = {
    "objective": "its checkpoints hold another trainer's state",
    "model.backend": "the other backend wraps the model in its own way",
    "adapter": "its checkpoints hold weights of the adapter's form",
    "training.optim": "its checkpoints hold the state of the other optimizer",
    "training.early_stopping_patience": "the count goes on as the checkpoint has it, with its own patience",
}
_FITTING = frozenset({"adapter.lora_alpha", "adapter.lora_dropout"})
# Schedules that follow the figures: what another learning rate would have come to by now is not known.
_FOLLOWING = ("reduce_lr_on_plateau", "greedy")
_OF_THE_SCHEDULE = ("training.learning_rate", "training.lr_scheduler_type", "training.lr_scheduler_kwargs")
# What the recipe's setting of that name under `model` came to on the run's machine.
_COME_TO = ("device", "compute_dtype", "attention")
# What `write_identity` is given beside what a recipe can hold.
_IDENTITY_KEYS = ("base_commit", "base", "template", "data", "held_out", "init_from", "num_processes", *_COME_TO)
# Of a checkpoint's record: hashes of what its weights were made from.
_MADE_FROM = ("recipe", "data", "template", "base")
_ACCEPTED = "accepted_mismatches"
_ABSENT = "(not set)"
_MOST_ROWS = 10  # a message has at most 15 lines
_MOST_CHARACTERS = 28


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference that was accepted.

    Attributes:
        key: of the table.
        then: what the run was started with, as the table shows it.
        now: what it goes on with.
        step: after which; None until the run goes on.
    """

    key: str
    then: str
    now: str
    step: int | None = None


def refuse_other_recipe(folder: RunFolder, resolved: dict[str, Any], allowed: Collection[str] = ()) -> list[Mismatch]:
    """Compare today's resolved recipe with the one the run was started with.

    `auto` and what it came to in this run are no difference; whether it comes to that today, `refuse_other_identity`
    asks.

    Args:
        folder: the run's.
        resolved: today's.
        allowed: keys whose difference is accepted.

    Returns:
        The differences accepted.

    Raises:
        CheckpointError: a key that changes the mathematics differs.
    """
    came_to = read_object(folder.identity_path)
    then, now = flatten(read_object(folder.resolved_path)), flatten(resolved)
    keys = {f"model.{name}": came_to.get(name) for name in _COME_TO}
    same = [key for key, value in keys.items() if {str(then.get(key)), str(now.get(key))} == {"auto", value}]
    how = "with another recipe"
    return _refuse_differences(folder, folder.resolved_path, resolved, allowed, same, how, "train the new recipe")


def hash_recipe(resolved: dict[str, Any]) -> str:
    """Hash the keys of a resolved recipe that count: two that may continue each other have one hash."""
    flat = flatten(json.loads(json.dumps(resolved)))
    counting = {key: value for key, value in flat.items() if not _is_free(key)}
    return hashlib.sha256(json.dumps(counting, sort_keys=True).encode()).hexdigest()


def write_identity(
    folder: RunFolder, identity: dict[str, Any], accepted: Sequence[Mismatch] = (), *, step: int | None = None
) -> None:
    """Write what the recipe does not show and the mathematics depends on: identity.json.

    Args:
        folder: the run's.
        identity: `base_commit` of the base on the Hub (None for a folder) and `base`, a hash of its content;
            `template`, the hash of the prompt template; `data`, the hash of the rows' ids and masks; `num_processes`
            of the launch; `device`, `compute_dtype` and `attention` that the recipe's settings came to.
        accepted: differences that the command line accepts; those of earlier resumes stay beside them.
        step: after which the run goes on; None at its start, where there was nothing to differ from.
    """
    listed = [] if step is None else read_accepted(folder)
    # Once: a run that was killed right behind this is given the same command again.
    listed += [entry for one in accepted if (entry := asdict(one) | {"step": step}) not in listed]
    folder.write_json(folder.identity_path, identity | ({_ACCEPTED: listed} if listed else {}))


def read_accepted(folder: RunFolder) -> list[dict[str, Any]]:
    """Read the differences that a run was let go on with, oldest first: `key`, `then`, `now`, `step`."""
    accepted: list[dict[str, Any]] = read_object(folder.identity_path).get(_ACCEPTED, [])
    return accepted


def refuse_other_identity(
    folder: RunFolder, identity: dict[str, Any], allowed: Collection[str] = (), *, accepted: Sequence[Mismatch] = ()
) -> list[Mismatch]:
    """Compare what `write_identity` would write today with what it wrote when the run was started.

    Args:
        folder: the run's.
        identity: today's.
        allowed: keys whose difference is accepted.
        accepted: differences of the recipe; who accepts `model.attention: eager` accepts that it is that.

    Returns:
        The differences accepted.

    Raises:
        CheckpointError: the base has another content, the rows other tokens, the launch another size, or the machine
            computes otherwise.
    """
    how = "on another base, other rows, other processes or in another precision"
    then, asked_for = read_object(folder.identity_path), {one.key: one.now for one in accepted}
    # Versions before this one did not write these down.
    unknown = [name for name in _COME_TO if then and name in identity and name not in then]
    if unknown and folder.has_checkpoint:
        log.warning(
            "What this run computed in was not written down when it began, and cannot be compared: %s now.",
            ", ".join(f"{name} {identity[name]}" for name in unknown),
        )
    # Not of `auto`, which says nothing of what it comes to.
    implied = [*unknown, *(name for name in _COME_TO if asked_for.get(f"model.{name}", "") == identity.get(name))]
    found = _refuse_differences(folder, folder.identity_path, identity, allowed, implied, how, "train on these")
    return [one for one in found if one.key not in unknown]


def refuse_other_origin(
    folder: RunFolder, checkpoint: Path, made_from: Mapping[str, Any], accepted: Sequence[Mismatch]
) -> None:
    """Compare what a checkpoint's own record says it was made from with today's: it may be another run's.

    Args:
        folder: the run's.
        checkpoint: found whole.
        made_from: `recipe`, `data`, `template` and `base`, as `CommitRecord` is handed them; what else there is need
            not be equal.
        accepted: differences accepted now; those of earlier resumes are in identity.json.

    Raises:
        CheckpointError: it was made from something else.
    """
    record = read_record(checkpoint)
    keys = {one.key for one in accepted} | {str(one["key"]) for one in read_accepted(folder)}
    if keys - set(_IDENTITY_KEYS):
        keys.add("recipe")
    if "base_commit" in keys:
        keys.add("base")
    others = [name for name in _MADE_FROM if record.get(name) != made_from[name] and name not in keys]
    if others:
        raise CheckpointError(
            f"{checkpoint} was not made from this run's {' and '.join(others)}, as its COMPLETE.json says.\n"
            f"  It may be of another run. Move it away and --resume, or start over: --overwrite"
        )


def has_other_recipe(checkpoint: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written under other settings than today's: those accepted are to count from it on.

    What they come to on this machine is one of them: what was decided for another precision need not fit.
    """
    record = read_record(checkpoint)
    names = ("recipe", *(name for name in _COME_TO if name in record and name in made_from))
    return any(record.get(name) != made_from[name] for name in names)


def check_allowed_keys(folder: RunFolder, resolved: dict[str, Any], allowed: Sequence[str]) -> None:
    """Check what is asked to be accepted, before anything is compared.

    Raises:
        RecipeError: no setting of that name.
        CheckpointError: one that no checkpoint can go on without.
    """
    then, now = flatten(read_object(folder.resolved_path)), flatten(resolved)
    known = [*now, *(key for key in then if key not in now), *_IDENTITY_KEYS]
    for key in allowed:
        if key not in known:
            nearest = [name for name in known if name.endswith(f".{key}")] or find_nearest(key, known)
            hint = f"\n  Did you mean {' or '.join(f'`{name}`' for name in nearest[:3])}?" if nearest else ""
            raise RecipeError(f"command line: --allow-mismatch: `{key}` is no key of this run's recipe.{hint}")
        reason = _find_reason(key, then, now)
        if reason is not None and then.get(key, _ABSENT) != now.get(key, _ABSENT):
            raise CheckpointError(
                f"command line: --allow-mismatch {key}: that one cannot be accepted, because {reason}.\n"
                f"  Put it back and --resume, or train the new recipe under a name of its own: name=…"
            )


def _find_reason(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why a difference of a key cannot be accepted; None where it can."""
    schedules = {str(one.get("training.lr_scheduler_type")) for one in (then, now)}
    if key in _OF_THE_SCHEDULE and schedules & set(_FOLLOWING):
        return "the schedule follows the figures, and what it would have come to is not known"
    if key in _FITTING:
        return None
    return next((reason for name, reason in FIXED_KEYS.items() if key == name or key.startswith(f"{name}.")), None)


def _refuse_differences(
    folder: RunFolder,
    path: Path,
    today: dict[str, Any],
    allowed: Collection[str],
    implied: Collection[str],
    how: str,
    instead: str,
) -> list[Mismatch]:
    """Raise where the record at `path` differs from today's and there is something that would be continued.

    Differences of the keys in `allowed` are accepted, and each of these is answered in the log; those of the keys in
    `implied` are accepted without a word.
    """
    if not (folder.finished or folder.has_checkpoint):
        return []
    # A record that is gone differs in everything: what cannot be compared is not continued.
    then = read_object(path)
    then.pop(_ACCEPTED, None)
    # Through JSON once, so that both sides hold lists and strings where a recipe may hold tuples and paths.
    now = json.loads(json.dumps(today))
    differences = find_differences(then, now)
    accepted = [Mismatch(*one) for one in differences if one[0] in allowed or one[0] in implied]
    for one in accepted:
        if one.key in allowed:
            log.warning("Goes on although %s differs, as accepted: %s of this run, %s now.", one.key, one.then, one.now)
    for key in allowed:
        if key in flatten(now) and key not in {one.key for one in accepted}:
            log.warning("--allow-mismatch %s: it does not differ, or may differ anyway.", key)
    differences = [one for one in differences if one[0] not in {same.key for same in accepted}]
    if not differences:
        return accepted
    rows = [("setting", "of this run", "asked for now"), *differences[:_MOST_ROWS]]
    width_key, width_then = (max(len(row[column]) for row in rows) for column in (0, 1))
    table = "\n".join(f"  {key:<{width_key}}  {before:<{width_then}}  {now}" for key, before, now in rows)
    more = f"\n  and {len(differences) - _MOST_ROWS} more" if len(differences) > _MOST_ROWS else ""
    raise CheckpointError(
        f"{folder.path} was started {how}, so its checkpoints do not continue this one.\n{table}{more}\n"
        f"  Put these back{_render_settings(differences)} and --resume, or {instead} under a name of its own: name=…"
        f"{_render_way_on([key for key, *_ in differences], flatten(then), flatten(now))}"
    )


def _render_settings(differences: Sequence[tuple[str, str, str]]) -> str:
    """The settings that put back what `auto` came to: the recipe shows none that could be."""
    settings = [f"model.{key}={then}" for key, then, _ in differences if key in _COME_TO and then != _ABSENT]
    return f" ({' '.join(settings)})" if settings else ""


def _render_way_on(keys: list[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The line that says how to accept the differences; none where one of them cannot be."""
    if any(_find_reason(key, then, now) is not None for key in keys):
        return ""
    each = " ".join(f"--allow-mismatch {key}" for key in keys) if len(keys) <= 2 else "--allow-mismatch KEY, for each"
    return f"\n  Or go on with them from the last checkpoint: --resume {each}"


def find_differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """List the keys that count and differ, each with its value then and now, in the order of today's recipe."""
    before, today = flatten(then), flatten(now)
    keys = [*today, *(key for key in before if key not in today)]
    return [
        (key, _to_cell(before.get(key, _ABSENT)), _to_cell(today.get(key, _ABSENT)))
        for key in keys
        if before.get(key, _ABSENT) != today.get(key, _ABSENT) and not _is_free(key)
    ]


def _is_free(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:length]) in FREE_KEYS for length in range(1, len(parts) + 1))


def _to_cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
