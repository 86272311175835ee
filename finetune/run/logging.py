"""What a run says, and where: plainly on the console, with times in log.txt.

`log_to_console` is the one place that configures Python's logging. Our own loggers speak from INFO on;
libraries from WARNING on, and only into log.txt, unless it is an error; Python's warnings go there
too. What ends a run stands there as well. Nothing is coloured. Standard output stays free for results.
"""

import contextlib
import logging
import logging.handlers
import os
import sys
import traceback
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from finetune.errors import FinetuneError
from finetune.run.own_files import open_unlinked
from finetune.run.progress import PROGRESS_LOGGER, shows_bars
from finetune.run.secrets import MaskingFormatter

__all__ = ["LogFile", "log_to_console"]


class LogFile:
    """Where the log goes beside the console: kept in memory until a run folder may be written, then log.txt."""

    def __init__(self, *, writes: bool) -> None:
        self._writes = writes
        self._file: logging.Handler | None = None
        # Without a target a flush keeps what it has; with one, at capacity 1, every record passes at once.
        self.handler = logging.handlers.MemoryHandler(capacity=1)
        self.handler.addFilter(_belongs_in_the_file)

    def open(self, path: Path) -> None:
        """Write what was said so far to log.txt, behind what stands there, and all that follows.

        Raises:
            PlaceError: it is a link, or cannot be written.
        """
        if not self._writes:
            return
        self._file = _FileHandler(path, encoding="utf-8")
        self._file.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.handler.setTarget(self._file)
        self.handler.flush()

    def note_end(self, error: BaseException) -> None:
        """Write what ended the run: a message of ours as it is, a bug with its traceback. The command line tells it.

        Into the file alone, so that nobody reads it twice.
        """
        said, trace = str(error), None
        if not isinstance(error, FinetuneError):
            said = "Ended by " + " ".join(traceback.format_exception_only(error)).strip()
            trace = (type(error), error, error.__traceback__) if isinstance(error, Exception) else None
        self.handler.handle(logging.LogRecord("finetune", logging.ERROR, __file__, 0, said, None, trace))

    def close(self) -> None:
        """Close log.txt; what was kept for one that was never opened is let go."""
        self.handler.close()
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk; it has been told
                self._file.close()


@contextlib.contextmanager
def log_to_console(*, writes: bool = True) -> Iterator[LogFile]:
    """Send the log to the console for as long as the block lasts, and to a file from when the block opens one.

    Args:
        writes: False in the processes of a launch that leave speaking to rank 0; they report errors.
    """
    root, ours = logging.getLogger(), logging.getLogger("finetune")
    log_file = LogFile(writes=writes)
    handlers = [_build_console(logging.INFO if writes else logging.ERROR), log_file.handler]
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
        yield log_file
    except BaseException as error:
        log_file.note_end(error)
        raise
    finally:
        for handler in handlers:
            root.removeHandler(handler)
        log_file.close()
        ours.setLevel(level_before)
        logging.captureWarnings(False)
        transformers_logging.enable_default_handler()
        transformers_logging.disable_propagation()
        if bars_before:
            transformers_logging.enable_progress_bar()


class _FileHandler(logging.FileHandler):
    """Goes on without a line that the disk does not take, and says so once; the next save stops the run."""

    _has_told = False

    def _open(self) -> TextIOWrapper:
        """Open the file itself: through a link what is said would stand behind a file of somebody's."""
        descriptor = open_unlinked(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND, 0o666)
        file = os.fdopen(descriptor, self.mode, encoding=self.encoding, errors=self.errors)
        assert isinstance(file, TextIOWrapper), "the mode is a text's"
        return file

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell on the console, where Python would print a traceback for every line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_told:
            self._has_told = True
            tqdm.write(f"{self.baseFilename} does not take what is said here: {error.strerror}.", file=sys.stderr)


class _Console(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record to standard error, where anybody still reads it: a run outlives its console.

        Ctrl-C ends `tee` too, and what is said of it may not cost the checkpoint. A RuntimeError is a signal's word in
        the middle of another one being written.
        """
        with contextlib.suppress(OSError, RuntimeError):
            tqdm.write(self.format(record), file=sys.stderr)


def _build_console(level: int) -> logging.Handler:
    console = _Console(level)
    console.setFormatter(MaskingFormatter("%(message)s"))

    def belongs_here(record: logging.LogRecord) -> bool:
        if record.name == PROGRESS_LOGGER and shows_bars():
            return False
        return record.name.partition(".")[0] == "finetune" or record.levelno >= logging.ERROR

    console.addFilter(belongs_here)
    return console


def _belongs_in_the_file(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == "finetune" or record.levelno >= logging.WARNING
