"""Small runs and random weights on a real GPU, in precisions that a CPU has not got. `make test-gpu` runs these."""

import pytest
import torch

from finetune.model.base import load_base
from finetune.recipe.schema import ModelSettings
from tests.end_to_end.small_runs import SHAPE, TINY, read_json, read_lines, run_small

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]


def compute_logits(quantization: str, dtype: str) -> torch.Tensor:
    """Logits of the same random numbers, held in one way or another."""
    settings = ModelSettings(
        weights="random",
        config=SHAPE | {"hidden_size": 256, "intermediate_size": 512},
        tokenizer_name_or_path=str(TINY),
        quantization=quantization,  # type: ignore[arg-type]
        compute_dtype=dtype,  # type: ignore[arg-type]
        device=DEVICE,  # type: ignore[arg-type]
    )
    base = load_base(settings, seed=5)
    assert base.device.type == DEVICE
    with torch.no_grad():
        return base.model(input_ids=torch.arange(10, 42, device=base.device)[None]).logits.float()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_run_in_16_bit_and_one_in_32_lower_the_held_out_loss(dtype, tmp_path):
    run = run_small(
        tmp_path,
        model__device=DEVICE,
        model__compute_dtype=dtype,
        data__eval={"fraction": 0.1},
        training__max_steps=12,
        training__gradient_checkpointing=True,
    )
    summary = read_json(run / "summary.json")
    assert summary["eval_loss"] < summary["eval_loss_before"]
    assert all(line["loss"] is not None for line in read_lines(run) if line["step"] > 0)


def test_a_float16_run_keeps_its_gradient_scale_in_every_checkpoint(tmp_path):
    settings = {"model__device": DEVICE, "model__compute_dtype": "float16", "training__save_steps": 2}
    run = run_small(tmp_path, **settings)
    checkpoints = list((run / "checkpoints").glob("checkpoint-*"))
    assert checkpoints
    assert all((checkpoint / "scaler.json").is_file() for checkpoint in checkpoints)


@pytest.mark.parametrize(("quantization", "at_least"), [("int8", 0.99), ("nf4", 0.95), ("fp4", 0.9)])
def test_random_weights_that_were_quantized_compute_nearly_what_they_did_before(quantization, at_least):
    exact, rounded = compute_logits("none", "float16"), compute_logits(quantization, "float16")
    assert torch.isfinite(rounded).all()
    assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > at_least


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_an_adapter_trains_on_random_weights_that_were_quantized(quantization, tmp_path):
    run = run_small(tmp_path, model__device=DEVICE, model__quantization=quantization, model__compute_dtype="auto")
    losses = [line["loss"] for line in read_lines(run) if "loss" in line]
    assert losses[-1] < losses[0]
