import pytest
import torch
from transformers import Gemma2ForCausalLM, LlamaForCausalLM

from finetune.errors import PlaceError, RecipeError
from finetune.model import attention
from finetune.model.attention import check_attention, choose_attention

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class NoSdpa(LlamaForCausalLM):
    _supports_sdpa = False
    _supports_flash_attn = False


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Let torch report a GPU, and transformers whether flash-attn is installed."""

    def report(capability: tuple[int, int], flash_installed: bool) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: flash_installed)

    return report


def test_auto_is_flash_attention_where_device_installation_and_precision_allow(gpu):
    gpu(capability=(8, 0), flash_installed=True)
    assert choose_attention("auto", GPU, torch.bfloat16, LlamaForCausalLM) == "flash_attention_2"


@pytest.mark.parametrize(
    ("capability", "flash_installed", "dtype"),
    [
        ((7, 5), True, torch.float16),
        ((8, 0), False, torch.bfloat16),
        ((8, 0), True, torch.float32),
    ],
)
def test_auto_is_sdpa_elsewhere(gpu, capability, flash_installed, dtype):
    gpu(capability, flash_installed)
    assert choose_attention("auto", GPU, dtype, LlamaForCausalLM) == "sdpa"
    assert choose_attention("auto", CPU, dtype, LlamaForCausalLM) == "sdpa"


def test_auto_is_eager_for_an_architecture_that_has_nothing_else():
    assert choose_attention("auto", CPU, torch.float32, NoSdpa) == "eager"


def test_a_kernel_that_the_architecture_lacks_is_refused_with_those_it_has():
    with pytest.raises(RecipeError, match="NoSdpa has no `sdpa`; it has eager"):
        choose_attention("sdpa", CPU, torch.float32, NoSdpa)


def test_a_repositorys_own_code_is_left_to_transformers():
    assert choose_attention("auto", CPU, torch.float32, None) is None
    assert choose_attention("eager", CPU, torch.float32, None) == "eager"


def test_flash_attention_on_a_cpu_is_refused_with_the_ways_out():
    with pytest.raises(PlaceError, match="flash_attention_2` needs a GPU; this run is on the cpu") as refusal:
        check_attention("flash_attention_2", CPU, torch.bfloat16)
    assert "model.attention=auto" in str(refusal.value)
    assert "model.attention=sdpa" in str(refusal.value)


def test_flash_attention_on_a_t4_is_refused_with_both_numbers(gpu):
    gpu(capability=(7, 5), flash_installed=True)
    with pytest.raises(PlaceError, match=r"needs compute capability 8.0; Tesla T4 has 7.5"):
        check_attention("flash_attention_2", GPU, torch.float16)


def test_flash_attention_that_is_not_installed_is_refused_with_the_command(gpu):
    gpu(capability=(8, 0), flash_installed=False)
    with pytest.raises(PlaceError, match="not installed") as refusal:
        check_attention("flash_attention_2", GPU, torch.bfloat16)
    assert "pip install flash-attn" in str(refusal.value)


def test_flash_attention_in_float32_is_a_contradiction_of_the_recipe(gpu):
    gpu(capability=(8, 0), flash_installed=True)
    with pytest.raises(RecipeError, match="computes in 16 bits"):
        check_attention("flash_attention_2", GPU, torch.float32)


def test_the_other_kernels_need_no_check():
    for name in ("auto", "sdpa", "eager"):
        check_attention(name, CPU, torch.float32)


@pytest.mark.parametrize(("capability", "device"), [(None, CPU), ((8, 0), GPU), ((9, 0), GPU)])
def test_auto_attends_documents_apart_where_packed_rows_may_come_and_flash_attn_does_not(gpu, capability, device):
    gpu(capability, flash_installed=False)
    assert choose_attention("auto", device, torch.bfloat16, LlamaForCausalLM, may_be_packed=True) == "documents"
    assert choose_attention("auto", device, torch.bfloat16, LlamaForCausalLM) == "sdpa"


def test_flash_attention_comes_before_it_and_what_was_typed_before_both(gpu):
    gpu(capability=(8, 0), flash_installed=True)
    chosen = choose_attention("auto", GPU, torch.bfloat16, LlamaForCausalLM, may_be_packed=True)
    assert chosen == "flash_attention_2"
    assert choose_attention("sdpa", CPU, torch.bfloat16, LlamaForCausalLM, may_be_packed=True) == "sdpa"


def test_auto_stays_sdpa_on_a_t4_and_for_an_architecture_that_is_not_proven_to_keep_documents_apart(gpu):
    gpu(capability=(7, 5), flash_installed=False)
    assert choose_attention("auto", GPU, torch.float16, LlamaForCausalLM, may_be_packed=True) == "sdpa"
    assert choose_attention("auto", CPU, torch.float32, Gemma2ForCausalLM, may_be_packed=True) == "sdpa"


def test_documents_typed_for_an_architecture_that_is_not_served_is_refused():
    assert choose_attention("documents", CPU, torch.float32, LlamaForCausalLM) == "documents"
    with pytest.raises(RecipeError, match="Gemma2ForCausalLM has no `documents`"):
        choose_attention("documents", CPU, torch.float32, Gemma2ForCausalLM)
    with pytest.raises(RecipeError, match="own code may attend in ways that `documents` does not know"):
        choose_attention("documents", CPU, torch.float32, None)
