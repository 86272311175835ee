"""The cells of a comparison: every task, method, grid point and seed as a recipe of its own, checked before any runs.

In goes a `Comparison`, out come `Point`s (a method with one choice of its grid) and `Cell`s (a point on one task with
one seed), or one RecipeError with the faults of all of them. A cell's name is made from its settings alone, so that
it is the same in every session and when the grid grows. Imports neither torch nor transformers.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from finetune.comparison.figures import find_missing_score, find_score
from finetune.recipe.checks import find_faults
from finetune.recipe.combinations import find_conflicts
from finetune.recipe.comparison import Comparison, Method, Settings
from finetune.recipe.faults import Fault, to_error, to_line_number
from finetune.recipe.schema import Recipe
from finetune.recipe.yaml_lines import Node, read_yaml, to_plain, to_tree

__all__ = ["RUNS", "Cell", "Point", "build_cells", "build_points", "join_stem", "render_recipe"]

RUNS = "runs"  # the folder of the run folders, inside the comparison's
_MAX_STEM_LENGTH = 64  # of a run's name without its seed and its probe's steps
_MAX_STEPS = "training.max_steps"


@dataclass(frozen=True, slots=True)
class Point:
    """A method with one choice of its grid.

    Attributes:
        method: the row it belongs to.
        label: the choice as part of a run's name, e.g. `r8-learning_rate0.001`; "" where there is nothing to choose.
        chosen: the choice, by `section.key`.
    """

    method: str
    label: str
    chosen: Mapping[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        """Method and choice."""
        return f"{self.method}-{self.label}" if self.label else self.method


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison.

    Attributes:
        point: method and choice.
        task: the task's name; "" where the comparison has none.
        seed: of the run.
        probe_steps: steps of a short run; None: a run in full.
        recipe: what is run.
        text: the recipe as YAML.
    """

    point: Point
    task: str
    seed: int
    probe_steps: int | None
    recipe: Recipe
    text: str

    @property
    def name(self) -> str:
        """Of the cell and of its run folder."""
        return self.recipe.name


def build_points(comparison: Comparison) -> list[Point]:
    """Every method with every choice of its grid, in the order they are typed."""
    points = []
    for method in comparison.methods:
        short = _shorten(method.grid)
        for values in itertools.product(*method.grid.values()):
            chosen = {key: to_plain(value) for key, value in zip(method.grid, values, strict=True)}
            label = "-".join(f"{short[key]}{_to_word(value)}" for key, value in chosen.items())
            points.append(Point(method.name, label, chosen))
    return points


def build_cells(
    comparison: Comparison, points: Sequence[Point], seeds: Sequence[int], *, probe_steps: int | None = None
) -> list[Cell]:
    """Build the runs of points, on every task and with every seed, each checked as a recipe.

    Args:
        comparison: what they belong to.
        points: methods and choices.
        seeds: of the runs.
        probe_steps: optimizer steps of short runs; None: runs in full.

    Raises:
        RecipeError: with the faults of all runs, each once, with the line that it comes from.
    """
    base = read_yaml(comparison.base_text, str(comparison.base_path))[0]
    methods = {method.name: method for method in comparison.methods}
    found: dict[Fault, list[str]] = {}
    cells: list[Cell] = []
    score = comparison.score
    for task, settings in (comparison.tasks or {"": {}}).items():
        for point in points:
            tree = _copy(base)
            faults = _fill(tree, comparison, settings, methods[point.method], point)
            if probe_steps is not None:
                faults += _put(tree, _MAX_STEPS, to_tree(probe_steps, str(comparison.path)))
            faults += [*find_faults(tree), *find_conflicts(tree)]
            own = [] if faults else [_build_cell(tree, comparison, point, task, seed, probe_steps) for seed in seeds]
            if own:
                score = score or find_score(comparison, own[0].recipe)
                missing = find_missing_score(score, own[0].recipe, comparison.score_place)
                faults += [] if missing is None else [missing]
            for fault in faults:
                found.setdefault(fault, []).append(point.method)
            cells += own
    faults = [_name_methods(fault, names, len(methods)) for fault, names in found.items()]
    faults += _find_same_names(cells, comparison)
    if faults:
        raise to_error(faults)
    return cells


def render_recipe(values: Mapping[str, Any], comments: Iterable[str]) -> str:
    """Render a recipe's values as YAML that the strict reader reads back to the same values."""
    body = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return "".join(f"# {line}\n" for line in comments) + body


# ---- a cell's recipe


def _fill(tree: Node, comparison: Comparison, task: Settings, method: Method, point: Point) -> list[Fault]:
    """Put all settings of a cell over the base recipe's: the comparison's, the task's, the method's, the choice."""
    nodes = {
        key: next(node for node in values if to_plain(node) == point.chosen[key]) for key, values in method.grid.items()
    }
    layers = (comparison.settings, task, method.settings, nodes)
    chosen = next((layer["adapter.method"] for layer in layers if "adapter.method" in layer), None)
    if chosen is not None:
        # Fields of the recipe's own method mean nothing to another one.
        assert isinstance(tree.value, dict)
        tree.value["adapter"] = Node({}, chosen.place, chosen.key_place)
    return [fault for layer in layers for key, node in layer.items() for fault in _put(tree, key, node)]


def _put(tree: Node, path: str, value: Node) -> list[Fault]:
    """Set one value of the tree, making the sections on the way."""
    *sections, key = path.split(".")
    node = tree
    for section in sections:
        assert isinstance(node.value, dict)
        child = node.value.get(section)
        if child is None or child.value is None:
            child = node.value[section] = Node({}, value.place, value.key_place)
        if not isinstance(child.value, dict):
            what = f"`{path}` cannot be set: `{section}` holds no settings in the recipe."
            return [
                Fault(value.key_place, what, (f"Set it whole: {section}: {{…}}.",), to_line_number(value.key_place))
            ]
        node = child
    assert isinstance(node.value, dict)
    node.value[key] = _copy(value)
    return []


def _copy(node: Node) -> Node:
    """The same tree in mappings of its own; scalars are shared."""
    if isinstance(node.value, dict):
        return Node({key: _copy(child) for key, child in node.value.items()}, node.place, node.key_place)
    if isinstance(node.value, list):
        return Node([_copy(child) for child in node.value], node.place, node.key_place)
    return node


def _build_cell(
    tree: Node, comparison: Comparison, point: Point, task: str, seed: int, probe_steps: int | None
) -> Cell:
    probe = "" if probe_steps is None else f"probe{probe_steps}"
    name = "-".join(filter(None, (join_stem(task, point), f"seed{seed}", probe)))
    values: dict[str, Any] = {
        **to_plain(tree), "name": name, "seed": seed, "output_dir": str(comparison.folder / RUNS),
    }  # fmt: skip
    comments = [f"A run of the comparison {comparison.path.name}: {name}."]
    return Cell(point, task, seed, probe_steps, Recipe.model_validate(values), render_recipe(values, comments))


def _find_same_names(cells: Sequence[Cell], comparison: Comparison) -> list[Fault]:
    """Find names that two runs would share, and so one folder: of a method `a-r4` beside `a` with its size `r4`."""
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        by_name.setdefault(join_stem(cell.task, cell.point), []).append(cell)
    faults = []
    for name, own in by_name.items():
        makers = list(dict.fromkeys((cell.task, cell.point.method) for cell in own))
        if len({(cell.task, cell.point.method, str(cell.point.chosen)) for cell in own}) > 1:
            said = " and ".join(f"method {method}{f' on task {task}' if task else ''}" for task, method in makers)
            what = f"two runs would be named `{name}`: {said}."
            faults.append(Fault(str(comparison.path), what, ("Give one of them another name.",)))
    return faults


def _name_methods(fault: Fault, methods: Sequence[str], num_methods: int) -> Fault:
    """The fault with the methods it was found in, where it is not in all of them."""
    named = list(dict.fromkeys(methods))
    if len(named) == num_methods and num_methods > 1:
        return fault
    what = f"method {', '.join(named)}: {fault.what}"
    return Fault(fault.place, what, fault.advice, fault.line, fault.settings)


# ---- names


def _shorten(keys: Iterable[str]) -> dict[str, str]:
    """Each setting's last word, with its section where two end alike."""
    all_keys = list(keys)
    last = [key.rpartition(".")[2] for key in all_keys]
    return {
        key: word if last.count(word) == 1 else key.replace(".", "_") for key, word in zip(all_keys, last, strict=True)
    }


def _to_word(value: Any) -> str:
    """A value as part of a folder's name; of what such a name cannot hold, a hash that tells it from others."""
    text = value if isinstance(value, str) else json.dumps(value)
    if re.fullmatch(r"[A-Za-z0-9._-]{1,24}", text):
        return text
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def join_stem(task: str, point: Point) -> str:
    """What the names of a point's runs on a task begin with, whatever their seed; a long one is shortened."""
    stem = "-".join(filter(None, (task, point.name)))
    if len(stem) <= _MAX_STEM_LENGTH:
        return stem
    digest = hashlib.sha256(f"{task}-{point.name}".encode()).hexdigest()[:8]
    return "-".join(filter(None, (task[:20], point.method[:20], digest)))


# ---- YAML as our reader reads it


class _Dumper(yaml.SafeDumper):
    """Quotes every text that is not a plain word, for YAML 1.1 and 1.2 differ in what else is one."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out: our reader takes no aliases."""
        return True


def _to_quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII) is not None
    is_plain = is_plain and text.lower() not in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _to_quoted)
