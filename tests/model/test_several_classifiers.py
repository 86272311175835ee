"""Several classifiers on one base: each labels as it does alone, whatever the number of its labels."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    set_seed,
)

from finetune.errors import PlaceError, RecipeError
from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.model.heads import LabelSpace, write_labels
from finetune.model.loading import load_target
from finetune.model.several_classifiers import ClassifierSet, load_classifier_set
from finetune.model.targets import find_target
from finetune.model.tokenizer import find_pad_id, load_tokenizer
from finetune.recipe.reading import build_recipe, to_resolved
from tests.model.saved_runs import ROOT, write_base, write_run

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "initializer_range": 0.2, "max_position_embeddings": 64}  # fmt: skip
BASES = {
    "bert": (BertForMaskedLM, BertConfig),
    "roberta": (RobertaForMaskedLM, RobertaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
}
TWO, THREE, NUMBER = LabelSpace(("bad", "good")), LabelSpace(("no", "maybe", "yes")), LabelSpace(None)
CLASSIFIERS: dict[str, tuple[dict[str, Any], LabelSpace]] = {
    "two": ({"method": "lora", "r": 4}, TWO),
    "three": ({"method": "bottleneck", "size": 4}, THREE),
    "number": ({"method": "ia3"}, NUMBER),
    "other_two": ({"method": "combined", "parts": [{"method": "lora", "r": 2}, {"method": "bitfit"}]}, TWO),
}
TEXTS = ["A fine film.", "It rained the whole day, and nobody came to the door."]


def write_encoder(folder: Path, kind: str) -> Path:
    model, config = BASES[kind]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "data" / "tiny_base")
    set_seed(0)
    heads = {"num_key_value_heads": 2} if kind == "mistral" else {}
    model(config(**SIZES, **heads, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_classifier(run_dir: Path, base_dir: Path, adapter: dict[str, Any], labels: LabelSpace) -> Path:
    """Write a finished run whose adapter and head were moved by random numbers instead of training."""
    recipe = build_recipe(
        {
            "name": run_dir.name,
            "objective": "classify",
            "model": {"model_name_or_path": str(base_dir), "quantization": "none", "device": "cpu"},
            "adapter": adapter,
            "data": {"train": {"path": "rows.json"}},
        }
    )
    model = attach_adapter(load_base(recipe.model, head="labels", labels=labels), recipe.adapter, recipe.seed)
    torch.manual_seed(len(run_dir.name))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tokenizer = load_tokenizer(recipe.model, ends_answers=False)
    model.config.get_text_config().pad_token_id = find_pad_id(tokenizer)
    model.save_pretrained(run_dir / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(run_dir / "adapter")
    write_labels(model, run_dir / "adapter")
    (run_dir / "resolved.json").write_text(json.dumps(to_resolved(recipe)))
    (run_dir / "status.json").write_text(json.dumps({"status": "done", "step": 4, "pid": 1, "reason": ""}))
    return run_dir


@torch.no_grad()
def logits_of(model: torch.nn.Module, tokenizer: Any) -> torch.Tensor:
    rows = tokenizer(TEXTS, return_tensors="pt", padding=True)
    return model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits


@pytest.fixture(scope="module", params=BASES)
def runs(request, tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp(request.param)
    base = write_encoder(place / "base", request.param)
    return {name: write_classifier(place / name, base, *given) for name, given in CLASSIFIERS.items()}


@pytest.fixture(scope="module")
def held(runs) -> ClassifierSet:
    return load_classifier_set({name: str(run) for name, run in runs.items()})


def test_each_classifier_labels_as_it_does_alone_in_any_order(runs, held):
    alone = {}
    for name, run in runs.items():
        speaker = load_target(find_target(str(run)), talks=False)
        alone[name] = logits_of(speaker.model, speaker.tokenizer)
    assert (held.names, held.active) == (list(CLASSIFIERS), "two")
    assert [logits.shape[1] for logits in alone.values()] == [2, 3, 1, 2]
    for name in (*CLASSIFIERS, *reversed(CLASSIFIERS), "three", "two"):
        one = held.use(name)
        assert torch.equal(logits_of(one.model, one.tokenizer), alone[name]), name
        assert (held.active, one.labels) == (name, CLASSIFIERS[name][1])
        assert one.model.config.num_labels == one.labels.num_outputs
    assert not torch.allclose(alone["two"], alone["other_two"], atol=1e-2)


def test_the_model_computes_the_loss_of_whoever_is_in_use(held):
    for name, labels in (("three", torch.tensor([2, 0])), ("number", torch.tensor([0.5, 1.0])), ("two", [1, 0])):
        one = held.use(name)
        rows = one.tokenizer(TEXTS, return_tensors="pt", padding=True)
        made = one.model(
            input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], labels=torch.as_tensor(labels)
        )
        if name == "number":
            expected = torch.nn.functional.mse_loss(made.logits[:, 0], torch.as_tensor(labels))
        else:
            expected = torch.nn.functional.cross_entropy(made.logits, torch.as_tensor(labels))
        torch.testing.assert_close(made.loss, expected)


def test_switching_reads_and_copies_nothing_of_the_encoder(runs, held):
    def find_matrices(name: str) -> set[int]:
        return {id(parameter) for parameter in held.use(name).model.parameters() if parameter.dim() == 2}

    shared = set.intersection(*(find_matrices(name) for name in (*CLASSIFIERS, "two")))
    alone = load_base(find_target(str(runs["two"])).base, head="labels", labels=TWO)
    of_the_head = tuple(f"{name}." for name in alone.head_modules)
    matrices = [name for name, p in alone.model.named_parameters() if p.dim() == 2 and not name.startswith(of_the_head)]
    assert len(shared) == len(matrices) > 12


def test_the_pages_example_labels_by_each(runs, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    example = page.partition("Classifiers of one encoder")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for name, run in (("mood", "two"), ("topic", "three")):
        (tmp_path / "outputs" / name).symlink_to(runs[run])
    exec(example, {})
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert said["mood"] in ("bad", "good")
    assert said["topic"] in ("no", "maybe", "yes")


def test_a_damaged_one_is_refused_and_the_others_label_on(tmp_path, runs):
    copied = shutil.copytree(runs["three"], tmp_path / "damaged")
    path = copied / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "bottleneck" in name)]
    save_file(tensors, path, metadata={"format": "pt"})
    held = load_classifier_set({"two": str(runs["two"])})
    two = held.use("two")
    before = logits_of(two.model, two.tokenizer)
    with pytest.raises(PlaceError, match="is not in the file"):
        held.load("damaged", find_target(str(copied)))
    assert held.names == ["two"]
    two = held.use("two")
    assert torch.equal(logits_of(two.model, two.tokenizer), before)


def test_what_is_no_classifier_or_not_there_is_refused(tmp_path, runs, held):
    with pytest.raises(RecipeError, match="no classifier `law`") as told:
        held.use("law")
    assert "There are: two, three, number, other_two." in str(told.value)
    talker = write_run(tmp_path / "talks", write_base(tmp_path / "base"), quantization="none")
    with pytest.raises(RecipeError, match="talks is no classifier"):
        load_classifier_set({"two": str(runs["two"]), "x": str(talker)})
    with pytest.raises(RecipeError, match="base is a whole model"):
        load_classifier_set({"x": str(runs["two"].parent / "base")})
    with pytest.raises(RecipeError, match="`base` is the name of the model under"):
        load_classifier_set({"base": str(runs["two"])})
    elsewhere = write_classifier(tmp_path / "run", write_encoder(tmp_path / "other", "bert"), *CLASSIFIERS["two"])
    with pytest.raises(RecipeError, match="another base"):
        load_classifier_set({"two": str(runs["two"]), "x": str(elsewhere)})
