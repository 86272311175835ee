"""The rows of a GLUE task: found on the Hub, in a folder of the published files, or in one file.

In go a source and a task; out come labelled examples, a set for each part of the role (MNLI's development and
test rows have two). A label has its name whatever it was written as; test rows have none.
"""

from pathlib import Path

from finetune.data.files import find_files
from finetune.data.labelled import LabelReading
from finetune.data.sources import LoadedExamples, load_examples
from finetune.errors import DataError, RecipeError
from finetune.recipe.glue import GLUE_HUB_NAME, GLUE_TASKS, GluePart, GlueRole, GlueTask
from finetune.recipe.places import expand, is_local
from finetune.recipe.rows_schema import GlueName, SourceSettings

__all__ = ["find_asked_task", "load_glue_examples"]


def load_glue_examples(
    source: SourceSettings, name: GlueName, role: GlueRole, *, on_bad_rows: str, setting: str
) -> dict[str, LoadedExamples]:
    """Load a task's rows for training, evaluation or prediction.

    Args:
        source: `path` is a Hub name (`subset` is then the task's where none is typed, `split` the role's), a folder
            that holds the task's folder, that folder itself, or one file. A typed `limit` counts for each part, and
            typed `columns` go before the task's.
        name: of the task.
        role: decides the split or the file, and whether rows have labels.
        on_bad_rows: `error` stops at the first row that cannot be used, `skip` counts it; test rows are never
            skipped, since the server counts them.
        setting: where the source stands in the recipe, for messages.

    Returns:
        Examples by the part's name: `matched` and `mismatched` where there are two, else one under the empty name.

    Raises:
        DataError: a file that is not there, with its name, or a row with its line.
        PlaceError: a dataset of the Hub that cannot be had.
        RecipeError: the task has no such rows, or rows of another format were asked for.
    """
    task = GLUE_TASKS[name]
    if source.format not in ("auto", "labelled"):
        raise RecipeError(
            f"`{setting}.format: {source.format}` does not go with the task `{name}`, whose rows are labelled texts.\n"
            f"  Leave `{setting}.format` out."
        )
    # A folder or file brings its rows itself; of the Hub only those that the task has there can be had.
    find = _find_local_parts if is_local(source.path) else _find_hub_parts
    reading = LabelReading(
        headings=task.headings,
        spellings=task.spellings,
        is_number=task.problem_type == "regression",
        with_labels=role != "test",
    )
    policy = "error" if role == "test" else on_bad_rows
    return {
        part: load_examples(one, kind="labelled", seed=0, on_bad_rows=policy, setting=setting, reading=reading)
        for part, one in find(source, task, role, setting).items()
    }


def _find_hub_parts(source: SourceSettings, task: GlueTask, role: GlueRole, setting: str) -> dict[str, SourceSettings]:
    common = {
        "format": "labelled",
        "columns": {**task.columns, **source.columns},
        "subset": source.subset or task.name,
    }
    if source.split is not None:
        named = [part.name for parts in task.parts.values() for part in parts if part.split == source.split]
        return {(named or [""])[0]: source.model_copy(update=common)}
    parts = [part for part in task.parts[role] if part.split]
    if not parts:
        raise _say_no_rows(source.path, task, role, setting)
    return {part.name: source.model_copy(update={**common, "split": part.split}) for part in parts}


def _find_local_parts(
    source: SourceSettings, task: GlueTask, role: GlueRole, setting: str
) -> dict[str, SourceSettings]:
    path = Path(expand(source.path))
    if not path.is_dir():
        (file,) = find_files(source.path).files  # names what is there where this is not
        part = _find_part_of_file(task, path.name)
        return {part.name: _to_file_source(source, task, part, source.path, file.kind == ".tsv")}
    parts = task.parts[role]
    if not parts:
        raise _say_no_rows(source.path, task, role, setting)
    folder = _find_task_folder(source.path, path, task, parts[0])
    return {
        part.name: _to_file_source(source, task, part, _find_file(source.path, folder, part), True) for part in parts
    }


def find_asked_task(source: SourceSettings, name: GlueName) -> GlueName | None:
    """Find whose test rows, for GLUE's server, a source of rows to be labelled holds.

    Args:
        source: of the rows; `subset: ax`, or AX's own file, are the diagnostic rows, which a model of MNLI answers.
        name: of the task that the model was trained on.

    Returns:
        None: they are other rows, or a part of the server's.
    """
    asked: GlueName = "ax" if name == "mnli" and _names_ax(source) else name
    parts = GLUE_TASKS[asked].parts["test"]
    if source.limit is not None:
        return None
    if not is_local(source.path):
        return asked if source.split in (None, *(part.split for part in parts)) else None
    path = Path(expand(source.path))
    return asked if path.is_dir() or path.name.removesuffix(".gz") in {part.file for part in parts} else None


def _names_ax(source: SourceSettings) -> bool:
    files = {part.file for part in GLUE_TASKS["ax"].parts["test"]}
    return source.subset == "ax" or Path(source.path).name.removesuffix(".gz") in files


def _find_part_of_file(task: GlueTask, name: str) -> GluePart:
    """Find the part that a file is by its name; any other name is a set of rows of one part."""
    known = {part.file: part for parts in task.parts.values() for part in parts}
    return known.get(name.removesuffix(".gz"), GluePart("", "", name))


def _to_file_source(
    source: SourceSettings, task: GlueTask, part: GluePart, path: str, is_published: bool
) -> SourceSettings:
    # The published files are .tsv; any other kind is a copy of the Hub's rows, with its columns.
    columns = (part.columns or task.file_columns) if is_published else task.columns
    subset = None if source.subset == task.name else source.subset  # said of the rows in vain, and no mistake
    update = {"path": path, "format": "labelled", "columns": {**columns, **source.columns}, "subset": subset}
    return source.model_copy(update=update)


def _find_task_folder(typed: str, path: Path, task: GlueTask, part: GluePart) -> str:
    """Find the folder of the task's files: one inside the folder that was typed, or that folder itself."""
    root = typed.rstrip("/")
    inside = [name for name in task.folders if (path / name).is_dir()]
    if inside:
        return f"{root}/{inside[0]}"
    if any((path / f"{part.file}{ending}").is_file() for ending in ("", ".gz")):
        return root
    raise DataError(
        f"{typed}: the folder holds no rows of `{task.name}`: neither {part.file} nor a folder {task.folders[0]}.\n"
        f"  Name the folder that {task.folders[0]} lies in, that folder, one file, or {GLUE_HUB_NAME} on the Hub."
    )


def _find_file(typed: str, folder: str, part: GluePart) -> str:
    for name in (part.file, f"{part.file}.gz"):
        if (Path(expand(folder)) / name).is_file():
            return f"{folder}/{name}"
    there = sorted(entry.name for entry in Path(expand(folder)).iterdir() if entry.is_file())
    raise DataError(
        f"{typed}: there is no file {folder}/{part.file}.\n"
        + (f"  {folder} holds: {', '.join(there[:8])}." if there else f"  {folder} holds no files.")
    )


def _say_no_rows(path: str, task: GlueTask, role: GlueRole, setting: str) -> RecipeError:
    rows = {"train": "to train on", "eval": "with labels to be evaluated on", "test": "to be predicted"}[role]
    where = f" in {path}" if task.parts[role] else ""
    ways = {
        "train": f"  Train on another task, e.g. mnli, and predict these rows: `{setting}` stays that task's.",
        "eval": f"  Name a .tsv file of rows that have labels under `{setting}`, e.g. {_name_files(task, role)}.",
        "test": f"  Name a file under `{setting}`.",
    }
    return RecipeError(f"`{setting}`: the task `{task.name}` has no rows {rows}{where}.\n{ways[role]}")


def _name_files(task: GlueTask, role: GlueRole) -> str:
    return " or ".join(part.file for part in task.parts[role]) or "one of your own"
