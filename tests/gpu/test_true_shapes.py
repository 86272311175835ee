"""The 7B shapes train through the same verb on a real GPU. `make test-gpu` runs these."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# What is idle on a larger device would be spent, far beyond a T4's memory.
RECOMPUTED = "training.memory=recompute_all"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(900),
]


@pytest.mark.parametrize("shape", ["mistral_7b_shape", "llama2_7b_shape"])
def test_a_7b_shape_in_nf4_trains_twenty_steps_within_a_t4s_memory(shape, tmp_path):
    settings = [f"output_dir={tmp_path}", RECOMPUTED]
    command = [sys.executable, "-m", "finetune.sft", f"benchmarks/recipes/{shape}.yaml", *settings]
    subprocess.run(command, check=True, cwd=ROOT)
    summary = json.loads((tmp_path / shape / "summary.json").read_text())
    assert summary["steps"] == 20
    assert summary["peak_memory_bytes"] < 15 * 2**30
    first, *_, last = [
        line["loss"]
        for line in map(json.loads, (tmp_path / shape / "metrics.jsonl").read_text().splitlines())
        if "loss" in line
    ]
    assert last < first


@pytest.mark.parametrize("is_cached", [False, True], ids=["live", "cached"])
def test_a_7b_shape_in_nf4_prefers_within_a_t4s_memory(is_cached, tmp_path):
    recipe = "benchmarks/recipes/mistral_7b_dpo_shape.yaml"
    cached = f"training.precompute_ref_log_probs={str(is_cached).lower()}"
    settings = [f"output_dir={tmp_path}", RECOMPUTED, cached]
    subprocess.run([sys.executable, "-m", "finetune.dpo", recipe, *settings], check=True, cwd=ROOT)
    run = tmp_path / "mistral_7b_dpo_shape"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 20
    assert summary["peak_memory_bytes"] < 15 * 2**30
    losses = [
        line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert losses[0] == pytest.approx(0.6931, abs=0.02)


def test_quickstart_learns_on_the_gpu_as_it_does_on_a_cpu(tmp_path):
    # The recipe names the CPU.
    placed = [f"output_dir={tmp_path}", "model.device=cuda"]
    command = [sys.executable, "-m", "finetune.sft", "recipes/quickstart.yaml", *placed]
    subprocess.run(command, check=True, cwd=ROOT)
    summary = json.loads((tmp_path / "quickstart" / "summary.json").read_text())
    assert "NVIDIA" in summary["device"]
    assert summary["exact_match"] >= 0.9
