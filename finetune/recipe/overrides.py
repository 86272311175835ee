"""`section.key=value` from the command line, put into the tree of a recipe.

Values follow the recipe's own YAML rules, so that `training.learning_rate=1e-3` is a number and
`data.eval={fraction: 0.1}` a group.
"""

import re
import shlex
from collections.abc import Sequence
from itertools import takewhile

from finetune.errors import RecipeError
from finetune.recipe.faults import Fault, quote
from finetune.recipe.places import is_local
from finetune.recipe.recipe_view import SOURCES, find_node
from finetune.recipe.yaml_lines import Node, read_yaml

__all__ = ["COMMAND_LINE", "apply_overrides", "drop_hub_settings"]

COMMAND_LINE = "command line"

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
# A source's settings that mean something on the Hub alone.
_HUB_SETTINGS = ("revision", "split", "subset")
_MAX_WHOLE = 80  # characters of an override that a message repeats


def apply_overrides(tree: Node, overrides: Sequence[str]) -> list[Fault]:
    """Put each override in its place in the tree; a section that is not there is made.

    Returns:
        A fault for each override that is not `section.key=value`, or whose place is taken by something else.
    """
    faults: list[Fault] = []
    is_torn = False  # a group that the shell took apart at its spaces: what follows are its pieces
    for position, override in enumerate(overrides):
        path, _, text = override.partition("=")
        if not _is_setting(override):
            if not is_torn:
                what = f"{quote(override)} is not `section.key=value`."
                example = "E.g. training.learning_rate=1e-4; settings go without spaces around =."
                faults.append(Fault(COMMAND_LINE, what, (example,)))
            continue
        is_torn = False
        try:
            value, found = read_yaml(text, COMMAND_LINE, has_lines=False)
        except RecipeError as error:
            what, *advice = str(error).removeprefix(f"{COMMAND_LINE}: ").splitlines()
            pieces = list(takewhile(lambda piece: not _is_setting(piece), overrides[position + 1 :]))
            is_torn = text.startswith(("{", "[")) and bool(pieces)
            if is_torn:
                advice = [f"Quote it for the shell: {_quote_for_shell([override, *pieces])}."]
            faults.append(Fault(COMMAND_LINE, f"{quote(override)}: {what}", tuple(line.strip() for line in advice)))
            continue
        faults += [*found, *_put(tree, path, value)]
    return faults


def _is_setting(override: str) -> bool:
    path, equals, _ = override.partition("=")
    return bool(equals) and _KEY.fullmatch(path) is not None


def _quote_for_shell(pieces: Sequence[str]) -> str:
    """The override as it was meant; an example where it is long or holds signs that a terminal would act on."""
    whole = " ".join(pieces)
    return shlex.quote(whole if whole.isprintable() and len(whole) <= _MAX_WHOLE else "data.eval={fraction: 0.1}")


def _put(tree: Node, path: str, value: Node) -> list[Fault]:
    """Set one value; in place, for the tree is the reader's own."""
    *sections, key = path.split(".")
    node = tree
    for depth, section in enumerate(sections):
        if not isinstance(node.value, dict):
            break
        child = node.value.get(section)
        if child is None or child.value is None:
            child = node.value[section] = Node({}, COMMAND_LINE, COMMAND_LINE)
        node = child
        if not isinstance(node.value, dict):
            taken = ".".join(sections[: depth + 1])
            kind = "a list" if isinstance(node.value, list) else "a single value"
            what = f"`{path}` cannot be set: `{taken}` is {kind} in the recipe."
            return [Fault(COMMAND_LINE, what, (f"Set it whole: {taken}={{…}}.",))]
    if isinstance(node.value, dict):
        node.value[key] = value
    return []


def drop_hub_settings(tree: Node, overrides: Sequence[str]) -> list[str]:
    """Drop `revision`, `split` and `subset` of a source whose `path` was overridden with a local one.

    With the training rows go the numbers that the recipe assumes of them, unless those were overridden too.

    Returns:
        A line to say for each source that lost any.
    """
    overridden = {override.partition("=")[0] for override in overrides}
    notices = []
    for source in SOURCES:
        path = find_node(tree, f"{source}.path")
        group = find_node(tree, source)
        if f"{source}.path" not in overridden or path is None or not isinstance(path.value, str) or group is None:
            continue
        assert isinstance(group.value, dict)
        kept = {name for name in _HUB_SETTINGS if f"{source}.{name}" in overridden}
        dropped = [name for name in _HUB_SETTINGS if name in group.value and name not in kept and is_local(path.value)]
        for name in dropped:
            del group.value[name]
        if dropped:
            notices.append(f"{source}.path is local now: dropped the recipe's {', '.join(dropped)} of the Hub dataset.")
        data = find_node(tree, "data")
        if source == "data.train" and is_local(path.value) and data is not None and isinstance(data.value, dict):
            says_own = any(name == "data.assumed" or name.startswith("data.assumed.") for name in overridden)
            if not says_own and data.value.pop("assumed", None) is not None:
                notices.append("data.train.path is local now: dropped data.assumed, which is of the recipe's own rows.")
    return notices
