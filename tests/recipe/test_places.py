"""A name is a path or a name on the Hub by one rule."""

from pathlib import Path

import pytest

from finetune.recipe.places import expand, is_here, is_local, reads_as_path


@pytest.mark.parametrize(
    "name",
    ["./mine", "../mine", "/models/mine", "~/mine", "~", ".", "a/b/c", "my model", "a:b", "", "org/rows.jsonl",
     "rows.csv.gz", "rows.PARQUET", "x" * 5000 + "/a/b", "hf://datasets/org/rows", "models/tokenizer.model"],
)  # fmt: skip
def test_a_name_that_the_hub_cannot_have_reads_as_a_path(name: str) -> None:
    assert reads_as_path(name)
    assert is_local(name)


@pytest.mark.parametrize("name", ["gpt2", "mistralai/Mistral-7B-v0.1", "org/rows", "yahma/alpaca-cleaned", "x" * 5000])
def test_a_name_of_the_hubs_form_is_the_hubs_unless_it_is_here(name: str) -> None:
    assert not reads_as_path(name)
    assert not is_local(name)


def test_what_is_here_is_local_whatever_it_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("org/model").mkdir(parents=True)
    assert is_here("org/model")
    assert is_local("org/model")
    assert not is_here("org/other")


def test_the_home_folder_is_filled_in_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert expand("~/mine") == str(tmp_path / "mine")
    assert is_here("~/mine")
    assert expand("~nobody-of-that-name/mine") == "~nobody-of-that-name/mine"
    assert [expand(name) for name in ("./mine", "org/model")] == ["./mine", "org/model"]
