"""4-bit weights asked of a GPU that the installed bitsandbytes has no library for: told before anything is fetched."""

import pytest
import torch
from bitsandbytes import cextension

from finetune.errors import PlaceError
from finetune.model.base import check_base
from finetune.model.quantization import check_quantization
from finetune.recipe.schema import ModelSettings

REASON = "No compatible CUDA binary found at libbitsandbytes_cuda999.so"


@pytest.fixture
def no_library(monkeypatch) -> None:
    """What bitsandbytes 0.50 holds in its library's place where none could be loaded."""
    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary(REASON))


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_a_gpu_without_a_library_is_told_with_the_reason_before_the_base_is_looked_for(
    no_library, monkeypatch, quantization
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    settings = ModelSettings(
        model_name_or_path="nobody/nothing", quantization=quantization, device="cuda", compute_dtype="float32"
    )
    with pytest.raises(PlaceError) as refusal:
        check_base(settings)
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith(f"`model.quantization: {quantization}` needs bitsandbytes' library for this GPU")
    assert lines[0].endswith(f"{REASON}.")
    assert "model.quantization=none" in lines[1]
    assert refusal.value.exit_code == 4


def test_a_base_in_full_and_a_cpu_need_none(no_library):
    check_quantization("none", torch.device("cuda"))
    check_quantization("nf4", torch.device("cpu"))


def test_a_library_that_was_loaded_is_taken():
    check_quantization("nf4", torch.device("cuda"))
