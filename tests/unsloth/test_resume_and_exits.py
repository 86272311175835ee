"""A run through Unsloth stops, goes on and ends as one without it: bytes, figures, exit codes and messages."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.end_to_end.small_runs import ROWS, read_figures, read_json, read_weights, write_recipe
from tests.unsloth.pairs_of_runs import build_tiny, place_model, read_to_its_end, run_python, start_python

pytestmark = pytest.mark.unsloth

BY_UNSLOTH = {"model__backend": "unsloth"}
# Dropout, steps of two micro-batches, recomputed activations, and more steps than an epoch has.
LONG = BY_UNSLOTH | {
    "data__eval": {"fraction": 0.1},
    "data__train": {"path": str(ROWS), "limit": 40},
    "training__max_steps": 24,
    "training__eval_steps": 12,
    "training__gradient_accumulation_steps": 2,
    "training__gradient_checkpointing": True,
    "training__learning_rate": 2e-3,
}
SIGNALS = {"sigterm": signal.SIGTERM, "ctrl_c": signal.SIGINT}


@pytest.fixture(scope="module")
def stopped(tiny_base, tmp_path_factory) -> dict[str, Any]:
    """A whole run, and two that a signal stopped and `--resume` took up: what each process said, by its name."""
    folder = tmp_path_factory.mktemp("stopped")
    recipes = {
        name: write_recipe(folder / f"{name}.yaml", build_tiny(**LONG) | {"output_dir": str(folder / name)})
        for name in ("whole", *SIGNALS)
    }
    first = {}
    started = {name: _start(folder, recipes[name]) for name in SIGNALS}
    for name, process in started.items():
        first[name] = _stop(process, folder / name / "small" / "metrics.jsonl", SIGNALS[name])
    left = {name: (folder / name / "small" / "adapter").exists() for name in SIGNALS}
    again = run_python(
        folder,
        {
            name: ["-m", "finetune.sft", str(path), *(["--resume"] if name in SIGNALS else [])]
            for name, path in recipes.items()
        },
    )
    return {"folder": folder, "first": first, "again": again, "had_adapter": left}


def _start(folder: Path, recipe: Path) -> subprocess.Popen[str]:
    return start_python("-m", "finetune.sft", str(recipe), working_dir=folder / "empty", cache=folder / "cache")


def _stop(process: subprocess.Popen[str], metrics: Path, number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal in the third step or soon after it; exit code, standard output and standard error."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and '"step": 3' in metrics.read_text(encoding="utf-8"):
            process.send_signal(number)
            break
        time.sleep(0.02)
    stdout, stderr = read_to_its_end(process)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(("name", "code", "told"), [("sigterm", 143, "SIGTERM"), ("ctrl_c", 130, "Ctrl-C")])
def test_a_signal_stops_the_run_with_everything_saved(stopped, name, code, told):
    found, stdout, stderr = stopped["first"][name]
    assert found == code, stderr
    assert stdout == ""
    assert f"was stopped by {told} at step" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert not stopped["had_adapter"][name]


@pytest.mark.parametrize("name", SIGNALS)
def test_a_stopped_run_resumes_to_the_bytes_and_figures_of_a_whole_one(stopped, name):
    for one in stopped["again"].values():
        assert one.returncode == 0, one.stderr
    whole, resumed = (stopped["folder"] / one / "small" for one in ("whole", name))
    [step] = read_json(resumed / "summary.json")["resumed_from"]
    assert 3 <= step < 24
    assert read_figures(resumed) == read_figures(whole)
    assert read_weights(resumed) == read_weights(whole)


def test_a_run_from_the_command_line_goes_through_unsloth_and_says_each_line_once(stopped):
    done = stopped["again"]["whole"]
    assert done.stdout == ""
    log = (stopped["folder"] / "whole" / "small" / "log.txt").read_text(encoding="utf-8")
    assert log.count("Unsloth (CPU)") == 1
    for said in (done.stderr, log):
        assert len(re.findall(r"training: \d+ rows of tokens", said)) == 1
        assert said.count("before the first step") == 1


# ---- exit codes

REFUSED = {
    "int8": ({"model__quantization": "int8"}, "holds a base in nf4 or not quantized"),
    "fp4": ({"model__quantization": "fp4"}, "holds a base in nf4 or not quantized"),
    "single": (
        {"model__quantization": "nf4", "model__double_quantization": False},
        "quantizes the 4-bit blocks' own scales",
    ),
    "random": ({"model__weights": "random"}, "loads weights from files"),
    "eager": ({"model__attention": "eager"}, "attends with kernels of its own choice"),
    "reward": ({"objective": "reward"}, "does not train `objective: reward`"),
    "ia3": ({"adapter": {"method": "ia3"}}, "trains LoRA alone"),
    "full": ({"adapter": {"method": "full"}}, "trains LoRA alone"),
    "dora": ({"adapter__use_dora": True}, "has no kernels for `adapter.use_dora`"),
    "eva": ({"adapter__init_lora_weights": "eva"}, "does not make the start"),
    "loss": ({"training__loss_type": "chunked_nll"}, "computes the loss nll itself"),
    "compiled": ({"training__torch_compile": True}, "brings its own kernels"),
}


@pytest.fixture(scope="module")
def refusals(tiny_base, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What the verb says to recipes that Unsloth cannot serve; the last one says what the process cost."""
    folder = tmp_path_factory.mktemp("refused")
    return _ask(folder, {name: build_tiny(**BY_UNSLOTH | settings) for name, (settings, _) in REFUSED.items()})


def _ask(folder: Path, recipes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    paths = [write_recipe(folder / f"{name}.yaml", values) for name, values in recipes.items()]
    done = run_python(folder, {"exits": ["-m", "tests.unsloth.exits", *map(str, paths)]})["exits"]
    assert done.returncode == 0, done.stderr
    return dict(zip(recipes, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_a_recipe_that_unsloth_cannot_serve_is_2_with_its_line_and_the_way_out(refusals, name):
    said = refusals[name]
    assert said["code"] == 2, said["message"]
    assert f"{name}.yaml:" in said["message"]
    assert REFUSED[name][1] in said["message"]
    assert "Or take the other backend: transformers" in said["message"]
    assert "Traceback" not in said["message"]
    assert len(said["message"].strip().splitlines()) <= 15


def test_all_of_them_are_refused_within_a_second_and_before_torch_is_imported(refusals):
    assert not any(said["torch"] for said in refusals.values())
    assert next(iter(refusals.values()))["seconds"] < 1
    assert len(refusals) == len(REFUSED)


LACKING = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def faults(tiny_base, trained, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What the verb says once the libraries are there: to a base that is not whole, a wrong precision, bad rows."""
    folder = tmp_path_factory.mktemp("faults")
    torn = shutil.copytree(tiny_base, folder / "torn")
    tensors = load_file(torn / "model.safetensors")
    del tensors[LACKING]
    save_file(tensors, torn / "model.safetensors", metadata={"format": "pt"})
    of_ia3 = shutil.copytree(trained.transformers["tiny_float32"] / "adapter", folder / "of_ia3")
    config = read_json(of_ia3 / "adapter_config.json")
    (of_ia3 / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    (folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": ""}\n')
    recipes = {
        "torn": build_tiny(model=place_model(torn)),
        "torn_nf4": build_tiny(model=place_model(torn, quantization="nf4")),
        "float16": build_tiny(model=place_model(tiny_base, compute_dtype="float16")),
        "gone": build_tiny(model=place_model(folder / "gone")),
        "of_ia3": build_tiny(adapter={"init_from": str(of_ia3)}),
        "rows": build_tiny(data__train={"path": str(folder / "rows.jsonl")}),
        "diverging": build_tiny(training__learning_rate=1e30, training__max_steps=20),
    }
    for name, values in recipes.items():
        values |= {"name": name, "output_dir": str(folder / "outputs")}
        values["model"]["backend"] = "unsloth"
    return _ask(folder, recipes)


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        # Unsloth itself would fill the gap with random numbers and train on.
        ("torn", 4, LACKING),
        ("torn_nf4", 4, LACKING),
        ("float16", 4, "`model.compute_dtype: float16` needs a GPU"),
        ("gone", 4, "gone"),
        ("of_ia3", 2, "`backend: unsloth` runs plain LoRA alone"),
        ("rows", 3, "rows.jsonl:2: "),
        ("diverging", 5, "training.learning_rate"),
    ],
)
def test_a_fault_has_the_exit_code_and_the_words_it_has_without_unsloth(faults, name, code, told):
    said = faults[name]
    assert said["code"] == code, said["message"]
    assert told in said["message"]
    assert "Traceback" not in said["message"]
