"""Names and paths that would lead a run out of its folder, or forge lines of its messages: refused by the reader."""

import copy

import pytest

from finetune.errors import RecipeError
from finetune.recipe.reading import build_recipe

VALUES = {"name": "mine", "model": {"model_name_or_path": "./base"}, "data": {"train": {"path": "rows.json"}}}


def build_with(path: str, value: object) -> None:
    values = copy.deepcopy(VALUES)
    *sections, key = path.split(".")
    group = values
    for section in sections:
        group = group.setdefault(section, {})
    group[key] = value
    build_recipe(values)


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "/tmp/x", "a/b", "a\\b", ".hidden", "a\nb", "a\n", "a\x00b", "~root", "", "x" * 101]
)
def test_a_runs_name_stays_in_its_folder(name):
    build_with("name", "a..b-c_d")
    with pytest.raises(RecipeError, match=r"`name` (cannot be|is an empty)"):
        build_with("name", name)


@pytest.mark.parametrize(
    "setting",
    ["model.model_name_or_path", "model.revision", "model.tokenizer_name_or_path", "data.train.path",
     "data.train.split", "adapter.init_from", "output_dir"],
)  # fmt: skip
def test_a_line_break_in_a_path_is_refused_and_shown_as_one_line(setting):
    build_with(setting, "an ordinary/name with spaces")
    with pytest.raises(RecipeError) as refusal:
        build_with(setting, "rows\nDone. Everything is in order.\r")
    assert str(refusal.value).splitlines()[0] == (
        f"the recipe: `{setting}` cannot be `rows\\nDone. Everything is in order.\\r`."
    )


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "A" * 40, "a" * 39, "a" * 41, "a" * 40 + " "])
def test_code_of_a_repository_is_trusted_at_a_pinned_commit_alone(revision):
    values = VALUES | {"model": {"model_name_or_path": "org/base", "trust_remote_code": True, "revision": "a1" * 20}}
    assert build_recipe(values).model.trust_remote_code
    with pytest.raises(RecipeError, match="`trust_remote_code` needs `revision` pinned to a commit"):
        build_recipe(values | {"model": values["model"] | {"revision": revision}})
