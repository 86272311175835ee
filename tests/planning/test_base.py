"""The base's config: from its folder, the recipe, the Hub's cache, the built-in list, and where nothing knows it."""

import json

import pytest

from finetune.errors import PlaceError, RecipeError
from finetune.planning.base import find_config
from finetune.recipe.schema import ModelSettings

FIELDS = {"model_type": "llama", "hidden_size": 32}


def test_a_folder_s_own_config_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    found = find_config(ModelSettings(model_name_or_path=str(tmp_path)))
    assert found.fields == FIELDS
    assert found.origin == str(tmp_path / "config.json")


def test_the_recipe_s_own_fields_come_first():
    found = find_config(ModelSettings(weights="random", config=FIELDS))
    assert (found.fields, found.origin) == (FIELDS, "the recipe's `model.config`")


def test_the_hub_s_cache_is_read_by_branch_and_by_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(FIELDS))
    for revision in (None, "abc"):
        found = find_config(ModelSettings(model_name_or_path="some/model", revision=revision))
        assert (found.fields, found.origin) == (FIELDS, "the Hub's cache on this disk")


def test_a_model_that_nothing_here_knows_is_told_with_a_way_out():
    with pytest.raises(PlaceError, match="The shape of nobody/knows-me is not known here") as told:
        find_config(ModelSettings(model_name_or_path="nobody/knows-me"))
    assert "model.model_name_or_path=/path/to/folder" in str(told.value)


def test_a_recipe_without_a_base_is_told():
    with pytest.raises(RecipeError, match="no base model is named"):
        find_config(ModelSettings())
