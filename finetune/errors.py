"""The tree of errors: what went wrong, which exit code it gives, and nothing else.

A message follows one form: where, what was found, why it matters, what to type; its
first line is complete in itself. Only `finetune.cli` catches these.
"""

__all__ = [
    "CheckpointError",
    "DataError",
    "DivergedError",
    "FinetuneError",
    "Interrupted",
    "PlaceError",
    "RecipeError",
]


class FinetuneError(Exception):
    """A fault the user can mend; `exit_code` is what the command line answers with."""

    exit_code = 1


class RecipeError(FinetuneError):
    """A key, a value or a combination in a recipe or on the command line."""

    exit_code = 2


class DataError(FinetuneError):
    """A row, a column or an answer that cannot be trained on; names file, line and reason."""

    exit_code = 3


class PlaceError(FinetuneError):
    """The place the run stands in: device, disk, network, access to a model."""

    exit_code = 4


class DivergedError(FinetuneError):
    """A loss or gradient that is not finite."""

    exit_code = 5


class CheckpointError(FinetuneError):
    """Nothing to resume from, or a checkpoint that belongs to another run."""

    exit_code = 6


class Interrupted(FinetuneError):
    """A signal asked the run to stop; it saved a checkpoint first. 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
