"""Files and folders to examples: faults named with their line, rows equal in every kind of file, mixes and splits."""

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest

from finetune.data.examples import Conversation, from_json
from finetune.data.row_cache import build_key, read_cached, write_cached
from finetune.data.sources import LoadedExamples, load_examples, split_examples
from finetune.errors import DataError, PlaceError, RecipeError
from finetune.recipe.schema import SourceSettings
from tests.data.planted_faults import FAULTS, GOOD, Planted

ROWS = [{"instruction": f"Say {n}.", "input": 'é\n,"x"' if n % 3 == 0 else "", "output": f"{n}\n."} for n in range(12)]


def load(path: Path | str, *, kind: str = "conversation", on_bad_rows: str = "error", **source) -> LoadedExamples:
    return load_examples(SourceSettings(path=str(path), **source), kind=kind, seed=0, on_bad_rows=on_bad_rows)


def examples(loaded: LoadedExamples) -> list[str]:
    return list(loaded.dataset["example"])


def report(loaded: LoadedExamples) -> dict:
    (only,) = loaded.report["sources"]
    return only


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows_jsonl(tmp_path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_a_data_error_with_file_line_and_reason(fault: Planted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(fault.filename).write_bytes(fault.content)
    with pytest.raises(DataError) as caught:
        load(fault.filename)
    message = str(caught.value)
    assert message.startswith(f"{fault.filename}:{fault.line}: ")
    assert all(words in message for words in fault.words), message
    assert len(message.splitlines()) <= 4
    if not fault.skippable:
        with pytest.raises(DataError):
            load(fault.filename, on_bad_rows="skip")
        return
    skipped = report(load(fault.filename, on_bad_rows="skip"))
    assert skipped["bad_rows"] == 1
    assert [entry["first"] for entry in skipped["bad_reasons"].values()] == [[f"{fault.filename}:{fault.line}"]]


def test_skipped_rows_are_counted_by_reason_with_their_first_five_places(tmp_path):
    bad = [{"instruction": "x", "output": ""}] * 7 + [{"instruction": "x"}] * 2
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD, *bad, GOOD])
    found = report(load(path, on_bad_rows="skip"))
    assert (found["rows"], found["bad_rows"]) == (2, 9)
    assert found["bad_reasons"] == {
        "empty answer: `output` is empty": {"rows": 7, "first": [f"{path}:{line}" for line in range(2, 7)]},
        "no `output`": {"rows": 2, "first": [f"{path}:9", f"{path}:10"]},
    }


def test_a_file_without_a_usable_row_is_an_error_even_when_rows_are_skipped(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "x", "output": ""}] * 3)
    with pytest.raises(DataError, match=r"no row can be used, of 3 read.\n  3 rows: empty answer"):
        load(path, on_bad_rows="skip")


def test_the_same_rows_come_out_of_every_kind_of_file(tmp_path, rows_jsonl):
    expected = examples(load(rows_jsonl))
    assert len(expected) == len(ROWS)
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "lines.json").write_bytes(rows_jsonl.read_bytes())
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "list.json", "rows.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for name in ("list.json", "lines.json", "rows.csv", "rows.parquet", "rows.jsonl.gz", "list.json.gz", "rows.csv.gz"):
        assert examples(load(tmp_path / name)) == expected, name


def test_conversations_in_parquet_lose_the_nulls_that_arrow_adds(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}], "weight": 1},
            ],
        },
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert examples(load(tmp_path / "rows.parquet")) == examples(load(write_jsonl(tmp_path / "rows.jsonl", rows)))


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    write_jsonl(folder / "b.jsonl", ROWS[6:])
    write_jsonl(folder / "a.jsonl", ROWS[:6])
    (folder / "README.md").write_text("a card")
    (folder / ".hidden.jsonl").write_text("{")
    loaded = load(folder)
    assert examples(loaded) == examples(load(write_jsonl(tmp_path / "all.jsonl", ROWS)))
    assert loaded.dataset[6] == loaded.dataset[6] | {"source": f"{folder}/b.jsonl", "row": 1}
    assert report(loaded)["notes"] == ["left alone in the folder: README.md"]


def test_a_folder_of_several_kinds_is_refused(tmp_path, rows_jsonl):
    (tmp_path / "rows.csv").write_text("instruction,output\na,b\n")
    with pytest.raises(DataError, match=r"several kinds \(.csv, .jsonl\)"):
        load(tmp_path)


def test_a_folder_that_save_to_disk_wrote_is_refused_with_the_way_out(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="to_parquet"):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("row.jsonl", "Did you mean rows.jsonl?"),
        ("./rows.json", "Did you mean rows.jsonl?"),
        ("nowhere/rows.jsonl", "there is no folder nowhere"),
        ("https://example.org/rows.jsonl", "Download the file"),
        ("notes.txt", "Did you mean"),
    ],
)
def test_a_local_path_to_nothing_names_what_is_there(typed, words, rows_jsonl, monkeypatch):
    monkeypatch.chdir(rows_jsonl.parent)
    if typed == "notes.txt":
        Path("notes.txt").write_text("x")
        words = "not a kind of file that is read"
    with pytest.raises(DataError) as caught:
        load(typed)
    assert words in str(caught.value)


def test_the_same_content_has_one_fingerprint_and_other_content_another(tmp_path, rows_jsonl):
    first = load(rows_jsonl).fingerprint
    assert load(write_jsonl(tmp_path / "copy.jsonl", ROWS)).fingerprint == first
    changed = [*ROWS[:-1], ROWS[-1] | {"output": "other"}]
    assert load(write_jsonl(rows_jsonl, changed)).fingerprint != first


@pytest.mark.parametrize(
    "setting", [{"limit": 5}, {"columns": {"input": "output", "output": "instruction", "instruction": "output"}}]
)
def test_settings_that_change_the_rows_change_the_fingerprint(setting, rows_jsonl):
    assert load(rows_jsonl, **setting).fingerprint != load(rows_jsonl).fingerprint


def test_a_changed_file_is_read_again(rows_jsonl):
    load(rows_jsonl)
    write_jsonl(rows_jsonl, ROWS[:3])
    assert len(load(rows_jsonl).dataset) == 3
    with rows_jsonl.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"rows.jsonl:4: broken JSON"):
        load(rows_jsonl)


def test_rows_skipped_once_are_faults_again_where_faults_stop(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD, {"instruction": "x"}])
    first = load(path, on_bad_rows="skip")
    assert report(load(path, on_bad_rows="skip")) == report(first)
    with pytest.raises(DataError):
        load(path)


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with path.open("a") as file:
        file.write("{broken\n")
    assert examples(load(path, limit=4)) == examples(load(write_jsonl(tmp_path / "four.jsonl", ROWS[:4])))


def test_the_report_says_format_ignored_columns_and_unanswered_ends(tmp_path):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    found = report(load(write_jsonl(tmp_path / "rows.jsonl", [{"id": 1, "messages": turns}]), split="test"))
    assert (found["format"], found["format_chosen_by"], found["columns_ignored"]) == ("messages", "columns", ["id"])
    assert any("`split` not read" in note for note in found["notes"])
    assert any("1 conversations end without an answer" in note for note in found["notes"])


def test_a_mapping_to_a_column_that_is_not_there_names_the_nearest(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "x", "answer": "y"}])
    assert len(load(path, columns={"instruction": "question", "output": "answer"}).dataset) == 1
    with pytest.raises(DataError, match="Did you mean `question`"):
        load(path, columns={"instruction": "qestion", "output": "answer"})


def test_a_named_format_that_the_columns_lack_names_its_own_columns(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"dialogue": [], "id": 1}])
    with pytest.raises(DataError, match=r"Expected: messages.\n.*columns: {messages: dialogue}"):
        load(path, format="messages")


def test_a_format_of_the_other_kind_is_a_recipe_error(rows_jsonl):
    with pytest.raises(RecipeError, match="objective: pretrain"):
        load(rows_jsonl, format="text")
    with pytest.raises(RecipeError, match="documents are wanted"):
        load(rows_jsonl, kind="document", format="alpaca")
    with pytest.raises(DataError, match=r"Expected: text.\n.*columns: {text: "):
        load(rows_jsonl, kind="document")


def mix(tmp_path: Path, sizes: dict[str, int], weights: list[float], seed: int = 0) -> LoadedExamples:
    sources = [
        SourceSettings(
            path=str(
                write_jsonl(
                    tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}", "completion": "x"} for n in range(size)]
                )
            ),
            weight=weight,
        )
        for (name, size), weight in zip(sizes.items(), weights, strict=True)
    ]
    return load_examples(sources, kind="conversation", seed=seed, on_bad_rows="error")


def prompts(loaded: LoadedExamples) -> list[str]:
    found = []
    for text in examples(loaded):
        conversation = from_json(text)
        assert isinstance(conversation, Conversation)
        found.append(conversation.messages[0].content)
    return found


def test_a_mix_holds_its_sources_in_proportion_everywhere_until_one_is_used_up(tmp_path):
    loaded = mix(tmp_path, {"a": 100, "b": 400}, [3.0, 1.0])
    rows = prompts(loaded)
    assert [entry["rows_taken"] for entry in loaded.report["sources"]] == [100, 33]
    assert len(set(rows)) == len(rows) == 133
    for start in range(0, 120, 20):
        assert 14 <= sum(row.startswith("a") for row in rows[start : start + 20]) <= 16


def test_a_mix_is_decided_by_its_seed(tmp_path):
    sizes, weights = {"a": 20, "b": 20}, [1.0, 1.0]
    first, again, other = (
        mix(tmp_path, sizes, weights),
        mix(tmp_path, sizes, weights),
        mix(tmp_path, sizes, weights, seed=1),
    )
    assert prompts(first) == prompts(again) != prompts(other)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert sorted(prompts(first)) == sorted(prompts(other))


def test_a_list_of_one_source_is_that_source(rows_jsonl):
    source = SourceSettings(path=str(rows_jsonl))
    listed = load_examples([source], kind="conversation", seed=0, on_bad_rows="error")
    assert examples(listed) == examples(load(rows_jsonl))


@pytest.mark.parametrize(("fraction", "held_out"), [(0.25, 3), (0.001, 1), (0.999, 11)])
def test_a_split_is_disjoint_complete_decided_by_its_seed_and_never_empty(fraction, held_out, rows_jsonl):
    loaded = load(rows_jsonl)
    train, test = split_examples(loaded, fraction, seed=3)
    assert len(test.dataset) == held_out
    assert sorted([*train.dataset["row"], *test.dataset["row"]]) == list(range(1, 13))
    assert examples(split_examples(loaded, fraction, seed=3)[1]) == examples(test)
    assert len({train.fingerprint, test.fingerprint, split_examples(loaded, fraction, seed=4)[1].fingerprint}) == 3


def test_one_row_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match="one row cannot be split"):
        split_examples(load(write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])), 0.5, seed=0)


def test_a_name_on_the_hub_without_the_hub_is_a_place_error_with_the_ways_out():
    with pytest.raises(PlaceError) as caught:
        load("yahma/alpaca-cleaned")
    message = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in message
    assert "hf download --repo-type dataset yahma/alpaca-cleaned --local-dir data/alpaca-cleaned" in message


@pytest.mark.parametrize(
    ("name", "format", "rows"),
    [
        ("instructions/alpaca_cleaned_first5000.json", "alpaca", 5000),
        ("chat/fastchat_dummy_conversation.json", "sharegpt", 500),
        ("chat/glaive_toolcall_en_demo.json", "sharegpt", 300),
        ("chat/openai_messages_gsm8k_train.jsonl", "messages", 449),
    ],
)
def test_real_data_is_read_whole_and_each_line_is_the_rows_own(name, format, rows, shared_data):
    loaded = load(shared_data / name)
    assert (report(loaded)["format"], report(loaded)["rows"]) == (format, rows)
    lines = (shared_data / name).read_text().splitlines()
    assert all(lines[line - 1].lstrip().startswith("{") for line in loaded.dataset["row"])
    last = from_json(loaded.dataset[-1]["example"])
    assert isinstance(last, Conversation)
    assert json.dumps(last.messages[0].content)[1:-1] in "\n".join(lines[loaded.dataset[-1]["row"] - 1 :])


def test_real_tool_calls_keep_names_arguments_and_tools(shared_data):
    loaded = load(shared_data / "chat/glaive_toolcall_en_demo.json")
    conversations = [from_json(text) for text in examples(loaded)]
    calls = [call for c in conversations for message in c.messages for call in message.tool_calls]
    assert len(calls) > 100
    assert all(isinstance(call["function"]["arguments"], dict) and call["function"]["name"] for call in calls)
    offered = [{tool["function"]["name"] for tool in c.tools} for c in conversations]
    used = [{call["function"]["name"] for message in c.messages for call in message.tool_calls} for c in conversations]
    assert sum(calls <= tools for calls, tools in zip(used, offered, strict=True)) > 0.95 * len(conversations)


def test_real_text_is_read_from_gzip_and_csv(shared_data):
    assert len(load(shared_data / "imdb/imdb_train_2000.csv", kind="document").dataset) == 2000
    assert len(load(shared_data / "corpus/eltec_eng_novels.jsonl.gz", kind="document", limit=3).dataset) == 3


def test_rows_of_a_file_that_was_renamed_in_its_folder_name_it_as_it_is_called_now(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    first = write_jsonl(folder / "first.jsonl", ROWS)
    before = load(folder)
    first.rename(folder / "second.jsonl")
    after = load(folder)
    assert [set(map(Path, loaded.dataset["source"][:])) for loaded in (before, after)] == [
        {folder / "first.jsonl"}, {folder / "second.jsonl"}
    ]  # fmt: skip
    assert after.report["sources"][0]["files"] == [f"{folder}/second.jsonl"]


def test_two_processes_that_load_the_same_rows_at_once_end_with_the_same(tmp_path):
    key = build_key({"test": str(tmp_path)})
    schema = pa.schema({"source": pa.string(), "row": pa.int64()})

    def rows_while_another_writes():
        yield "a.jsonl", 1
        write_cached(key, schema, iter([("a.jsonl", 1), ("a.jsonl", 2)]), lambda: {"by": "the first"})
        yield "a.jsonl", 2

    dataset, _ = write_cached(key, schema, rows_while_another_writes(), lambda: {"by": "the second"})
    cached = read_cached(key)
    assert cached is not None and cached[1] == {"by": "the first"}
    assert dataset.to_list() == cached[0].to_list()
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).glob("finetune_rows/unfinished-*"))


def test_a_cache_that_cannot_be_written_is_a_place_error(rows_jsonl, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "a_file")
    with pytest.raises(PlaceError, match="HF_DATASETS_CACHE names another folder"):
        load(rows_jsonl)
