"""Files of a run where the operating system refuses them, or where somebody has put a link in their place."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from finetune.errors import PlaceError
from finetune.run import writing
from finetune.run.checkpoints import write_record
from finetune.run.folder import RunFolder
from finetune.run.logging import log_to_console
from finetune.run.metrics import MetricsWriter, read_metrics
from finetune.run.resuming import refuse_other_recipe, write_identity
from tests.run.folders import start_folder


def resume(output_dir: Path) -> RunFolder:
    return RunFolder.claim(output_dir, "run", resume=True, overwrite=False)


@pytest.fixture
def thesis(tmp_path) -> Path:
    """A file of the user's, which has nothing to do with runs."""
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    return path


def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path, thesis):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(thesis)
    with pytest.raises(PlaceError, match=r"\.lock is a link to \S+thesis\.txt: a run writes over no file") as refusal:
        resume(tmp_path)
    assert "Remove the link" in str(refusal.value)
    assert thesis.read_text() == "years of work"
    assert (tmp_path / "run" / ".lock").is_symlink()


def test_a_lock_that_is_a_link_to_nothing_makes_no_file_there(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlaceError, match="is a link to"):
        resume(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_log_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path, thesis):
    (tmp_path / "log.txt").symlink_to(thesis)
    with pytest.raises(PlaceError, match=r"log\.txt is a link to"), log_to_console() as log_file:
        log_file.open(tmp_path / "log.txt")
    assert thesis.read_text() == "years of work"


def test_a_log_that_is_a_file_is_gone_on_with(tmp_path):
    (tmp_path / "log.txt").write_text("of the run so far\n", encoding="utf-8")
    with log_to_console() as log_file:
        log_file.open(tmp_path / "log.txt")
        log_file.handler.handle(_record("goes on with ä"))
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").startswith("of the run so far\n")
    assert "goes on with ä" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord("finetune.train", logging.INFO, __file__, 0, message, None, None)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path_factory.mktemp("arguments")), use_cpu=True, report_to=[])


def log(writer: MetricsWriter, arguments: TrainingArguments, step: int) -> None:
    writer.on_log(arguments, TrainerState(global_step=step), TrainerControl(), logs={"loss": 1.0})


@pytest.mark.parametrize("leads_to", ["thesis.txt", "nothing"])
def test_figures_are_written_beside_a_link_and_not_through_it(tmp_path, thesis, arguments, leads_to):
    folder = start_folder(tmp_path / "run")
    folder.path.mkdir()
    folder.metrics_path.symlink_to(tmp_path / leads_to)
    log(MetricsWriter(folder, resumed_step=None), arguments, 1)
    assert [line["step"] for line in read_metrics(folder.metrics_path)] == [1]
    assert not folder.metrics_path.is_symlink()
    assert thesis.read_text() == "years of work"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["status.json", "resolved.json", "identity.json"])
def test_a_record_that_cannot_be_read_is_a_matter_of_the_place(tmp_path, name):
    leave_run(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    with pytest.raises(PlaceError, match=rf"{name} cannot be read: is a directory") as refusal, resume(tmp_path) as run:
        refuse_other_recipe(run, {"seed": 1})
    assert "same command" in str(refusal.value)


@pytest.mark.parametrize("name", ["status.json", "resolved.json", "identity.json"])
def test_a_record_that_the_rights_keep_from_us_is_a_matter_of_the_place(tmp_path, name, monkeypatch):
    leave_run(tmp_path / "run")
    read_text = Path.read_text

    def refuse(path: Path, *args: object, **kwargs: object) -> str:  # for root no file is closed
        if path.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PlaceError, match=rf"{name} cannot be read: permission denied"), resume(tmp_path) as run:
        refuse_other_recipe(run, {"seed": 1})


@pytest.mark.parametrize("name", ["status.json", "resolved.json", "identity.json"])
def test_a_record_that_is_nested_beyond_reason_is_one_that_was_lost(tmp_path, name):
    leave_run(tmp_path / "run")
    (tmp_path / "run" / name).write_text('{"a":' * 100_000)
    with resume(tmp_path) as run:
        refuse_other_recipe(run, {"seed": 1})


def leave_run(path: Path) -> None:
    path.mkdir()
    folder = start_folder(path)
    folder.write_text(folder.recipe_path, "seed: 1\n")
    folder.write_json(folder.resolved_path, {"seed": 1})
    write_identity(folder, {"num_processes": 1})
    folder.write_status("interrupted")
    folder.metrics_path.write_text(json.dumps({"step": 1}) + "\n")


def test_figures_that_cannot_be_read_are_a_matter_of_the_place(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(PlaceError, match=r"metrics\.jsonl cannot be read: is a directory"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_figures_that_the_disk_does_not_take_are_a_matter_of_the_place(tmp_path, arguments):
    folder = start_folder(tmp_path / "run")
    folder.path.mkdir()
    writer = MetricsWriter(folder, resumed_step=None)
    log(writer, arguments, 1)
    shutil.rmtree(folder.path)  # somebody took it away
    for step in (1, 2):  # a line that is joined to, and a new one
        with pytest.raises(PlaceError, match=r"metrics\.jsonl cannot be written: no such file or directory"):
            log(writer, arguments, step)


@pytest.fixture
def no_sync(monkeypatch) -> None:
    """A disk whose caches do not reach it any more: the error of a sync names no file."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(writing.os, "fsync", refuse)


def test_a_checkpoint_that_does_not_reach_the_disk_is_named_and_gets_no_record(tmp_path, no_sync):
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / "weights").write_text("w")
    with pytest.raises(PlaceError, match="checkpoint-3 cannot be written: input/output error"):
        write_record(checkpoint, step=3)
    assert [path.name for path in checkpoint.iterdir()] == ["weights"]


def test_a_result_that_does_not_reach_the_disk_is_named_and_does_not_take_its_place(tmp_path, no_sync):
    folder = start_folder(tmp_path)
    told = pytest.raises(PlaceError, match="adapter cannot be written: input/output error")
    with told, folder.write_dir(folder.adapter_dir) as part:
        (part / "weights").write_text("w")
    assert not folder.adapter_dir.exists()


def test_a_result_has_no_place_where_a_file_is_in_the_way(tmp_path):
    folder = start_folder(tmp_path)
    (tmp_path / ".adapter.part").write_text("")
    told = pytest.raises(PlaceError, match="adapter cannot be written: file exists")
    with told, folder.write_dir(folder.adapter_dir):
        pytest.fail("a folder was given out")


def test_a_lost_disk_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), RunFolder.claim(tmp_path, "run", resume=False, overwrite=False) as folder:
        folder.start()

        def refuse(path: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr(Path, "replace", lambda path, target: refuse(path))
        raise ZeroDivisionError("the fault")


def test_the_names_of_folders_that_a_run_makes_reach_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(writing, "sync_dir", synced.append)
    with RunFolder.claim(tmp_path / "a" / "b", "run", resume=False, overwrite=False):
        assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
