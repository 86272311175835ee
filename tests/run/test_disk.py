"""Room on the disk: what a run will write is counted, held against what is free, and told by part."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from finetune.errors import PlaceError
from finetune.run.disk import Need, check_space, count_checkpoints, estimate_checkpoint_bytes, find_size, to_size

Usage = namedtuple("Usage", ["free"])


@pytest.fixture
def with_free(monkeypatch: pytest.MonkeyPatch):
    """Give every disk so many free bytes."""
    return lambda num_bytes: monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(num_bytes))


def test_what_goes_to_one_disk_is_counted_together(tmp_path, with_free):
    needs = [Need("checkpoints", 600, tmp_path / "a" / "b"), Need("result", 500, tmp_path / "c")]
    with_free(1100)
    check_space(needs)
    with_free(1099)
    with pytest.raises(PlaceError) as refusal:
        check_space(needs)
    first, *rest = str(refusal.value).splitlines()
    assert first == f"{tmp_path}: this run needs about 1.1 kB of disk, and 1.1 kB are free."
    assert rest[0].split() == ["checkpoints", "600", "bytes", "in", str(tmp_path / "a" / "b")]
    assert any("output_dir=" in line and "HF_HOME=" in line for line in rest)


def test_different_disks_are_counted_apart(tmp_path, monkeypatch):
    other = next(place for place in map(Path, ("/dev/shm", "/proc")) if place.stat().st_dev != tmp_path.stat().st_dev)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(5 if Path(place) == other else 1000))
    check_space([Need("checkpoints", 900, tmp_path), Need("base", 5, other)])
    with pytest.raises(PlaceError, match=rf"^{other}: this run needs about 6 bytes of disk, and 5 bytes are free"):
        check_space([Need("checkpoints", 900, tmp_path), Need("base", 6, other)])


def test_what_lies_there_and_is_replaced_counts_as_free(tmp_path, with_free):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_bytes(b"x" * 400)
    (tmp_path / "run" / "link").symlink_to("/usr")
    with_free(100)
    assert find_size(tmp_path / "run") == 400
    check_space([Need("run", 500, tmp_path / "run")], given_back=Need("", find_size(tmp_path / "run"), tmp_path))


def test_what_lies_behind_a_link_to_the_run_counts_and_what_was_set_aside_does_not(tmp_path):
    for name in ("checkpoint-5", "checkpoint-9.broken"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / name / "weights").write_bytes(b"x" * 300)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert find_size(tmp_path / "link") == find_size(tmp_path / "run") == 300
    assert find_size(tmp_path / "nowhere") == 0


def test_a_file_that_goes_while_they_are_counted_is_not_counted(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(b"x" * 300)
    ask = Path.lstat

    def ask_too_late(path: Path):
        if path.name == "one":
            path.unlink()
        return ask(path)

    monkeypatch.setattr(Path, "lstat", ask_too_late)
    assert find_size(tmp_path) == 300


@pytest.mark.parametrize(
    ("max_steps", "save_steps", "finds_best", "number"),
    [
        (-1, 200, False, 3),  # two kept and the one being written
        (-1, 200, True, 4),
        (1000, 200, True, 4),
        (100, 200, False, 1),
        (300, 200, False, 2),
        (100, 200, True, 4),  # a best step is saved when it is found
        (3, 200, True, 3),
        (-1, 0.5, True, 4),
        (-1, 0.5, False, 2),
        (-1, 0.1, False, 3),
    ],
)
def test_a_short_run_keeps_fewer_checkpoints(max_steps, save_steps, finds_best, number):
    counted = count_checkpoints(keep=2, finds_best=finds_best, max_steps=max_steps, save_steps=save_steps)
    assert counted == number


def test_a_checkpoint_holds_weights_and_what_the_optimizer_keeps_of_each():
    small = estimate_checkpoint_bytes(0, 0, "adamw_torch", 0)
    assert estimate_checkpoint_bytes(1000, 0, "adamw_torch", 7) - small == 1000 * 12 + 7
    assert estimate_checkpoint_bytes(1000, 0, "paged_adamw_8bit", 0) - small == 1000 * 6
    assert estimate_checkpoint_bytes(1000, 500, "sgd", 0) - small == 1000 * 8 + 500 * 2


def test_sizes_are_said_in_the_units_of_disks():
    assert [to_size(one) for one in (12, 1_800_000, 14_200_000_000)] == ["12 bytes", "1.8 MB", "14.2 GB"]
