"""Whoever opens a classifier gets the logits it had in training, and what it is not is told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from finetune import chat, export
from finetune.model.heads import LabelSpace
from finetune.model.targets import find_target
from finetune.objectives.classify import LabelTrainer
from tests.conftest import ROOT
from tests.end_to_end.small_classifiers import (
    ASKED,
    DOCUMENTS,
    LORA,
    PRAISE,
    build_sentences,
    learn,
    run_small,
    write_rows,
)

# ---- opened again


REOPENED = {
    # name: base, settings; each is trained a few steps, so that nothing is at its start.
    "lora": ("encoder", {}),
    "ia3": ("encoder", {"adapter": {"method": "ia3"}}),
    "bitfit": ("encoder", {"adapter": {"method": "bitfit"}}),
    "full": ("encoder", {"adapter": {"method": "full"}}),
    "top_k": ("encoder", {"adapter": {"method": "top_k", "layers": 1}}),
    "bottleneck": ("encoder", {"adapter": {"method": "bottleneck", "size": 4}}),
    "prompt_tuning": ("encoder", {"adapter": {"method": "prompt_tuning", "num_virtual_tokens": 3}}),
    "nf4": ("encoder", {"model__quantization": "nf4"}),
    "decoder lora": ("decoder", {}),
    "decoder full": ("decoder", {"adapter": {"method": "full"}}),
    "decoder nf4": ("decoder", {"model__quantization": "nf4"}),
    "decoder number": ("decoder", {"classification__problem_type": "regression"}),
}
WHOLE = ("full", "top_k", "decoder full")
UNMERGED = {"bottleneck": "it puts a function that is not linear", "prompt_tuning": "and changes no weight"}
MERGED = sorted(REOPENED.keys() - UNMERGED.keys() - set(WHOLE))


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory, reviews, asked) -> dict[str, tuple[Path, np.ndarray]]:
    """Runs by name, with the logits that each one's trainer gave for the rows asked about."""
    place = tmp_path_factory.mktemp("trained")
    rows = [{"text": text, "label": float(word in PRAISE)} for text, word in build_sentences()]
    numbers = write_rows(place / "numbers.jsonl", rows)
    runs, given = {}, []
    predict_logits = LabelTrainer.predict_logits

    def keep(self, rows):
        given.append(predict_logits(self, rows))
        return given[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelTrainer, "predict_logits", keep)
        for name, (base, settings) in REOPENED.items():
            rows = numbers if "number" in name else reviews
            common = {"data__train": {"path": rows}, "classification__predict": {"path": asked}}
            run = run_small(place / name.replace(" ", "_"), request.getfixturevalue(base), **common | settings)
            runs[name] = (run, given[-1])
    return runs


def test_every_row_asked_about_is_labelled_in_its_order(trained, asked):
    for name, (run, logits) in trained.items():
        lines = [json.loads(line) for line in (run / "predictions" / "predictions.jsonl").read_text().splitlines()]
        assert [(line["source"], line["row"]) for line in lines] == [(asked, row + 1) for row in range(len(ASKED))]
        if "number" in name:
            assert [line["label"] for line in lines] == pytest.approx(logits[:, 0].tolist(), abs=1e-5)
            continue
        assert [line["label"] for line in lines] == [["blame", "praise"][place] for place in logits.argmax(-1)]
        shares = torch.tensor(logits).softmax(-1)
        assert [line["scores"]["praise"] for line in lines] == pytest.approx(shares[:, 1].tolist(), abs=1e-5)


# What a card says, run as it stands there, and our own way: each gives the logits of the texts as one padded batch.
OPEN = """
import json, sys
from pathlib import Path
import torch
from finetune.model.loading import load_target
from finetune.model.targets import find_target

texts, runs = json.loads(sys.argv[1]), json.loads(sys.argv[2])

@torch.no_grad()
def give(model, tokenizer):
    return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()

found = {}
for name, run in runs.items():
    speaker = load_target(find_target(run, device="cpu"), talks=False)
    found[name] = {"ours": give(speaker.model, speaker.tokenizer)}
    if "nf4" in name:
        continue
    folder = next(path for path in (Path(run) / "adapter", Path(run) / "model") if path.is_dir())
    code = (folder / "README.md").read_text().split("```python\\n")[1].split("```")[0]
    names = {}
    exec(code.replace("path/to/this/folder", str(folder)), names)
    found[name]["card"] = give(names["model"], names["tokenizer"])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_logits_of_the_training(trained):
    runs = {name: str(run) for name, (run, _) in trained.items()}
    command = [sys.executable, "-W", "ignore", "-c", OPEN, json.dumps(ASKED), json.dumps(runs)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for name, (_, logits) in trained.items():
        assert np.ptp(logits, axis=0).min() > 1e-3, f"{name}: the texts are told apart"
        for way, given in found[name].items():
            assert np.abs(np.array(given) - logits).max() < 1e-5, (name, way)
    assert {"ours", "card"} == {way for name in found for way in found[name]}


def serve(folder: Path, texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Ask transformers' pipeline for all texts as one batch: logits in the order of the outputs, and labels."""
    pipe = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
    places = pipe.model.config.label2id
    answers = pipe(texts, top_k=None, function_to_apply="none", batch_size=len(texts))
    logits = np.empty((len(texts), len(places)))
    for row, answer in enumerate(answers):
        for one in answer:
            logits[row, places[one["label"]]] = one["score"]
    return logits, [answer["label"] for answer in pipe(texts, batch_size=len(texts))]


@pytest.mark.parametrize("name", MERGED)
def test_an_exported_adapter_gives_them_through_transformers_pipeline(trained, tmp_path, capsys, name):
    run, logits = trained[name]
    with pytest.raises(SystemExit) as left:
        export.main([str(run), "--merge", str(tmp_path / "whole"), "--dtype", "float32", "--device", "cpu"])
    assert left.value.code == 0, capsys.readouterr().err
    served, labels = serve(tmp_path / "whole", ASKED)
    # What was held in 4 bits is exported as the numbers it stood for.
    assert np.abs(served - logits).max() < (1e-4 if "nf4" in name else 1e-5)
    if "number" not in name:
        assert labels == [["blame", "praise"][place] for place in logits.argmax(-1)]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_gives_them_through_transformers_pipeline(trained, name):
    run, logits = trained[name]
    served, labels = serve(run / "model", ASKED)
    assert np.abs(served - logits).max() < 1e-5
    assert labels == [["blame", "praise"][place] for place in logits.argmax(-1)]


@pytest.mark.parametrize("name", UNMERGED)
def test_what_is_no_change_of_weights_is_not_exported_and_says_why(trained, tmp_path, capsys, name):
    with pytest.raises(SystemExit) as left:
        export.main([str(trained[name][0]), "--merge", str(tmp_path / "whole")])
    assert left.value.code == 2
    assert UNMERGED[name] in capsys.readouterr().err
    assert not (tmp_path / "whole").exists()


def test_a_regressor_away_from_its_run_is_no_reward_model(trained, tmp_path):
    adapter = shutil.copytree(trained["decoder number"][0] / "adapter", tmp_path / "adapter")
    target = find_target(str(adapter), device="cpu")
    assert (target.ends_with, target.labels) == ("labels", LabelSpace(None))


# ---- what it is for others


def test_a_name_says_what_it_ends_with_wherever_it_lies(trained, tmp_path):
    for name, (run, _) in trained.items():
        labels = LabelSpace(None) if "number" in name else LabelSpace(("blame", "praise"))
        for place in (run, run / ("model" if name in WHOLE else "adapter")):
            target = find_target(str(place), device="cpu")
            assert target.ends_with == "labels", place
            assert target.labels == (None if name in WHOLE else labels)
            assert target.method == REOPENED[name][1].get("adapter", LORA)["method"]
        if name in WHOLE:
            copied = shutil.copytree(run / "model", tmp_path / name)
            assert find_target(str(copied), device="cpu").ends_with == "labels"
        else:
            copied = shutil.copytree(run / "adapter", tmp_path / name)
            target = find_target(str(copied), device="cpu")
            assert (target.ends_with, target.labels) == ("labels", labels), name


@pytest.mark.parametrize("what", ["lora", "full", "decoder number"])
def test_a_classifier_is_nothing_to_talk_to(trained, capsys, what):
    with pytest.raises(SystemExit) as left:
        chat.main([str(trained[what][0]), "--prompt", "What colour is a lemon?"])
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert f"{trained[what][0]} is a classifier: it gives labels and no answers." in told
    assert "docs/classification.md" in told


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_encoder_is_nothing_to_talk_to_either_and_says_so_wherever_it_lies(tmp_path, encoder, capsys, method):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text, _ in build_sentences()])
    settings = {} if method == "lora" else {"adapter": {"method": "full"}}
    run = run_small(tmp_path, encoder, **DOCUMENTS, data__train={"path": texts}, **settings)
    result = run / ("adapter" if method == "lora" else "model")
    copied = shutil.copytree(result, tmp_path / "copied")
    for place in (run, result, copied):
        assert find_target(str(place), device="cpu").ends_with == "masked", place
    for place in (run, copied):
        with pytest.raises(SystemExit) as left:
            chat.main([str(place), "--prompt", "What colour is a lemon?"])
        assert left.value.code == 2
        assert f"{place} is an encoder: it restores masked tokens and gives no answers." in capsys.readouterr().err


@pytest.mark.slow
def test_a_classifier_is_trained_on_an_encoder_of_ones_own(tmp_path, encoder, reviews):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text, _ in build_sentences()])
    run = run_small(
        tmp_path, encoder, **DOCUMENTS, name="own", data__train={"path": texts}, adapter={"method": "full"},
        training__learning_rate=1e-3,
    )  # fmt: skip
    assert learn(tmp_path, run / "model", reviews)["score"] > 0.8
