"""All ten tasks of GLUE, in the form they are published in: files, the Hub's rows, and the real ones where they are."""

import gzip
from pathlib import Path

import datasets
import pytest

from finetune.data.examples import Labelled, labelled_from_json
from finetune.data.glue import load_glue_examples
from finetune.data.label_rows import count_labels
from finetune.data.sources import LoadedExamples
from finetune.errors import DataError, RecipeError
from finetune.recipe.glue import GLUE_TASKS
from finetune.recipe.rows_schema import GlueName
from finetune.recipe.schema import SourceSettings

# The first lines of each published file, with texts of our own: header (CoLA's train and dev have none) and two rows.
MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
    "\tsentence1\tsentence2"
)
MNLI_ROW = "\tp\tq\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)"
STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
STSB_ROW = "\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone"
PUBLISHED = {
    "CoLA/train.tsv": ["gj04\t1\t\tThey drank.", 'gj04\t0\t*\tThey "drank the pub.'],
    "CoLA/dev.tsv": ["gj04\t0\t*\tDrank they.", "gj04\t1\t\tHe ran."],
    "CoLA/test.tsv": ["index\tsentence", "0\tShe sang.", "1\tSang she."],
    "SST-2/train.tsv": ["sentence\tlabel", "a dull film \t0", "a fine film \t1"],
    "SST-2/dev.tsv": ["sentence\tlabel", "great \t1", "dull \t0"],
    "SST-2/test.tsv": ["index\tsentence", "0\tnot bad", "1\tbad"],
    "MRPC/train.tsv": [
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\t" One , " he said .\tHe said one .',
        "0\t7\t8\tTwo .\tThree .",
    ],
    "MRPC/dev.tsv": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t8\ta\tb", "1\t7\t8\tc\tc"],
    "MRPC/test.tsv": ["\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t8\ta\tb", "1\t7\t8\tc\td"],
    "STS-B/train.tsv": [f"{STSB_HEADER}\tscore", f"0{STSB_ROW}\ta\tb\t5.000", f"1{STSB_ROW}\tc\td\t0.200"],
    "STS-B/dev.tsv": [f"{STSB_HEADER}\tscore", f"0{STSB_ROW}\ta\tb\t3.800", f"1{STSB_ROW}\tc\td\t0.000"],
    "STS-B/test.tsv": [STSB_HEADER, f"0{STSB_ROW}\ta\tb", f"1{STSB_ROW}\tc\td"],
    "QQP/train.tsv": [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "133273\t213221\t213222\tWhy?\tWhy so?\t1",
        '402555\t536040\t536041\tHow "much"?\t\t0',
    ],
    "QQP/dev.tsv": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\ta?\tb?\t0", "4\t5\t6\tc?\td?\t1"],
    "QQP/test.tsv": ["id\tquestion1\tquestion2", "0\ta?\tb?", "1\tc?\td?"],
    "MNLI/train.tsv": [
        f"{MNLI_HEADER}\tlabel1\tgold_label",
        f"0{MNLI_ROW}\ta\tb\tneutral\tneutral",
        f"1{MNLI_ROW}\tc\td\tentailment\tentailment",
    ],
    "MNLI/dev_matched.tsv": [
        f"{MNLI_HEADER}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
        f"0{MNLI_ROW}\ta\tb\tneutral\tneutral\tneutral\tneutral\tentailment\tneutral",
        f"1{MNLI_ROW}\tc\td\tneutral\tcontradiction\tcontradiction\tcontradiction\tcontradiction\tcontradiction",
    ],
    "MNLI/dev_mismatched.tsv": [
        f"{MNLI_HEADER}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
        f"0{MNLI_ROW}\te\tf" + "\tentailment" * 6,
        f"1{MNLI_ROW}\tg\th" + "\tneutral" * 6,
    ],
    "MNLI/test_matched.tsv": [MNLI_HEADER, f"0{MNLI_ROW}\ta\tb", f"1{MNLI_ROW}\tc\td"],
    "MNLI/test_mismatched.tsv": [MNLI_HEADER, f"0{MNLI_ROW}\te\tf", f"1{MNLI_ROW}\tg\th"],
    "QNLI/train.tsv": [
        "index\tquestion\tsentence\tlabel",
        "0\tWhen?\tNow.\tentailment",
        "1\tWho?\tNow.\tnot_entailment",
    ],
    "QNLI/dev.tsv": ["index\tquestion\tsentence\tlabel", "0\ta?\tb.\tnot_entailment", "1\tc?\td.\tentailment"],
    "QNLI/test.tsv": ["index\tquestion\tsentence", "0\ta?\tb.", "1\tc?\td."],
    "RTE/train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment", "1\tc\td\tentailment"],
    "RTE/dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tentailment", "1\tc\td\tnot_entailment"],
    "RTE/test.tsv": ["index\tsentence1\tsentence2", "0\ta\tb", "1\tc\td"],
    "WNLI/train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tIt fell.\tHe fell.\t1", "1\tIt fell.\tShe fell.\t0"],
    "WNLI/dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\t0", "1\tc\td\t1"],
    "WNLI/test.tsv": ["index\tsentence1\tsentence2", "0\ta\tb", "1\tc\td"],
    "diagnostic/diagnostic.tsv": ["index\tsentence1\tsentence2", "0\tA cat sat.\tAn animal sat.", "1\tc\td"],
    "diagnostic/diagnostic-full.tsv": [
        "Lexical Semantics\tPredicate-Argument Structure\tLogic\tKnowledge\tDomain\tPremise\tHypothesis\tLabel",
        "\tPrepositional phrases\t\t\tNews\ta\tb\tentailment",
        "Redundancy\t\tNegation\t\tNews\tc\td\tcontradiction",
    ],
}
# What the two rows of each file come out as: texts and label.
READ = {
    ("cola", "train"): [("They drank.", None, "acceptable"), ('They "drank the pub.', None, "unacceptable")],
    ("cola", "eval"): [("Drank they.", None, "unacceptable"), ("He ran.", None, "acceptable")],
    ("cola", "test"): [("She sang.", None, None), ("Sang she.", None, None)],
    ("sst2", "train"): [("a dull film ", None, "negative"), ("a fine film ", None, "positive")],
    ("sst2", "eval"): [("great ", None, "positive"), ("dull ", None, "negative")],
    ("sst2", "test"): [("not bad", None, None), ("bad", None, None)],
    ("mrpc", "train"): [('" One , " he said .', "He said one .", "equivalent"), ("Two .", "Three .", "not_equivalent")],
    ("mrpc", "eval"): [("a", "b", "not_equivalent"), ("c", "c", "equivalent")],
    ("mrpc", "test"): [("a", "b", None), ("c", "d", None)],
    ("stsb", "train"): [("a", "b", 5.0), ("c", "d", 0.2)],
    ("stsb", "eval"): [("a", "b", 3.8), ("c", "d", 0.0)],
    ("stsb", "test"): [("a", "b", None), ("c", "d", None)],
    ("qqp", "train"): [("Why?", "Why so?", "duplicate"), ('How "much"?', "", "not_duplicate")],
    ("qqp", "eval"): [("a?", "b?", "not_duplicate"), ("c?", "d?", "duplicate")],
    ("qqp", "test"): [("a?", "b?", None), ("c?", "d?", None)],
    ("mnli", "train"): [("a", "b", "neutral"), ("c", "d", "entailment")],
    ("mnli", "eval"): [("a", "b", "neutral"), ("c", "d", "contradiction")],
    ("mnli", "test"): [("a", "b", None), ("c", "d", None)],
    ("qnli", "train"): [("When?", "Now.", "entailment"), ("Who?", "Now.", "not_entailment")],
    ("qnli", "eval"): [("a?", "b.", "not_entailment"), ("c?", "d.", "entailment")],
    ("qnli", "test"): [("a?", "b.", None), ("c?", "d.", None)],
    ("rte", "train"): [("a", "b", "not_entailment"), ("c", "d", "entailment")],
    ("rte", "eval"): [("a", "b", "entailment"), ("c", "d", "not_entailment")],
    ("rte", "test"): [("a", "b", None), ("c", "d", None)],
    ("wnli", "train"): [("It fell.", "He fell.", "entailment"), ("It fell.", "She fell.", "not_entailment")],
    ("wnli", "eval"): [("a", "b", "not_entailment"), ("c", "d", "entailment")],
    ("wnli", "test"): [("a", "b", None), ("c", "d", None)],
    ("ax", "eval"): [("a", "b", "entailment"), ("c", "d", "contradiction")],
    ("ax", "test"): [("A cat sat.", "An animal sat.", None), ("c", "d", None)],
}


@pytest.fixture(scope="module")
def glue_data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("glue") / "glue_data"
    for name, lines in PUBLISHED.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def load(path: Path | str, name: GlueName, role: str, *, on_bad_rows="error", **source) -> dict[str, LoadedExamples]:
    settings = SourceSettings(path=str(path), **source)
    return load_glue_examples(settings, name, role, on_bad_rows=on_bad_rows, setting="data.train")


def read(loaded: LoadedExamples) -> list[Labelled]:
    return [labelled_from_json(text) for text in loaded.dataset["example"]]


@pytest.mark.parametrize(("name", "role"), READ, ids=str)
def test_the_published_files_of_every_task_are_read_as_they_are(name, role, glue_data):
    parts = load(glue_data, name, role)
    assert next(iter(parts)) == ("matched" if name == "mnli" and role != "train" else "")
    first = next(iter(parts.values()))
    assert read(first) == [Labelled(*row) for row in READ[name, role]]


def test_mnli_has_two_parts_matched_first(glue_data):
    parts = load(glue_data, "mnli", "eval")
    assert list(parts) == ["matched", "mismatched"]
    assert read(parts["mismatched"]) == [Labelled("e", "f", "entailment"), Labelled("g", "h", "neutral")]
    assert list(load(glue_data, "mnli", "test")) == ["matched", "mismatched"]
    assert list(load(glue_data / "MNLI/dev_mismatched.tsv", "mnli", "eval")) == ["mismatched"]


def test_the_root_the_tasks_folder_and_a_file_mean_the_same_rows(glue_data, tmp_path):
    rows = read(load(glue_data, "cola", "eval")[""])
    for path in (glue_data / "CoLA", glue_data / "CoLA/dev.tsv"):
        assert read(load(path, "cola", "eval")[""]) == rows
    with gzip.open(tmp_path / "dev.tsv.gz", "wt") as file:
        file.write((glue_data / "CoLA/dev.tsv").read_text())
    assert read(load(tmp_path, "cola", "eval")[""]) == rows
    (tmp_path / "mine.csv").write_text("sentence,label\nDrank they.,0\nHe ran.,1\n")
    assert read(load(tmp_path / "mine.csv", "cola", "eval")[""]) == rows


def test_a_limit_and_columns_of_ones_own_are_honoured(glue_data, tmp_path):
    assert len(load(glue_data, "sst2", "train", limit=1)[""].dataset) == 1
    (tmp_path / "mine.tsv").write_text("phrase\tlabel\nfine\t1\n")
    loaded = load(tmp_path / "mine.tsv", "sst2", "train", columns={"text": "phrase"})
    assert read(loaded[""]) == [Labelled("fine", None, "positive")]


def test_rows_that_are_not_there_are_named(glue_data, tmp_path):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE/dev.tsv").write_text("x\n")
    with pytest.raises(DataError, match=r"there is no file .*/RTE/train.tsv.\n  .* holds: dev.tsv"):
        load(tmp_path, "rte", "train")
    with pytest.raises(DataError, match=r"no rows of `wnli`: neither train.tsv nor a folder WNLI"):
        load(tmp_path, "wnli", "train")
    with pytest.raises(RecipeError, match="the task `ax` has no rows to train on"):
        load(glue_data, "ax", "train")
    with pytest.raises(RecipeError, match="the task `ax` has no rows to train on"):
        load("nyu-mll/glue", "ax", "train")
    with pytest.raises(
        RecipeError, match=r"no rows with labels to be evaluated on in nyu-mll/glue.\n.*diagnostic-full"
    ):
        load("nyu-mll/glue", "ax", "eval")
    with pytest.raises(RecipeError, match=r"`data.train.format: alpaca` does not go with the task `rte`"):
        load(glue_data, "rte", "train", format="alpaca")


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("sst2", ["sentence\tlabel", "fine\t1", "dull\t2"], ":3: a label that the task does not have: `2`"),
        ("sst2", ["sentence\tlabel", "fine\t1", "dull\t"], ":3: no label"),
        ("sst2", ["sentence\tlabel", "fine\t1", "dull"], ":3: another number of fields than the header: 1 for 2"),
        ("cola", ["gj04\t1\t\tFine.", "gj04\t1\tFine."], ":2: another number of fields than the header: 3 for 4"),
        ("rte", ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tneutral"], ":2: a label that the task does not have"),
        ("stsb", [f"{STSB_HEADER}\tscore", f"0{STSB_ROW}\ta\tb\thigh"], ":2: a label that is not a number: `high`"),
        ("stsb", [f"{STSB_HEADER}\tscore", f"0{STSB_ROW}\ta\tb\tnan"], ":2: a label that is not a finite number"),
        ("mrpc", ["Quality\t#1 ID\t#2 ID\t#1 String", "1\t2\t3\ta"], ":2: no column `#2 String`"),
        ("rte", ["index\tpremise\tlabel", "0\ta\tentailment"], ":2: no column `sentence1`"),
    ],
    ids=["label", "no label", "fields", "CoLA's fields", "word", "number", "nan", "one text", "columns"],
)
def test_a_fault_planted_in_a_file_is_named_with_its_line(name, lines, words, tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load(path, name, "train")
    assert str(caught.value).startswith(f"{path}{words}")


def test_labels_of_test_rows_are_not_read(tmp_path):
    (tmp_path / "mine.tsv").write_text("sentence\tlabel\nfine\t-1\n")
    assert read(load(tmp_path / "mine.tsv", "sst2", "test")[""]) == [Labelled("fine")]


def test_a_bad_row_is_skipped_where_that_was_asked_for_but_never_among_test_rows(tmp_path):
    (tmp_path / "mine.tsv").write_text("sentence\tlabel\nfine\t1\ndull\n")
    (entry,) = load(tmp_path / "mine.tsv", "sst2", "train", on_bad_rows="skip")[""].report["sources"]
    assert (entry["rows"], entry["bad_rows"]) == (1, 1)
    with pytest.raises(DataError, match=r"mine\.tsv:3: another number of fields"):
        load(tmp_path / "mine.tsv", "sst2", "test", on_bad_rows="skip")


def test_a_subset_that_is_the_tasks_own_says_nothing_new_of_local_rows(glue_data):
    def notes(**source) -> list[str]:
        return load(glue_data, "ax", "test", **source)[""].report["sources"][0]["notes"]

    assert notes(subset="ax") == []
    assert any("`subset`" in note for note in notes(subset="mnli", limit=1))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[tuple]:
    """The Hub's datasets as a folder in the Hub's form, read by the same library; gives what was asked for."""
    classes = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = datasets.Features({"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")})
    for split, labels in {"validation_matched": [2, 0], "validation_mismatched": [1, 1], "test_matched": [-1]}.items():
        rows = {"premise": ["a"] * len(labels), "hypothesis": ["b"] * len(labels), "label": labels}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features({**features, "label": classes}))
        table.to_parquet(tmp_path / "repository/mnli" / f"{split}-00000-of-00001.parquet")
    splits = "".join(
        f"  - split: {name}\n    path: mnli/{name}-*\n"
        for name in ("validation_matched", "validation_mismatched", "test_matched")
    )
    readme = f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{splits}---\n"
    (tmp_path / "repository/README.md").write_text(readme)
    asked = []
    build = datasets.load_dataset_builder

    def load_from_folder(path, name=None, revision=None):
        asked.append((path, name))
        return build(str(tmp_path / "repository"), name)

    monkeypatch.setattr(datasets, "load_dataset_builder", load_from_folder)
    return asked


def test_the_hubs_rows_have_their_labels_by_name_and_the_tasks_own_subset(hub):
    parts = load("nyu-mll/glue", "mnli", "eval")
    assert hub == [("nyu-mll/glue", "mnli")] * 2
    assert read(parts["matched"]) == [Labelled("a", "b", "contradiction"), Labelled("a", "b", "entailment")]
    assert read(parts["mismatched"]) == [Labelled("a", "b", "neutral")] * 2
    only = load("nyu-mll/glue", "mnli", "eval", split="validation_mismatched", limit=1)
    assert {name: read(part) for name, part in only.items()} == {"mismatched": [Labelled("a", "b", "neutral")]}
    unlabelled = load("nyu-mll/glue", "mnli", "test", split="test_matched")
    assert read(unlabelled["matched"]) == [Labelled("a", "b", None)]


def test_every_task_is_there_with_its_facts():
    assert list(GLUE_TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"]
    for task in GLUE_TASKS.values():
        assert len(task.labels) == len(task.answers)
        assert (task.problem_type == "regression") == (task.name == "stsb")
        assert task.is_pair == (task.name not in ("cola", "sst2"))
        assert set(task.spellings.values()) == set(task.labels)
        assert [part.test_rows > 0 for part in task.parts["test"]] == [True] * len(task.parts["test"])


# Rows of the files as they are: `wc -l` less the header, and one more where the last line has no end.
REAL = {
    ("cola", "train"): (8551, {"acceptable": 6023, "unacceptable": 2528}),
    ("cola", "eval"): (1043, {"acceptable": 721, "unacceptable": 322}),
    ("sst2", "train"): (67349, {"negative": 29780, "positive": 37569}),
    ("sst2", "eval"): (872, {"negative": 428, "positive": 444}),
    ("mrpc", "train"): (3667, {"equivalent": 2473, "not_equivalent": 1194}),
    ("mrpc", "eval"): (408, {"equivalent": 279, "not_equivalent": 129}),
    ("rte", "train"): (2490, {"entailment": 1249, "not_entailment": 1241}),
    ("rte", "eval"): (277, {"entailment": 146, "not_entailment": 131}),
    ("stsb", "train"): (5749, None),
    ("stsb", "eval"): (1500, None),
}


@pytest.mark.parametrize(("name", "role"), REAL, ids=str)
def test_the_real_files_give_every_row_with_its_label(name, role, shared_data):
    loaded = load(shared_data / "glue", name, role)[""]
    num_rows, labels = REAL[name, role]
    assert len(loaded.dataset) == num_rows
    if labels is None:
        assert all(0.0 <= one.label <= 5.0 for one in read(loaded))
    else:
        assert count_labels(loaded) == labels


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "rte", "stsb"])
def test_the_real_test_files_hold_as_many_rows_as_the_server_expects(name, shared_data):
    (part,) = GLUE_TASKS[name].parts["test"]
    assert len(load(shared_data / "glue", name, "test")[""].dataset) == part.test_rows
