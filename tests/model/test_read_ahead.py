"""A base's weights are in the page cache before anything loads them, as many as there is room for."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from finetune.model.read_ahead import read_ahead
from finetune.recipe.schema import ModelSettings
from tests.model.tiny_models import write_tiny_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells which pages of a file it holds")


def write_base(folder: Path, num_bytes: int = 8 * 2**20) -> Path:
    """A base whose one file of weights has so many bytes of numbers and is on the disk alone."""
    write_tiny_model(folder)
    path = folder / "model.safetensors"
    save_file({"weight": torch.zeros(num_bytes, dtype=torch.uint8)}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def measure_held(path: Path) -> float:
    """The share of a file's pages that is in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        num_pages = -(-len(mapped) // mmap.PAGESIZE)
        held = (ctypes.c_ubyte * num_pages)()
        address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
        answer = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), ctypes.byref(held)
        )
        assert answer == 0, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in held) / num_pages


@pytest.fixture
def weights(tmp_path) -> Path:
    path = write_base(tmp_path / "base")
    if measure_held(path) > 0.1:
        pytest.skip("this file system keeps its files in memory")
    return path


def test_weights_are_in_memory_before_they_are_loaded(weights):
    thread = read_ahead(ModelSettings(model_name_or_path=str(weights.parent)), free_bytes=2**30)
    assert thread is not None
    thread.join()
    assert measure_held(weights) > 0.9


def test_no_more_is_read_than_half_of_what_is_free(weights):
    thread = read_ahead(ModelSettings(model_name_or_path=str(weights.parent)), free_bytes=0)
    assert thread is not None
    thread.join()
    assert measure_held(weights) < 0.1


def test_nothing_is_asked_for_without_files_or_without_knowing_what_is_free(tmp_path):
    folder = write_base(tmp_path / "base").parent
    assert read_ahead(ModelSettings(model_name_or_path=str(folder)), free_bytes=None) is None
    assert read_ahead(ModelSettings(model_name_or_path=str(folder), weights="random"), free_bytes=2**30) is None
    (folder / "model.safetensors").unlink()
    assert read_ahead(ModelSettings(model_name_or_path=str(folder)), free_bytes=2**30) is None
