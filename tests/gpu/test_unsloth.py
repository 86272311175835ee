"""Both backends on a real GPU, where Unsloth's own kernels and rewritten trainers run. `make test-gpu` runs these.

Unsloth changes the process it is imported in, so nothing here imports it: each backend trains in processes of its own,
one for each precision.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.small_runs import ROOT, ROWS, TINY, build_values, read_json, read_lines, write_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(find_spec("unsloth") is None, reason="Unsloth is not installed"),
    pytest.mark.timeout(1800),  # of the first test, whose fixture trains both backends
]

BACKENDS = ("transformers", "unsloth")
DTYPES = [
    pytest.param("bfloat16", marks=pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0), reason="no bfloat16 before 8.0"
    )),
    "float16",
]  # fmt: skip
PAIRS = {"path": str(ROOT / "data/tiny_world/preferences.jsonl"), "limit": 40}
STEPS = 40

SFT = {
    "adapter__lora_dropout": 0.0,  # with dropout Unsloth's products are other ones
    "data__train": {"path": str(ROWS), "limit": 200},
    "data__eval": {"fraction": 0.1},
    "training__max_steps": STEPS,
    "training__per_device_train_batch_size": 4,
    "training__learning_rate": 1e-3,
    "training__gradient_checkpointing": True,
    "evaluation__num_samples": 0,
}
# Of two packed rows at once Unsloth makes one, and transformers does not.
PACKED = {
    "data__packing": True,
    "data__max_length": 256,
    "training__max_steps": 8,
    "training__per_device_train_batch_size": 2,
}
PREFERENCES = {
    "adapter__lora_dropout": 0.0,
    "data__train": PAIRS,
    "training__max_steps": 3,
    "training__per_device_train_batch_size": 4,
    "training__learning_rate": 1e-3,
    "evaluation__num_samples": 0,
}
RECIPES: dict[str, dict[str, Any]] = {
    "nf4": SFT,
    "16_bits": SFT | {"model__quantization": "none"},
    "packed": SFT | PACKED,
    # Answers in the middle: samples are generated at every evaluation.
    "sampled": SFT | {"training__max_steps": 6, "training__eval_steps": 2, "evaluation__num_samples": 2},
    "dpo": PREFERENCES | {"objective": "dpo"},
    "kto": PREFERENCES | {"objective": "kto"},
    "orpo": PREFERENCES | {"objective": "orpo"},
}
SUPERVISED = ("nf4", "16_bits", "packed", "sampled")

# Trains recipes one after another, and writes how many modules recompute after each step. `NAME.error.txt`: it failed.
TRAIN = """
import json, sys, traceback
from pathlib import Path
from finetune.model.backends import start_backend
from finetune.recipe.reading import read_recipe
backend, folder, *paths = sys.argv[1:]
start_backend(backend)
from finetune.objectives.trainer import StepMixin
from finetune.train import train
noted = []
step = StepMixin.training_step
def noting(self, *args, **kwargs):
    loss = step(self, *args, **kwargs)
    noted.append(sum(bool(vars(module).get("gradient_checkpointing")) for module in self.model.modules()))
    return loss
StepMixin.training_step = noting
for path in map(Path, paths):
    noted.clear()
    try:
        train(read_recipe(path, [f"model.backend={backend}"]), recipe_text=path.read_text())
    except BaseException:
        Path(folder, f"{path.stem}.error.txt").write_text(traceback.format_exc())
    Path(folder, f"{path.stem}.recomputing.json").write_text(json.dumps(noted))
Path(folder, "process.json").write_text(json.dumps({"unsloth": "unsloth" in sys.modules}))
"""

# Answers questions through one backend, from the run of each backend, and without an adapter.
ANSWER = """
import json, sys
from finetune.model.backends import start_backend
backend, questions, *runs = sys.argv[1:]
start_backend(backend)
from finetune.data.serving import History, build_serving_renderer
from finetune.model.generation import stream_answer
from finetune.model.loading import load_for_inference
found = {}
for name, run, is_base in (("transformers", runs[0], False), ("unsloth", runs[1], False), ("base", runs[0], True)):
    speaker = load_for_inference(run, base_only=is_base, device="cuda", backend=backend)
    renderer = build_serving_renderer(speaker.tokenizer)
    stop_ids = sorted({*renderer.stop_ids, *speaker.eos_ids})
    found[name] = []
    for question, about in json.loads(questions):
        ids, _ = History(renderer, None).ask(question, about)
        found[name].append(stream_answer(
            speaker.model, speaker.tokenizer, ids, stop_ids=stop_ids, max_new_tokens=8, shown=False))
print("ANSWERS " + json.dumps(found))
"""


@dataclass(frozen=True)
class Runs:
    """The folder that a backend's process left its runs in, and what it said on standard output."""

    folder: Path
    stdout: str

    def __getitem__(self, name: str) -> Path:
        """The folder of a finished run."""
        error = self.folder / f"{name}.error.txt"
        assert not error.exists(), error.read_text(encoding="utf-8")
        return self.folder / name


def call(*arguments: str, seconds: int = 800) -> subprocess.CompletedProcess[str]:
    """Run Python on this repository; what else is on the path stays there, Unsloth perhaps among it."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
    )


def build(folder: Path, dtype: str, **settings: Any) -> dict[str, Any]:
    """The small recipe on the tiny base in NF4 on the GPU."""
    model = {"model_name_or_path": str(TINY), "quantization": "nf4", "device": "cuda", "compute_dtype": dtype}
    return build_values(folder, **{"model": model} | settings)


def train_all(folder: Path, backend: str, dtype: str) -> Runs:
    """Train every recipe through one backend in one process."""
    folder.mkdir(parents=True)
    typed = folder / "typed"
    typed.mkdir()
    paths = [
        write_recipe(typed / f"{name}.yaml", build(folder, dtype, name=name, **settings))
        for name, settings in RECIPES.items()
    ]
    done = call("-c", TRAIN, backend, str(folder), *map(str, paths))
    assert done.returncode == 0, done.stderr[-4000:]
    return Runs(folder, done.stdout)


@pytest.fixture(scope="module", params=DTYPES)
def trained(request, tiny_base, tmp_path_factory) -> Mapping[str, Runs]:
    """Every recipe through both backends, in one precision."""
    folder = tmp_path_factory.mktemp(request.param)
    return {backend: train_all(folder / backend, backend, request.param) for backend in BACKENDS}


def figures_of(run: Path, figure: str = "loss") -> list[float]:
    return [line[figure] for line in read_lines(run) if figure in line]


def test_one_process_trained_through_unsloth_and_the_other_without_it(trained):
    for backend, runs in trained.items():
        assert read_json(runs.folder / "process.json")["unsloth"] == (backend == "unsloth")
        assert read_json(runs["nf4"] / "resolved.json")["model"]["backend"] == backend
        assert read_json(runs["nf4"] / "summary.json")["steps"] == STEPS


def test_standard_output_stays_free_for_results(trained):
    assert {backend: runs.stdout for backend, runs in trained.items()} == dict.fromkeys(BACKENDS, "")


@pytest.mark.parametrize("name", [*SUPERVISED, "dpo", "kto", "orpo"])
def test_the_same_rows_and_as_many_tokens_are_trained_at_every_step(trained, name):
    ours, theirs = (trained[backend][name] for backend in BACKENDS)
    assert read_json(theirs / "data_report.json") == read_json(ours / "data_report.json")
    tokens = figures_of(ours, "tokens")
    assert len(tokens) >= RECIPES[name]["training__max_steps"]
    assert figures_of(theirs, "tokens") == tokens
    trainable = [read_json(run / "summary.json")["trainable_parameters"] for run in (ours, theirs)]
    assert trainable[0] == trainable[1]


@pytest.mark.parametrize("name", SUPERVISED)
def test_the_losses_begin_alike_and_end_alike(trained, name):
    ours, theirs = (trained[backend][name] for backend in BACKENDS)
    assert figures_of(theirs)[:3] == pytest.approx(figures_of(ours)[:3], rel=2e-2)
    before, after = (
        [read_json(run / "summary.json")[figure] for run in (ours, theirs)]
        for figure in ("eval_loss_before", "eval_loss")
    )
    assert before[1] == pytest.approx(before[0], rel=2e-2)
    assert after[1] == pytest.approx(after[0], rel=3e-2)
    assert after[1] < before[1] - 0.01


@pytest.mark.parametrize("name", list(RECIPES))
def test_nothing_that_the_recipe_asks_for_is_replaced(trained, name):
    assert "asked for was" not in (trained["unsloth"][name] / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "first"), [("dpo", math.log(2)), ("kto", 0.5)])
def test_a_run_on_preferences_begins_as_its_reference(trained, name, first):
    for runs in trained.values():
        assert figures_of(runs[name])[0] == pytest.approx(first, abs=2e-2)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])
def test_runs_on_preferences_have_the_same_losses(trained, name):
    ours, theirs = (figures_of(trained[backend][name]) for backend in BACKENDS)
    assert len(ours) == 3
    assert theirs == pytest.approx(ours, rel=5e-2)


def test_answers_in_the_middle_of_training_leave_recomputation_on(trained):
    for backend in BACKENDS:
        runs = trained[backend]
        samples = (runs["sampled"] / "samples.md").read_text(encoding="utf-8")
        assert samples.count("## ") >= 3, "before, in the middle and after"
        recomputing = json.loads((runs.folder / "sampled.recomputing.json").read_text())
        assert len(recomputing) == 6
        assert recomputing[0] > 0
        assert set(recomputing) == {recomputing[0]}


def test_an_adapter_of_either_backend_gives_the_same_answers_in_the_other(trained):
    rows = json.loads(ROWS.read_text(encoding="utf-8"))[:12]
    questions = json.dumps([[row["instruction"], row["input"]] for row in rows])
    runs = [str(trained[backend]["nf4"]) for backend in BACKENDS]
    found = {}
    for backend in BACKENDS:
        done = call("-c", ANSWER, backend, questions, *runs)
        assert done.returncode == 0, done.stderr[-4000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
        found[backend] = json.loads(line.removeprefix("ANSWERS "))
    for adapter in BACKENDS:
        in_ours, in_theirs = (found[backend][adapter] for backend in BACKENDS)
        same = sum(one == other for one, other in zip(in_ours, in_theirs, strict=True))
        assert same >= len(rows) - 1, (adapter, in_ours, in_theirs)  # where two words are as likely, rounding chooses
        assert in_ours != found["transformers"]["base"], "the adapter says nothing of its own"
        assert in_theirs != found["unsloth"]["base"]


@pytest.mark.parametrize(
    ("verb", "dtype", "settings", "what"),
    [
        ("sft", "float32", SFT, "computes in 16 bits on a GPU"),
        (
            "grpo",
            "auto",
            {"objective": "grpo", "data": {"train": {"path": str(ROWS), "limit": 8}, "template": "alpaca",
             "max_length": 128}, "adapter": {"method": "lora"}, "training": {"max_steps": 1,
             "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8},
             "rewards": [{"function": "exact_match"}]},
            "masks answers by the padding token",
        ),
    ],
    ids=["float32", "grpo"],
)  # fmt: skip
def test_what_unsloth_cannot_do_on_a_gpu_is_2_with_the_way_out(tiny_base, tmp_path, verb, dtype, settings, what):
    recipe = write_recipe(tmp_path / "typed.yaml", build(tmp_path / "outputs", dtype, **settings))
    done = call("-m", f"finetune.{verb}", str(recipe), "model.backend=unsloth")
    assert done.returncode == 2, done.stderr[-4000:]
    assert what in done.stderr
    assert "transformers" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs" / "small").exists()
