"""A run that dies without a word is told with what killed it."""

import multiprocessing
import select
from pathlib import Path

import pytest

from finetune.comparison.children import Child, Failure
from tests.comparison.made_up import build_all, read_small


@pytest.fixture
def child(tmp_path: Path) -> Child:
    """A run that has begun to import the libraries; its base does not exist."""
    cell = build_all(read_small(tmp_path, "methods: {lora: {adapter.method: lora}}"))[0]
    return Child(multiprocessing.get_context("forkserver"), cell.recipe, cell.text, tmp_path / "log.txt")


def test_a_run_that_is_killed_says_by_what_and_the_likeliest_reason(child: Child) -> None:
    child.kill()
    assert select.select([child.descriptor], [], [], 10)[0]
    assert child.close() == Failure("killed by SIGKILL: the machine's memory ran out, or somebody killed it")


def test_a_run_that_is_asked_to_stop_before_it_began_ends_at_once(child: Child) -> None:
    child.stop()
    assert select.select([child.descriptor], [], [], 10)[0]
    failure = child.close()
    assert failure is not None
    assert failure.reason == "killed by SIGTERM"
