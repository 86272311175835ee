"""Processes for runs without the seconds that importing the libraries takes: forked from an interpreter that has them.

    python -m tests.faults.ready SOCKET

Seven of ten seconds of a short run go into `import torch`, `transformers`, `trl`. This interpreter imports them once,
nothing of ours, and does nothing with them; then it forks a process for every run asked for, which runs the verb as
`python -m` would. Such a process shares no memory that it writes, has a number of its own and dies of signals like any
other. Kills during the imports, and runs that want other variables in their environment, start interpreters of their
own all the same; so do the unbroken runs, which the forked ones are held against byte for byte.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.recipes import ROOT

__all__ = ["Forked", "fork", "is_ready", "keep_ready", "use"]

_LIBRARIES = (
    "torch", "datasets", "accelerate", "bitsandbytes", "peft", "transformers.trainer", "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer", "transformers.models.mistral.modeling_mistral", "transformers.integrations",
)  # fmt: skip

_socket_path: Path | None = None  # of this process's interpreter


@contextmanager
def keep_ready() -> Iterator[Path]:
    """Start the interpreter, wait until it has imported the libraries, and end it with the block: its socket's path.

    Raises:
        RuntimeError: it ended before.
    """
    with tempfile.TemporaryDirectory(prefix="ready_") as folder:
        path = Path(folder) / "socket"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.faults.ready", str(path)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"the interpreter that forks runs ended with {process.wait()}")
            yield path
        finally:
            process.stdin.close()  # it ends with the one who started it, however that one ends
            process.stdout.close()
            process.wait()


def use(path: Path | None) -> None:
    """Let `fork` ask the interpreter behind a socket; None: there is none."""
    global _socket_path
    _socket_path = path


def is_ready() -> bool:
    """Whether there is an interpreter to fork from."""
    return _socket_path is not None


def fork(arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> "Forked":
    """Start `python -m tests.faults.hooked ARGUMENTS` as a fork of the interpreter that is ready.

    Args:
        arguments: behind the module's name.
        environment: of the process; what the libraries read while they are imported has no effect any more.
        said: file for its stdout and stderr.
    """
    assert _socket_path is not None
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(_socket_path))
    asked = {"arguments": list(arguments), "environment": dict(environment), "said": str(said)}
    connection.sendall(json.dumps(asked).encode() + b"\n")
    return Forked(connection)


class Forked:
    """A forked process, with what `subprocess.Popen` has of one.

    Attributes:
        pid: its number.
        returncode: None while it runs; the negative number of the signal that it died of.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.returncode: int | None = None
        self.pid = int(self._read()["pid"])

    def poll(self) -> int | None:
        """Ask whether it has ended: its return code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end: its return code.

        Raises:
            subprocess.TimeoutExpired: it runs still.
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._read()["returncode"])
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to it; nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def _read(self) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):  # byte by byte, so that `select` knows of all that is unread
            byte = self._connection.recv(1)
            if not byte:
                raise RuntimeError("the process that waits for a forked run has ended before it")
            line += byte
        return dict(json.loads(line))


# ---- in the interpreter


def _serve(path: str) -> dict[str, Any] | None:
    """Fork for whoever connects.

    Returns:
        In a forked process: what was asked of it. None in the interpreter itself, when nobody needs it any more.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        while sys.stdin not in (readable := select.select([listening, sys.stdin], [], [])[0]):
            assert readable
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    listening.close()
                    return _fork_and_wait(connection)
    return None


def _fork_and_wait(connection: socket.socket) -> dict[str, Any]:
    """Fork the run, tell its number and then how it ended; what was asked, in the run's own process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked: dict[str, Any] = json.loads(connection.makefile("rb").readline())
    pid = os.fork()
    if pid == 0:
        return asked
    connection.sendall(json.dumps({"pid": pid}).encode() + b"\n")
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # nobody asks any more
        connection.sendall(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
    os._exit(0)


def _become(asked: Mapping[str, Any]) -> None:
    """Take on the streams and the environment of the run, and run it."""
    streams = (os.open(os.devnull, os.O_RDONLY), os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    for number, stream in ((0, streams[0]), (1, streams[1]), (2, streams[1])):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["hooked", *asked["arguments"]]
    from tests.faults.hooked import main

    main()


def _main() -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    threads = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    threads.remove(Path("/proc/self/comm").read_text().strip())
    # A fork has this thread alone, and locks of the others as they were. pyarrow's allocator is made for that.
    assert set(threads) <= {"jemalloc_bg_thd"}, f"threads that the libraries started: {threads}"
    asked = _serve(sys.argv[1])
    if asked is not None:
        _become(asked)


if __name__ == "__main__":
    _main()
