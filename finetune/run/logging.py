"""What a run says, and where: plainly on the console, with times in log.txt.

`log_to` is the one place that configures Python's logging. Our own loggers speak from INFO on;
libraries from WARNING on, and only into log.txt, unless it is an error; Python's warnings go there
too. Nothing is coloured. Standard output stays free for results.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from finetune.run.progress import PROGRESS_LOGGER

__all__ = ["log_to", "shows_bars"]


def shows_bars() -> bool:
    """Whether progress bars are drawn: standard error is a terminal."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def log_to(path: Path | None, *, writes: bool = True) -> Iterator[None]:
    """Send the log to the console and to a file for as long as the block lasts.

    Args:
        path: log.txt of the run, appended to; None: the console alone.
        writes: False in the processes of a launch that leave speaking to rank 0; they report errors.
    """
    root, ours = logging.getLogger(), logging.getLogger("finetune")
    handlers: list[logging.Handler] = [_build_console(logging.INFO if writes else logging.ERROR)]
    if path is not None and writes:
        handlers.append(_build_file(path))
    level_before = ours.level
    bars_before = transformers_logging.is_progress_bar_enabled()
    for handler in handlers:
        root.addHandler(handler)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # Transformers brings a handler of its own; one voice is enough.
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    if not shows_bars() or not writes:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        ours.setLevel(level_before)
        logging.captureWarnings(False)
        transformers_logging.enable_default_handler()
        transformers_logging.disable_propagation()
        if bars_before:
            transformers_logging.enable_progress_bar()


class _Console(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record to standard error."""
        tqdm.write(self.format(record), file=sys.stderr)


def _build_console(level: int) -> logging.Handler:
    console = _Console(level)
    console.setFormatter(logging.Formatter("%(message)s"))

    def belongs_here(record: logging.LogRecord) -> bool:
        if record.name == PROGRESS_LOGGER and shows_bars():
            return False
        return record.name.partition(".")[0] == "finetune" or record.levelno >= logging.ERROR

    console.addFilter(belongs_here)
    return console


def _build_file(path: Path) -> logging.Handler:
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def belongs_here(record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] == "finetune" or record.levelno >= logging.WARNING

    file.addFilter(belongs_here)
    return file
