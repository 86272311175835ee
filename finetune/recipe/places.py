"""A name as typed: a path on this machine, or a name on the Hub.

One rule for models, tokenizers, adapters and rows. What exists here is local, whatever it looks like;
of what does not exist, its form says whether it can only be a path.
"""

import os.path
import re

__all__ = ["expand", "is_here", "is_local", "names_file", "reads_as_path"]

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?", re.ASCII)
_FILE_ENDING = re.compile(r"\.(json|jsonl|csv|tsv|parquet|txt|model|safetensors)(\.gz)?$", re.IGNORECASE)


def expand(name: str) -> str:
    """Fill in the home folder of a path that starts with `~`; no Hub name does."""
    return os.path.expanduser(name)  # noqa: PTH111 - Path raises where the home is unknown, and drops `./`


def is_here(name: str) -> bool:
    """Whether a file or folder of that name exists, relative to the current folder."""
    # Path.exists raises on a name that is too long for the file system; such a name is not here.
    return os.path.exists(expand(name))  # noqa: PTH110


def names_file(name: str) -> bool:
    """Whether a name has the ending of a kind of file that is read here."""
    return _FILE_ENDING.search(name) is not None


def reads_as_path(name: str) -> bool:
    """Whether a name can only be a path, there or not: it has a file's ending, or not the form NAME or OWNER/NAME."""
    return names_file(name) or _HUB_NAME.fullmatch(name) is None


def is_local(name: str) -> bool:
    """Whether a name stands for something on this machine: it exists here, or can only be a path."""
    return reads_as_path(name) or is_here(name)
