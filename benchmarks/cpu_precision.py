"""Processor seconds of a small Mistral's step on one CPU thread, in each precision.

Run it twice to see what a plain laptop does:
    python -m benchmarks.cpu_precision
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.cpu_precision

Writes `results/cpu_precision_<machine>.json`.
"""

import time

import torch
from transformers import MistralConfig, MistralForCausalLM

from benchmarks.recording import write_result

NUM_STEPS = 4


def measure_step_seconds(dtype: torch.dtype, autocast: bool) -> float:
    """The fastest of a few steps, forward and backward; processor time, so that a busy machine counts less."""
    config = MistralConfig(
        vocab_size=3000,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model = MistralForCausalLM(config).to(dtype)
    tokens = torch.randint(0, 3000, (4, 256))
    seconds = []
    for _ in range(NUM_STEPS):
        start = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Measure each precision and write the results of this machine."""
    torch.set_num_threads(1)
    step_seconds = {
        "float32": measure_step_seconds(torch.float32, False),
        "bfloat16": measure_step_seconds(torch.bfloat16, False),
        "float32, bfloat16 autocast": measure_step_seconds(torch.float32, True),
    }
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"instruction set torch uses: {capability}")
    for precision, seconds in step_seconds.items():
        print(f"{precision:<26} {seconds:6.2f} s")
    write_result("cpu_precision", {"capability": capability, "step_seconds": step_seconds})


if __name__ == "__main__":
    main()
