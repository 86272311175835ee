"""The notebook: made from its script, and run cell by cell on the tiny base with only the parameters cell changed."""

import ast
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from notebooks.make_notebook import (
    NOTEBOOK,
    PARAMETERS,
    ROOT,
    build_notebook,
    read_repository_url,
    to_badge_url,
    to_text,
)

TEXT = NOTEBOOK.read_text(encoding="utf-8")
CELLS = {cell["id"]: "".join(cell["source"]) for cell in json.loads(TEXT)["cells"] if cell["cell_type"] == "code"}


def names_set_by(code: str) -> set[str]:
    targets = [node.targets[0] for node in ast.parse(code).body if isinstance(node, ast.Assign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_the_notebook_is_what_its_script_makes() -> None:
    assert to_text(build_notebook(read_repository_url())) == TEXT, "run `make docs`"


def test_the_notebook_is_sound_nbformat_without_outputs() -> None:
    notebook = nbformat.reads(TEXT, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_the_kernel_never_holds_the_gpu() -> None:
    heavy = {"torch", "transformers", "peft", "finetune"}
    for code in CELLS.values():
        imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name.split(".")[0] for node in imports if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module).split(".")[0] for node in imports if isinstance(node, ast.ImportFrom)}
        assert not names & heavy


def test_colabs_own_torch_is_held_by_a_constraint() -> None:
    setup = CELLS["setup"]
    assert 'importlib.metadata.version("torch")' in setup
    assert '"--constraint", "torch_as_it_is.txt"' in setup
    assert "constraints-colab.txt" in setup
    assert setup.index("2, 10") < setup.index('"pip"'), "a torch that is too old is said before anything is installed"


def test_the_token_goes_into_the_environment_and_is_never_printed() -> None:
    code = "\n".join(CELLS.values())
    assert code.count("userdata.get(") == 1
    assert 'os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")' in code


def test_an_address_with_its_placeholder_is_told_before_anything_is_cloned(tmp_path: Path) -> None:
    # The part of the cell before Colab's, with the parameters as they are shipped and no folder of that name here.
    cloning = CELLS["setup"].partition("if IN_COLAB:")[0]
    parameters = f'REPOSITORY_URL = "https://github.com/OWNER/x"\nREPOSITORY_DIR = {str(tmp_path / "x")!r}\n'
    with pytest.raises(RuntimeError, match="put your copy's owner into REPOSITORY_URL"):
        exec(parameters + cloning, {})
    assert not (tmp_path / "x").exists()


def test_the_badge_opens_this_notebook() -> None:
    badge = to_badge_url(read_repository_url())
    assert badge.endswith("/blob/main/notebooks/finetune_colab.ipynb")
    assert badge in TEXT


@pytest.mark.slow
def test_run_all_trains_answers_and_packs_the_adapter_on_the_tiny_base(tiny_base: Path, tmp_path: Path) -> None:
    parameters = f"""
REPOSITORY_URL = "not used: the folder is there"
REPOSITORY_DIR = {str(ROOT)!r}
RECIPE = "recipes/quickstart.yaml"
BACKEND = "transformers"  # not installed in the tests: "unsloth"
RUN_NAME = "notebook"
OUTPUT_DIR = {str(tmp_path)!r}
OVERRIDES = ["training.max_steps=4", "evaluation.questions=null"]
QUESTIONS = ["What colour is a ripe lemon?"]
USE_DRIVE = False
"""
    assert names_set_by(parameters) == names_set_by(CELLS[PARAMETERS]), "the same parameters, and no more"
    notebook = nbformat.reads(TEXT, as_version=4)
    for cell in notebook.cells:
        if cell.id == PARAMETERS:
            cell.source = parameters
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    printed = {
        cell.id: "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    run_dir = tmp_path / "notebook"
    assert json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["steps"] == 4
    assert (run_dir / "notebook_adapter.zip").is_file()
    (loss,) = [cell for cell in notebook.cells if cell.id == "loss"]
    assert "image/png" in loss.outputs[0]["data"]
    for name in ("before", "after"):
        question, answer = printed[name].strip().split("\n", 1)
        assert question == ">>> What colour is a ripe lemon?"
        assert answer.strip()
