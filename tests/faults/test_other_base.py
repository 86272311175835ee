"""A folder that holds other weights than an adapter was trained on: told before it is talked to or trained on."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from finetune.errors import RecipeError
from finetune.model.loading import load_for_inference
from finetune.recipe.reading import build_recipe
from finetune.train import check_settings
from tests.end_to_end.small_runs import build_values, run_small
from tests.model.saved_runs import write_base


def build_model(base: Path) -> dict[str, object]:
    return {"model_name_or_path": str(base), "quantization": "none", "device": "cpu", "compute_dtype": "float32"}


@pytest.mark.usefixtures("tiny_base")
def test_a_run_notices_that_its_base_was_trained_further_in_its_folder(tmp_path):
    base = write_base(tmp_path / "base")
    run = run_small(tmp_path / "outputs", model=build_model(base), training__max_steps=1)
    weights = base / "model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})

    with pytest.raises(RecipeError, match="was trained on other weights than those in"):
        load_for_inference(str(run))
    values = build_values(tmp_path / "outputs", model=build_model(base), adapter={"init_from": str(run)})
    with pytest.raises(RecipeError, match=r"was trained on other weights(.|\n)*adapter.any_base=true"):
        check_settings(build_recipe(values))
    values["adapter"]["any_base"] = True
    _, trained_dir = check_settings(build_recipe(values))
    assert trained_dir == run / "adapter"


def test_to_take_any_base_is_about_an_adapter_that_is_trained_on():
    with pytest.raises(RecipeError, match=r"`adapter\.any_base` is about the adapter that `adapter\.init_from` names"):
        build_recipe(build_values(Path("outputs"), adapter={"any_base": True}))
