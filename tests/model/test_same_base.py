"""Whether two bases are one, by their names and commits."""

import pytest

from finetune.model.same_base import find_base_difference
from finetune.recipe.schema import ModelSettings


def settings(name: str = "org/model", revision: str | None = None, **fields: object) -> ModelSettings:
    return ModelSettings(model_name_or_path=name, revision=revision, **fields)


def test_a_commit_counts_where_both_are_known(tmp_path):
    assert find_base_difference(settings(revision="abc"), 1, settings(revision="abc"), 2) is None
    assert find_base_difference(settings(revision="abc"), 1, settings(), 1) is None
    found = find_base_difference(settings(revision="abc"), 1, settings(revision="def"), 1)
    assert (found.one, found.other, found.may_be_a_copy) == ("org/model at abc", "org/model at def", False)


@pytest.mark.parametrize(("other", "may_be_a_copy"), [("FOLDER", True), ("org/other", False)])
def test_a_folder_may_be_a_copy_of_what_lies_on_the_hub_and_another_name_is_another_base(
    tmp_path, other, may_be_a_copy
):
    other = str(tmp_path) if other == "FOLDER" else other
    found = find_base_difference(settings(), 1, settings(other), 1)
    assert (found.one, found.other, found.may_be_a_copy) == ("org/model", other, may_be_a_copy)


def test_a_folder_is_the_same_by_any_path_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert find_base_difference(settings("./base"), 1, settings(str(tmp_path / "base")), 1) is None


def test_random_weights_are_told_apart_by_their_seed():
    drawn = settings(weights="random")
    assert find_base_difference(drawn, 1, drawn, 1) is None
    found = find_base_difference(drawn, 1, drawn, 2)
    assert (found.one[-6:], found.other[-6:], found.may_be_a_copy) == ("seed 1", "seed 2", False)
