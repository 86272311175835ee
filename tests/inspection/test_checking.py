"""A run's tokens against today's: the same, or what differs and where."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from finetune.errors import CheckpointError, PlaceError
from finetune.inspection.checking import RunRecord, compare_tokens, read_run, without_evaluation
from finetune.prepare import prepare
from finetune.recipe.reading import build_recipe, to_resolved
from tests.inspection.small_previews import build_small_recipe, write_model_without_weights, write_rows

TEMPLATE = r"""{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '\nA: ' -}}{%- generation -%}{{- message['content'] ~ eos_token -}}{%- endgeneration -%}{{- '\n' -}}
{%- else -%}{{- 'Q: ' ~ message['content'] -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\nA: ' -}}{%- endif -%}"""
CENSUS = {"rows": 1, "tokens": 1, "trained_tokens": 1}
PACKAGES = {"transformers": "5.17.0", "tokenizers": "0.22.1"}


class World:
    """A run in its folder, and the files it was made from."""

    def __init__(self, place: Path, model: Path) -> None:
        self.run, self.rows, self.template = place / "outputs" / "small", place / "rows.jsonl", place / "own.jinja"
        self.template.write_text(TEMPLATE)
        self.write(3)
        self.recipe = build_small_recipe(model, self.rows, template=str(self.template), packing=False)
        self.run.mkdir(parents=True)
        self.record()

    def record(self) -> None:
        """Write what training writes of its rows."""
        (self.run / "resolved.json").write_text(json.dumps(to_resolved(self.recipe)))
        (self.run / "data_report.json").write_text(json.dumps(prepare(self.recipe).report))
        (self.run / "environment.json").write_text(json.dumps({"packages": PACKAGES}))

    def write(self, count: int, **changed: str) -> None:
        """Write so many rows; those named by `row_N` have another answer."""
        answers = [changed.get(f"row_{number}", "yes") for number in range(1, count + 1)]
        write_rows(self.rows, ({"instruction": f"Ask {n}", "output": answer} for n, answer in enumerate(answers)))

    def check(self, **packages: str):
        run = read_run(self.run)
        train = prepare(run.recipe).train
        return compare_tokens(run, train.report, train.account, PACKAGES | packages)


def find_changes(then: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Compare two reports of one row whose hashes differ."""
    account = Dataset.from_dict({"verdict": ["whole"], "source": ["a.jsonl"], "row": [1]})
    run, today = (
        {**report, "census": CENSUS, "label_hash": side, "ids_hash": side, "label_hash_blocks": [side]}
        for side, report in (("then", then), ("now", now))
    )
    recipe = build_small_recipe(Path("model"), Path("a.jsonl"))
    return compare_tokens(RunRecord(Path("run"), recipe, run, {}), today, account, {}).differences


@pytest.fixture
def world(tmp_path, tiny_base) -> World:
    return World(tmp_path, write_model_without_weights(tmp_path / "model", tiny_base))


def test_the_same_files_and_libraries_train_the_same_tokens(world):
    found = world.check()
    assert found.is_equal
    assert found.to_words() == (
        f"{world.run}: today the very same tokens would be trained (no library changed since the run)."
    )


def test_a_library_that_changed_is_named_though_the_tokens_are_the_same(world):
    found = world.check(tokenizers="0.23.0")
    assert found.is_equal
    assert found.to_words().endswith("(changed since the run: tokenizers 0.22.1 → 0.23.0).")


def test_a_mask_that_moved_in_the_template_is_found_though_every_id_is_the_same(world):
    moved = TEMPLATE.replace(
        r"eos_token -}}{%- endgeneration -%}{{- '\n' -}}", r"eos_token ~ '\n' -}}{%- endgeneration -%}"
    )
    assert moved != TEMPLATE
    world.template.write_text(moved)
    found = world.check()
    assert not found.is_equal
    assert found.differences[0] == (
        "the files hold the same rows: template, tokenizer, a library or our own code changed"
    )
    assert "the ids are the same; which of them are trained is not" in found.differences
    assert str(found.refuse()).startswith(f"{world.run}: today other tokens would be trained than this run trained.\n")


def test_a_word_that_changed_in_the_template_is_found(world):
    world.template.write_text(TEMPLATE.replace("Q: ", "A much longer question: "))
    found = world.check()
    assert not found.is_equal
    assert "the ids are the same; which of them are trained is not" not in found.differences
    assert any(difference.startswith("tokens: ") for difference in found.differences)


def test_a_change_in_what_is_trained_alone_is_told_as_such(world):
    resolved = json.loads((world.run / "resolved.json").read_text())
    resolved["data"]["train_on"] = "everything"
    (world.run / "resolved.json").write_text(json.dumps(resolved))
    found = world.check()
    assert "the ids are the same; which of them are trained is not" in found.differences
    assert any(difference.startswith("trained tokens: ") for difference in found.differences)
    assert not any(difference.startswith("tokens: ") for difference in found.differences)


def test_a_row_that_changed_is_found_in_its_thousand(world):
    world.write(1100)
    world.record()
    world.write(1100, row_1050="no")
    found = world.check()
    assert found.differences[0] == f"the rows' content: {world.rows} changed"
    assert found.differences[-1] == (
        f"the first difference is among rows 1,001 to 1,100 trained on: {world.rows}:1001 to {world.rows}:1100"
    )


def test_of_two_sources_of_one_path_the_changed_one_is_told():
    first, second = ({"path": "a.jsonl", "sha256": content} for content in ("11", "22"))
    then = {"content_fingerprint": "x", "sources": [first, second]}
    for today in ([second, second], [first, first], [first]):
        (said, *_) = find_changes(then, {"content_fingerprint": "y", "sources": today})
        assert said == "the rows' content: a.jsonl changed"
    (said, *_) = find_changes(then, {"content_fingerprint": "y", "sources": [first, second]})
    assert said == "the rows' content: what is taken of the files changed"


def test_rows_that_are_more_or_fewer_are_counted(world):
    world.write(2)
    assert "rows trained on: 3 in the run, 2 today" in world.check().differences


def test_for_programs_both_hashes_and_what_differs(world):
    world.write(2)
    told = world.check(transformers="6.0").to_object()
    assert told["equal"] is False
    assert told["label_hash"]["run"] != told["label_hash"]["today"]
    assert told["changed_packages"] == {"transformers": {"run": "5.17.0", "today": "6.0"}}


def test_a_folder_that_is_no_run_names_those_beside_it(world):
    with pytest.raises(PlaceError) as refused:
        read_run(world.run.parent / "smal")
    assert str(refused.value) == f"{world.run.parent / 'smal'} holds no run (resolved.json).\n  There are: {world.run}."


@pytest.mark.parametrize("name", ["label_hash", "census"])
def test_a_record_without_its_hash_is_refused_and_not_taken_for_equal(world, name):
    path = world.run / "data_report.json"
    report = json.loads(path.read_text())
    del report["train"][name]
    path.write_text(json.dumps(report))
    with pytest.raises(CheckpointError, match="records no label hash, so there is nothing to compare with"):
        read_run(world.run)


def test_a_record_that_is_torn_is_refused(world):
    (world.run / "resolved.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"resolved\.json is not JSON"):
        read_run(world.run)


def test_a_recipe_that_cannot_be_read_today_is_refused_with_its_faults(world):
    resolved = json.loads((world.run / "resolved.json").read_text())
    resolved["data"]["max_lenght"] = 5
    (world.run / "resolved.json").write_text(json.dumps(resolved))
    with pytest.raises(CheckpointError, match=r"(?s)cannot be read today.*max_lenght"):
        read_run(world.run)


def test_what_is_only_evaluated_on_is_left_aside_and_a_fraction_held_out_is_not(world):
    source = {"path": str(world.rows)}
    asked = {"questions": source, "preferences": source, "general_text": source}
    resolved = to_resolved(world.recipe)
    resolved |= {"evaluation": resolved["evaluation"] | asked, "data": resolved["data"] | {"eval": source}}
    left = without_evaluation(build_recipe(resolved))
    assert left.data.eval is None
    assert [left.evaluation.questions, left.evaluation.preferences, left.evaluation.general_text] == [None] * 3
    held_out = build_recipe(resolved | {"data": resolved["data"] | {"eval": {"fraction": 0.5}}})
    assert without_evaluation(held_out).data == held_out.data
