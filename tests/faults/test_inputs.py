"""The measures on inputs, shortened: drawn recipes, typos, values, hostile files, broken rows, traps and canaries.

The whole of them, by the thousand: `python -m tests.faults`.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from finetune.recipe.reading import read_recipe
from tests.faults.inputs_canaries import judge_canary
from tests.faults.inputs_fuzzing import draw_recipe
from tests.faults.inputs_hostile import KINDS as HOSTILE
from tests.faults.inputs_hostile import build_hostile
from tests.faults.inputs_planting import draw_rows, list_kinds
from tests.faults.inputs_recipes import judge_hostile, judge_recipe
from tests.faults.inputs_rows import cache_in, judge_rows
from tests.faults.inputs_security import judge_malicious, write_victim
from tests.faults.inputs_typos import KINDS, Key, Typo, judge, list_typos
from tests.faults.inputs_values import CASES, judge_value
from tests.faults.measures import Rig

RIG = Rig(seed=7, work_dir=Path())


def only(wrong: Iterable[tuple[object, str]]) -> list[tuple[object, str]]:
    return [(case, said) for case, said in wrong if said]


def test_100_fuzzed_recipes_are_read_and_read_again_or_told_in_one_message(tmp_path):
    verdicts = []
    for case in range(100):
        drawn = draw_recipe(RIG.draw("fuzzed_recipes", case))
        (tmp_path / "recipe.yaml").write_bytes(drawn.content)
        verdicts.append((drawn, judge_recipe(tmp_path / "recipe.yaml", drawn.overrides)))
    assert not only((drawn, verdict.wrong) for drawn, verdict in verdicts)
    # Both ways are walked, or the fuzzing shows nothing.
    assert 10 <= sum(verdict.accepted for _, verdict in verdicts) <= 67
    assert sum(verdict.has_line for _, verdict in verdicts) >= 50


def test_of_200_typos_of_any_key_95_in_100_are_told_with_the_right_key_first(tmp_path):
    typos = list_typos(7)[:200]
    wrong = only((typo.key.name, judge(typo, tmp_path)[1]) for typo in typos)
    assert {typo.kind for typo in typos} == set(KINDS)
    assert len(wrong) <= 10, wrong


def test_a_typo_is_judged_by_its_line_and_by_the_key_that_comes_first(tmp_path):
    key = Key(("training",), "beta", frozenset({"beta"}), (("objective", "dpo"),))
    assert judge(Typo(key, "replacement", "betb"), tmp_path) == (True, "")
    is_right, said = judge(Typo(key, "insertion", "nothing_like_it"), tmp_path)
    assert not is_right and "beta" in said


def test_odd_values_are_what_yaml_1_2_says_or_told_with_the_type_that_is_wanted(tmp_path):
    assert not only((case, judge_value(case, tmp_path)) for case in CASES)


def test_hostile_files_are_refused_at_once_and_nothing_is_executed(tmp_path):
    wrong = []
    for kind in HOSTILE:
        content = build_hostile(kind, RIG.draw(kind, 0), str(tmp_path / "executed"))
        content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        wrong.append((kind, judge_hostile(tmp_path / "recipe.yaml", content, tmp_path / "executed")))
    assert not only(wrong)


@pytest.mark.parametrize("section", ["data.eval", "adapter.parts.0"])
def test_a_group_that_is_known_by_one_key_is_told_when_that_key_is_misspelled(section, tmp_path):
    name = {"data.eval": "fraction", "adapter.parts.0": "method"}[section]
    decides = (("adapter.method", "combined"),) if "parts" in section else ()
    path = tuple(int(part) if part.isdecimal() else part for part in section.split("."))
    typo = Typo(Key(path, name, frozenset({name}), decides), "deletion", name[:2] + name[3:])
    assert judge(typo, tmp_path) == (True, "")


@pytest.mark.parametrize(
    "lines",
    [
        "model: {model_name_or_path: a/b, backend: unsloth}\nadapter: [lora]",
        "model: {model_name_or_path: a/b, backend: unsloth}\nadapter: {target_modules: '(q'}",
        "model: {model_name_or_path: a/b}\nobjective: classify\nclassification: {task: [sst2]}",
        "model: {model_name_or_path: a/b}\nadapter: {method: combined, parts: [{method: [lora]}, {method: p_tuning}]}",
        "model: {model_name_or_path: a/b}\nobjective: rloo\nadapter: {method: [lora]}\nrewards: [{function: json}]",
    ],
)
def test_a_value_of_another_kind_is_told_and_not_tripped_over(lines, tmp_path):
    # Each of these was a traceback once.
    (tmp_path / "recipe.yaml").write_text(f"name: x\n{lines}\ndata: {{train: {{path: rows.jsonl}}}}\n")
    verdict = judge_recipe(tmp_path / "recipe.yaml")
    assert (verdict.wrong, verdict.accepted) == ("", False)


def test_a_line_is_counted_as_an_editor_counts_it(tmp_path):
    # PyYAML ends a line at U+2028 and U+0085 too.
    (tmp_path / "recipe.yaml").write_text("name: x # \u2028 \u0085 #\nmodel: {model_name_or_path: a/b}\nbogus: 1\n")
    with pytest.raises(Exception, match=r"recipe.yaml:3: a recipe has no setting `bogus`"):
        read_recipe(tmp_path / "recipe.yaml")


def test_60_files_with_a_fault_planted_are_told_by_file_line_and_reason_and_counted_where_skipped(tmp_path):
    kinds = list_kinds()
    with cache_in(tmp_path / "cache"):
        planted = [draw_rows(RIG.draw("rows", case), kinds[case % len(kinds)]) for case in range(60)]
        assert not only(((one.kind, one.shape), judge_rows(one, tmp_path)) for one in planted)


def test_rows_rewritten_with_the_same_size_and_time_are_tokenized_anew(tiny_base, tmp_path):
    from finetune.data.rendering import Renderer
    from finetune.data.sources import load_examples
    from finetune.data.templates import load_template
    from finetune.data.tokens import build_token_rows
    from finetune.model.tokenizer import load_tokenizer
    from finetune.recipe.schema import ModelSettings, SourceSettings

    path, tokenizer = tmp_path / "rows.jsonl", load_tokenizer(ModelSettings(model_name_or_path=str(tiny_base)))
    renderer = Renderer(load_template("alpaca", tokenizer), tokenizer)

    def tokenize(answer: str) -> list[int]:
        path.write_text(f'{{"instruction": "Say it.", "output": "{answer}"}}\n')
        os.utime(path, (1_700_000_000, 1_700_000_000))
        loaded = load_examples(SourceSettings(path=str(path)), kind="conversation", seed=0, on_bad_rows="error")
        return build_token_rows(loaded, renderer, max_length=128, too_long="drop").dataset[0]["input_ids"]

    with cache_in(tmp_path / "cache"):
        first, other, again = tokenize("red"), tokenize("two"), tokenize("red")
    assert first == again != other


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> Path:
    return write_victim(tmp_path_factory.mktemp("victim"))


@pytest.mark.parametrize(
    "kind",
    [
        "a pickle as the adapter, opened to chat",
        "a pickle named safetensors, trained on",
        "malformed safetensors, opened to chat",
        "a template that breaks out",
        "a base in pickles that are allowed",
        "a pickle in a checkpoint, resumed",
    ],
)
def test_a_file_that_would_run_code_is_not_executed(kind, victim, tmp_path):
    assert judge_malicious(kind, victim, tmp_path, RIG.draw(kind, 0)) == ""


_FAILING = "environment and argument, diverging, --debug"


@pytest.mark.parametrize("place", [_FAILING, "environment and row, --debug", "recipe comment", "override, --debug"])
def test_a_secret_is_in_no_file_and_no_stream_of_the_run(place, tmp_path):
    assert judge_canary(place, tmp_path, RIG.draw(place, 0)) == ("", 0)
