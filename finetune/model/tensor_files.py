"""A safetensors file held to its format before anything of it is taken for true.

In goes a path; out comes nothing, or a PlaceError that names the file. The header alone is read: its length is held
against the file and against what any model needs, so that a made-up one costs neither memory nor time.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from finetune.errors import PlaceError

__all__ = ["check_tensor_file", "telling_malformed"]

_LENGTH_BYTES = 8
# About 100 bytes for each tensor: a shard of a 70B model has some kilobytes, a whole mixture of experts in one file a
# few megabytes. safetensors itself would take 100 MB, and some ten times that to read them.
_MAX_HEADER_BYTES = 32 * 2**20


def check_tensor_file(path: Path) -> None:
    """Check that a file is safetensors: a header of a sane length, and tensors that fill the rest without overlap.

    Raises:
        PlaceError: it is not.
    """
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    except OSError as error:
        raise PlaceError(f"{path} cannot be read: {error.strerror}.\n  Fetch or copy it again.") from error
    if num_bytes < _LENGTH_BYTES or header_bytes > num_bytes - _LENGTH_BYTES:
        raise _malformed(path, f"its header would take {header_bytes:,} bytes, and the file has {num_bytes:,}")
    if header_bytes > _MAX_HEADER_BYTES:
        raise _malformed(path, f"its header takes {header_bytes:,} bytes; no model needs {_MAX_HEADER_BYTES:,}")
    with telling_malformed(path), safe_open(path, framework="pt") as tensors:
        tensors.keys()


@contextmanager
def telling_malformed(path: Path | str) -> Iterator[None]:
    """Translate what the libraries say of a file of weights that is not what it should be.

    Args:
        path: the file, or the model it belongs to.

    Raises:
        PlaceError: it is cut short or made up, or a pickle holds more than tensors.
    """
    try:
        yield
    except SafetensorError as error:
        raise _malformed(path, str(error).strip().splitlines()[0]) from error
    except pickle.UnpicklingError as error:
        raise PlaceError(
            f"{path}: a pickle of its weights holds more than tensors, and nothing of it was run.\n"
            "  It could be meant to run code here. Take another copy of the model, one in safetensors."
        ) from error


def _malformed(path: Path | str, reason: str) -> PlaceError:
    return PlaceError(
        f"{path} is no whole safetensors file: {reason}.\n"
        "  It was cut short, altered or made up. Fetch or copy it again from where it came from."
    )
