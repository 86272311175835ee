"""Secrets kept out of everything a run writes or says.

In goes a text on its way to a file, a stream or a message; out comes the same with `***` where a secret stood: the
value of an environment variable that is named as one (HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, …), and whatever
has a known form (`recipe.secret_patterns`). Imports nothing heavy, so that every message can pass through.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from finetune.errors import RecipeError
from finetune.recipe.secret_patterns import MASK, mask_patterns

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = [
    "MaskingFormatter",
    "mask_arguments",
    "mask_text",
    "masked_tracebacks",
    "print_masked_traceback",
    "refuse_known_secrets",
]

# A bypass, a compass and the program that asks for a password are none; KEY within another word is no key, and PWD by
# itself the folder that a shell is in.
_PASSWORDS = r"PASSWORD|PASSWD|PASSPHRASE|(?<!BY)(?<!COM)(?<!ASK)PASS|_PWD"
_WORDS = r"TOKEN|SECRET|CREDENTIALS?|API_?KEY|ACCESS_?KEY(_ID)?|(^|_)KEY"
_SECRET_VARIABLE = re.compile(rf"({_WORDS}|{_PASSWORDS})(_\d+)?$", re.IGNORECASE)
_PASSWORD_VARIABLE = re.compile(rf"({_PASSWORDS})(_\d+)?$", re.IGNORECASE)
_SECRET_ARGUMENT = re.compile(r"(^|[._-])(token|secret|password|passwd|api[_-]?key|credentials?)$", re.IGNORECASE)
# Shorter values are words or numbers of everyday text, which masking would garble.
_MIN_MASKED = 8
# A name that merely equals some variable's value is no leak; keys have no fewer characters than this. Passwords have:
# one that holds more than letters is refused from `_MIN_MASKED` on, where it stands by itself.
_MIN_REFUSED = 16


def mask_text(text: str) -> str:
    """Copy a text with the environment's secrets and everything that looks like one replaced by `***`."""
    # As an address holds them too. The longest first: one value may be the beginning of another.
    values = _read_secrets(_MIN_MASKED).values()
    forms = {form for value in values for form in (value, quote(value), quote(value, safe=""), quote_plus(value))}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    return mask_patterns(text)


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """Copy command line arguments with everything that is named as a secret, or looks like one, replaced by `***`."""
    masked = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        is_named_secret = _SECRET_ARGUMENT.search(name) is not None
        if hide_next:
            masked.append(MASK)
        elif equals and is_named_secret:
            masked.append(f"{name}={MASK}")
        else:
            masked.append(mask_text(argument))
        hide_next = is_named_secret and not equals and argument.startswith("--")
    return masked


def refuse_known_secrets(*texts: str) -> None:
    """Refuse a recipe that repeats a secret of the environment, which the run's folder would keep.

    Secrets of 16 characters and more; of variables that are named as passwords those of 8 and more that are not letters
    alone (`postgres` may be a user's password and is a word all the same), unless they are part of a longer word.

    Args:
        texts: the recipe as typed, and its values.

    Raises:
        RecipeError: naming the variable, never the value.
    """
    for name, value in _read_secrets(_MIN_MASKED).items():
        if any(_repeats(name, value, text) for text in texts):
            raise RecipeError(
                f"The recipe, or a setting on the command line, holds the value of the variable {name}.\n"
                "  A recipe is copied into the run's folder. Take the value out: who needs it reads the variable."
            )


def _repeats(name: str, value: str, text: str) -> bool:
    """Whether a text holds the value of a variable, rather than a word that merely equals it."""
    if len(value) >= _MIN_REFUSED:
        return value in text
    if not _PASSWORD_VARIABLE.search(name) or value.isalpha():
        return False
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def print_masked_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody caught as Python does, its secrets masked; to be `sys.excepthook`."""
    _print_masked("", kind, error, trace)


@contextlib.contextmanager
def masked_tracebacks() -> Iterator[None]:
    """Let Python print every error that nobody caught with its secrets masked: a thread's and a finalizer's too.

    Behind the block it stays so, since an error that leaves it is printed there; but whoever had put hooks of his own
    for threads and finalizers gets them back.
    """
    sys.excepthook = print_masked_traceback
    before = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = _print_masked_of_thread, _print_masked_of_finalizer
    try:
        yield
    finally:
        if before != (threading.__excepthook__, sys.__unraisablehook__):
            threading.excepthook, sys.unraisablehook = before


def _print_masked_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:  # by which a thread ends itself
        name = "" if args.thread is None else args.thread.name
        _print_masked(f"Exception in thread {name}:\n", args.exc_type, args.exc_value, args.exc_traceback)


def _print_masked_of_finalizer(args: "UnraisableHookArgs") -> None:
    try:
        where = repr(args.object)
    except Exception:  # of an object that is half gone
        where = f"a {type(args.object).__name__}"
    said = f"{args.err_msg or 'Exception ignored in'}: {where}\n"
    _print_masked(said, args.exc_type, args.exc_value, args.exc_traceback)


def _print_masked(
    said: str, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    text = said + "".join(traceback.format_exception(kind, error, trace))
    print(mask_text(text), end="", file=sys.stderr, flush=True)


class MaskingFormatter(logging.Formatter):
    """Formats a record, its traceback too, with the secrets masked."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        return mask_text(super().format(record))


def _read_secrets(min_length: int) -> dict[str, str]:
    """Read the variables that are named as secrets and whose values are long enough to be one."""
    named = {name: value.strip() for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    return {name: value for name, value in named.items() if len(value) >= min_length}
