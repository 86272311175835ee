"""The verb preview: rows as they are trained, from the tokenizer alone."""

import json
import re
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from finetune import preview
from finetune.data.encoding import Encoder
from finetune.errors import RecipeError
from finetune.planning.rows import find_rows
from finetune.prepare import prepare
from finetune.recipe.reading import read_recipe, to_resolved
from tests.inspection.small_previews import LONG, write_model_without_weights, write_rows

RECIPE = """
name: small
objective: sft
model: {model_name_or_path: model, device: cpu}
data: {train: {path: rows.jsonl}, template: alpaca, max_length: 100, packing: false}
"""
ROWS = [
    {"instruction": "Which fruit is yellow?", "output": "lemon"},
    {"instruction": "Tell all", "output": LONG},
    {"instruction": "Say </s> twice", "output": "</s></s>"},
]


@pytest.fixture
def place(tmp_path, tiny_base, monkeypatch) -> Path:
    """A folder with a recipe, rows and a model without weights, to run the verb in."""
    monkeypatch.chdir(tmp_path)
    write_model_without_weights(tmp_path / "model", tiny_base)
    write_rows(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def run(place, capfd):
    """Run the verb; gives exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as left:
            preview.main(list(arguments))
        return left.value.code, *capfd.readouterr()

    return run


def test_the_tokenizer_alone_is_enough(run, place):
    assert not [path for path in place.rglob("*") if path.suffix in (".safetensors", ".bin")]
    code, out, err = run("recipe.yaml", "--rows", "1")
    assert code == 0, err
    assert "Which fruit is yellow?↵\n↵\n### Response:↵\n⟦lemon❮</s>❯⟧\n" in out
    assert "dropped: longer than max_length" in out
    assert "\x1b" not in out


def test_json_is_one_object_with_the_very_ids_that_are_trained(run):
    code, out, err = run("recipe.yaml", "--json", "--rows", "9")
    assert code == 0, err
    told = json.loads(out)
    train = prepare(read_recipe(Path("recipe.yaml"))).train
    assert [row["ids"] for row in told["rows"]] == [row["input_ids"] for row in train.dataset]
    assert [row["row"] for row in told["rows"]] == [1, 3]
    assert {row["source"] for row in told["rows"]} == {"rows.jsonl"}
    for row, labels in zip(told["rows"], train.dataset["labels"], strict=True):
        assert row["trained"] == [label != -100 for label in labels]
    assert told["label_hash"] == train.report["label_hash"]
    assert {"rows", "tokens", "trained_tokens", "dropped", "cut"} <= set(told["census"])
    assert (told["census"]["rows"], told["census"]["dropped"], told["census"]["cut"]) == (2, 1, 0)
    assert told["census"]["trained_tokens"] == sum(sum(row["trained"]) for row in told["rows"])


def test_rows_picks_what_is_shown_and_the_census_covers_all(run):
    none, one = (json.loads(run("recipe.yaml", "--json", "--rows", count)[1]) for count in "01")
    assert (none["rows"], len(one["rows"])) == ([], 1)
    assert none["census"] == one["census"]


def test_rows_that_a_plan_does_not_know_are_counted_without_one_being_shown(run):
    recipe = read_recipe(Path("recipe.yaml"))
    with pytest.raises(RecipeError, match=r"finetune\.preview RECIPE --rows 0"):
        find_rows(recipe)
    code, out, err = run("recipe.yaml", "--rows", "0")
    assert code == 0, err
    assert "── row " not in out
    assert find_rows(recipe).num_rows == 2


def test_an_override_changes_what_is_shown(run):
    told = json.loads(run("recipe.yaml", "data.train_on=everything", "--json", "--rows", "1")[1])
    assert told["rows"][0]["trained"] == [False] + [True] * (len(told["rows"][0]["ids"]) - 1)


def test_a_row_is_found_by_its_number_or_its_place_and_a_dropped_one_says_why(run):
    for wanted in ("2", "rows.jsonl:2"):
        assert "── row 2 · rows.jsonl:2 · dropped: it has " in run("recipe.yaml", "--row", wanted)[1]
    for wanted in ("4", "rows.jsonl:4", "0"):
        code, out, err = run("recipe.yaml", "--row", wanted)
        assert (code, out) == (2, "")
        assert f"--row {wanted}: there is no such row among the 3 examples to train on." in err
        assert "such as rows.jsonl:1." in err


def test_a_row_that_is_not_there_says_what_it_may_have_become(run, place):
    same, others = [ROWS[0]] * 3, [{"instruction": f"Tell {n}", "output": f"{n}."} for n in range(3)]
    write_rows(place / "rows.jsonl", [*same, {"instruction": "No answer"}, *others])
    further = ("data.on_bad_rows=skip", "data.findings.duplicates=drop", "data.eval.fraction=0.2")
    said = run("recipe.yaml", *further, "--row", "9")[2]
    assert "It may be one of the 1 bad rows that are left out (`data.on_bad_rows`)." in said
    assert "It may be one of the 1 rows held out (`data.eval`): name its place." in said
    assert "that findings drop (`data.findings.duplicates`)." in said
    taken = run("recipe.yaml", "data.on_bad_rows=skip", "data.findings.duplicates=drop", "--row", "rows.jsonl:3")[2]
    assert "It was left out: `data.findings.duplicates: drop`." in taken
    assert "It may be" not in taken
    said = run("recipe.yaml", *further, "--row", "rows.jsonl:4")[2]
    assert "It is a bad row that is left out: " in said
    assert "It may be" not in said


def test_a_row_that_was_split_shows_its_first_pieces_alone(run, place):
    write_rows(place / "rows.jsonl", [{"text": LONG * 10}])
    (place / "plain.yaml").write_text(RECIPE.replace("sft", "pretrain").replace("template: alpaca, ", ""))
    plain = ("plain.yaml", "--row", "1")
    code, out, err = run(*plain, "--json")
    assert code == 0, err
    num_pieces = len(json.loads(out)["rows"])
    code, out, err = run(*plain)
    assert code == 0, err
    assert out.count("── row 1 ·") == 5 < num_pieces
    assert f"\n… and {num_pieces - 5} more pieces\n" in out


def test_a_number_counts_rows_and_not_the_lines_of_a_file(run, place):
    (place / "rows.json").write_text(json.dumps(ROWS, indent=1))
    out = run("recipe.yaml", "data.train.path=rows.json", "--row", "3")[1]
    assert "── row 3 · rows.json:10 · whole" in out
    assert (
        "── row 3 · rows.json:10 · whole" in run("recipe.yaml", "data.train.path=rows.json", "--row", "rows.json:10")[1]
    )


def test_a_row_that_is_held_out_is_said_to_be(run, place):
    write_rows(place / "held_out.jsonl", [ROWS[0]])
    code, out, _ = run("recipe.yaml", "data.eval.path=held_out.jsonl", "--row", "held_out.jsonl:1")
    assert code == 0
    assert "── row 1 · held_out.jsonl:1 · whole\n   held out: evaluated on, and not trained\n" in out


def test_control_tokens_of_the_template_are_told_from_those_that_a_row_spells(run):
    out = run("recipe.yaml", "--row", "3", "--ids")[1]
    assert out.count("❮</s>❯") == 2  # the end of the answer, in the text and among the ids
    assert "Say <‹U+200B›/s> twice" in out


def test_rows_that_a_finding_drops_are_counted_with_what_was_found(run, place):
    write_rows(place / "rows.jsonl", [ROWS[0], ROWS[0], ROWS[2]])
    out = run("recipe.yaml", "data.findings.duplicates=drop")[1]
    for line in (r"rows in the files +3", r"dropped by findings +1  data\.findings", r"rows trained on +2"):
        assert re.search(rf"^{line}$", out, re.MULTILINE)
    assert "warning: duplicates: 1 (policy: drop, 1 left out)\n" in out
    assert "dropped by findings" not in run("recipe.yaml", "data.findings=null")[1]


def test_bad_rows_are_told_by_reason_with_their_places(run, place):
    write_rows(place / "rows.jsonl", [*ROWS, {"instruction": "No answer"}, {"instruction": "None", "output": ""}])
    skipping = ("recipe.yaml", "data.on_bad_rows=skip")
    sources = json.loads(run(*skipping, "--json")[1])["sources"]
    assert [(one["path"], one["rows"], one["bad_rows"]) for one in sources] == [("rows.jsonl", 3, 2)]
    out = run(*skipping)[1]
    for reason, found in sources[0]["bad_reasons"].items():
        rows = ", ".join(place.rpartition(":")[2] for place in found["first"])
        assert re.search(rf"^bad row: {re.escape(reason)} +{found['rows']}  rows\.jsonl: {rows}$", out, re.MULTILINE)
    assert [line for line in out.splitlines() if line.startswith("bad row:")] != []


def test_nothing_found_is_told_from_nothing_looked_for(run):
    without = run("recipe.yaml", "data.findings=null", "--json")[1]
    assert json.loads(without)["findings"] is None
    assert "\nfindings: not looked for (data.findings is null)\n" in run("recipe.yaml", "data.findings=null")[1]
    assert isinstance(json.loads(run("recipe.yaml", "--json")[1])["findings"], list)


def test_the_page_is_written_and_standard_output_stays_free(run, place):
    code, out, err = run("recipe.yaml", "--html", "page.html")
    assert (code, out) == (0, ""), err
    assert err.endswith("page.html: 2 of 2 rows, and the census of all.\n")
    assert "Which" in (place / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "command line: a RECIPE is wanted, or --check RUN."),
        (["recipe.yaml", "--rows", "1", "--row", "1"], 2, "--rows and --row exclude each other"),
        (["recipe.yaml", "--row", "seven"], 2, "--row seven: that is neither a number nor a place."),
        (["recipe.yaml", "--check", "outputs/x", "--ids"], 2, "--check compares and shows no rows"),
        (["recipe.yaml", "--html", "nowhere/page.html"], 4, "nowhere/page.html cannot be written: there is no folder"),
        (["recipe.yaml", "--html", "model"], 4, "model is a folder"),
        (["recipe.yaml", "data.max_lenght=5"], 2, "Did you mean"),
        (["--check", "outputs/x"], 4, "outputs/x holds no run (resolved.json)"),
    ],
)
def test_what_cannot_be_is_said_before_a_row_is_read(run, arguments, code, said):
    left, out, err = run(*arguments)
    assert (left, out) == (code, "")
    assert said in err
    assert "training:" not in err


@pytest.fixture
def made(place) -> Path:
    """A run's records, as training writes them."""
    recipe = read_recipe(place / "recipe.yaml")
    folder = place / "outputs" / "small"
    folder.mkdir(parents=True)
    (folder / "resolved.json").write_text(json.dumps(to_resolved(recipe)))
    (folder / "data_report.json").write_text(json.dumps(prepare(recipe).report))
    (folder / "environment.json").write_text(json.dumps({"packages": {"tokenizers": "0.0.1"}}))
    return folder


def test_a_check_says_that_the_tokens_are_the_same_and_what_library_is_not(run, made):
    code, out, _ = run("--check", "outputs/small")
    assert code == 0
    assert out.startswith("outputs/small: today the very same tokens would be trained (changed since the run: ")
    assert "tokenizers 0.0.1 → " in out
    assert run("recipe.yaml", "--check", "outputs/small")[0] == 0


def test_a_check_of_other_rows_is_exit_6_with_what_differs(run, made, place):
    write_rows(place / "rows.jsonl", [*ROWS, {"instruction": "One more", "output": "yes"}])
    code, out, err = run("--check", "outputs/small")
    assert (code, out) == (6, "")
    assert "the rows' content: rows.jsonl changed" in err
    assert "rows trained on: 2 in the run, 3 today" in err
    code, out, _ = run("--check", "outputs/small", "--json")
    assert code == 6
    assert json.loads(out)["equal"] is False


def test_a_check_of_rows_that_cannot_be_prepared_any_more_is_exit_6_with_the_reason(run, made, place):
    write_rows(place / "rows.jsonl", [{"instruction": "No answer"}])
    code, out, err = run("--check", "outputs/small")
    assert (code, out) == (6, "")
    assert err.startswith("outputs/small: today the run's rows cannot be made into tokens.\nrows.jsonl:1: ")


def test_a_check_by_another_recipe_is_refused_with_what_differs(run, made):
    code, _, err = run("recipe.yaml", "data.max_length=64", "--check", "outputs/small")
    assert code == 2
    assert "outputs/small was made by another recipe than this one.\n  data.max_length: 100 in the run, 64 here" in err


def test_a_check_takes_no_row_from_the_cache(run, made, monkeypatch):
    usual = datasets.config.HF_DATASETS_CACHE
    assert run("--check", "outputs/small")[0] == 0  # the cache holds the run's rows, whatever is done below
    encode = Encoder.encode

    def encode_otherwise(self, texts):
        given = list(texts)
        for text, found in zip(given, encode(self, given), strict=True):
            yield replace(found, ids=[found.ids[0] + 1, *found.ids[1:]]) if "lemon" in text.text else found

    monkeypatch.setattr(Encoder, "encode", encode_otherwise)
    assert run("recipe.yaml")[0] == 0
    code, _, err = run("--check", "outputs/small")
    assert code == 6
    assert "today other tokens would be trained than this run trained" in err
    assert usual == datasets.config.HF_DATASETS_CACHE
    assert list(Path(usual).glob("check-*")) == []


def test_a_check_says_where_only_what_is_evaluated_on_cannot_be_read(run, made, place):
    resolved = json.loads((made / "resolved.json").read_text())
    write_rows(place / "asked.jsonl", [{"instruction": "No answer"}])
    resolved["evaluation"]["questions"] = {"path": "asked.jsonl"}
    (made / "resolved.json").write_text(json.dumps(resolved))
    code, out, err = run("--check", "outputs/small")
    assert (code, out) == (6, "")
    assert "outputs/small: today what the run evaluates on cannot be made into tokens.\nasked.jsonl:1: " in err
