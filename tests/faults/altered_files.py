"""Row 11: a file of the newest checkpoint cut short, with one byte changed, or deleted.

Every file of the checkpoint is altered in all three ways, at drawn places. Hundreds are offered to the function that
chooses a checkpoint, in this process; a few to a real `--resume`, which then has to end as the unbroken run.
"""

import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

from tests.faults.measures import Outcome, Rig, register
from tests.faults.reference import UnmadeReference, build_place, find_reference, keep_evidence
from tests.faults.runs import Moment, Place, find_differences, hold, says

__all__ = ["WAYS", "alter"]

WAYS = ("cut short", "one byte changed", "deleted")
RECORD = "COMPLETE.json"
_KIND = "sft"


def alter(path: Path, way: str, random: Random) -> str:
    """Alter a file in one of the WAYS; what was done, in words."""
    content = path.read_bytes()
    if way == "deleted" or not content:
        path.unlink()
        return "deleted"
    place = random.randrange(len(content))
    if way == "cut short":
        path.write_bytes(content[:place])
        return f"cut to {place} of {len(content)} bytes"
    changed = content[place] ^ (1 << random.randrange(8))
    path.write_bytes(content[:place] + bytes([changed]) + content[place + 1 :])
    return f"byte {place} of {len(content)}: {content[place]:#04x} became {changed:#04x}"


def choose(checkpoints: Path, case: int, random: Random) -> tuple[Path, str]:
    """Choose a case's file and way: each file in each way in turn; the names of the two newest tell their age."""
    files = sorted(path for path in find_newest_first(checkpoints)[0].rglob("*") if path.is_file())
    return files[case % len(files)], WAYS[case // len(files) % len(WAYS)]


def find_newest_first(checkpoints: Path) -> list[Path]:
    """Find the checkpoints by the number in their name, the newest one first."""
    named = [path for path in checkpoints.iterdir() if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(named, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def find_stopped_run(rig: Rig) -> Place:
    """Find a run that was killed between two saves, two whole checkpoints behind it; made once."""
    folder = rig.work_dir / "references" / f"{_KIND}_stopped"
    with hold(folder.with_suffix(".lock")):
        if not (folder / "stopped").exists():
            shutil.rmtree(folder, ignore_errors=True)
            process = build_place(folder, _KIND, rig).start()
            if not process.strike(Moment("step", 18, 0.0), signal.SIGKILL):
                raise UnmadeReference(f"the run to alter ended before step 18:\n{process.read_said()}")
            process.wait()
            (folder / "stopped").touch()
    return Place.make(folder, _KIND)


@register
class AlteredFiles:
    """Alterations offered to the function that chooses."""

    name = "altered_files"
    title = "a file of the newest checkpoint cut, changed by a byte, or deleted: named, and the one before chosen"
    row = "11"
    target = 600
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Alter one file of a copy at a time."""
        from finetune.run.checkpoints import find_newest_checkpoint

        stopped = find_stopped_run(rig)
        said = _Said()
        logging.getLogger("finetune").addHandler(said)
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            with tempfile.TemporaryDirectory(prefix="altered_") as folder:
                checkpoints = Path(shutil.copytree(stopped.checkpoints, Path(folder) / "checkpoints"))
                newest, before = find_newest_first(checkpoints)[:2]
                random = rig.draw(self.name, case)
                path, way = choose(checkpoints, case, random)
                name = path.relative_to(newest).as_posix()
                done = alter(path, way, random)
                said.lines.clear()
                found = find_newest_checkpoint(checkpoints)
                faults = []
                if found != before:
                    faults.append(f"chose {found and found.name} and not {before.name}")
                # A record that was changed may rather say something else of the file that it describes.
                if not any(name in line or (name == RECORD and ".broken" in line) for line in said.lines):
                    faults.append(f"{name} is not named: {said.lines}")
                if not newest.with_name(f"{newest.name}.broken").is_dir():
                    faults.append("not set aside as .broken")
            yield Outcome(case, passed=not faults, drawn={"file": name, "way": done}, detail="; ".join(faults))


@register
class AlteredFilesResumed:
    """Alterations met by a real resume."""

    name = "altered_files_resumed"
    title = "the same, met by a real --resume: file named in the log, end equal"
    row = "11"
    target = 12
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Resume copies of a killed run, one file altered."""
        stopped, reference = find_stopped_run(rig), find_reference(rig, _KIND)
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            folder = Path(tempfile.mkdtemp(prefix="resumed_"))
            shutil.copytree(stopped.path, folder, dirs_exist_ok=True)
            place = build_place(folder, _KIND, rig)
            random = rig.draw(self.name, case)
            # Whole numbers of files and ways, drawn: a dozen cases do not go through all of them.
            path, way = choose(place.checkpoints, random.randrange(10**6), random)
            name = path.relative_to(path.parent).as_posix()
            done, behind = alter(path, way, random), (place.run / "log.txt").stat().st_size
            before = find_newest_first(place.checkpoints)[1]
            process = place.start()
            code = process.wait()
            faults = (
                [f"ended with {code}: {process.read_said(4)}"] if code else find_differences(reference.place, place)
            )
            for words in (
                ["" if name == RECORD else name, ".broken"],
                [f"Continuing after step {before.name.removeprefix('checkpoint-')}."],
            ):
                if not says(place.run / "log.txt", words, behind=behind):
                    faults.append(f"no line of the log has {words}")
            keep_evidence(rig, self.name, case, folder, passed=not faults)
            yield Outcome(case, passed=not faults, drawn={"file": name, "way": done}, detail="; ".join(faults)[:1500])


class _Said(logging.Handler):
    """Keeps the lines of the log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
