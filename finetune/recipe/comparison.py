"""A comparison read: which methods, sizes, learning rates, seeds and tasks are run from one recipe.

In goes the comparison's YAML with the command line's `key=value`, out comes a frozen `Comparison`, whose settings
of a recipe are still nodes that know their line, or one RecipeError with every fault. What the settings come to in
each run is checked by `finetune.comparison.cells`. Imports neither torch nor transformers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError
from finetune.recipe.faults import Fault, quote, to_error, to_line_number
from finetune.recipe.nearest import find_nearest
from finetune.recipe.overrides import COMMAND_LINE, apply_overrides
from finetune.recipe.reading import read_recipe_with_notices
from finetune.recipe.secret_patterns import find_typed_secrets
from finetune.recipe.yaml_lines import Node, read_yaml, to_plain

__all__ = ["SCORES", "Budget", "Comparison", "Method", "Settings", "is_score", "read_comparison"]

Settings = Mapping[str, Node]  # of a recipe, by `section.key`

# Figures of summary.json that a comparison may go by. Of a loss the lower one is better, of all others the higher one.
SCORES = (
    "score", "exact_match", "preference_accuracy", "preference_margin", "eval_reward",
    "eval_loss", "train_loss", "general_loss",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")  # of a method or a task: part of a folder's name
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KEYS = (
    "name", "recipe", "settings", "tasks", "methods", "grid", "seeds", "reference", "score", "workers", "output_dir",
    "budget",
)  # fmt: skip
_BUDGET_KEYS = ("minutes", "probe_steps", "keep")
# A comparison fills these itself.
_OWNED = {
    "name": "Every run is named by its method, its settings and its seed.",
    "seed": "Write them in `seeds`, at the top of the comparison.",
    "output_dir": "Write it at the top of the comparison; the runs lie in its folder.",
}
_OF_SETTINGS = re.compile(r"((?:settings|grid|methods\.[\w-]+\.grid|(?:methods|tasks)\.[\w-]+))\.(.+)", re.DOTALL)
_SETTING = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_KEEP = 1 / 3  # the usual share of successive halving
_MAX_BYTES = 64 * 1024
_MAX_SEED = 2**32


@dataclass(frozen=True, slots=True)
class Budget:
    """Short runs that choose among a method's grid points before any is run in full.

    Attributes:
        minutes: time of all short runs together after which no further one is begun.
        probe_steps: optimizer steps of a short run, one number a rung, rising.
        keep: share of the candidates that goes on from a rung, above 0 and below 1.
    """

    minutes: float
    probe_steps: tuple[int, ...]
    keep: float


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table: settings over the recipe's, and values to try.

    Attributes:
        name: as in the table.
        settings: put over the recipe's.
        grid: values to try of each setting; the comparison's own grid is in it, less what the method sets itself.
    """

    name: str
    settings: Settings
    grid: Mapping[str, Sequence[Node]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared.

    Attributes:
        name: of the comparison and of its folder.
        path: the file it was read from.
        text: that file as typed.
        overrides: what the command line put over it.
        base_path: the recipe that every run starts from.
        base_text: that recipe as typed.
        settings: put over the recipe in every run.
        tasks: named settings, a group of columns each; without any, one task without a name.
        methods: the rows of the table.
        seeds: every grid point is run with each.
        reference: the method that the others' differences are taken to.
        score: figure of summary.json that is compared; None: chosen by the objective.
        score_place: where that was typed; the file where it was not.
        workers: runs at once.
        output_dir: folder that the comparison's folder is made in.
        budget: how to choose by short runs; None: every grid point is run in full.
    """

    name: str
    path: Path
    text: str
    overrides: tuple[str, ...]
    base_path: Path
    base_text: str
    settings: Settings
    tasks: Mapping[str, Settings]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    reference: str | None
    score: str | None
    score_place: str
    workers: int
    output_dir: str
    budget: Budget | None

    @property
    def folder(self) -> Path:
        """Where the comparison lies."""
        return Path(self.output_dir) / self.name


def is_score(name: str) -> bool:
    """Whether a figure can be compared: one of SCORES, or `scores.NAME`, `scores.PART/NAME` of a classification."""
    return name in SCORES or re.fullmatch(r"scores\.\w+(/\w+)?", name) is not None


def read_comparison(path: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read a comparison and put the overrides over it.

    Args:
        path: the YAML file.
        overrides: `key=value` of the comparison's own keys, or `settings.section.key=value` of the recipe's.

    Raises:
        RecipeError: with all faults of the file, of the overrides, and of the recipe it starts from.
    """
    text = _read_text(path)
    if secrets := find_typed_secrets(text, str(path), overrides):
        raise to_error(secrets)
    tree, faults = read_yaml(text, str(path))
    if not isinstance(tree.value, dict):
        advice = "It needs at least: name, recipe, methods."
        raise to_error([Fault(str(path), "the comparison holds no settings.", (advice,))])
    faults += apply_overrides(tree, [override for override in overrides if not _OF_SETTINGS.match(override)])
    for override in overrides:
        faults += _put_setting(tree, override)
    reader = _Reader(faults, tree)
    values = reader.read(path)
    if reader.faults:
        raise to_error(list(dict.fromkeys(reader.faults)))
    base_path = path.parent / values.pop("recipe")
    base = read_recipe_with_notices(base_path)
    return Comparison(
        path=path, text=text, overrides=tuple(overrides), base_path=base_path, base_text=base.text, **values
    )


def _read_text(path: Path) -> str:
    if not path.is_file():
        folders = [folder for folder in (path.parent, Path("recipes")) if folder.is_dir()]
        there = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
        near = find_nearest(path.stem, there)
        advice = f"Did you mean {there[near[0]]}?" if near else "One that comes with this: recipes/compare_small.yaml."
        raise to_error([Fault(str(path), f"there is no comparison {quote(path.name)}.", (advice,))])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, PermissionError) as error:
        raise to_error([Fault(str(path), "this file cannot be read as UTF-8 text.", (str(error),))]) from error
    if len(text) > _MAX_BYTES:
        raise to_error(
            [Fault(str(path), f"this file is larger than {_MAX_BYTES // 1024} KiB; a comparison is a page.")]
        )
    return text


def _put_setting(tree: Node, override: str) -> list[Fault]:
    """Put `settings.section.key=value` from the command line behind the settings of the file: the last one counts."""
    path, _, text = override.partition("=")
    match = _OF_SETTINGS.fullmatch(path)
    if not match:
        return []
    try:
        value, faults = read_yaml(text, COMMAND_LINE, has_lines=False)
    except RecipeError as error:
        return [Fault(COMMAND_LINE, f"{quote(override)}: {str(error).splitlines()[0]}")]
    node = tree
    for key in match[1].split("."):
        if not isinstance(node.value, dict):
            return [Fault(COMMAND_LINE, f"`{path}` cannot be set: `{match[1]}` is no group of settings.")]
        child = node.value.get(key)
        if child is None or child.value is None:
            child = node.value[key] = Node({}, COMMAND_LINE, COMMAND_LINE)
        node = child
    if not isinstance(node.value, dict):
        return [Fault(COMMAND_LINE, f"`{path}` cannot be set: `{match[1]}` is no group of settings.")]
    node.value.pop(match[2], None)
    node.value[match[2]] = value
    return faults


class _Reader:
    """Reads a comparison's tree key by key and collects what is wrong with it."""

    def __init__(self, faults: list[Fault], tree: Node) -> None:
        self.faults = faults
        self._tree = tree
        assert isinstance(tree.value, dict)
        self._nodes = tree.value

    def read(self, path: Path) -> dict[str, Any]:
        """Read every key; the values mean nothing where faults were found."""
        for key in self._nodes.keys() - set(_KEYS):
            self._refuse_key(key)
        for key in ("name", "recipe", "methods"):
            if key not in self._nodes:
                self._fault(str(path), f"`{key}` is missing.", "A comparison needs at least: name, recipe, methods.")
        grid = self._read_grid(self._nodes.get("grid"), "grid")
        methods = tuple(
            Method(name, settings, {key: values for key, values in grid.items() if key not in settings} | own)
            for name, settings, own in self._read_groups("methods", has_grid=True)
        )
        if "methods" in self._nodes and not methods and not self.faults:
            self._fault(self._nodes["methods"].place, "`methods` is empty.", "E.g. lora: {adapter.method: lora}.")
        names = [method.name for method in methods]
        return {
            "name": self._read_text("name", "", _RUN_NAME.fullmatch, "letters, digits, `.`, `_` and `-`"),
            "recipe": self._read_text("recipe", "", lambda text: text, "the path of a recipe"),
            "settings": self._read_settings(self._nodes.get("settings"), "settings"),
            "tasks": {name: settings for name, settings, _ in self._read_groups("tasks", has_grid=False)},
            "methods": methods,
            "seeds": self._read_seeds(),
            "reference": self._read_choice("reference", names),
            "score": self._read_score(),
            "score_place": self._nodes["score"].key_place if "score" in self._nodes else str(path),
            "workers": self._read_whole("workers", 1, minimum=1),
            "output_dir": self._read_text("output_dir", "outputs", lambda text: text, "a folder"),
            "budget": self._read_budget(),
        }

    # ---- parts

    def _read_settings(self, node: Node | None, where: str) -> dict[str, Node]:
        """A group of a recipe's settings by `section.key`."""
        if node is None or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            self._fault(node.place, f"`{where}` wants a group of settings.", "E.g. {training.max_steps: 60}.")
            return {}
        for key, child in node.value.items():
            if not _SETTING.fullmatch(key):
                self._fault(child.key_place, f"{quote(key)} under `{where}` is no `section.key`.")
            elif key in _OWNED:
                self._fault(child.key_place, f"`{key}` is not set under `{where}`.", _OWNED[key])
        return dict(node.value)

    def _read_grid(self, node: Node | None, where: str) -> dict[str, list[Node]]:
        grid = {}
        for key, child in self._read_settings(node, where).items():
            if not isinstance(child.value, list) or not child.value:
                self._fault(child.place, f"`{where}` wants a list of values for `{key}`.", "E.g. [4, 8, 16].")
                continue
            values = [repr(to_plain(value)) for value in child.value]
            if len(set(values)) < len(values):
                self._fault(child.place, f"`{key}` has a value twice in `{where}`.", "Keep one of the two.")
            grid[key] = child.value
        return grid

    def _read_groups(self, key: str, *, has_grid: bool) -> list[tuple[str, dict[str, Node], dict[str, list[Node]]]]:
        node = self._nodes.get(key)
        if node is None or node.value is None:
            return []
        if not isinstance(node.value, dict):
            self._fault(node.place, f"`{key}` wants a group, a name and its settings each.")
            return []
        groups = []
        for name, child in node.value.items():
            where = f"{key}.{name}"
            if not _NAME.fullmatch(name):
                self._fault(
                    child.key_place, f"{quote(name)} is no name under `{key}`.", "Letters, digits, `_` and `-`."
                )
            settings = self._read_settings(child, where)
            grid = self._read_grid(settings.pop("grid", None), f"{where}.grid") if has_grid else {}
            groups.append((name, settings, grid))
        return groups

    def _read_seeds(self) -> tuple[int, ...]:
        node = self._nodes.get("seeds")
        if node is None:
            return (42,)
        nodes = node.value if isinstance(node.value, list) else []
        seeds = [child.value for child in nodes]
        if not seeds or not all(type(seed) is int and 0 <= seed < _MAX_SEED for seed in seeds):
            self._fault(node.place, "`seeds` wants a list of whole numbers.", "E.g. [42, 1, 2].")
        elif len(set(seeds)) < len(seeds):
            self._fault(node.place, "`seeds` has a number twice.", "Keep one of the two.")
        return tuple(seed for seed in seeds if isinstance(seed, int))

    def _read_choice(self, key: str, names: Sequence[str]) -> str | None:
        node = self._nodes.get(key)
        if node is None or node.value is None:
            return None
        if node.value not in names:
            near = find_nearest(str(node.value), names)
            meant = f"Did you mean `{near[0]}`? " if near else ""
            self._fault(node.place, f"`{key}` names no method.", f"{meant}Methods: {', '.join(names)}.")
        return str(node.value)

    def _read_score(self) -> str | None:
        node = self._nodes.get("score")
        if node is None or node.value is None:
            return None
        if not (isinstance(node.value, str) and is_score(node.value)):
            near = find_nearest(str(node.value), SCORES)
            meant = f"Did you mean `{near[0]}`? " if near else ""
            advice = f"{meant}Scores: {', '.join(SCORES)}, and scores.NAME of a classification."
            self._fault(node.place, f"`score` cannot be {quote(str(node.value))}.", advice)
        return str(node.value)

    def _read_budget(self) -> Budget | None:
        node = self._nodes.get("budget")
        if node is None or node.value is None:
            return None
        example = "E.g. {minutes: 30, probe_steps: [20, 60], keep: 0.5}."
        if not isinstance(node.value, dict):
            self._fault(node.place, "`budget` wants a group of settings.", example)
            return None
        for key, child in node.value.items():
            if key not in _BUDGET_KEYS:
                near = find_nearest(key, _BUDGET_KEYS)
                meant = f"Did you mean `{near[0]}`? " if near else ""
                what = f"`budget` has no setting {quote(key)}."
                self._fault(child.key_place, what, f"{meant}Its settings: {', '.join(_BUDGET_KEYS)}.")
        plain = to_plain(node)
        minutes, steps, keep = plain.get("minutes"), plain.get("probe_steps"), plain.get("keep", _KEEP)
        if not _is_number(minutes) or minutes <= 0:
            self._fault(node.place, "`budget.minutes` wants a number above 0.", example)
        is_rising = isinstance(steps, list) and all(type(step) is int and step > 0 for step in steps)
        if not is_rising or not steps or steps != sorted(set(steps)):
            self._fault(node.place, "`budget.probe_steps` wants a list of whole numbers that rise.", example)
        if not _is_number(keep) or not 0 < keep < 1:
            self._fault(node.place, "`budget.keep` wants a share between 0 and 1.", example)
        return None if self.faults else Budget(float(minutes), tuple(steps), float(keep))

    # ---- single values

    def _read_text(self, key: str, default: str, accepts: Callable[[str], object], wanted: str) -> str:
        node = self._nodes.get(key)
        if node is None:
            return default
        if not isinstance(node.value, str) or not accepts(node.value):
            self._fault(node.place, f"`{key}` wants {wanted}.")
        return str(node.value)

    def _read_whole(self, key: str, default: int, *, minimum: int) -> int:
        node = self._nodes.get(key)
        if node is None:
            return default
        if type(node.value) is not int or node.value < minimum:
            self._fault(node.place, f"`{key}` wants a whole number of at least {minimum}.")
            return default
        return node.value

    def _refuse_key(self, key: str) -> None:
        place = self._nodes[key].key_place
        near = find_nearest(key, _KEYS)
        if key in ("model", "adapter", "data", "training", "objective", "evaluation", "classification"):
            advice = f"It belongs to the recipe that `recipe` names; over it: settings: {{{key}.…: …}}."
        else:
            advice = f"{f'Did you mean `{near[0]}`? ' if near else ''}Its settings: {', '.join(_KEYS)}."
        self._fault(place, f"a comparison has no setting {quote(key)}.", advice)

    def _fault(self, place: str, what: str, *advice: str) -> None:
        self.faults.append(Fault(place, what, advice, to_line_number(place)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
