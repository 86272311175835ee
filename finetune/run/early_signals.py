"""SIGTERM before a run can answer it: it ends the program at once, and is remembered where that went unheard.

What a handler raises inside a finalizer (`__del__`) Python prints and drops. `Interrupts`, which takes over later,
therefore asks `was_terminated` before a run begins. Both raise `EndNow`, which carries the signal to the exit code.
Imports nothing heavy: the command line stands on it.
"""

import signal
from types import FrameType
from typing import NoReturn

__all__ = ["EndNow", "end_now", "forget_signals", "name_signal", "was_terminated"]

_numbers: list[int] = []


class EndNow(KeyboardInterrupt):
    """A signal that ends the program from inside its handler; like KeyboardInterrupt it passes `except Exception`.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {name_signal(number)}")
        self.number = number


def name_signal(number: int) -> str:
    """Name a signal as the one who sent it knows it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def end_now(number: int, frame: FrameType | None) -> NoReturn:
    """End the program from inside the handler; to be given to `signal.signal`."""
    _numbers.append(number)
    raise EndNow(number)


def was_terminated() -> bool:
    """Whether the signal came although the program is still at work."""
    return bool(_numbers)


def forget_signals() -> None:
    """Forget them, as each command does when it ends."""
    _numbers.clear()
