"""Row 12: a disk that is full when a checkpoint is to be written.

As root the run's folder is a small tmpfs of its own, shrunk while the run is under way to what is used and a drawn
rest, so that one of the next saves does not fit; the same command is given again while not a byte is left; then it is
enlarged again and the run resumed. Without root the
process's largest file size is limited instead (RLIMIT_FSIZE), which stops the save alone and has no free bytes to name.
"""

import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tests.faults.kills import find_torn
from tests.faults.measures import Outcome, Rig, register
from tests.faults.recipes import SAVE_STEPS, STEPS
from tests.faults.reference import find_reference, keep_evidence
from tests.faults.runs import (
    Moment,
    Place,
    Process,
    find_differences,
    find_lost,
    find_whole_steps,
    find_wrong_start,
    judge_message,
)

__all__ = ["FullDisk"]

_KIND = "sft"
_ROOMY_BYTES = 2 << 30
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NEEDED_AND_FREE = re.compile(r"needs about \d[\d.,]* \w+.{1,200}\d[\d.,]* \w+ (are|is) free", re.DOTALL)


@contextmanager
def own_disk(path: Path) -> Iterator[Path]:
    """Mount a tmpfs on a folder."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOMY_BYTES}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def resize(disk: Path, num_bytes: int) -> None:
    """Give a mounted tmpfs another size; it keeps what lies there."""
    subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(disk)], check=True)


def read_used_bytes(disk: Path) -> int:
    """Read how much of a disk is used."""
    return shutil.disk_usage(disk).used


@register
class FullDisk:
    """Disks that fill up at a save."""

    name = "full_disk"
    title = (
        "disk full at a save: exit 4 with needed and free bytes, earlier checkpoints whole, no partial one, "
        "with room again equal"
    )
    row = "12"
    target = 24
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Fill one disk at a time."""
        reference = find_reference(rig, _KIND)
        checkpoint = reference.place.checkpoints / f"checkpoint-{STEPS}"
        num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            random = rig.draw(self.name, case)
            folder = Path(tempfile.mkdtemp(prefix="disk_"))
            # The save that does not fit, and how much of it does.
            step = SAVE_STEPS * (1 + case % (STEPS // SAVE_STEPS))
            rest_bytes = random.randrange(num_bytes * 9 // 10)
            moment = Moment("step", max(step - 2, 1), 0.0)
            by_disk = os.geteuid() == 0
            if by_disk:
                with own_disk(folder / "disk") as disk:
                    place = Place.make(folder, _KIND, output_dir=disk)
                    (folder / "run").symlink_to(disk / "run")
                    faults = fill_and_resume(place, moment, disk, rest_bytes)
                    faults = faults or find_differences(reference.place, place)
                    if faults:  # what is unmounted is gone
                        shutil.copytree(disk, folder / "disk_copy", symlinks=True)
            else:
                place = Place.make(folder, _KIND)
                faults = limit_and_resume(place, moment, rest_bytes) or find_differences(reference.place, place)
            keep_evidence(rig, self.name, case, folder, passed=not faults)
            drawn = {"save": step, "rest_bytes": rest_bytes, "by": "tmpfs" if by_disk else "RLIMIT_FSIZE"}
            yield Outcome(case, passed=not faults, drawn=drawn, detail="; ".join(faults)[:1500])


def fill_and_resume(place: Place, moment: Moment, disk: Path, rest_bytes: int) -> list[str]:
    """Leave the run a rest of its disk, look at how it ends, and again with no rest; then let it run to its end."""
    process = place.start()
    if process.wait_for_mark(moment) is None:
        return [f"ended before its disk was made small: {process.read_said(6)}"]
    before = find_whole_steps(place.checkpoints)
    resize(disk, (read_used_bytes(disk) // _PAGE_BYTES + rest_bytes // _PAGE_BYTES + 1) * _PAGE_BYTES)
    faults = judge_full(place, process, before)
    resize(disk, -(-read_used_bytes(disk) // _PAGE_BYTES) * _PAGE_BYTES)
    whole = find_whole_steps(place.checkpoints)
    faults += [f"again: {fault}" for fault in judge_full(place, place.start(), whole, names_sizes=False)]
    resize(disk, _ROOMY_BYTES)
    return faults + resume(place)


def limit_and_resume(place: Place, moment: Moment, rest_bytes: int) -> list[str]:
    """The same with a limit on the size of a file, for who is not root."""
    process = place.start()
    if process.wait_for_mark(moment) is None:
        return [f"ended before its files were limited: {process.read_said(6)}"]
    before = find_whole_steps(place.checkpoints)
    limit = max(rest_bytes // 10, _PAGE_BYTES)  # below the size of the largest file
    resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (limit, limit))
    return judge_full(place, process, before, names_sizes=False) + resume(place)


def judge_full(place: Place, process: Process, whole_before: list[int], *, names_sizes: bool = True) -> list[str]:
    """Judge how a run ended whose disk is full, and that it lost no checkpoint it had."""
    code = process.wait()
    said = process.read_said()
    if code != 4:
        return [f"exit {code}: {said}"]
    faults = judge_message(process)
    lost = find_lost(whole_before, find_whole_steps(place.checkpoints))
    faults += [f"checkpoint {step} is gone" for step in lost]
    if names_sizes and not _NEEDED_AND_FREE.search(said):
        faults.append(f"does not name needed and free bytes: {said}")
    if torn := find_torn(place.checkpoints):
        faults.append(f"left {torn} without a record")
    return faults


def resume(place: Place) -> list[str]:
    """Let a run go on to its end; what was wrong with that."""
    whole = find_whole_steps(place.checkpoints)
    process = place.start()
    code = process.wait()
    faults = find_wrong_start(process, whole, ran_to_its_end=True)
    faults += [f"resumed: exit {code}: {process.read_said(6)}"] if code else []
    if broken := [path.name for path in place.checkpoints.glob("*.broken")]:
        faults.append(f"earlier checkpoints were not whole: {broken}")
    return faults
