import bitsandbytes as bnb
import pytest
import torch

from finetune.model.quantization import build_bnb_config
from tests.reference import nf4
from tests.reference.bases import load
from tests.reference.closeness import hold

# Appendix E of arXiv:2305.14314, as printed.
PRINTED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]  # fmt: skip
SHAPE = (512, 1024)


@pytest.fixture(scope="module")
def weight():
    return 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def quantized(weight, *, double_quantization):
    """A weight held as the pipeline's configuration has the library hold it."""
    config = build_bnb_config("nf4", double_quantization, torch.float32)
    return bnb.nn.Params4bit(
        weight.clone(),
        quant_type=config.bnb_4bit_quant_type,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_storage=config.bnb_4bit_quant_storage,
    ).to("cpu")


def absmax_of(state):
    return bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset


def hold_levels(levels):
    hold("NF4 levels", printed=(levels, torch.tensor(PRINTED)))
    hold("NF4 levels", bitsandbytes=(bnb.functional.get_4bit_type("nf4", device="cpu"), levels))


def hold_blocks(held, indices, absmax, levels, block):
    """Hold a weight without double quantization: every index, every block's largest magnitude, every value."""
    state = held.quant_state
    assert torch.equal(held.data.flatten(), nf4.pack(indices))
    assert torch.equal(state.absmax, absmax)
    values = bnb.functional.dequantize_4bit(held.data, state)
    hold("NF4", values=(values.flatten(), nf4.dequantize(indices, absmax, levels, block)))


# What the library's CPU kernel may be beside the nearest of the 256 levels, as a fraction of the block's largest value:
# one of 32,768 steps. Where a constant lies so near to the middle of two levels, it takes the other one.
STEP = 2**-15


def hold_double(held, absmax, codes, second, mean):
    """Hold a weight with double quantization: its constants' codes, the second level, and the constants back."""
    state = held.quant_state
    hold("double quantization", second=(state.state2.absmax, second), mean=(state.offset, mean))
    scaled = (absmax - mean) / second.repeat_interleave(nf4.SECOND_BLOCK)[: len(absmax)]
    levels = nf4.build_dynamic_levels()
    excess = (scaled - levels[state.absmax.long()]).abs() - (scaled - levels[codes.long()]).abs()
    assert excess.abs().max() <= STEP
    assert (state.absmax != codes).sum() <= 1 + 0.003 * len(codes)
    hold("double quantization", absmax=(absmax_of(state), nf4.dequantize_absmax(state.absmax, second, mean)))


def test_the_16_levels_are_the_formulas_the_papers_and_the_librarys():
    levels = nf4.build_nf4_levels()
    assert len(levels) == 16
    assert (levels == 0).sum() == 1
    hold_levels(levels)


def test_the_256_levels_of_the_second_step_are_the_dynamic_types():
    levels = nf4.build_dynamic_levels()
    assert len(levels.unique()) == 256
    hold("8-bit levels", bitsandbytes=(bnb.functional.create_dynamic_map(), levels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_index_and_every_value_is_the_papers(weight, dtype):
    held = quantized(weight.to(dtype), double_quantization=False)
    levels = bnb.functional.get_4bit_type("nf4", device="cpu")
    indices, absmax = nf4.quantize(weight.to(dtype), levels, nf4.BLOCK)
    held.quant_state.dtype = torch.float32  # in which its values come back
    hold_blocks(held, indices, absmax, levels, nf4.BLOCK)


def test_the_formulas_own_levels_give_the_same_indices(weight):
    levels = nf4.build_nf4_levels()
    assert torch.equal(
        quantized(weight, double_quantization=False).data.flatten(),
        nf4.pack(nf4.quantize(weight, levels, nf4.BLOCK)[0]),
    )


def test_no_value_is_further_from_its_weight_than_half_the_widest_gap(weight):
    held = quantized(weight, double_quantization=False)
    values = bnb.functional.dequantize_4bit(held.data, held.quant_state)
    half_gap = nf4.build_nf4_levels().diff().max() / 2
    error = (values - weight).reshape(-1, nf4.BLOCK).abs().amax(1) / held.quant_state.absmax
    assert 0.9 * half_gap < error.max() <= half_gap * (1 + 1e-6)


def test_double_quantization_is_the_papers(weight):
    held = quantized(weight, double_quantization=True)
    _, absmax = nf4.quantize(weight, nf4.build_nf4_levels(), nf4.BLOCK)
    hold_double(held, absmax, *nf4.quantize_absmax(absmax))


def test_a_constant_comes_back_within_half_the_widest_gap_of_its_block(weight):
    state = quantized(weight, double_quantization=True).quant_state
    _, absmax = nf4.quantize(weight, nf4.build_nf4_levels(), nf4.BLOCK)
    bound = 0.9 / 64 / 2 + STEP  # 64 shares of [0.1, 1]
    error = (absmax_of(state) - absmax).abs().reshape(-1, nf4.SECOND_BLOCK).amax(1) / state.state2.absmax
    assert 0.9 * bound < error.max() <= bound


@pytest.mark.parametrize(("double_quantization", "bits"), [(True, 4.127), (False, 4.5)])
def test_the_bytes_held_are_the_papers_bits_a_parameter(weight, double_quantization, bits):
    held = quantized(weight, double_quantization=double_quantization)
    state = held.quant_state
    tensors = [held.data, state.absmax]
    if double_quantization:
        tensors += [state.state2.absmax, state.offset]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # The mean, once a matrix; the two tables of levels (1,088 bytes) are not in the paper's count.
    per_tensor = 4 if double_quantization else 0
    assert nf4.bits_per_parameter(double_quantization=double_quantization) == pytest.approx(bits, abs=5e-4)
    assert (
        num_bytes - per_tensor == weight.numel() * nf4.bits_per_parameter(double_quantization=double_quantization) / 8
    )


def test_a_base_that_the_pipeline_loads_is_held_so():
    base = load("nf4").model
    plain = load("none").model
    for name in ("q_proj", "k_proj"):
        held = base.model.layers[0].self_attn.get_submodule(name).weight
        indices, absmax = nf4.quantize(
            plain.model.layers[0].self_attn.get_submodule(name).weight, nf4.build_nf4_levels(), nf4.BLOCK
        )
        assert torch.equal(held.data.flatten(), nf4.pack(indices))
        hold_double(held, absmax, *nf4.quantize_absmax(absmax))


@pytest.mark.parametrize("offset", [0.95, 0.9677, 1 - 1 / 32])
def test_another_offset_is_found(offset):
    with pytest.raises(AssertionError):
        hold_levels(nf4.build_nf4_levels(offset))


def swap_halves(indices):
    return indices.reshape(-1, 2).flip(1).flatten()


@pytest.mark.parametrize(
    "planted", ["blocks of 128", "the next index", "halves of a byte exchanged", "a scale of 1.01"]
)
def test_an_error_planted_in_the_blocks_is_found(weight, planted):
    levels = bnb.functional.get_4bit_type("nf4", device="cpu")
    block = 128 if planted == "blocks of 128" else nf4.BLOCK
    indices, absmax = nf4.quantize(weight, levels, block)
    if planted == "the next index":
        indices[1000] = (indices[1000] + 1) % 16
    if planted == "halves of a byte exchanged":
        indices = swap_halves(indices)
    if planted == "a scale of 1.01":
        absmax = absmax * 1.01
    with pytest.raises(AssertionError):
        hold_blocks(quantized(weight, double_quantization=False), indices, absmax, levels, block)


PLANTED = {
    "no mean": lambda absmax: (*nf4.quantize(absmax, nf4.build_dynamic_levels(), nf4.SECOND_BLOCK), absmax.mean()),
    "second blocks of 128": lambda absmax: nf4.quantize_absmax(absmax, 128),
    "a scale of 1.01": lambda absmax: nf4.quantize_absmax(1.01 * absmax),
    "even levels": lambda absmax: (
        nf4.quantize((absmax - absmax.mean()), torch.linspace(-1, 1, 256), nf4.SECOND_BLOCK)[0],
        *nf4.quantize_absmax(absmax)[1:],
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_an_error_planted_in_double_quantization_is_found(weight, planted):
    _, absmax = nf4.quantize(weight, nf4.build_nf4_levels(), nf4.BLOCK)
    with pytest.raises(AssertionError):
        hold_double(quantized(weight, double_quantization=True), absmax, *PLANTED[planted](absmax))
