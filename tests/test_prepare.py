"""What a run does with its rows before a weight is loaded: faults found and dealt with, the template held to itself."""

import json
from pathlib import Path

import pytest

from finetune.errors import DataError, RecipeError
from finetune.prepare import Prepared, prepare
from finetune.recipe.reading import read_recipe

ROOT = Path(__file__).parents[1]
RECIPE = f"""\
name: small
objective: {{objective}}
model: {{{{model_name_or_path: {ROOT / "data" / "tiny_base"}, device: cpu}}}}
data:
  train: {{{{path: rows.jsonl}}}}
"""
REPEATED = [("Name a colour.", "Blue."), ("Name a number.", "Seven."), ("Name a  colour.", "Blue. ")]


@pytest.fixture
def prepare_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def prepare_recipe(rows: list[dict], *overrides: str, objective: str = "sft") -> Prepared:
        template = () if objective == "classify" else ("data.template=alpaca",)
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path("r.yaml").write_text(RECIPE.format(objective=objective))
        return prepare(read_recipe(Path("r.yaml"), [*template, *overrides]))

    return prepare_recipe


def to_rows(pairs: list[tuple[str, str]]) -> list[dict]:
    return [{"instruction": asked, "output": answer} for asked, answer in pairs]


def names(prepared: Prepared) -> dict[str, int]:
    return {one["name"]: one["count"] for one in prepared.report["train"]["findings"]}


def test_a_finding_is_reported_and_every_row_stays(prepare_rows, caplog):
    prepared = prepare_rows(to_rows(REPEATED))
    assert names(prepared) == {"duplicates": 1}
    (finding,) = prepared.report["train"]["findings"]
    assert finding["examples"][0]["places"] == ["rows.jsonl:3", "rows.jsonl:1"]
    assert (finding["policy"], finding["rows_dropped"]) == ("report", 0)
    assert prepared.report["train"]["census"]["rows"] == 3
    assert "duplicates: 1, rows.jsonl:3" in caplog.text


def test_rows_that_a_finding_drops_are_neither_trained_nor_forgotten(prepare_rows):
    whole = prepare_rows(to_rows(REPEATED))
    prepared = prepare_rows(to_rows(REPEATED), "data.findings.duplicates=drop")
    assert prepared.train.account["row"][:] == [1, 2]
    assert prepared.report["train"]["rows_dropped"] == 1
    (finding,) = prepared.report["train"]["findings"]
    assert finding["dropped"] == {"rows.jsonl": [3]}, "the report does not name every row that is gone"
    assert prepared.train.fingerprint != whole.train.fingerprint
    assert prepared.report["train"]["label_hash"] != whole.report["train"]["label_hash"]


def test_a_finding_whose_policy_is_error_stops_with_its_place(prepare_rows):
    with pytest.raises(DataError, match=r"rows\.jsonl:3: duplicates: 1") as error:
        prepare_rows(to_rows(REPEATED), "data.findings.duplicates=error")
    assert "`data.findings: {duplicates: drop}` or `data.findings: {duplicates: report}`" in str(error.value)


def test_null_looks_for_nothing_and_says_so(prepare_rows, caplog):
    caplog.set_level("INFO")
    prepared = prepare_rows(to_rows(REPEATED), "data.findings=null")
    assert "findings" not in prepared.report["train"]
    assert "`data.findings` is null" in caplog.text


def test_training_rows_that_stand_among_those_held_out_are_found_and_dropped(prepare_rows, tmp_path):
    (tmp_path / "held.jsonl").write_text(json.dumps({"instruction": "Name a number.", "output": "Nine."}) + "\n")
    held = "data.eval={path: held.jsonl}"
    assert names(prepare_rows(to_rows(REPEATED[:2]), held)) == {"eval_overlap": 1}
    prepared = prepare_rows(to_rows(REPEATED[:2]), held, "data.findings.eval_overlap=drop")
    assert prepared.train.account["row"][:] == [1]
    assert len(prepared.held_out.account) == 1


def test_questions_that_score_the_run_are_compared_with_the_training_rows(prepare_rows, tmp_path):
    (tmp_path / "asked.jsonl").write_text(json.dumps({"instruction": "Name a number.", "output": "Nine."}) + "\n")
    prepared = prepare_rows(to_rows(REPEATED[:2]), "evaluation.questions={path: asked.jsonl}")
    assert names(prepared) == {"eval_overlap": 1}


def test_labelled_rows_and_pairs_are_looked_at_too(prepare_rows):
    rows = [{"text": "fine", "label": "good"}, {"text": "bad", "label": "poor"}, {"text": "fine ", "label": "poor"}]
    encoder = f"model={{model_name_or_path: {ROOT / 'data' / 'tiny_encoder'}, quantization: none, device: cpu}}"
    assert names(prepare_rows(rows, encoder, objective="classify")) == {"conflicting_answers": 1}
    pairs = [{"prompt": f"Say {n}", "chosen": "long words " * 9, "rejected": f"no {n}"} for n in range(40)]
    assert "length_bias" in names(prepare_rows(pairs, objective="dpo"))


def test_a_template_whose_server_would_read_other_tokens_is_refused_before_any_row(prepare_rows, tmp_path):
    (tmp_path / "own.jinja").write_text(
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}Q: {{ message.content }}\nA:"
        "{% else %}{% generation %} {{ message.content if loop.last else message.content | trim }}{{ eos_token }}"
        "{% endgeneration %}{% endif %}{% endfor %}"
    )
    with pytest.raises(RecipeError, match=r"own\.jinja"):
        prepare_rows(to_rows(REPEATED), "data.template=own.jinja")
