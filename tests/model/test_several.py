"""Several adapters on one base: each answers as it does alone, and the base's tensors stay where they are."""

import shutil
from pathlib import Path

import pytest
import torch

from finetune.errors import RecipeError
from finetune.model.loading import load_for_inference
from finetune.model.merging import to_logits
from finetune.model.several import BASE, AdapterSet, load_adapter_set, to_adapter_name
from finetune.model.targets import find_target
from tests.model.saved_runs import write_base, write_run

PROMPT = [1, 5, 9, 12, 40]
TOKENS = {"num_virtual_tokens": 3}
# Every way of reaching into a model: beside layers, behind them, in front of the text, inside the attention.
ADAPTERS = {
    "lora": {"method": "lora", "r": 8},
    "other_lora": {"method": "lora", "r": 4, "target_modules": ["q_proj", "down_proj"]},
    "ia3": {"method": "ia3"},
    "bottleneck": {"method": "bottleneck", "size": 4},
    "bitfit": {"method": "bitfit"},
    "prompt": {"method": "prompt_tuning", "num_virtual_tokens": 3},
    "adaption": {"method": "adaption_prompt", "adapter_len": 4, "adapter_layers": 2},
    "vera": {"method": "vera", "r": 4},
    "both": {"method": "combined", "parts": [{"method": "lora", "r": 4}, {"method": "prompt_tuning", **TOKENS}]},
    "other_both": {"method": "combined", "parts": [{"method": "bitfit"}, {"method": "prompt_tuning", **TOKENS}]},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("several")
    base = write_base(place / "base")
    return {
        name: write_run(place / name, base, adapter=fields, quantization="none") for name, fields in ADAPTERS.items()
    }


@pytest.fixture(scope="module")
def held(runs) -> AdapterSet:
    first, *others = runs
    return load_adapter_set(str(runs[first]), {name: str(runs[name]) for name in others})


def logits_of(model) -> torch.Tensor:
    return to_logits(model, [PROMPT])[0]


def test_each_adapter_answers_as_it_does_alone_in_any_order(runs, held):
    alone = {name: logits_of(load_for_inference(str(run)).model) for name, run in runs.items()}
    alone[BASE] = logits_of(load_for_inference(str(runs["lora"]), base_only=True).model)
    assert held.names == [BASE, *ADAPTERS]
    for name in (*ADAPTERS, BASE, *reversed(ADAPTERS), "vera", BASE):
        assert torch.equal(logits_of(held.use(name).model), alone[name]), name
        assert held.active == name
    assert len({float(logits.sum()) for logits in alone.values()}) == len(alone)


def test_switching_reads_and_copies_nothing(held):
    base = held.use(BASE).model
    tensors = dict(base.named_parameters())
    for name in (*ADAPTERS, BASE):
        held.use(name)
    assert all(parameter is tensors[name] for name, parameter in base.named_parameters())
    held.use("lora")
    assert {id(tensor) for tensor in tensors.values()} <= {id(parameter) for parameter in base.parameters()}
    assert {id(p) for p in held.use("ia3").model.parameters()} >= {id(tensor) for tensor in tensors.values()}


def test_each_speaker_keeps_what_was_saved_with_its_adapter(tmp_path, runs):
    other = write_run(tmp_path / "chatml", runs["lora"].parent / "base", template="chatml", quantization="none")
    pair = load_adapter_set(str(runs["lora"]), {"second": str(other)})
    assert pair.active == "lora"
    assert pair.use("second").tokenizer.chat_template != pair.use("lora").tokenizer.chat_template
    assert pair.use(BASE).tokenizer.chat_template == pair.use("lora").tokenizer.chat_template
    assert pair.use("second").description.startswith(f"{other}: lora on ")
    assert pair.use("second").description == load_for_inference(str(other)).description


def test_a_whole_model_can_be_the_base_of_adapters_named_beside_it(tmp_path):
    base = write_base(tmp_path / "base")
    run = write_run(tmp_path / "run", base, quantization="none")
    pair = load_adapter_set(str(base), {"one": str(run)})
    assert (pair.names, pair.active) == ([BASE, "one"], BASE)


def test_what_does_not_stand_on_the_same_base_is_refused_with_both_named(tmp_path, runs):
    elsewhere = write_run(tmp_path / "elsewhere", write_base(tmp_path / "base"), quantization="none")
    with pytest.raises(RecipeError, match="another base") as told:
        load_adapter_set(str(runs["lora"]), {"x": str(elsewhere)})
    assert str(tmp_path / "base") in str(told.value)
    assert str(runs["lora"].parent / "base") in str(told.value)
    in_4_bit = write_run(tmp_path / "nf4", runs["lora"].parent / "base")
    with pytest.raises(RecipeError, match=r"in none, .* in nf4"):
        load_adapter_set(str(runs["lora"]), {"x": str(in_4_bit)})
    held = load_adapter_set(str(runs["lora"]), {"x": str(in_4_bit)}, quantization="nf4")
    assert "nf4" in held.use("x").description
    with pytest.raises(RecipeError, match="whole model, not an adapter"):
        load_adapter_set(str(runs["lora"]), {"x": str(runs["lora"].parent / "base")})


def test_a_name_stands_for_one_adapter(runs):
    for name in (BASE, "lora"):
        with pytest.raises(RecipeError, match=f"--adapter {name}: this name is that of"):
            load_adapter_set(str(runs["lora"]), {name: str(runs["ia3"])})
    held = load_adapter_set(str(runs["lora"]), {})
    with pytest.raises(RecipeError, match="two adapters named `lora`"):
        held.load("lora", find_target(str(runs["ia3"])))
    with pytest.raises(RecipeError, match="no adapter `law`") as told:
        held.use("law")
    assert "There are: base, lora." in str(told.value)


def test_an_adapter_that_changes_the_base_as_it_is_opened_is_refused(tmp_path, runs):
    folder = shutil.copytree(runs["other_lora"], tmp_path / "pissa")
    config = folder / "adapter" / "adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))
    assert config.read_text() != text
    with pytest.raises(RecipeError, match="start `init_lora_weights: pissa` changes the base"):
        load_adapter_set(str(runs["lora"]), {"x": str(folder)})


def test_an_adapter_is_named_after_its_run(runs):
    assert to_adapter_name(find_target(str(runs["lora"]))) == "lora"
    assert to_adapter_name(find_target(str(runs["lora"] / "adapter"))) == "lora"
