"""The person's side of a conversation: turns as they are typed or piped in, and lines told to nobody but the person.

In goes standard input; out come turns one by one, each replied to or, where it is a command, followed. Knows no model.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from finetune.errors import DataError, RecipeError

__all__ = ["follow", "read_turns", "say"]


def read_turns() -> Iterator[str]:
    """Read the person's turns: asked for at a terminal, else the lines of standard input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    _load_line_editing()
    say("/reset forgets the conversation, /use NAME switches, /exit or Ctrl-D leaves.")
    while True:
        try:
            yield input("> ")
        except EOFError:
            say("")
            return


def follow(turns: Iterable[str], reply: Callable[[str], object], commands: Mapping[str, Callable[[str], None]]) -> None:
    """Reply to each turn until they end or one says `/exit`; a turn that cannot be asked is told and passed over.

    Args:
        turns: as they come; empty ones are passed over.
        reply: takes a turn that is no command.
        commands: by the word that a turn begins with; each takes the rest of its turn.
    """
    for turn in turns:
        command, _, rest = turn.strip().partition(" ")
        if command == "/exit":
            return
        if not command:
            continue
        try:
            if command in commands:
                commands[command](rest.strip())
            else:
                reply(turn)
        except (DataError, RecipeError) as error:
            say(str(error))


def say(line: str) -> None:
    """Tell the person, not the pipe."""
    print(line, file=sys.stderr, flush=True)


def _load_line_editing() -> None:
    """Let `input` know the arrow keys; Python for Windows comes without."""
    if sys.platform != "win32":
        import readline  # noqa: F401
