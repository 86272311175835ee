"""Who may import whom: the table, and the imports of every module read against it."""

import ast
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.house.tree import NOT_VERBS, PACKAGE, ROOT, find_bound_names, find_modules, find_verbs

# The packages whose import costs a second or brings the stack with it. Light ones are free everywhere.
HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "huggingface_hub",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "unsloth",
}
EVERYWHERE = frozenset({"*"})


@dataclass(frozen=True)
class Layer:
    """What a layer may import: parts of ours, and heavy packages with the modules they are kept to.

    A layer that answers at once imports heavy packages inside functions alone.
    """

    ours: set[str]
    heavy: dict[str, Set[str]] = field(default_factory=dict)
    answers_at_once: bool = False


BELOW_TRAIN = {"errors", "recipe", "budget", "data", "model", "objectives", "run"}
# What a plan is made by.
PLAN = {"budget", "planning"}
LAYERS = {
    "errors": Layer(ours=set()),
    # The catalogue of the libraries' settings is read as JSON; only writing it anew asks the libraries.
    "recipe": Layer(
        ours={"errors"},
        heavy={"peft": {"catalogue"}, "transformers": {"catalogue"}, "trl": {"catalogue"}},
        answers_at_once=True,
    ),
    # What a run costs, by arithmetic alone: it answers at once, and asks no device.
    "budget": Layer(ours={"errors", "recipe"}, answers_at_once=True),
    "data": Layer(
        ours={"errors", "recipe"},
        heavy={"datasets": EVERYWHERE, "huggingface_hub": {"sources", "hub"}, "torch": {"batches", "shared_prompts"}},
    ),
    "model": Layer(
        ours={"errors", "recipe"},
        heavy=dict.fromkeys(HEAVY - {"datasets", "trl"}, EVERYWHERE) | {"unsloth": {"unsloth"}},
    ),
    "objectives": Layer(
        ours={"errors", "recipe", "budget", "data", "model"},
        heavy=dict.fromkeys(("datasets", "safetensors", "peft", "torch", "transformers", "trl"), EVERYWHERE),
    ),
    "run": Layer(
        ours={"errors", "recipe"},
        heavy=dict.fromkeys(("accelerate", "safetensors", "torch", "transformers"), EVERYWHERE)
        | {"huggingface_hub": {"card"}},
    ),
    "prepare": Layer(ours=BELOW_TRAIN, heavy=dict.fromkeys(HEAVY - {"unsloth"}, EVERYWHERE)),
    "measuring": Layer(ours=BELOW_TRAIN | {"prepare"}, heavy=dict.fromkeys(HEAVY - {"unsloth"}, EVERYWHERE)),
    "reference": Layer(ours=BELOW_TRAIN | {"prepare"}, heavy=dict.fromkeys(HEAVY - {"unsloth"}, EVERYWHERE)),
    "origin": Layer(ours=BELOW_TRAIN | {"prepare"}, heavy=dict.fromkeys(HEAVY - {"unsloth"}, EVERYWHERE)),
    "room": Layer(ours=BELOW_TRAIN, heavy={"transformers": EVERYWHERE}),
    # The Hub is asked for a config alone, and last.
    "planning": Layer(
        ours={"errors", "recipe", "budget", "run"}, heavy={"huggingface_hub": {"base"}}, answers_at_once=True
    ),
    "predicting": Layer(ours=BELOW_TRAIN | PLAN | {"prepare"}, heavy={"torch": EVERYWHERE}),
    "result": Layer(
        ours=BELOW_TRAIN | PLAN | {"prepare", "predicting", "measuring"},
        heavy=dict.fromkeys(HEAVY - {"unsloth"}, EVERYWHERE),
    ),
    "train": Layer(
        ours=BELOW_TRAIN | PLAN | {"prepare", "predicting", "measuring", "origin", "reference", "result", "room"},
        heavy=dict.fromkeys(HEAVY - {"unsloth"}, EVERYWHERE),
    ),
    # A finished run measured again, by the parts that made it.
    "evaluating": Layer(
        ours=BELOW_TRAIN | {"prepare", "measuring", "train"}, heavy=dict.fromkeys(HEAVY - {"unsloth"}, EVERYWHERE)
    ),
    # Many runs, each a process: only that process loads what trains.
    "comparison": Layer(ours={"errors", "recipe", "run", "model", "train"}),
    # What is shown of prepared rows: no weight is loaded.
    "inspection": Layer(ours={"errors", "recipe", "data", "run"}, heavy={"datasets": EVERYWHERE}),
    # A person's turns, and the model that answers them.
    "conversing": Layer(ours={"errors", "recipe", "data", "model"}),
}
# The command line and the verbs: anything below, but at the top of the file only what answers without the stack.
COMMAND_LINE = Layer(
    ours=BELOW_TRAIN
    | PLAN
    | {"prepare", "predicting", "measuring", "origin", "reference", "result", "room", "train", "comparison"}
    | {"evaluating", "inspection", "conversing", "cli"},
    heavy=dict.fromkeys(HEAVY - {"unsloth"}, EVERYWHERE),
    answers_at_once=True,
)
AT_THE_TOP_OF_A_VERB = {"errors", "recipe", "cli", "__version__", ""}


@dataclass(frozen=True)
class Import:
    """One import statement: what it names, and where it stands."""

    name: str
    line: int
    inside_function: bool
    for_types_only: bool


def find_imports(source: str) -> list[Import]:
    """Every import of a module, with whether it waits inside a function or serves the type checker alone."""
    found: list[Import] = []

    def walk(node: ast.AST, inside_function: bool, for_types_only: bool) -> None:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full, not relative"
            # `from finetune import train` names a part just as `import finetune.train` does.
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "finetune" else [base]
        else:
            names = []
        found.extend(Import(name, node.lineno, inside_function, for_types_only) for name in names)
        for child in ast.iter_child_nodes(node):
            in_function = inside_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types_only = for_types_only or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
            )
            walk(child, in_function, types_only)

    walk(ast.parse(source), False, False)
    return found


def find_faults(module: str, source: str, verbs: Set[str]) -> list[str]:
    """What a module (its dotted name below `finetune`) imports against the table."""
    part, _, rest = module.partition(".")
    layer = LAYERS.get(part, COMMAND_LINE)
    faults = []
    for found in find_imports(source):
        root, _, below = found.name.partition(".")
        theirs = below.split(".")[0]
        fault = None
        if root == "finetune":
            if theirs in verbs - {part}:
                fault = f"imports the verb {theirs}; only a person calls a verb"
            elif theirs not in layer.ours | {part, "__version__", ""}:
                fault = f"{part} may not import {theirs}"
            elif layer is COMMAND_LINE and not found.inside_function and theirs not in AT_THE_TOP_OF_A_VERB | {part}:
                fault = f"imports {theirs} at the top; inside a function --help answers at once"
        elif root in HEAVY and not found.for_types_only:
            if root not in layer.heavy:
                fault = f"{part} may not import {root}"
            elif layer.heavy[root] != EVERYWHERE and rest not in layer.heavy[root]:
                fault = f"in {part}, {root} belongs to {' and '.join(sorted(layer.heavy[root]))} alone"
            elif layer.answers_at_once and not found.inside_function:
                fault = f"imports {root} at the top; inside a function --help answers at once"
        if fault:
            faults.append(f"line {found.line}: {fault}")
    return faults


def to_dotted(path: Path) -> str:
    """The dotted name of a module below `finetune`; a folder's `__init__` has the folder's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "__init__"


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_the_layer_is_there(layer: str) -> None:
    assert (PACKAGE / f"{layer}.py").is_file() or (PACKAGE / layer / "__init__.py").is_file()


def test_every_folder_of_the_package_is_a_layer() -> None:
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in find_modules() if path.parent != PACKAGE}
    assert folders <= set(LAYERS), f"not in the table: {sorted(folders - set(LAYERS))}"


def test_what_is_no_layer_is_a_verb_or_the_command_line() -> None:
    for verb in find_verbs():
        tree = ast.parse((PACKAGE / f"{verb}.py").read_text(encoding="utf-8"))
        names = {name for node in tree.body for name in find_bound_names(node)}
        assert "main" in names, f"finetune/{verb}.py stands among the verbs and has no `main`"
    assert NOT_VERBS - {"__init__", "__main__", "cli"} <= set(LAYERS)


@pytest.mark.parametrize("path", find_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    faults = find_faults(to_dotted(path), path.read_text(encoding="utf-8"), set(find_verbs()))
    assert not faults, f"{path.relative_to(ROOT)}:\n  " + "\n  ".join(faults)


@pytest.mark.parametrize("layer", ["data", "model", "objectives", "run"])
def test_a_part_gets_sections_or_plain_values_and_never_the_whole_recipe(layer: str) -> None:
    for path in (PACKAGE / layer).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert "Recipe" not in names, f"{path.relative_to(ROOT)} takes a whole recipe"


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("recipe.schema", "import torch", "recipe may not import torch"),
        ("data.formats", "from finetune.model.base import load_base", "data may not import model"),
        ("data.templates", "from torch import Tensor", "belongs to batches and shared_prompts alone"),
        ("model.base", "from finetune import objectives", "model may not import objectives"),
        ("objectives.trainer", "def f():\n    import finetune.run.folder", "objectives may not import run"),
        ("recipe.catalogue", "import trl", "imports trl at the top"),
        ("recipe.reading", "def f():\n    import trl", "belongs to catalogue alone"),
        ("run.folder", "import trl", "run may not import trl"),
        ("train", "from finetune.sft import main", "imports the verb sft"),
        ("chat", "from finetune.sft import main", "imports the verb sft"),
        ("chat", "from finetune import train", "imports train at the top"),
        ("cli", "import transformers", "imports transformers at the top"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, reason: str) -> None:
    faults = find_faults(module, source, verbs={"chat", "sft"})
    assert len(faults) == 1
    assert reason in faults[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sft", "def main():\n    from finetune.train import train\n    import torch"),
        ("data.batches", "import torch"),
        ("data.templates", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import transformers"),
        ("recipe.reading", "import yaml\nimport pydantic\nfrom finetune.recipe.schema import Recipe"),
        ("objectives.supervised", "from finetune.data.batches import Collator"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert find_faults(module, source, verbs={"chat", "sft"}) == []
