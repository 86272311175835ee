"""Cells carried out: some at once, each in its own process, until all have ended or somebody asks to stop.

In go the cells that are still to be run; a word after each that ended; out comes why those failed that did. A signal
is passed on to the runs, which save themselves, and ends the comparison with 130 or 143.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from finetune.comparison.cells import Cell
from finetune.comparison.children import Child, Failure
from finetune.errors import Interrupted

__all__ = ["Interruption", "run_cells"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal's Ctrl-C may come twice for one key press, from the launcher too.
_ONE_KEY_PRESS_SECONDS = 0.5

# Called when a cell has ended: the cell, why it failed or None, and its seconds in this session.
Noted = Callable[[Cell, Failure | None, float], None]


class Interruption:
    """Notes SIGINT and SIGTERM for as long as the block lasts, and wakes whoever waits on `descriptor`.

    Attributes:
        received: the first signal, or None.
        insists: Ctrl-C came again: nothing more is waited for.
        descriptor: becomes readable when a signal came.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.insists = False
        self.descriptor, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)
        os.set_blocking(self.descriptor, False)
        self._received_at_seconds = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._woke_before = -1

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        self._woke_before = signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._woke_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._wakes)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at_seconds = signal.Signals(number), now
        elif number == signal.SIGINT and now - self._received_at_seconds > _ONE_KEY_PRESS_SECONDS:
            self.insists = True

    def drain(self) -> None:
        """Empty the pipe behind `descriptor`, so that the next signal wakes anew."""
        while select.select([self.descriptor], [], [], 0)[0]:
            os.read(self.descriptor, 100)

    def raise_if_received(self, folder: Path) -> None:
        """End the comparison where a signal came.

        Raises:
            Interrupted: 130 for Ctrl-C, 143 for SIGTERM.
        """
        if self.received is not None:
            name = "Ctrl-C" if self.received is signal.SIGINT else "SIGTERM"
            what = f"{folder} was stopped by {name}; the runs under way were {'ended' if self.insists else 'saved'}."
            raise Interrupted(f"{what}\n  Go on: the same command", exit_code=128 + self.received)


def run_cells(
    cells: Sequence[Cell],
    *,
    context: ForkServerContext,
    logs_dir: Path,
    workers: int,
    interruption: Interruption,
    noted: Noted,
    may_start: Callable[[], bool] = lambda: True,
) -> None:
    """Run cells, `workers` at once, in their order. None is under way any more when this returns or raises.

    Args:
        cells: to run; one whose folder holds a checkpoint continues from it.
        context: of the server that they are forked from.
        logs_dir: what each says goes into a file here.
        workers: runs at once.
        interruption: where a signal came, those under way are asked to save and end, and no other is begun.
        noted: called for each that has ended by itself.
        may_start: asked before each start; False leaves the rest out.
    """
    logs_dir.mkdir(parents=True, exist_ok=True)
    waiting = list(cells)
    running = _Running(interruption)
    try:
        while True:
            while waiting and len(running) < workers and interruption.received is None and may_start():
                cell = waiting.pop(0)
                try:
                    running.add(cell, Child(context, cell.recipe, cell.text, logs_dir / f"{cell.name}.txt"))
                except (EOFError, ConnectionError, BrokenPipeError):
                    # Ctrl-C ends the server while it is importing; at any other time this is a fault.
                    if interruption.received is None:
                        raise
                    break
            if not running:
                return
            if interruption.received is not None:
                running.stop()
            for cell, failure, seconds in running.wait():
                # One that was asked to stop has not failed.
                if interruption.received is None or failure is None:
                    noted(cell, failure, seconds)
    finally:
        # Only a fault of ours comes here with runs under way, such as a disk too full for the table.
        while running:
            running.stop()
            list(running.wait())


class _Running:
    """The runs under way."""

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption
        self._by_descriptor: dict[int, tuple[Child, Cell, float]] = {}
        self._is_stopping = False

    def __len__(self) -> int:
        return len(self._by_descriptor)

    def add(self, cell: Cell, child: Child) -> None:
        """Watch over one that has begun."""
        self._by_descriptor[child.descriptor] = (child, cell, time.monotonic())

    def stop(self) -> None:
        """Ask all to save and end, once; end them where somebody insists."""
        if self._is_stopping and not self._interruption.insists:
            return
        for child, _, _ in self._by_descriptor.values():
            child.kill() if self._interruption.insists else child.stop()
        self._is_stopping = True

    def wait(self) -> Iterator[tuple[Cell, Failure | None, float]]:
        """Wait until a signal comes or some have ended: those, why they failed or None, and their seconds."""
        ready = select.select([*self._by_descriptor, self._interruption.descriptor], [], [])[0]
        self._interruption.drain()
        for descriptor in ready:
            if descriptor in self._by_descriptor:
                child, cell, began_seconds = self._by_descriptor.pop(descriptor)
                failure = child.close()
                yield cell, failure, time.monotonic() - began_seconds
