"""The base's weights brought into the page cache while the rows are still being read and tokenized.

In goes the recipe's `model` section; out comes nothing: a thread that nobody waits for reads the files of weights once.
Loading then finds them in memory instead of waiting for the disk: a 7B base in 16 bits is 14 GB, half a minute of a
disk of 500 MB/s. Linux' own way of asking for it (`posix_fadvise`) reads a megabyte a call and no more.
"""

import threading
from pathlib import Path

from finetune.model.access import find_tensor_files
from finetune.recipe.schema import ModelSettings

__all__ = ["read_ahead"]

# Of the memory that is free: the rows want theirs, and files that do not fit push out what was read first.
_SHARE = 0.5
_CHUNK_BYTES = 8 * 2**20


def read_ahead(settings: ModelSettings, free_bytes: int | None) -> threading.Thread | None:
    """Begin to read a base's weights, as many as half of the free memory holds, in the order of loading.

    Args:
        settings: the recipe's `model` section, which `base.check_base` found in order.
        free_bytes: memory of the host that could be taken; None: the system does not say.

    Returns:
        The thread that reads; None where no whole base lies on this machine's disk.
    """
    name = settings.model_name_or_path
    if name is None or settings.weights != "pretrained" or free_bytes is None:
        return None
    paths = find_tensor_files(name, settings.revision)
    if not paths:
        return None
    thread = threading.Thread(target=_read, args=(paths, int(free_bytes * _SHARE)), name="read_ahead", daemon=True)
    thread.start()
    return thread


def _read(paths: list[Path], most_bytes: int) -> None:
    chunk = bytearray(_CHUNK_BYTES)
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                while most_bytes > 0 and (num_bytes := file.readinto(chunk)):
                    most_bytes -= num_bytes
        except OSError:  # loading will say what there is to say of it
            return
