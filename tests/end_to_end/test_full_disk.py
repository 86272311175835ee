"""A disk that is full at one file of a run, whichever: nothing that was saved is lost, and --resume goes on."""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
from safetensors import SafetensorError

from finetune.errors import PlaceError
from finetune.recipe.reading import build_recipe
from finetune.run import full_disk
from finetune.run.folder import RunFolder
from finetune.run.full_disk import find_full, telling_full_disk
from finetune.run.logging import log_to_console
from finetune.train import check_settings
from tests.end_to_end.small_runs import build_values, read_figures, read_json, read_weights, run_small

pytestmark = pytest.mark.usefixtures("tiny_base")

SETTINGS = {"training__save_steps": 2, "data__train__limit": 20}
# One file of every kind, by the end of its path: a line of figures, a state, weights, the record, the result, the end.
FILES = [
    pytest.param("metrics.jsonl", marks=pytest.mark.slow),
    "checkpoint-2/adapter_model.safetensors",
    pytest.param("checkpoint-4/trainer_state.json", marks=pytest.mark.slow),
    "checkpoint-4/.COMPLETE.json.part",
    pytest.param(".summary.json.part", marks=pytest.mark.slow),
]


class Disk:
    """Refuses to open one file for writing; Python tells every file that it opens to an audit hook.

    Or, once a file is there, whatever would change anything in a folder.
    """

    full_for = ""
    read_only: Path | None = None
    once_there = Path()

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.read_only is not None and event in ("open", "os.remove", "os.rename", "os.rmdir", "os.mkdir"):
            is_change = event != "open" or set("wax+") & set(str(arguments[1]))
            if is_change and str(arguments[0]).startswith(str(self.read_only)) and self.once_there.exists():
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))
        if self.full_for and event == "open" and set("wax+") & set(str(arguments[1])):
            self.refuse(str(arguments[0]))

    def refuse(self, path: str) -> None:
        # The number of the process stands in the name of a part.
        if self.full_for and path.replace(f".{os.getpid()}.", ".").endswith(self.full_for):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


DISK = Disk()
sys.addaudithook(DISK.hook)
_serialize_file = safetensors.torch.serialize_file


def serialize_file(tensors: object, filename: str | Path, metadata: object = None) -> None:
    """What safetensors' Rust does on a full disk: half a file, and an error of its own."""
    try:
        DISK.refuse(str(filename))
    except OSError:
        Path(filename).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)") from None
    _serialize_file(tensors, filename, metadata)


@contextmanager
def full_for(end: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(safetensors.torch, "serialize_file", serialize_file)
    monkeypatch.setattr(Disk, "full_for", end)
    yield
    monkeypatch.setattr(Disk, "full_for", "")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_small(tmp_path_factory.mktemp("unbroken"), **SETTINGS)


@pytest.mark.parametrize("end", FILES)
def test_a_disk_full_at_any_file_is_told_and_the_resumed_run_is_the_unbroken_one(end, tmp_path, unbroken, monkeypatch):
    with full_for(end, monkeypatch), pytest.raises(PlaceError) as refusal:
        run_small(tmp_path, **SETTINGS)
    run = tmp_path / "small"
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith(f"{run}: the disk is full"), lines
    assert " a checkpoint needs about " in lines[0]
    assert lines[0].endswith(" are free.")
    assert "--resume" in lines[-1]
    assert read_json(run / "status.json")["status"] == "failed"
    for checkpoint in (run / "checkpoints").iterdir():
        assert (checkpoint / "COMPLETE.json").is_file()
    assert not list(run.rglob("*.part"))
    assert not (run / "adapter").exists()

    run_small(tmp_path, resume=True, **SETTINGS)
    assert read_figures(run) == read_figures(unbroken)
    assert read_weights(run) == read_weights(unbroken)
    assert read_json(run / "status.json")["status"] == "done"


@pytest.mark.parametrize(
    ("once_there", "refused"),
    [
        pytest.param("checkpoints/checkpoint-2/COMPLETE.json", "metrics.jsonl", id="between two steps"),
        pytest.param("summary.json", "adapter", id="as the result takes its place", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_goes_read_only_is_told_and_the_resumed_run_is_the_unbroken_one(
    once_there, refused, tmp_path, unbroken, monkeypatch
):
    run = tmp_path / "small"
    monkeypatch.setattr(Disk, "once_there", run / once_there)
    monkeypatch.setattr(Disk, "read_only", run)
    with pytest.raises(PlaceError) as refusal:
        run_small(tmp_path, **SETTINGS)
    monkeypatch.setattr(Disk, "read_only", None)
    lines = str(refusal.value).splitlines()
    assert lines[0] == f"{run / refused} cannot be written: read-only file system."
    assert lines[-1].endswith("Nothing that was saved is lost. When the disk can be worked on again: --resume")
    assert read_json(run / "status.json")["status"] == "running", "not even this could be written"
    assert not (run / "adapter").exists()

    run_small(tmp_path, resume=True, **SETTINGS)
    assert read_figures(run) == read_figures(unbroken)
    assert read_weights(run) == read_weights(unbroken)


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR])
def test_what_is_said_of_a_file_of_the_run_is_of_the_place_and_of_any_other_file_a_fault_of_ours(
    number, place, tmp_path
):
    file = (tmp_path if place == "inside" else tmp_path.parent) / "file"
    kind = OSError if place == "outside" else PlaceError
    with pytest.raises(kind, match="file") as told, telling_full_disk(RunFolder(tmp_path), lambda: 0):
        raise OSError(number, os.strerror(number), str(file))
    assert "--resume" not in str(told.value), "the run had not begun"


def test_a_librarys_words_of_a_read_only_disk_are_of_the_place_once_the_run_has_begun(tmp_path):
    said = SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)")
    folder = RunFolder(tmp_path)
    with pytest.raises(SafetensorError), telling_full_disk(folder, lambda: 0):
        raise said
    folder.start()
    told = pytest.raises(PlaceError, match=r"cannot be written: read-only(.|\n)*--resume")
    with told, telling_full_disk(folder, lambda: 0):
        raise said


def test_a_log_that_the_disk_does_not_take_is_told_once_and_stops_nothing(tmp_path, capsys):
    with log_to_console() as log_file:
        log_file.open(tmp_path / "log.txt")
        (handler,) = [one for one in vars(log_file).values() if isinstance(one, logging.FileHandler)]
        handler.stream.close()
        handler.stream = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 - the handler closes it
        logging.getLogger("finetune.train").info("first")
        logging.getLogger("finetune.train").info("second")
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "does not take" in line] == [
        f"{tmp_path / 'log.txt'} does not take what is said here: No space left on device."
    ]
    assert told[-1] == "second"


def test_a_full_disk_is_known_by_its_number_and_by_the_words_of_the_libraries():
    assert find_full(OSError(errno.ENOSPC, "x")) == find_full(Exception("io: No space left on device")) == errno.ENOSPC
    assert find_full(SafetensorError("I/O error: File too large (os error 27)")) == errno.EFBIG
    try:
        try:
            raise OSError(errno.EDQUOT, "x")
        except OSError as error:
            raise PlaceError("cannot be written") from error
    except PlaceError as error:
        assert find_full(error) == errno.EDQUOT
    assert find_full(OSError(errno.EACCES, "x")) is None
    assert set(full_disk._REASONS) == {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def test_less_room_than_the_run_needs_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    class Usage:
        free = 500_000

    monkeypatch.setattr("finetune.run.disk.shutil.disk_usage", lambda place: Usage)
    recipe = build_recipe(build_values(tmp_path, **SETTINGS))
    with pytest.raises(PlaceError) as refusal:
        check_settings(recipe)
    lines = str(refusal.value).splitlines()
    assert "this run needs about 2." in lines[0]
    assert lines[0].endswith("of disk, and 500.0 kB are free.")
    assert lines[1].split()[:2] == ["2", "x"]
    assert lines[2].startswith("  result and records")
    assert not (tmp_path / "small").exists()


def test_what_is_written_is_no_more_than_what_was_counted(unbroken, tmp_path, monkeypatch):
    asked = []
    # The second question is about one more checkpoint, which the rehearsal deletes again.
    ask = lambda needs, given_back=None: asked.extend(needs if given_back else [])  # noqa: E731
    monkeypatch.setattr("finetune.room.check_space", ask)
    check_settings(build_recipe(build_values(tmp_path, **SETTINGS)))
    written = sum(path.stat().st_size for path in unbroken.rglob("*") if path.is_file())
    assert written <= sum(need.num_bytes for need in asked) <= 1.5 * written
