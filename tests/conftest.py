"""What every test stands on: offline, quiet, one thread, and a cache of rows that is thrown away."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before any library that reads them is imported; subprocesses inherit them.
_CACHE = tempfile.mkdtemp(prefix="finetune_tests_")
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_CACHE": f"{_CACHE}/datasets",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

ROOT = Path(__file__).parents[1]


def pytest_unconfigure():
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; a test that wants it is skipped where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the shared test data is not beside this repository")
    return path


@pytest.fixture(scope="session")
def tiny_base() -> Path:
    """The tiny base model of this repository; a test that wants it is skipped until it was made."""
    path = ROOT / "data" / "tiny_base"
    if not (path / "config.json").is_file() or not (path / "model.safetensors").is_file():
        pytest.skip("data/tiny_base is not there: recipes/tiny_base.yaml makes it")
    return path
