"""Write `finetune_colab.ipynb`: the cells are here as text, the notebook is made from them.

    python notebooks/make_notebook.py

The same cells run on Colab's free T4 ("Run all"), in any Jupyter, and in the tests on the tiny base, where only the
parameters cell is another. The kernel itself stays light: every verb is a process of its own, so the GPU's memory
belongs to one of them at a time and a crash leaves the notebook standing.
"""

import json
import tomllib
from pathlib import Path
from string import Template
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "finetune_colab.ipynb"
PARAMETERS = "parameters"

TITLE = """
# Fine-tune Mistral-7B on a free T4

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]($badge)

Press **Runtime → Run all**. A 7-billion-parameter model is held in 4 bits (NF4), a LoRA adapter of about
170 MB is trained on instructions, and at the end you download it. On a free T4 most of the time is the first
download of the base model (14.5 GB) and 60 training steps.

No T4 in sight? *Runtime → Change runtime type → T4 GPU*.
"""

PARAMETERS_TEXT = """
## Parameters

All that one would change. `OVERRIDES` takes any setting of the recipe as `section.key=value`.
"""

PARAMETERS_CODE = """
REPOSITORY_URL = "$repository"
REPOSITORY_DIR = "$name"  # cloned here; a folder that is there is used as it is
RECIPE = "recipes/mistral_alpaca.yaml"
BACKEND = None  # as the recipe says; "unsloth": the same run through Unsloth's kernels, installed below
RUN_NAME = "colab"
OUTPUT_DIR = "outputs"  # run folders go here, inside the repository or at a full path
OVERRIDES = [
    "training.max_steps=60",
    "training.save_steps=20",
    "data.train.limit=4000",
    "data.max_length=1024",  # half the recipe's: a T4 takes half the time a step
]
QUESTIONS = [
    "Give three tips for staying healthy.",
    "Rewrite this sentence in the passive voice: The cat chased the mouse.",
]
USE_DRIVE = False  # True: the run lives in your Google Drive, and Run all continues it after a disconnect
"""

SETUP_TEXT = """
## Install

Colab's own torch stays: the constraints name every other part of the tested set, and the installed torch is added
to them as it is.
"""

SETUP_CODE = """
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

IN_COLAB = importlib.util.find_spec("google") is not None and importlib.util.find_spec("google.colab") is not None


def run(*command: str, folder: str | Path = ".") -> None:
    \"\"\"Run a command, show what it prints as it comes, and stop the notebook where it fails.\"\"\"
    # The kernel's plot backend draws into a notebook, which the command has none of.
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            print(line, end="")
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}: see the lines above.")


if not Path(REPOSITORY_DIR).exists():
    if "/OWNER/" in REPOSITORY_URL:
        raise RuntimeError("OWNER is a placeholder: put your copy's owner into REPOSITORY_URL among the parameters.")
    run("git", "clone", "--depth", "1", REPOSITORY_URL, REPOSITORY_DIR)
REPOSITORY_DIR = Path(REPOSITORY_DIR).resolve()

if IN_COLAB:
    torch_version = importlib.metadata.version("torch")
    if tuple(int(part) for part in torch_version.split(".")[:2]) < (2, 10):
        raise RuntimeError(f"torch 2.10 or newer is needed, this runtime has {torch_version}: choose a newer one.")
    Path("torch_as_it_is.txt").write_text(f"torch=={torch_version}\\n")
    run(
        sys.executable, "-m", "pip", "install", "--quiet",
        "--constraint", "torch_as_it_is.txt",
        "--constraint", str(REPOSITORY_DIR / "constraints-colab.txt"),
        "--editable", str(REPOSITORY_DIR),
    )
    in_recipe = "backend: unsloth" in (REPOSITORY_DIR / RECIPE).read_text()
    # As it is: what its packages ask for would bring another torch.
    if BACKEND == "unsloth" or (BACKEND is None and in_recipe):
        extras = tomllib.loads((REPOSITORY_DIR / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *extras["unsloth"])
print("torch", importlib.metadata.version("torch"))
"""

GPU_TEXT = """
## GPU, token, Drive

A token is only needed for gated models: add it as `HF_TOKEN` under Colab's *Secrets* (the key on the left) and allow
this notebook to read it. It goes into this session's environment and nowhere else.
"""

GPU_CODE = """
if shutil.which("nvidia-smi"):
    run("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
elif IN_COLAB:
    raise RuntimeError("This runtime has no GPU. Runtime -> Change runtime type -> T4 GPU, then Run all again.")
else:
    print("No GPU: training runs on the CPU.")

if IN_COLAB:
    from google.colab import drive, userdata

    try:
        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
        print("HF_TOKEN is set.")
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        print("No HF_TOKEN among the secrets: open models need none.")
    if USE_DRIVE:
        drive.mount("/content/drive")
        OUTPUT_DIR = "/content/drive/MyDrive/finetune"

RUN_DIR = REPOSITORY_DIR / OUTPUT_DIR / RUN_NAME  # a full OUTPUT_DIR stands for itself
SETTINGS = [f"name={RUN_NAME}", f"output_dir={RUN_DIR.parent}", *OVERRIDES]
if BACKEND is not None:
    SETTINGS.append(f"model.backend={BACKEND}")
"""

TRAIN_TEXT = """
## Train

`--resume` is always safe to add: a run that was cut off continues from its newest checkpoint, a new one starts at
step 0. The stop button saves a checkpoint before the run ends; run the cell again to go on.
"""

TRAIN_CODE = """
run(sys.executable, "-m", "finetune.sft", RECIPE, *SETTINGS, "--resume", folder=REPOSITORY_DIR)
"""

LOSS_TEXT = """
## Loss
"""

LOSS_CODE = """
from IPython.display import Image, display

display(Image(filename=str(RUN_DIR / "loss.png")))
"""

BEFORE_TEXT = """
## Answers before

The same questions to the untouched base model, in the same prompt template.
"""

BEFORE_CODE = """
for question in QUESTIONS:
    print("\\n>>>", question)
    run(sys.executable, "-m", "finetune.chat", str(RUN_DIR), "--base", "--prompt", question,
        "--max-new-tokens", "128", folder=REPOSITORY_DIR)
"""

AFTER_TEXT = """
## Answers after

With the adapter.
"""

AFTER_CODE = """
for question in QUESTIONS:
    print("\\n>>>", question)
    run(sys.executable, "-m", "finetune.chat", str(RUN_DIR), "--prompt", question,
        "--max-new-tokens", "128", folder=REPOSITORY_DIR)
"""

DOWNLOAD_TEXT = """
## Download the adapter

A zip of PEFT's own files. `PeftModel.from_pretrained`, vLLM and Unsloth load the folder as it is.
"""

DOWNLOAD_CODE = """
ZIP = shutil.make_archive(str(RUN_DIR / f"{RUN_NAME}_adapter"), "zip", RUN_DIR / "adapter")
print(ZIP, f"{Path(ZIP).stat().st_size / 1e6:.1f} MB")
if IN_COLAB:
    from google.colab import files

    files.download(ZIP)
"""

CELLS = [
    ("title", "markdown", TITLE),
    ("parameters-text", "markdown", PARAMETERS_TEXT),
    (PARAMETERS, "code", PARAMETERS_CODE),
    ("setup-text", "markdown", SETUP_TEXT),
    ("setup", "code", SETUP_CODE),
    ("gpu-text", "markdown", GPU_TEXT),
    ("gpu", "code", GPU_CODE),
    ("train-text", "markdown", TRAIN_TEXT),
    ("train", "code", TRAIN_CODE),
    ("loss-text", "markdown", LOSS_TEXT),
    ("loss", "code", LOSS_CODE),
    ("before-text", "markdown", BEFORE_TEXT),
    ("before", "code", BEFORE_CODE),
    ("after-text", "markdown", AFTER_TEXT),
    ("after", "code", AFTER_CODE),
    ("download-text", "markdown", DOWNLOAD_TEXT),
    ("download", "code", DOWNLOAD_CODE),
]


def read_repository_url() -> str:
    """The address of the repository, from the one place that names it."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(pyproject["project"]["urls"]["Repository"])


def to_badge_url(repository_url: str) -> str:
    """Where Colab opens the notebook as it stands on the main branch."""
    owner_and_name = repository_url.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/{NOTEBOOK.name}"


def build_notebook(repository_url: str) -> dict[str, Any]:
    """The whole notebook as nbformat 4.5 has it, without outputs."""
    cells = []
    for name, kind, text in CELLS:
        filled = Template(text.strip()).substitute(
            badge=to_badge_url(repository_url), repository=repository_url, name=repository_url.rsplit("/", 1)[1]
        )
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": name,
            "metadata": {},
            "source": filled.splitlines(keepends=True),
        }
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    return {
        "cells": cells,
        "metadata": {
            "accelerator": "GPU",
            "colab": {"gpuType": "T4", "provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def to_text(notebook: dict[str, Any]) -> str:
    """The notebook as it stands in the file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the notebook beside this script."""
    NOTEBOOK.write_text(to_text(build_notebook(read_repository_url())), encoding="utf-8")
    print(f"wrote {NOTEBOOK.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
