"""What a library prints, said in the log: standard output is for results."""

import contextlib
import io
import logging
from collections.abc import Iterator

__all__ = ["printed_to_log"]

log = logging.getLogger("finetune.model.printing")

# Lines printed before anybody listens, as by a library that is imported ahead of all that sets up the log.
_unheard: list[str] = []


@contextlib.contextmanager
def printed_to_log() -> Iterator[None]:
    """Log each line that is printed inside the block; one that nobody hears yet waits for the next."""
    lines = _Lines()
    try:
        with contextlib.redirect_stdout(lines):
            yield
    finally:
        lines.end()


class _Lines(io.TextIOBase):
    """Takes text in the pieces that `print` writes it in."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        _unheard.extend(line.rstrip() for line in lines if line.strip())
        if log.isEnabledFor(logging.INFO):
            for line in _unheard:
                log.info("%s", line)
            _unheard.clear()
        return len(text)

    def end(self) -> None:
        """End the line that was begun."""
        self.write("\n")
