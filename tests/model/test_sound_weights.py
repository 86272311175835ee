"""What is told of an adapter by its numbers alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune.errors import PlaceError
from finetune.model.sound_weights import changes_nothing, check_sound, find_not_finite, is_all_zero

ONE, ZERO = torch.ones(2, 2), torch.zeros(2, 2)
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"


def write(path: Path, **tensors: torch.Tensor) -> Path:
    save_file({f"{LAYER}.{name}.weight": tensor.clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_tensor_with_a_number_that_is_not_finite_is_named(odd, dtype):
    broken = torch.tensor([0.0, odd]).to(dtype)
    assert find_not_finite([("one", ONE), ("two", broken), ("three", broken)]) == "two"
    assert find_not_finite([("one", ONE.to(dtype)), ("whole numbers", torch.tensor([1, 2]))]) is None
    assert find_not_finite([]) is None


def test_zeros_are_told_from_an_output_side_of_zeros():
    assert is_all_zero([(A, ZERO), (B, ZERO)])
    assert not is_all_zero([(A, ONE), (B, ZERO)])
    assert not is_all_zero([]), "nothing is not zero"
    assert changes_nothing([(A, ONE), (B, ZERO)])
    assert not changes_nothing([(A, ONE), (B, ONE)])
    assert not changes_nothing([(A, ZERO), (B, ONE), (B.replace("0", "1"), ZERO)]), "a start may have no input side"


def test_what_has_other_tensors_beside_lora_may_change_something():
    assert not changes_nothing([(A, ONE), (B, ZERO), (f"{LAYER}.score.weight", ONE)])


@pytest.mark.parametrize("name", [f"{LAYER}.lora_magnitude_vector", f"{LAYER}.lora_magnitude_vector.default.weight"])
def test_the_magnitudes_of_dora_change_nothing_beside_an_output_side_of_zeros(name):
    assert changes_nothing([(A, ONE), (B, ZERO), (name, ONE)])
    assert not changes_nothing([(A, ONE), (B, ONE), (name, ONE)])


def test_adalora_without_singular_values_changes_nothing(tmp_path):
    e = f"{LAYER}.lora_E"
    assert changes_nothing([(A, ONE), (B, ONE), (e, ZERO)])
    assert not changes_nothing([(A, ONE), (B, ONE), (e, ZERO), (e.replace("0", "1"), ONE)])
    path = write(tmp_path / "pruned.safetensors", lora_A=ONE, lora_B=ONE, lora_E=ZERO)
    with pytest.raises(PlaceError, match=r"the vector of singular values is all zeros, .*lora_E"):
        check_sound(path, must_change=True)


def test_a_file_is_refused_by_its_name_and_the_tensors(tmp_path):
    good = write(tmp_path / "good.safetensors", lora_A=ONE, lora_B=ONE)
    check_sound(good)
    check_sound(good, must_change=True)
    broken = write(tmp_path / "broken.safetensors", lora_A=ONE, lora_B=ONE / 0)
    with pytest.raises(PlaceError, match=rf"broken.safetensors: {B} holds numbers that are not finite"):
        check_sound(broken)
    with pytest.raises(PlaceError, match=r"zeros.safetensors: every number is zero"):
        check_sound(write(tmp_path / "zeros.safetensors", lora_A=ZERO, lora_B=ZERO))


def test_an_adapter_without_effect_is_refused_only_where_it_must_have_one(tmp_path, caplog):
    path = write(tmp_path / "fresh.safetensors", lora_A=ONE, lora_B=ZERO)
    check_sound(path)
    assert "fresh.safetensors: the output side is all zeros" in caplog.text
    with pytest.raises(PlaceError, match=rf"the output side is all zeros, {B}"):
        check_sound(path, must_change=True)
