"""The model card: what the Hub reads from it, and what a person does."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from finetune.run.card import build_card

MISTRAL = {
    "name": "mistral_alpaca", "base": "mistralai/Mistral-7B-v0.1", "quantization": "nf4", "backend": "transformers",
    "method": "lora",
    "fields": {"r": 64, "lora_alpha": 16}, "data_paths": ["tatsu-lab/alpaca", "data/quickstart/train.jsonl"],
    "template": "mistral", "max_length": 2048, "seed": 42, "commit": "27d67f1b5f57",
    "results": {"steps": 1625, "held-out loss before": 1.9, "held-out loss after": 1.01,
                "exact match before": None, "exact match after": "94.0%"},
    "rows": 51_760, "fingerprint": "3f" * 32, "init_from": None, "ends_with": "words", "labels": None,
}  # fmt: skip
QUICKSTART = MISTRAL | {"base": "data/tiny_base", "data_paths": ["data/quickstart/train.jsonl"], "commit": None}
ROOT = Path(__file__).parents[2]


def test_the_hub_reads_base_and_data_by_their_names_there():
    data = ModelCard(build_card(**MISTRAL)).data
    assert data.base_model == "mistralai/Mistral-7B-v0.1"
    assert data.datasets == ["tatsu-lab/alpaca"]
    assert (data.library_name, data.tags) == ("peft", ["lora", "qlora"])


def test_a_base_of_this_disk_means_nothing_on_the_hub(monkeypatch):
    monkeypatch.chdir(ROOT)
    data = ModelCard(build_card(**QUICKSTART)).data
    assert (data.base_model, data.datasets) == (None, None)


@pytest.mark.parametrize(
    ("typed", "is_on_the_hub"),
    [
        ("mistralai/Mistral-7B-v0.1", True),
        ("here/model", False),  # lies there
        ("here/gone", False),  # its folder lies there
        ("rows/train.jsonl", False),
        ("rows/train.jsonl.gz", False),
        ("models/tokenizer.model", False),
        ("./model", False),
        ("~/model", False),
        ("/models/mistral", False),
        ("runs/a/adapter", False),
        ("gpt2", False),
    ],
)
def test_a_name_is_the_hubs_where_nothing_here_goes_by_it(tmp_path, monkeypatch, typed, is_on_the_hub):
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert (ModelCard(build_card(**MISTRAL | {"base": typed})).data.base_model is not None) is is_on_the_hub


def test_a_person_reads_what_it_is_made_from_and_how_good_it_is():
    lines = build_card(**MISTRAL).splitlines()
    for row in (
        "| base model | mistralai/Mistral-7B-v0.1 at commit `27d67f1b5f57` |",
        "| lora_alpha | 16 |",
        "| data | tatsu-lab/alpaca, data/quickstart/train.jsonl |",
        "| rows | 51,760, fingerprint `3f3f3f3f3f3f3f3f` |",
        "| steps | 1,625 |",
        "| held-out loss before | 1.9000 |",
        "| exact match after | 94.0% |",
    ):
        assert row in lines
    assert not [line for line in lines if line.startswith("| exact match before")]


def test_without_results_there_is_no_empty_table():
    assert "## Results" not in build_card(**MISTRAL | {"results": {"held-out loss before": None}})


@pytest.mark.parametrize(
    ("method", "library", "loader"),
    [("lora", "peft", "AutoPeftModelForCausalLM"), ("full", "transformers", "AutoModelForCausalLM")],
)
def test_the_lines_to_use_it_are_python_that_names_the_right_loader(method, library, loader):
    card = build_card(**MISTRAL | {"method": method})
    assert ModelCard(card).data.library_name == library
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "README.md", "exec")
    assert f"{loader}.from_pretrained(folder)" in code


def test_random_weights_are_called_so():
    card = build_card(**MISTRAL | {"base": None, "quantization": "none", "method": "full", "commit": None})
    assert "| base model | random weights |" in card
    assert "qlora" not in card


def test_a_reward_models_card_names_the_class_that_keeps_its_head():
    card = build_card(**MISTRAL | {"ends_with": "score", "init_from": "outputs/other"})
    assert "AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)" in card
    assert "| trained on from | outputs/other |" in card
    assert ModelCard(card).data.pipeline_tag == "text-classification"
