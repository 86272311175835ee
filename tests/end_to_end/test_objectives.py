"""What a recipe may ask for, each trained a few steps: plain text, all weights, several sources, trackers, samples."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import MistralForCausalLM

from finetune.chat import main as chat
from finetune.model.loading import load_for_inference
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.reading import read_recipe
from finetune.recipe.schema import ModelSettings
from finetune.train import train
from tests.end_to_end.small_runs import CHATS, ROOT, ROWS, TINY, read_json, read_lines, run_small
from tests.model.saved_runs import write_base

pytestmark = pytest.mark.usefixtures("tiny_base")


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_rows(count: int, word: str = "number") -> list[dict[str, str]]:
    return [{"instruction": f"Say {word} {n}.", "output": f"It is {n}."} for n in range(count)]


# ---- plain text


@pytest.fixture(scope="module")
def pretrained(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    texts = write_jsonl(folder / "texts.jsonl", [{"text": "The old river runs to the sea. " * n} for n in range(1, 13)])
    data = {"train": {"path": str(texts)}, "eval": {"fraction": 0.2}, "max_length": 32, "packing": True}
    return run_small(folder, objective="pretrain", data=data)


def test_pretraining_splits_long_documents_and_trains_every_token(pretrained):
    report = read_json(pretrained / "data_report.json")["train"]
    assert report["pieces_of_split_rows"] > 0
    assert report["census"]["cut"] == 0
    assert report["census"]["dropped"]["too_long"] == 0
    # The first token of a row is predicted by nothing; every other one is trained.
    assert report["census"]["trained_tokens"] == report["census"]["tokens"] - report["census"]["rows"]


def test_pretraining_saves_an_adapter_and_lowers_the_held_out_loss(pretrained):
    assert (pretrained / "adapter" / "adapter_model.safetensors").is_file()
    summary = read_json(pretrained / "summary.json")
    assert summary["eval_loss"] < summary["eval_loss_before"]


def test_pretraining_leaves_the_tokenizers_chat_template_as_it_was(pretrained):
    before = load_tokenizer(ModelSettings(weights="random", tokenizer_name_or_path=str(TINY)))
    after = load_tokenizer(ModelSettings(weights="random", tokenizer_name_or_path=str(pretrained / "adapter")))
    assert after.chat_template == before.chat_template


# ---- all weights


@pytest.fixture(scope="module")
def half_base(tiny_base, tmp_path_factory) -> Path:
    """A base whose files are in bfloat16."""
    folder = write_base(tmp_path_factory.mktemp("base") / "half")
    MistralForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(half_base, tmp_path_factory) -> Path:
    model = {
        "model_name_or_path": str(half_base), "quantization": "none", "device": "cpu", "compute_dtype": "float32"
    }  # fmt: skip
    return run_small(tmp_path_factory.mktemp("full"), model=model, adapter={"method": "full"})


def test_full_training_leaves_a_whole_model_and_no_adapter(whole):
    assert (whole / "model" / "config.json").is_file()
    assert not (whole / "adapter").exists()
    summary = read_json(whole / "summary.json")
    assert summary["trainable_parameters"] == summary["total_parameters"]


def test_a_fully_trained_model_is_saved_in_the_dtype_of_its_base_with_every_weight_changed(whole, half_base):
    before, after = (load_file(folder / "model.safetensors") for folder in (half_base, whole / "model"))
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert not [name for name in before if before[name].dim() > 1 and torch.equal(before[name], after[name])]


def test_a_fully_trained_model_can_be_talked_to(whole, capsys):
    speaker = load_for_inference(str(whole), device="cpu")
    assert speaker.target.adapter_dir is None
    assert speaker.tokenizer.chat_template
    with pytest.raises(SystemExit) as left:
        chat([str(whole), "--prompt", "Say number 1.", "--max-new-tokens", "3", "--json"])
    assert left.value.code == 0
    assert read_answer(capsys.readouterr().out)["prompt"] == "Say number 1."


def read_answer(output: str) -> dict[str, str]:
    answer: dict[str, str] = json.loads(output)
    return answer


# ---- rows


def test_held_out_rows_may_come_from_a_source_of_their_own(tmp_path):
    held_out = write_jsonl(tmp_path / "held_out.jsonl", make_rows(7))
    run = run_small(tmp_path, data__eval={"path": str(held_out)}, training__eval_steps=2)
    report = read_json(run / "data_report.json")
    assert report["eval"]["rows_read"] == 7
    assert report["train"]["rows_read"] == 60
    assert [line["step"] for line in read_lines(run) if "eval_loss" in line] == [0, 2, 4]


def test_two_sources_are_mixed_by_their_weights(tmp_path):
    first = write_jsonl(tmp_path / "first.jsonl", make_rows(30))
    second = write_jsonl(tmp_path / "second.jsonl", make_rows(30, "letter"))
    sources = [{"path": str(first), "weight": 3.0}, {"path": str(second), "weight": 1.0}]
    run = run_small(tmp_path, data__train=sources, training__max_steps=1)
    taken = [source["rows_taken"] for source in read_json(run / "data_report.json")["train"]["sources"]]
    assert taken == [30, 10]


@pytest.mark.slow
def test_the_recipe_for_ones_own_rows_runs_as_it_is_shipped(tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = Path("recipes/own_data.yaml")
    recipe = read_recipe(path, ["training.max_steps=2", f"output_dir={tmp_path}"])
    run = train(recipe, recipe_text=path.read_text())
    assert read_json(run / "summary.json")["steps"] == 2
    assert read_json(run / "data_report.json")["train"]["sources"][0]["path"] == str(CHATS.relative_to(ROOT))
    assert (run / "recipe.yaml").read_text() == path.read_text()


# ---- what is written on the way


@pytest.fixture(scope="module")
def watched(tiny_base, tmp_path_factory) -> Path:
    return run_small(
        tmp_path_factory.mktemp("watched"),
        data__eval={"fraction": 0.1},
        training__eval_steps=2,
        training__report_to=["tensorboard"],
        evaluation={"questions": {"path": str(ROWS), "limit": 3}, "num_samples": 2, "max_new_tokens": 3},
    )


def test_samples_have_a_section_for_every_evaluation(watched):
    text = (watched / "samples.md").read_text()
    assert re.findall(r"^## Step (\d+)$", text, re.MULTILINE) == ["0", "2", "4"]
    assert len(re.findall(r"^### \d+$", text, re.MULTILINE)) == 3 * 2


def test_every_line_of_the_metrics_holds_what_the_step_measured(watched):
    always = {"step", "tokens", "seconds", "peak_memory_bytes"}
    for line in read_lines(watched):
        assert always <= line.keys()
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
        if line["step"] > 0:
            assert {"loss", "learning_rate", "grad_norm", "epoch", "tokens_per_second"} <= line.keys()
        if line["step"] % 2 == 0:
            assert "eval_loss" in line
    assert "exact_match" in read_lines(watched)[0]


def test_a_tracker_of_the_recipe_gets_the_losses(watched):
    (events,) = watched.rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events.parent)).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4]
    logged = [line["loss"] for line in read_lines(watched) if "loss" in line]
    assert [event.value for event in found.Scalars("train/loss")] == pytest.approx(logged, rel=1e-6)
    assert len(read_lines(watched)[0]["questions_hash"]) == 64
    assert not [tag for tag in found.Tags()["tensors"] if "hash" in tag], "words are no figures"
