"""Runs a contender's own module in this process with torch's profiler on some of its steps.

    python -m benchmarks.speed_profiled RESULT FIRST_STEP NUM_STEPS VOCAB_SIZE MODULE [ARGUMENT …]

In go a command as the speed benchmark has it; out comes a JSON object: seconds of the profiled steps, and of each
operation in them its kind, calls and own seconds. Training ends behind those steps. A CPU's operations alone are seen.
"""

import importlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback

__all__ = ["ELSEWHERE", "KINDS", "find_kind"]

PRODUCTS = "base and adapter products"
DEQUANTIZATION = "dequantization of the base"
ATTENTION = "attention forward"
ATTENTION_BACKWARD = "attention backward"
LOSS = "loss and head"
ELEMENTWISE = "elementwise, norms, copies"
OPTIMIZER = "optimizer and clipping"
ELSEWHERE = "the rest: Python and autograd between operations, the profiler itself"
KINDS = (PRODUCTS, DEQUANTIZATION, ATTENTION, ATTENTION_BACKWARD, LOSS, ELEMENTWISE, OPTIMIZER, ELSEWHERE)

_OF_ATTENTION = ("scaled_dot_product", "scaleddotproduct", "flex_attention", "varlen")
_OF_LOSS = ("_summedloss", "cross_entropy", "nll_loss", "nllloss", "log_softmax", "logsoftmax")
_OF_OPTIMIZER = ("optimizer.", "aten::_foreach", "aten::_fused_adam")
_OF_PRODUCTS = ("aten::mm", "aten::addmm", "aten::_addmm", "aten::bmm", "aten::baddbmm", "mkldnn_linear", "gemv_4bit",
                "gemm_4bit")  # fmt: skip


def find_kind(names: Sequence[str], shapes: Sequence[Sequence[int]], vocab_size: int) -> str:
    """Find what a step's operation belongs to.

    Args:
        names: of the operation and of those that it runs in, the innermost first.
        shapes: of its tensors.
        vocab_size: tells the head's tensors by their width. Where a row has just as many tokens, which of our shapes
            only that of 512 words can, some gradients of LoRA's matrices count as the head's.
    """
    lower = [name.lower() for name in names]
    if any(name.startswith(_OF_OPTIMIZER) for name in lower):
        return OPTIMIZER
    of_attention = next((name for name in lower if any(part in name for part in _OF_ATTENTION)), None)
    if of_attention is not None:
        return ATTENTION_BACKWARD if "backward" in of_attention else ATTENTION
    is_product = any(part in lower[0] for part in _OF_PRODUCTS)
    is_as_wide = any(list(shape[-1:]) == [vocab_size] for shape in shapes)
    is_as_deep = is_product and len(shapes) > 1 and list(shapes[1][:1]) == [vocab_size]
    if any(part in name for name in lower for part in _OF_LOSS) or is_as_wide or is_as_deep:
        return LOSS
    if is_product:
        return PRODUCTS
    if any(name.startswith("bitsandbytes::") for name in lower):
        return DEQUANTIZATION
    return ELEMENTWISE if lower[0].startswith("aten::") else ELSEWHERE


class ProfiledSteps(TrainerCallback):
    """Profiles steps, writes what they did, and ends the training.

    Args:
        path: of the result.
        first_step: profiled, counted from 1.
        num_steps: profiled.
        vocab_size: of the base.
    """

    def __init__(self, path: Path, first_step: int, num_steps: int, vocab_size: int) -> None:
        self._path, self._first_step, self._num_steps, self._vocab_size = path, first_step, num_steps, vocab_size
        self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self._began_seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start before the first of the steps."""
        if state.global_step == self._first_step - 1:
            self._profile.start()
            self._began_seconds = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop behind the last of them."""
        if state.global_step == self._first_step - 1 + self._num_steps:
            seconds = time.perf_counter() - self._began_seconds
            self._profile.stop()
            operations = self._sum_operations()
            found = {"seconds": seconds, "steps": self._num_steps, "operations": operations}
            self._path.write_text(json.dumps(found), encoding="utf-8")
            control.should_training_stop = True

    def _sum_operations(self) -> list[dict[str, Any]]:
        """Sum up calls and own seconds by kind and name, the longest first."""
        sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
        for event in self._profile.events():
            names, parent = [event.name], event.cpu_parent
            while parent is not None:
                names.append(parent.name)
                parent = parent.cpu_parent
            one = sums[find_kind(names, event.input_shapes or (), self._vocab_size), event.name]
            one[0] += 1
            one[1] += event.self_cpu_time_total / 1e6
        summed = [
            {"kind": kind, "name": name, "calls": calls, "seconds": round(seconds, 6)}
            for (kind, name), (calls, seconds) in sums.items()
        ]
        return sorted(summed, key=lambda one: -one["seconds"])


def main() -> None:
    """Run the module with the profiler in whatever trainer it builds."""
    result, first_step, num_steps, vocab_size, module, *arguments = sys.argv[1:]
    callback = ProfiledSteps(Path(result), int(first_step), int(num_steps), int(vocab_size))
    build = Trainer.__init__

    def build_with_callback(self: Trainer, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.add_callback(callback)

    Trainer.__init__ = build_with_callback
    sys.argv = [module, *arguments]
    importlib.import_module(module).main()
    if not Path(result).exists():
        raise SystemExit(f"Training ended before step {int(first_step) + int(num_steps) - 1}: nothing was profiled.")


if __name__ == "__main__":
    main()
