"""SIGTERM before a run can answer it: it ends the program at once, and is remembered where that went unheard.

What a handler raises inside a finalizer (`__del__`) Python prints and drops. `Interrupts`, which takes over later,
therefore asks `was_terminated` before a run begins. Imports nothing heavy: the command line stands on it.
"""

from types import FrameType
from typing import NoReturn

__all__ = ["Terminated", "end_now", "forget_signals", "was_terminated"]

_numbers: list[int] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM where no run takes it up; like KeyboardInterrupt it passes every `except Exception`."""


def end_now(number: int, frame: FrameType | None) -> NoReturn:
    """End the program from inside the handler; to be given to `signal.signal`."""
    _numbers.append(number)
    raise Terminated


def was_terminated() -> bool:
    """Whether the signal came although the program is still at work."""
    return bool(_numbers)


def forget_signals() -> None:
    """Forget them, as each command does when it ends."""
    _numbers.clear()
