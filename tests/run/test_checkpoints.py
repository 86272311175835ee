"""Checkpoints prove themselves: a record written last, every tear and every flipped byte found."""

import errno
import hashlib
import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from finetune.errors import PlaceError
from finetune.run.checkpoints import (
    CommitRecord,
    find_checkpoint_named,
    find_fault,
    find_newest_checkpoint,
    find_set_aside,
    remove_old,
    warn_of_other_machine,
    write_record,
)
from finetune.run.folder import RunFolder
from finetune.run.layout import find_checkpoints, find_step
from finetune.run.metrics import MetricsWriter, read_metrics
from finetune.run.writing import to_json_text
from tests.run.folders import start_folder


def build_callbacks(folder: RunFolder, resumed_step: int | None = None, keep: int = 2) -> list[TrainerCallback]:
    return [
        MetricsWriter(folder, resumed_step=resumed_step),
        CommitRecord(folder.checkpoints_dir, writes=True, keep=keep),
    ]


@pytest.fixture(scope="module")
def trained(build_trainer, tmp_path_factory) -> RunFolder:
    folder = start_folder(tmp_path_factory.mktemp("run"))
    build_trainer(folder.checkpoints_dir, build_callbacks(folder)).train()
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> RunFolder:
    shutil.copytree(trained.path, tmp_path / "run")
    return start_folder(tmp_path / "run")


def names(folder: RunFolder) -> set[str]:
    return {path.name for path in folder.checkpoints_dir.iterdir()}


def losses(folder: RunFolder) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["learning_rate"]) for line in read_metrics(folder.metrics_path)]


def test_the_record_names_every_file_and_is_the_last_one_written(trained):
    checkpoint = trained.checkpoints_dir / "checkpoint-10"
    record = json.loads((checkpoint / "COMPLETE.json").read_text())
    others = {path.name: path for path in checkpoint.iterdir() if path.name != "COMPLETE.json"}
    assert record["step"] == 10
    assert record["files"].keys() == others.keys()
    states = {"optimizer.safetensors", "optimizer.json", "scheduler.json", "random_state_0.json", "trainer_state.json"}
    assert {"model.safetensors"} | states <= others.keys()
    written = (checkpoint / "COMPLETE.json").stat().st_mtime_ns
    assert all(path.stat().st_mtime_ns <= written for path in others.values())


def test_a_trainer_that_was_built_before_the_run_started_trains_in_the_emptied_folder(build_trainer, tmp_path):
    (tmp_path / "mistral" / "checkpoints" / "checkpoint-400").mkdir(parents=True)
    (tmp_path / "mistral" / "recipe.yaml").write_text("name: mistral")
    (tmp_path / "mistral" / "metrics.jsonl").write_text('{"step": 400}\n')
    with RunFolder.claim(tmp_path, "mistral", resume=False, overwrite=True) as folder:
        trainer = build_trainer(folder.checkpoints_dir, build_callbacks(folder), max_steps=2)
        assert folder.has_checkpoint
        assert folder.metrics_path.read_text() == '{"step": 400}\n'
        folder.start()
        trainer.train()
    assert names(folder) == {"checkpoint-2"}
    assert [step for step, *_ in losses(folder)] == [1, 2]


def test_no_checkpoint_holds_a_pickle(trained):
    suffixes = {path.suffix for path in trained.checkpoints_dir.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_the_newest_are_kept_and_never_fewer_than_two(trained, build_trainer, tmp_path):
    assert names(trained) == {"checkpoint-8", "checkpoint-10"}
    folder = start_folder(tmp_path)
    build_trainer(folder.checkpoints_dir, build_callbacks(folder, keep=1)).train()
    assert names(folder) == {"checkpoint-8", "checkpoint-10"}


def test_a_resumed_run_ends_where_the_uninterrupted_one_did(trained, build_trainer, tmp_path):
    folder = start_folder(tmp_path)
    build_trainer(folder.checkpoints_dir, build_callbacks(folder, keep=9)).train()
    for step in (10, 8, 6):  # killed after step 8: the second epoch began at step 6
        shutil.rmtree(folder.checkpoints_dir / f"checkpoint-{step}")
    newest = find_newest_checkpoint(folder.checkpoints_dir)
    assert newest is not None
    assert find_step(newest) == 4
    build_trainer(folder.checkpoints_dir, build_callbacks(folder, resumed_step=4)).train(str(newest))
    assert losses(folder) == losses(trained)
    weights = "checkpoint-10/model.safetensors"
    assert (folder.checkpoints_dir / weights).read_bytes() == (trained.checkpoints_dir / weights).read_bytes()


def test_every_file_cut_changed_or_deleted_is_found_and_named(folder):
    checkpoint = folder.checkpoints_dir / "checkpoint-10"
    assert find_fault(checkpoint) is None
    for path in sorted(path for path in checkpoint.iterdir() if path.name != "COMPLETE.json"):
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), bytes([whole[0] ^ 128]) + whole[1:]):
            path.write_bytes(damaged)
            assert path.name in (find_fault(checkpoint) or "")
        path.unlink()
        assert find_fault(checkpoint) == f"{path.name} is missing"
        path.write_bytes(whole)
    assert find_fault(checkpoint) is None


def test_no_byte_of_a_record_can_be_another(folder):
    path = folder.checkpoints_dir / "checkpoint-10" / "COMPLETE.json"
    whole = path.read_bytes()
    unseen = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if "COMPLETE.json" not in (find_fault(path.parent) or ""):
            unseen.append(place)
    path.write_bytes(whole)
    assert unseen == []


@pytest.mark.parametrize("record", ["", "{", "[]", "null", '{"files": {}}', '{"step": 8, "files": {}}', "[" * 9999])
def test_a_record_that_tells_nothing_is_not_believed(folder, record):
    (folder.checkpoints_dir / "checkpoint-10" / "COMPLETE.json").write_text(record)
    assert "COMPLETE.json" in (find_fault(folder.checkpoints_dir / "checkpoint-10") or "")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "..", ""])
def test_a_record_that_names_files_outside_its_folder_is_not_believed(folder, name):
    checkpoint = folder.checkpoints_dir / "checkpoint-10"
    (folder.checkpoints_dir / "outside").write_text("w")
    record = json.loads((checkpoint / "COMPLETE.json").read_text())
    record["files"][name] = {"bytes": 1, "sha256": hashlib.sha256(b"w").hexdigest()}
    del record["record_sha256"]  # whoever can write the record can write its hash too
    record["record_sha256"] = hashlib.sha256(to_json_text(record).encode()).hexdigest()
    (checkpoint / "COMPLETE.json").write_text(to_json_text(record))
    assert find_fault(checkpoint) == "COMPLETE.json cannot be read"


def test_a_file_that_was_put_beside_those_written_is_found_and_named(tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    (checkpoint / ".DS_Store").write_text("of a file manager")
    (checkpoint / "._weights.json").write_text("of a network drive")
    assert find_fault(checkpoint) is None
    for name in ("scaler.json", "memory_decision.json", "default/adapter_model.safetensors"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("{}")
        assert find_fault(checkpoint) == f"{name} is not on its record: it was put there later"
        (checkpoint / name).unlink()


def test_a_link_in_the_place_of_a_file_is_found_and_named(tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    for name in ("weights", "COMPLETE.json"):
        outside = (checkpoint / name).rename(tmp_path / "outside")
        (checkpoint / name).symlink_to(outside)
        assert find_fault(checkpoint) == f"{name} is a link or a folder"
        outside.rename(checkpoint / name)
    assert find_fault(checkpoint) is None
    outside = checkpoint.rename(tmp_path / "outside")
    checkpoint.symlink_to(outside)  # whole on another disk: whoever did that meant to
    assert find_fault(checkpoint) is None


def test_a_folder_in_the_place_of_the_record_is_the_fault_of_that_checkpoint(folder):
    record = folder.checkpoints_dir / "checkpoint-10" / "COMPLETE.json"
    record.unlink()
    record.mkdir()
    assert find_newest_checkpoint(folder.checkpoints_dir) == folder.checkpoints_dir / "checkpoint-8"
    assert names(folder) == {"checkpoint-8", "checkpoint-10.broken"}


@pytest.mark.parametrize(("name", "says"), [("a" * 300, f"{'a' * 100} is missing"), ("a\0b", "COMPLETE.json cannot")])
def test_a_record_that_names_what_no_disk_holds_is_not_believed(tmp_path, name, says):
    checkpoint = write_checkpoint(tmp_path)
    record = json.loads((checkpoint / "COMPLETE.json").read_text())
    record["files"][name] = record["files"]["weights"]
    del record["record_sha256"]
    record["record_sha256"] = hashlib.sha256(to_json_text(record).encode()).hexdigest()
    (checkpoint / "COMPLETE.json").write_text(to_json_text(record))
    assert (find_fault(checkpoint) or "").startswith(says)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["os.walk", "hashlib.file_digest"])
def test_a_disk_that_cannot_be_read_sets_nothing_aside(folder, monkeypatch, number, where):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, "Unreadable just now", str(folder.checkpoints_dir / "checkpoint-10" / "optimizer.json"))

    monkeypatch.setattr(where, refuse)
    with pytest.raises(PlaceError, match=r"optimizer\.json cannot be read: unreadable just now\.") as refused:
        find_newest_checkpoint(folder.checkpoints_dir)
    assert "--resume" in str(refused.value)
    assert names(folder) == {"checkpoint-8", "checkpoint-10"}


def test_what_was_set_aside_before_gives_way_also_where_it_is_a_link(folder, tmp_path):
    (folder.checkpoints_dir / "checkpoint-10" / "model.safetensors").unlink()
    (tmp_path / "kept").mkdir()
    (folder.checkpoints_dir / "checkpoint-10.broken").symlink_to(tmp_path / "kept")
    assert find_newest_checkpoint(folder.checkpoints_dir) == folder.checkpoints_dir / "checkpoint-8"
    assert (folder.checkpoints_dir / "checkpoint-10.broken" / "optimizer.json").is_file()
    assert (tmp_path / "kept").is_dir()


def test_the_record_says_what_the_weights_were_made_from_and_with(tmp_path):
    checkpoint = write_checkpoint(tmp_path, made_from={"recipe": "3f", "data": "a0", "template": None, "base": "b1"})
    record = json.loads((checkpoint / "COMPLETE.json").read_text())
    assert (record["recipe"], record["data"], record["template"], record["base"]) == ("3f", "a0", None, "b1")
    named = {"torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "tokenizers"}
    assert record["libraries"].keys() - {"unsloth", "unsloth_zoo"} == named
    assert record["libraries"]["torch"] == torch.__version__


def test_other_versions_of_the_libraries_are_named_in_one_line(tmp_path, caplog):
    checkpoint = write_checkpoint(tmp_path)
    warn_of_other_machine(checkpoint, "Tesla T4")
    assert caplog.messages == []
    record = json.loads((checkpoint / "COMPLETE.json").read_text())
    record["libraries"]["trl"] = "0.9"
    del record["libraries"]["peft"]
    record["libraries"]["unsloth_zoo"] = "2024.1"
    (checkpoint / "COMPLETE.json").write_text(json.dumps(record))
    warn_of_other_machine(checkpoint, "Tesla T4")
    [said] = caplog.messages
    assert "another device" in said
    assert f"trl 0.9 -> {version('trl')}, peft not installed -> {version('peft')}, unsloth_zoo 2024.1 -> " in said


def test_another_gpu_is_named_in_the_same_line(tmp_path, caplog):
    checkpoint = write_checkpoint(tmp_path, made_from={"device_name": "Tesla T4"})
    warn_of_other_machine(checkpoint, "Tesla T4")
    assert caplog.messages == []
    warn_of_other_machine(checkpoint, "NVIDIA L4")
    [said] = caplog.messages
    assert "when checkpoint-5 was written: Tesla T4 -> NVIDIA L4. The run goes on" in said


def write_checkpoint(folder: Path, **record: object) -> Path:
    checkpoint = folder / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "weights").write_text("w")
    write_record(checkpoint, step=5, **record)
    return checkpoint


def test_a_torn_checkpoint_is_set_aside_by_name_and_the_one_before_is_used(folder, caplog):
    (folder.checkpoints_dir / "checkpoint-10" / "COMPLETE.json").unlink()
    with caplog.at_level(logging.WARNING, logger="finetune"):
        newest = find_newest_checkpoint(folder.checkpoints_dir)
    assert newest == folder.checkpoints_dir / "checkpoint-8"
    assert names(folder) == {"checkpoint-8", "checkpoint-10.broken"}
    assert "checkpoint-10 is not used: it has no COMPLETE.json: the save did not end." in caplog.text
    assert "checkpoint-10.broken" in caplog.text


def test_other_processes_find_the_same_checkpoint_and_rename_nothing(folder):
    (folder.checkpoints_dir / "checkpoint-10" / "optimizer.json").unlink()
    assert find_newest_checkpoint(folder.checkpoints_dir, writes=False) == folder.checkpoints_dir / "checkpoint-8"
    assert names(folder) == {"checkpoint-8", "checkpoint-10"}


def test_with_every_checkpoint_torn_there_is_none(folder):
    for checkpoint in folder.checkpoints_dir.iterdir():
        (checkpoint / "trainer_state.json").write_text("{}")
    assert find_newest_checkpoint(folder.checkpoints_dir) is None
    assert find_newest_checkpoint(folder.path / "nowhere") is None


def test_the_best_checkpoint_is_found_by_name_in_a_folder_that_was_moved(folder, caplog):
    with caplog.at_level(logging.WARNING, logger="finetune"):
        assert find_checkpoint_named(folder.checkpoints_dir, "checkpoint-8") == folder.checkpoints_dir / "checkpoint-8"
        assert caplog.text == ""
        assert find_checkpoint_named(folder.checkpoints_dir, "checkpoint-6") is None
        (folder.checkpoints_dir / "checkpoint-8" / "model.safetensors").write_text("other weights")
        assert find_checkpoint_named(folder.checkpoints_dir, "checkpoint-8") is None
    gone, torn = caplog.messages
    assert gone.endswith(
        "checkpoint-6 is not used: it is gone. It was the best one; the last step's weights are the result."
    )
    assert "checkpoint-8 is not used: model.safetensors has 13 bytes where" in torn
    assert (folder.checkpoints_dir / "checkpoint-8").is_dir()


def test_the_hundredth_step_is_newer_than_the_ninth(tmp_path):
    for step in (9, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text("w")
        write_record(tmp_path / f"checkpoint-{step}", step=step)
    assert find_newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_rotation_keeps_the_best_and_what_is_not_recorded_does_not_count(tmp_path):
    for step in (1, 2, 3, 4, 5):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 5:
            write_record(tmp_path / f"checkpoint-{step}", step=step)
    (tmp_path / ".deleting-checkpoint-0").mkdir()  # a kill in the middle of a rotation
    remove_old(tmp_path, keep=2, best_name="checkpoint-1")
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (1, 3, 4, 5)}


def test_what_is_set_aside_is_kept_until_the_run_has_come_as_far_again_and_the_newest_further(tmp_path):
    for name in ("checkpoint-9.broken", "checkpoint-10.broken", "checkpoint-8.broken", "checkpoint-x.broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("w")
    left = {}
    for step in (7, 8, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_record(tmp_path / f"checkpoint-{step}", step=step)
        remove_old(tmp_path, keep=9, best_name=None)
        left[step] = [path.name for path in find_set_aside(tmp_path)]
    assert left == {
        7: ["checkpoint-8.broken", "checkpoint-9.broken", "checkpoint-10.broken"],
        8: ["checkpoint-9.broken", "checkpoint-10.broken"],
        9: ["checkpoint-10.broken"],
        12: ["checkpoint-10.broken"],
    }
    assert (tmp_path / "checkpoint-10.broken" / "weights").exists()
    assert (tmp_path / "checkpoint-x.broken").exists(), "not of ours"


def write_steps(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        write_record(folder / f"checkpoint-{step}", step=step)


def test_rotation_removes_a_link_and_not_what_it_leads_to(tmp_path):
    write_steps(tmp_path / "run", 10, 15)
    write_steps(tmp_path / "other_disk", 5)
    (tmp_path / "run" / "checkpoint-5").symlink_to(tmp_path / "other_disk" / "checkpoint-5")
    remove_old(tmp_path / "run", keep=2, best_name=None)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-10", "checkpoint-15"}
    assert (tmp_path / "other_disk" / "checkpoint-5" / "COMPLETE.json").exists()


def test_what_a_kill_left_half_deleted_is_not_in_the_way_of_the_next_of_its_name(tmp_path):
    write_steps(tmp_path, 20)
    for name in (".deleting-checkpoint-10.broken", "checkpoint-10.broken", "checkpoint-15.broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("w")
    remove_old(tmp_path, keep=2, best_name=None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-15.broken", "checkpoint-20"}


def test_what_cannot_be_removed_is_told_and_removed_at_the_next_save(tmp_path, monkeypatch, caplog):
    write_steps(tmp_path, 5, 10, 15, 20)
    with monkeypatch.context() as patch:

        def refuse(path: Path) -> None:  # as where a file of it is open on a network drive
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

        patch.setattr(shutil, "rmtree", refuse)
        remove_old(tmp_path, keep=2, best_name=None)
    assert [message.partition(" cannot be removed ")[2] for message in caplog.messages] == [
        "(Directory not empty); the next save tries again."
    ] * 2
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-15", "checkpoint-20"]
    remove_old(tmp_path, keep=2, best_name=None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-15", "checkpoint-20"}


def test_the_best_step_gets_a_checkpoint_of_its_own_where_saving_has_another_rhythm(build_trainer, tmp_path):
    folder = start_folder(tmp_path)
    trainer = build_trainer(
        folder.checkpoints_dir, build_callbacks(folder), eval_strategy="steps", eval_steps=3, save_steps=5,
        metric_for_best_model="eval_loss", greater_is_better=False, learning_rate=1e3, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer.train()
    best = min(
        (line for line in read_metrics(folder.metrics_path) if "eval_loss" in line), key=lambda at: at["eval_loss"]
    )
    assert trainer.state.best_global_step == best["step"]
    checkpoint = Path(trainer.state.best_model_checkpoint)
    assert checkpoint.name == f"checkpoint-{best['step']}"
    assert find_fault(checkpoint) is None
    assert load_file(checkpoint / "model.safetensors")


@pytest.mark.parametrize(("keep", "newest"), [(1, [15, 20]), (2, [15, 20]), (3, [10, 15, 20])])
def test_a_best_step_from_early_on_stays_beside_the_newest(build_trainer, tmp_path, keep, newest):
    folder = start_folder(tmp_path / "run")
    settings = {
        "eval_strategy": "steps", "eval_steps": 3, "save_steps": 5, "max_steps": 20,
        "metric_for_best_model": "eval_loss", "greater_is_better": False,
        "learning_rate": 0.0,  # nothing gets better after the first evaluation
    }  # fmt: skip
    build_trainer(folder.checkpoints_dir, build_callbacks(folder, keep=keep), **settings).train()
    kept = {f"checkpoint-{step}" for step in (3, *newest)}
    assert names(folder) == kept
    # Moved, and taken up again: the best one is known by its step, not by its old path.
    moved = start_folder(folder.path.rename(tmp_path / "moved"))
    newest_left = find_newest_checkpoint(moved.checkpoints_dir)
    more = build_trainer(moved.checkpoints_dir, build_callbacks(moved, 20, keep), **settings | {"max_steps": 25})
    more.train(str(newest_left))
    assert names(moved) == {"checkpoint-3", *(f"checkpoint-{step + 5}" for step in newest)}
