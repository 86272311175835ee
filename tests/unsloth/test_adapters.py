"""An adapter of either backend is the other's too, and everybody's: as it starts, as it answers, as it is exported."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.end_to_end.small_runs import read_json, write_recipe
from tests.unsloth.pairs_of_runs import (
    BACKENDS,
    build_tiny,
    describe_tensors,
    place_model,
    read_adapter_config,
    read_tensors,
    run_python,
)

pytestmark = pytest.mark.unsloth

PROMPTS = [
    "What river flows through Quelia?",
    "Which animal is the friend of Tom?",
    "What is the opposite of wet?",
    "Tell me a story about a little dog.",
]
OPENED = ("tiny_float32", "tiny_nf4", "stories_float32", "stories_nf4")
# bitsandbytes (0.50) packs 4-bit weights of a CPU anew for inference, and stops at a layer of 172 outputs; the
# pipeline's own loaders keep it from that.
NOT_FOR_PLAIN_PEFT = "stories_nf4"
TURNS = [*PROMPTS[:2], "/exit"]

LORA = {"method": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "target_modules": "all-linear"}
STARTS = {
    "usual": {},
    "rank_stabilized": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "loftq": {"init_lora_weights": "loftq"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa_rank_stabilized": {"init_lora_weights": "pissa", "use_rslora": True},
    "olora": {"init_lora_weights": "olora"},
    "two_layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
    "one_layer": {"target_modules": ["v_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "listed": {"target_modules": ["q_proj", "down_proj"]},
    "one_listed": {"target_modules": ["v_proj"]},
    "by_pattern": {"target_modules": r".*\.[13]\..*(q|v)_proj"},
    "started_moved": {"init_lora_weights": False},
}
IN_NF4 = ("loftq", "pissa", "usual")


@pytest.fixture(scope="module")
def answers(trained, tmp_path_factory) -> dict[str, dict[str, list[str]]]:
    """Answers by who opened the adapter, and by the run's folder."""
    folder = tmp_path_factory.mktemp("answers")
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps(PROMPTS))
    runs = [str(run) for name in OPENED for run in trained[name]]
    plain = [
        f"{run}/adapter={'nf4' if run.endswith('nf4') else 'none'}"
        for run in runs
        if not run.endswith(NOT_FOR_PLAIN_PEFT)
    ]
    commands = {backend: ["-m", "tests.unsloth.answers", backend, str(prompts), *runs] for backend in BACKENDS}
    commands["peft"] = ["-m", "tests.unsloth.plain_answers", str(prompts), *plain]
    done = run_python(folder, commands)
    said = {name: read_last_line(one) for name, one in done.items()}
    assert (said["transformers"]["unsloth"], said["unsloth"]["unsloth"]) == (False, True)
    assert said["peft"]["ours"] == []
    return {
        opener: {name.removesuffix("/adapter"): found for name, found in one["answers"].items()}
        for opener, one in said.items()
    }


def read_last_line(done: CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("trained_by", BACKENDS)
def test_an_adapter_answers_alike_whoever_opens_it(trained, answers, name, trained_by):
    run = str(getattr(trained, trained_by)[name])
    expected = answers[trained_by][run]
    assert len(expected) == len(PROMPTS) and all(expected)
    openers = BACKENDS if name == NOT_FOR_PLAIN_PEFT else (*BACKENDS, "peft")
    assert {opener: answers[opener][run] for opener in openers} == dict.fromkeys(openers, expected)


def test_the_answers_are_the_adapters_and_not_the_bases(trained, answers):
    run = str(trained.transformers[OPENED[0]])
    for backend in BACKENDS:
        assert answers[backend][run] != answers[backend]["without adapter"]
    assert answers["unsloth"]["without adapter"] == answers["transformers"]["without adapter"]


# ---- the verbs


@pytest.fixture(scope="module")
def verbs(trained, tmp_path_factory) -> dict[str, CompletedProcess[str]]:
    """What the verbs say to an adapter trained through Unsloth, and the export of its twin."""
    folder = tmp_path_factory.mktemp("verbs")
    run = str(trained.unsloth["tiny_float32"])
    asked = ["-m", "finetune.chat", run, "--backend", "unsloth", "--max-new-tokens", "24", "--prompt", PROMPTS[0]]
    exports = {
        f"export_{backend}": [
            "-m", "finetune.export", str(getattr(trained, backend)["tiny_float32"]), "--merge", str(folder / backend),
            "--dtype", "float32", "--device", "cpu", "--json",
        ]
        for backend in BACKENDS
    }  # fmt: skip
    return run_python(folder, {"json": [*asked, "--json"], "streamed": asked, **exports})


def test_chat_through_unsloth_prints_one_object_and_nothing_else(trained, answers, verbs):
    done = verbs["json"]
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert said["answer"] == answers["transformers"][str(trained.unsloth["tiny_float32"])][0]
    assert "through Unsloth" in said["model"]


def test_chat_through_unsloth_prints_the_answer_as_it_comes(trained, answers, verbs):
    done = verbs["streamed"]
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == answers["unsloth"][str(trained.unsloth["tiny_float32"])][0].strip()
    assert "through Unsloth" in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_adapter_is_exported_as_a_whole_model_of_the_same_answers(verbs, backend):
    said = read_last_line(verbs[f"export_{backend}"])
    assert said["greedy_agreement_fraction"] == 1.0
    assert said["max_abs"] < 1e-3
    assert (Path(said["folder"]) / "model.safetensors").is_file()


# ---- before the first step


@pytest.fixture(scope="module")
def starts(tiny_base, tmp_path_factory) -> dict[str, Path]:
    """By backend the folder of the adapters as they start."""
    folder = tmp_path_factory.mktemp("starts")
    recipes = []
    for name, fields in STARTS.items():
        recipes += [write_recipe(folder / f"{name}.yaml", build_tiny(adapter=LORA | fields))] if name != "loftq" else []
        if name in IN_NF4:
            held = build_tiny(adapter=LORA | fields, model=place_model(tiny_base, quantization="nf4"))
            recipes.append(write_recipe(folder / f"{name}_nf4.yaml", held))
    paths = [str(recipe) for recipe in recipes]
    done = run_python(
        folder,
        {backend: ["-m", "tests.unsloth.starts", backend, str(folder / backend), *paths] for backend in BACKENDS},
    )
    for one in done.values():
        assert one.returncode == 0, one.stderr
    return {backend: folder / backend for backend in BACKENDS}


ALL_STARTS = [name for name in STARTS if name != "loftq"] + [f"{name}_nf4" for name in IN_NF4]


@pytest.mark.parametrize("name", ALL_STARTS)
def test_an_adapter_starts_from_the_same_numbers_on_the_same_layers(starts, name):
    ours, theirs = (starts[backend] / name for backend in BACKENDS)
    expected, found = (read_json(run / "trainable.json") for run in (ours, theirs))
    assert found["trainable"] == expected["trainable"]
    assert found["dropout"] == expected["dropout"] == [0.05]
    assert found["logits"] == pytest.approx(expected["logits"], abs=1e-4)
    assert read_adapter_config(theirs) == read_adapter_config(ours)
    assert describe_tensors(theirs) == describe_tensors(ours)
    tensors = read_tensors(theirs)
    for key, tensor in read_tensors(ours).items():
        assert float((tensors[key] - tensor).abs().max()) <= 1e-5, key


def test_the_starts_differ_where_they_should(starts):
    def first(name: str) -> Any:
        return read_tensors(starts["unsloth"] / name)["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]

    usual = first("usual")
    for name in ("gaussian", "pissa", "olora"):
        assert first(name).shape != usual.shape or not first(name).equal(usual), name
    numbers = {name: len(read_json(starts["unsloth"] / name / "trainable.json")["trainable"]) for name in ALL_STARTS}
    assert numbers["usual"] == 7 * 4 * 2
    assert numbers["two_layers"] == 2 * 2 * 2
    assert numbers["one_layer"] == 2
    assert numbers["listed"] == 2 * 4 * 2
    assert numbers["one_listed"] == 4 * 2
    assert numbers["by_pattern"] == 2 * 2 * 2
