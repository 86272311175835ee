"""A run folder that has started, for tests of what writes into one."""

from pathlib import Path

from finetune.run.folder import RunFolder

__all__ = ["start_folder"]


def start_folder(path: Path, *, writes: bool = True) -> RunFolder:
    folder = RunFolder(path, writes=writes)
    folder.start()
    return folder
