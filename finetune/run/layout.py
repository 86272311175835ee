"""Where each file of a run lies: for the process that makes the run and for whoever only reads one.

Goes in: the run's folder. Comes out: paths, whether it is a run's at all, and whether there is something to
continue from. Nothing is written here, and no torch is imported.
"""

import re
from pathlib import Path

from finetune.errors import PlaceError

__all__ = ["RunLayout", "find_checkpoints", "find_step", "is_unused", "looks_like_a_run", "name_runs_beside"]


class RunLayout:
    """The paths of one run.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recipe_path(self) -> Path:
        """The recipe as typed."""
        return self.path / "recipe.yaml"

    @property
    def resolved_path(self) -> Path:
        """The recipe with every default filled in."""
        return self.path / "resolved.json"

    @property
    def identity_path(self) -> Path:
        """What the recipe does not show: the base's commit, the rows' content, the number of processes."""
        return self.path / "identity.json"

    @property
    def environment_path(self) -> Path:
        """Versions and device."""
        return self.path / "environment.json"

    @property
    def status_path(self) -> Path:
        """Running, done, interrupted or failed."""
        return self.path / "status.json"

    @property
    def data_report_path(self) -> Path:
        """Rows read, dropped and cut."""
        return self.path / "data_report.json"

    @property
    def plan_path(self) -> Path:
        """What the run was expected to need."""
        return self.path / "plan.json"

    @property
    def metrics_path(self) -> Path:
        """One object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        """The figures of the finished run."""
        return self.path / "summary.json"

    @property
    def log_path(self) -> Path:
        """What was said."""
        return self.path / "log.txt"

    @property
    def samples_path(self) -> Path:
        """Answers written during the run."""
        return self.path / "samples.md"

    @property
    def non_finite_path(self) -> Path:
        """The rows of steps whose loss or gradient was not finite; there only when there was one."""
        return self.path / "non_finite.jsonl"

    @property
    def loss_plot_path(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def checkpoints_dir(self) -> Path:
        """What `--resume` continues from."""
        return self.path / "checkpoints"

    @property
    def adapter_dir(self) -> Path:
        """The result, there only when the run finished."""
        return self.path / "adapter"

    @property
    def predictions_dir(self) -> Path:
        """The labels that a classifier gave to the rows it was asked about."""
        return self.path / "predictions"

    @property
    def model_dir(self) -> Path:
        """The result where base weights were changed."""
        return self.path / "model"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint lies there by its name; whether it is whole is another question."""
        return bool(find_checkpoints(self.checkpoints_dir))


def name_runs_beside(path: Path) -> str:
    """Name some runs beside a folder that is none, in a sentence."""
    runs = sorted(str(found.parent) for found in path.parent.glob("*/resolved.json"))
    return f"There are: {', '.join(runs[:6])}." if runs else "A run's folder is named: outputs/NAME."


def looks_like_a_run(path: Path) -> bool:
    """Whether a run has begun to write in a folder."""
    return (path / "recipe.yaml").is_file() or (path / "status.json").is_file()


def is_unused(path: Path) -> bool:
    """Whether nothing lies there but what an attempt leaves that was killed before its first file was whole."""
    return all(_is_left_over(entry) for entry in path.iterdir())


def _is_left_over(entry: Path) -> bool:
    if entry.name == "checkpoints":  # made, empty, when the trainer is built
        return entry.is_dir() and not entry.is_symlink() and not any(entry.iterdir())
    return entry.name in (".lock", "log.txt") or (entry.name.startswith(".") and entry.name.endswith(".part"))


def find_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Find the folders that are named as checkpoints, oldest step first; none where the folder is missing.

    Raises:
        PlaceError: the folder cannot be read.
    """
    if not checkpoints_dir.is_dir():
        return []
    try:
        named = [path for path in checkpoints_dir.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name)]
        return sorted((path for path in named if path.is_dir()), key=find_step)
    except OSError as error:
        raise PlaceError(
            f"{checkpoints_dir} cannot be read: {error.strerror}.\n"
            "  Nothing was set aside or deleted. When it can be read again, the same command goes on."
        ) from error


def find_step(checkpoint: Path) -> int:
    """Step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
