"""One run in a process of its own, forked from a server that has imported the libraries once.

In goes a recipe; out come its run folder, what it says in a log, and one line where it fails. The child ends when
the comparison dies, however that dies, so that no run goes on unseen and every folder can be taken up again.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe

__all__ = ["GPU_MARKS", "Child", "Failure", "has_gpu", "share_cores", "start_server"]

# NVIDIA's driver by its two marks, NVIDIA's under WSL 2 (which has neither), AMD's.
GPU_MARKS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
_MEMORY = "the machine's memory ran out, or somebody killed it"


def has_gpu(marks: Sequence[Path] = GPU_MARKS) -> bool:
    """Whether the machine has a GPU that torch may begin to use, told without torch.

    Args:
        marks: files, any of which a GPU's driver brings.
    """
    return any(mark.exists() for mark in marks)


@contextlib.contextmanager
def share_cores(workers: int) -> Iterator[None]:
    """Give each of the runs begun in this block its share of the cores, unless OMP_NUM_THREADS says otherwise.

    Torch reads it when it is imported, so it must stand before the server starts; another thread count later costs a
    pool.

    Args:
        workers: runs at once.
    """
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // workers))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def start_server(recipes: Sequence[Recipe]) -> ForkServerContext:
    """Prepare the server that runs are forked from; it starts with the first of them.

    Args:
        recipes: of the runs to come.
    """
    context = multiprocessing.get_context("forkserver")
    # Unsloth changes the libraries it is imported before, and bitsandbytes asks a GPU for its kind when it is imported:
    # CUDA that was begun in the server cannot be used in what is forked from it. Then every child imports its own.
    if not has_gpu() and all(recipe.model.backend == "transformers" for recipe in recipes):
        context.set_forkserver_preload(["finetune.train"])
    return context


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run did not finish: a line, and the exit code of its kind of error (1: none of ours)."""

    reason: str
    exit_code: int = 1


class Child:
    """A run that is under way.

    Attributes:
        descriptor: becomes readable when the process has ended, whoever its parent is by then.
        log_path: what it says.
    """

    def __init__(self, context: ForkServerContext, recipe: Recipe, text: str, log_path: Path) -> None:
        self.log_path = log_path
        self._reason, sender = context.Pipe(duplex=False)
        self._process: ForkServerProcess = context.Process(target=_run, args=(recipe, text, str(log_path), sender))
        self._process.start()
        sender.close()
        assert self._process.pid is not None
        # The sentinel of multiprocessing is a word of the server's; this one is the kernel's.
        try:
            self.descriptor = os.pidfd_open(self._process.pid)
            self._is_gone = False
        except ProcessLookupError:  # dead already, and the server, its parent, has taken leave of it
            self.descriptor = os.dup(self._process.sentinel)
            self._is_gone = True
        except OSError:
            self._process.kill()
            raise

    def stop(self) -> None:
        """Ask it to save and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._is_gone:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def close(self) -> Failure | None:
        """Take leave of a process that has ended.

        Returns:
            Why it did not finish its run; None where it did.
        """
        self._process.join()
        exit_code = self._process.exitcode
        reason = None
        with contextlib.suppress(EOFError):
            reason = str(self._reason.recv()) if self._reason.poll() else None
        self._reason.close()
        os.close(self.descriptor)
        if exit_code == 0:
            return None
        if reason is not None:
            return Failure(reason, exit_code or 1)
        if exit_code is not None and exit_code < 0:
            name = signal.Signals(-exit_code).name
            return Failure(f"killed by {name}{f': {_MEMORY}' if -exit_code == signal.SIGKILL else ''}")
        return Failure(f"ended with exit code {exit_code}: {_read_last_line(self.log_path)}")


def _read_last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _run(recipe: Recipe, text: str, log_path: str, reason: Connection) -> None:
    """In the child: train, with all output in the log."""
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        from finetune.model.backends import start_backend

        start_backend(recipe.model.backend)
        from finetune.train import train

        train(recipe, recipe_text=text, resume=True)
    except FinetuneError as error:
        print(error, file=sys.stderr)
        reason.send(str(error).partition("\n")[0])
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().partition("\n")[0]
        reason.send(f"{type(error).__name__}: {said}")
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """Wait for the comparison's end. The pipe behind `join` closes with it; then nobody is left to see this run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
