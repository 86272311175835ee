"""What a checkpoint holds beside the weights, without a pickle: tensors in safetensors, all else in JSON.

In goes a nested state (an optimizer's, a scheduler's, the random generators'), out come `NAME.json`, its
tree, and `NAME.safetensors`, the tensors that the tree names; and back, every value of the type it had.
Nothing that is read can run code: what a file may hold is data of these few kinds, and no more of it than fits.
"""

import json
import math
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finetune.errors import CheckpointError, PlaceError
from finetune.objectives.full_memory import first_line, is_out_of_memory

__all__ = [
    "UnsavableState",
    "build_random_state",
    "check_no_pickle",
    "put_random_state_back",
    "read_state",
    "refused_as_state",
    "write_state",
]

# Thousands of times what the state of a large model's tree comes to; a tree of this size takes some 350 MB to read.
_MAX_TREE_BYTES = 16 * 2**20
_MAX_DEPTH = 50
_PICKLES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"})
# One key says what a JSON object stands for.
_TENSOR, _TUPLE, _DICT, _FLOAT = "tensor", "tuple", "dict", "float"
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_DTYPES = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8}
    | {torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.complex64}
    | {torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz}
)


class _Malformed(Exception):
    """A tree that says something else than a state; its text says where and what."""


class UnsavableState(TypeError):
    """A state that holds something else than data of the few kinds; its text says where and what."""


# ---- writing


def write_state(folder: Path, name: str, state: Any) -> None:
    """Write a state as `NAME.json` and, where it has tensors, `NAME.safetensors`.

    Args:
        folder: where; it exists.
        name: of the files.
        state: dicts with str or int keys, lists, tuples, None, bools, ints, floats, texts and tensors, in any nesting.
            A tensor that stands in several places is written once, and is one tensor again when it is read.

    Raises:
        UnsavableState: a value of another kind, named by its place.
        OSError, SafetensorError: the disk does not take it.
    """
    writer = _TreeWriter()
    tree = writer.to_tree(state, name, 0)
    text = json.dumps({"state": tree}, allow_nan=False)
    if len(text) > _MAX_TREE_BYTES:
        raise UnsavableState(f"{name}: its tree has {len(text)} bytes, and at most {_MAX_TREE_BYTES} would be read")
    tensors_path = folder / f"{name}.safetensors"
    if writer.tensors:
        save_file(writer.tensors, tensors_path)
    else:
        tensors_path.unlink(missing_ok=True)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


class _TreeWriter:
    """Turns a state into a JSON tree and gathers its tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def to_tree(self, value: Any, path: str, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise UnsavableState(f"{path}: it is nested more than {_MAX_DEPTH} deep")
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {_FLOAT: str(value)}
        if kind in (list, tuple):
            items = [self.to_tree(item, f"{path}.{place}", depth + 1) for place, item in enumerate(value)]
            return items if kind is list else {_TUPLE: items}
        if isinstance(value, dict):
            return {_DICT: [self._to_pair(key, item, path, depth) for key, item in value.items()]}
        if isinstance(value, torch.Tensor):
            return {_TENSOR: self._keep(value, path)}
        raise UnsavableState(f"{path}: a checkpoint holds no {kind.__module__}.{kind.__qualname__}")

    def _to_pair(self, key: Any, item: Any, path: str, depth: int) -> list[Any]:
        if type(key) not in (int, str):
            raise UnsavableState(f"{path}: a checkpoint holds no key of type {type(key).__qualname__}")
        return [key, self.to_tree(item, f"{path}.{key}", depth + 1)]

    def _keep(self, tensor: torch.Tensor, path: str) -> str:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            raise UnsavableState(f"{path}: a checkpoint holds plain tensors, and this is a {type(tensor).__qualname__}")
        if tensor.dtype not in _DTYPES:
            raise UnsavableState(f"{path}: a checkpoint holds no tensor of {tensor.dtype}")
        # bitsandbytes lays one table of 8-bit values in the state of every parameter.
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and same in self._names:
            return self._names[same]
        name = path
        while name in self.tensors:  # the keys 0 and "0" lead to one path
            name += "'"
        # A copy: safetensors takes no views of one storage.
        self.tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        self._names[same] = name
        return name


# ---- reading


def read_state(folder: Path, name: str, *, max_bytes: int) -> Any:
    """Read what `write_state` wrote, tensors on the CPU.

    Args:
        folder: the checkpoint.
        name: of the files.
        max_bytes: most bytes of tensors that this state can have; a file that claims more is not read.

    Raises:
        CheckpointError: a file is missing, torn or holds something else; it is named.
    """
    tree_path, tensors_path = folder / f"{name}.json", folder / f"{name}.safetensors"
    with refused_as_state(tree_path):
        if tree_path.stat().st_size > _MAX_TREE_BYTES:
            raise _Malformed(f"it has {tree_path.stat().st_size} bytes, more than {_MAX_TREE_BYTES}")
        tree = json.loads(tree_path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        if not (isinstance(tree, dict) and tree.keys() == {"state"}):
            raise _Malformed("it is no tree of a state")
        named = set(_find_tensors(tree["state"], 0))
    tensors: dict[str, torch.Tensor] = {}
    if named:
        with refused_as_state(tensors_path):
            tensors = _read_tensors(tensors_path, named, max_bytes)
    with refused_as_state(tree_path):
        return _from_tree(tree["state"], tensors)


def _refuse_constant(constant: str) -> None:
    raise _Malformed(f"it holds {constant}, which is no JSON")


def _find_tensors(tree: Any, depth: int) -> Iterator[str]:
    """Names of the tensors in a tree, with a check of all that `_from_tree` relies on."""
    if depth > 2 * _MAX_DEPTH + 2:
        raise _Malformed("it is nested too deep")
    if isinstance(tree, list):
        for item in tree:
            yield from _find_tensors(item, depth + 1)
    elif isinstance(tree, dict):
        if len(tree) != 1:
            raise _Malformed(f"an object in it has {len(tree)} keys where one says what it is")
        ((kind, inner),) = tree.items()
        if kind == _TENSOR and isinstance(inner, str):
            yield inner
        elif kind == _TUPLE and isinstance(inner, list):
            yield from _find_tensors(inner, depth + 1)
        elif kind == _DICT and isinstance(inner, list):
            for pair in inner:
                if not (isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (int, str)):
                    raise _Malformed("a dict in it has something else than pairs")
                yield from _find_tensors(pair[1], depth + 1)
        elif not (kind == _FLOAT and isinstance(inner, str) and inner in _NOT_FINITE):
            raise _Malformed(f"an object in it is no tensor, tuple, dict or float but {kind[:20]!r}")


def _read_tensors(path: Path, names: set[str], max_bytes: int) -> dict[str, torch.Tensor]:
    num_bytes = path.stat().st_size
    if num_bytes > max_bytes + _MAX_TREE_BYTES:
        raise _Malformed(f"it has {num_bytes} bytes where at most {max_bytes} are expected")
    with path.open("rb") as file:
        start = file.read(8)
    # safetensors itself would read a header of 100 MB.
    if len(start) == 8 and struct.unpack("<Q", start)[0] > _MAX_TREE_BYTES:
        raise _Malformed("its header claims to be larger than any")
    with safe_open(path, framework="pt", device="cpu") as file:
        missing = names - set(file.keys())
        if missing:
            raise _Malformed(f"it has no tensor {min(missing)!r}")
        # Copies, not views of the mapped file: a later checkpoint lets this one's files go.
        return {name: file.get_tensor(name).clone() for name in names}


def _from_tree(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_from_tree(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, inner),) = tree.items()
    if kind == _TENSOR:
        return tensors[inner]
    if kind == _TUPLE:
        return tuple(_from_tree(item, tensors) for item in inner)
    if kind == _DICT:
        return {key: _from_tree(item, tensors) for key, item in inner}
    return _NOT_FINITE[inner]


@contextmanager
def refused_as_state(path: Path) -> Iterator[None]:
    """Answer whatever a damaged or foreign file leads to with one message that names it.

    Raises:
        CheckpointError: the block raised what reading such a file, or taking its content up, can raise.
        PlaceError: memory does not hold it; nothing is wrong with the file.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: the checkpoint is not one that this version can continue.\n"
            f"  Use the checkpoint before: move {path.parent} away, then --resume     Or start over: --overwrite"
        ) from error
    except (_Malformed, SafetensorError, OSError, RecursionError, UnicodeError) as error:
        raise _tell_full_memory(path, error) or _refuse(path, str(error)) from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, MemoryError) as error:
        raise _tell_full_memory(path, error) or _refuse(path, f"{type(error).__name__}: {error}") from error


def _tell_full_memory(path: Path, error: Exception) -> PlaceError | None:
    if not is_out_of_memory(error):
        return None
    return PlaceError(
        f"{path}: memory ran out while it was taken up ({first_line(error)}).\n"
        "  The checkpoint is not at fault and stays as it is. What else holds memory: nvidia-smi, top\n"
        "  Make room, or take a larger GPU; then the same command with --resume goes on from it."
    )


def _refuse(path: Path, reason: str) -> CheckpointError:
    first = (reason.strip().splitlines() or ["no reason given"])[0][:200]
    return CheckpointError(
        f"{path} cannot be taken up: {first}\n"
        f"  Use the checkpoint before: move {path.parent} away, then --resume     Or start over: --overwrite"
    )


def check_no_pickle(checkpoint: Path) -> None:
    """Check that a checkpoint holds no pickle, which could run any code when it is read.

    Raises:
        CheckpointError: it does, as those of other trainers and of earlier versions do; none is opened.
    """
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix in _PICKLES:
            raise CheckpointError(
                f"{path} is a pickle, which can run any code when it is read; a checkpoint of this version has none.\n"
                f"  An earlier version or another trainer wrote it, or someone put it there. Nothing of it was read.\n"
                f"  Finish the run with what wrote it, or start over: --overwrite     Or under another name: name=…"
            )


# ---- random generators


def build_random_state(*, all_gpus: bool) -> dict[str, Any]:
    """Build the state of Python's, NumPy's and torch's generators in this process.

    Args:
        all_gpus: of every GPU that is seen, as several processes do; else of the current one.
    """
    name, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(numpy.asarray(keys).copy()), int(position), int(has_gauss), float(gauss)),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all() if all_gpus else torch.cuda.get_rng_state()
    return state


def put_random_state_back(state: dict[str, Any], *, all_gpus: bool) -> bool:
    """Put back what `build_random_state` built.

    Returns:
        Whether the GPU's part was there too, where there is a GPU, and of as many as are seen now: without it, what
        it draws is not what it would have been.
    """
    name, keys, *further = state["numpy"]
    random.setstate(state["python"])
    numpy.random.set_state((name, keys.numpy(), *further))
    torch.random.set_rng_state(state["cpu"])
    if not torch.cuda.is_available():
        return True
    # Several processes write the states of all GPUs, in a list, and one alone that of its own.
    of_gpus = state.get("cuda")
    if all_gpus:
        if not isinstance(of_gpus, list) or len(of_gpus) != torch.cuda.device_count():
            return False
        torch.cuda.set_rng_state_all(of_gpus)
    else:
        if not isinstance(of_gpus, torch.Tensor):
            return False
        torch.cuda.set_rng_state(of_gpus)
    return True
