"""Whether two bases are one, by their names and commits, and whether a folder holds what an adapter was trained on."""

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetune.errors import PlaceError, RecipeError
from finetune.model.continuing import find_trained_adapter
from finetune.model.identity import fingerprint_folder
from finetune.model.loading import load_for_inference
from finetune.model.same_base import _order_metadata, check_base_weights, find_base_difference, note_base_weights
from finetune.recipe.schema import ModelSettings
from tests.model.saved_runs import write_base, write_run


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


@pytest.fixture
def run(tmp_path):
    """A run on a folder that is called `base`, whose adapter says which weights it was trained on."""
    base = write_base(tmp_path / "base")
    run = write_run(tmp_path / "run", base, quantization="none")
    note_base_weights(run / "adapter", settings(str(base)))
    return run


def change_weights(base: Path, shape: bool = False) -> None:
    """Put other weights of the same shape, or of another, into the folder of the same name."""
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    if shape:
        shutil.rmtree(base)
        write_base(base, hidden_size=32)
        return
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name] + 0.01}, weights, metadata={"format": "pt"})


def test_the_base_an_adapter_was_trained_on_is_its_base_wherever_it_lies(run, tmp_path):
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    for name in ("base", "copy"):
        check_base_weights(run / "adapter", settings(str(tmp_path / name)), name="x", forced=False, how_to_force=None)
    speaker = load_for_inference(str(run))
    assert speaker.model.active_adapter == "default"


def test_other_weights_of_the_same_shape_are_refused_with_both_identities_unless_forced(run, tmp_path, caplog):
    then = fingerprint_folder(tmp_path / "base")
    change_weights(tmp_path / "base")
    now = fingerprint_folder(tmp_path / "base")
    both = f"Trained on: {then[:16]}     There now: {now[:16]}"
    with pytest.raises(RecipeError, match=f"{both}\n.*all the same: --any-base"):
        load_for_inference(str(run))
    with pytest.raises(RecipeError, match=f"{both}\n.*all the same: adapter.any_base=true"):
        find_trained_adapter(str(run), settings(str(tmp_path / "base")), 1)
    load_for_inference(str(run), base_only=True)
    assert not caplog.records
    load_for_inference(str(run), any_base=True)
    assert find_trained_adapter(str(run), settings(str(tmp_path / "base")), 1, any_base=True) == run / "adapter"
    assert caplog.text.count(both) == 2


def test_another_shape_is_refused_with_the_tensor_also_where_the_base_is_forced(run, tmp_path):
    change_weights(tmp_path / "base", shape=True)
    with pytest.raises(PlaceError, match=r"does not fit .*base"):
        load_for_inference(str(run), any_base=True)


def test_a_base_of_another_name_is_taken_to_train_on_only_where_it_is_asked_for(run, tmp_path, caplog):
    other = write_base(tmp_path / "other")
    with pytest.raises(RecipeError, match=f"stands on another base.*\n.*base .*The recipe's: {other}"):
        find_trained_adapter(str(run), settings(str(other)), 1)
    assert find_trained_adapter(str(run), settings(str(other)), 1, any_base=True) == run / "adapter"
    assert "taken to be" in caplog.text


def test_what_is_noted_leaves_the_adapter_as_peft_reads_it(run):
    path = run / "adapter" / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as tensors:
        assert set(tensors.metadata()) == {"format", "finetune_base"}
    header = path.read_bytes()[8:]
    assert header.startswith(b'{"__metadata__":{"finetune_base":"'), "in one order, or equal runs would differ in bytes"
    assert all(name.startswith("base_model.model.") for name in load_file(path))


def test_a_header_that_would_reach_into_the_weights_is_not_written(tmp_path):
    # 1e1 is written out as 10.0
    header = b'{"w":{"dtype":"U8","shape":[1e1],"data_offsets":[0,10]},"__metadata__":{"b":"1","a":"2"}}'
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"weights 10")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"its header of \d+ bytes has \d+ when"):
        _order_metadata(path)
    assert path.read_bytes() == before
