"""recipes/classify_sst2.yaml as it is shipped, from a stand-in hub: what a user types, up to the label."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaConfig, RobertaForMaskedLM, set_seed

from tests.end_to_end.hub_of_folders import COMMIT, serve_folders

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 120
EVERY, PATIENCE = 3, 12  # eval_steps is 0.025 of all steps; early_stopping_patience
GOOD, BAD = ("fine", "bright", "moving"), ("dull", "stale", "empty")
# 48 sentences to train on, 12 to be scored on, 6 without a label; as on the Hub, -1 stands for none.
SEEN, UNSEEN = ("film", "play", "book", "song", "tale", "poem", "joke", "dance"), ("story", "opera")
TRAIN = [(f"{word} {noun}", label) for noun in SEEN for label, words in enumerate((BAD, GOOD)) for word in words]
EVAL = [(f"{word} {noun}", label) for noun in UNSEEN for label, words in enumerate((BAD, GOOD)) for word in words]
TEST = [(f"{word} show", -1) for word in GOOD + BAD]
CARD = """---
configs:
- config_name: sst2
  data_files:
  - {split: train, path: sst2/train-*}
  - {split: validation, path: sst2/validation-*}
  - {split: test, path: sst2/test-*}
---
"""
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

# One process types both commands and opens what they made; starting one costs more than all of it.
PROGRAM = """
import json, sys
from pathlib import Path

from finetune.__main__ import main

outputs, texts = sys.argv[1], json.loads(sys.argv[2])
run, merged = f"{outputs}/shipped", f"{outputs}/merged"


def type_command(*arguments):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, end.code


type_command(
    "classify",
    "recipes/classify_sst2.yaml", f"training.max_steps={sys.argv[3]}", f"output_dir={outputs}", "name=shipped",
)
type_command("export", run, "--merge", merged, "--dtype", "float32")

import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

told = {"labels": [answer["label"] for answer in pipeline("text-classification", model=merged)(texts)]}
whole = pipeline("text-classification", model=merged, device="cpu", dtype=torch.float32)
told["whole"] = [
    [one["score"] for one in sorted(answer, key=lambda one: whole.model.config.label2id[one["label"]])]
    for answer in whole(texts, top_k=None, function_to_apply="none")
]
tokenizer = AutoTokenizer.from_pretrained(f"{run}/adapter")
model = AutoPeftModelForSequenceClassification.from_pretrained(
    f"{run}/adapter", num_labels=2, dtype=torch.float32
).eval()
with torch.no_grad():
    told["adapter"] = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()
try:
    pipeline("text-classification", model=f"{run}/adapter")
    told["adapter_folder"] = "opened"
except Exception as error:
    told["adapter_folder"] = str(error)
(Path(run) / "adapter" / "config.json").unlink()  # as other tools leave an adapter
told["drawn"] = []
for _ in range(2):
    drawn = pipeline("text-classification", model=f"{run}/adapter", device="cpu", dtype=torch.float32)
    told["drawn"].append([one["score"] for one in drawn(texts[0], top_k=None, function_to_apply="none")])
print(json.dumps(told))
"""


def write_model(folder: Path) -> None:
    """A RoBERTa of two layers under the real one's name, with a tokenizer of its kind that has read the rows."""
    folder.mkdir(parents=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text for text, _ in TRAIN + EVAL + TEST], vocab_size=400, special_tokens=SPECIAL)
    bpe.save_model(str(folder))  # vocab.json and merges.txt, as the real one has
    set_seed(0)
    config = RobertaConfig(
        vocab_size=bpe.get_vocab_size(), hidden_size=128, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(folder)


def write_rows(folder: Path) -> None:
    """The task sst2 in the layout of the Hub's own repository."""
    (folder / "sst2").mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    label = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")})
    for split, rows in (("train", TRAIN), ("validation", EVAL), ("test", TEST)):
        columns = {"sentence": [text for text, _ in rows], "label": [label for _, label in rows]}
        table = datasets.Dataset.from_dict(columns | {"idx": list(range(len(rows)))}, features=features)
        table.to_parquet(folder / "sst2" / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run's folder, and what the program told."""
    hub, home, outputs = (tmp_path_factory.mktemp(name) for name in ("hub", "home", "outputs"))
    write_model(hub / "models" / "FacebookAI" / "roberta-base")
    write_rows(hub / "datasets" / "nyu-mll" / "glue")
    dropped = ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    with serve_folders(hub) as address:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(outputs), json.dumps([text for text, _ in EVAL]), str(STEPS)],
            cwd=ROOT,
            env=environment | {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    return outputs / "shipped", json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def run(finished: tuple[Path, dict[str, Any]]) -> Path:
    return finished[0]


@pytest.fixture(scope="module")
def told(finished: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return finished[1]


def test_the_recipe_runs_as_shipped_on_the_hubs_rows(run):
    report = json.loads((run / "data_report.json").read_text())
    assert report["train"]["labels"] == {"negative": 24, "positive": 24}
    assert report["train"]["sources"][0]["path"] == "nyu-mll/glue"
    assert report["train"]["census"]["cut"] == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["metric"], summary["eval_rows"]) == ("done", "accuracy", len(EVAL))
    assert summary["majority_score"] == 0.5
    assert json.loads((run / "identity.json").read_text())["base_commit"] == COMMIT


def test_the_development_rows_are_scored_along_the_way_and_the_best_step_is_kept(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["eval_score"] for line in lines if line["step"] > 0 and "eval_score" in line}
    summary = json.loads((run / "summary.json").read_text())
    best = max(scores, key=lambda step: (scores[step], -step))  # of equal ones the first
    assert summary["best_step"] == best
    assert summary["score"] == pytest.approx(scores[best])
    assert summary["score"] > summary["majority_score"]
    assert list(scores) == list(range(EVERY, summary["steps"] + 1, EVERY))
    assert summary["steps"] in (STEPS, best + PATIENCE * EVERY)


def test_adapter_and_head_alone_are_trained(run):
    # Query and value of two layers with rank 8; the head's dense layer and its two outputs.
    low_rank, head = 2 * 2 * 8 * (128 + 128), 128 * 128 + 128 + 128 * 2 + 2
    assert json.loads((run / "summary.json").read_text())["trainable_parameters"] == low_rank + head


def test_the_exported_model_labels_in_a_pipeline_as_it_was_scored_in_training(run, told):
    right = [answer == ("negative", "positive")[label] for answer, (_, label) in zip(told["labels"], EVAL, strict=True)]
    # In training the products may have been bfloat16: rows whose two logits are next to equal may fall either way.
    num_doubtful = sum(abs(positive - negative) < 0.05 for negative, positive in told["whole"])
    score = json.loads((run / "summary.json").read_text())["score"]
    assert abs(sum(right) - score * len(EVAL)) <= num_doubtful < len(EVAL) / 2


def test_plain_peft_and_the_exported_model_give_the_same_logits(told):
    adapter, whole = torch.tensor(told["adapter"]), torch.tensor(told["whole"])
    assert adapter.std() > 0.1
    # The export merges into the weights as the run held them, in bfloat16 where the processor has it.
    torch.testing.assert_close(adapter, whole, atol=0.02, rtol=0)


def test_the_adapters_folder_is_no_model_for_a_pipeline_and_another_tools_would_get_a_head_by_lot(told):
    assert "model.safetensors" in told["adapter_folder"]
    first, second = torch.tensor(told["drawn"])
    assert (first - second).abs().max() > 0.01
