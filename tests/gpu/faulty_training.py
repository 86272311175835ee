"""Runs a verb with a fault in its training: `python -m tests.gpu.faulty_training STEP FAULT MODULE ARGUMENTS`.

STEP is the number of steps done before it. FAULT is `nan`, what the step's losses then are, or a share: that of the
memory which the next micro-batch needs beside what is held already, left to it from there on. On a GPU it is torch's
allocator that refuses: what the step before took, by its tokens, is measured and the process's share of the device
lowered. A CPU refuses nothing, and rows beyond that share are refused here, in torch's words.
"""

import gc
import runpy
import sys
from typing import Any

import torch

from finetune.objectives.trainer import StepMixin


class Cut:
    """Memory that is cut once.

    Args:
        step: steps done when it is cut.
        share: of what the next micro-batch needs.
    """

    def __init__(self, step: int, share: float) -> None:
        self._step = step
        self._share = share
        self._held_bytes: int | None = None
        self._tokens = 0
        self._max_rows: int | None = None
        self._is_cut = False
        self._ballast: list[torch.Tensor] = []

    def come_by(self, device: torch.device, step: int, rows: int, tokens: int) -> None:
        """Measure, cut or refuse, before a micro-batch is computed."""
        if device.type != "cuda":
            self._refuse(step, rows)
        elif step == self._step - 1 and self._held_bytes is None:
            torch.cuda.reset_peak_memory_stats(device)
            self._held_bytes, self._tokens = torch.cuda.memory_allocated(device), tokens
        elif step == self._step and not self._is_cut:
            assert self._held_bytes is not None
            self._is_cut = True
            needed_bytes = (torch.cuda.max_memory_allocated(device) - self._held_bytes) * tokens / self._tokens
            gc.collect()
            torch.cuda.empty_cache()
            self._allow(device, 0)
            self._fill_gaps(device)
            self._allow(device, self._share * needed_bytes)

    def _allow(self, device: torch.device, num_bytes: float) -> None:
        """Let the process reserve no more than so many bytes beyond what it has."""
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        allowed_bytes = torch.cuda.memory_reserved(device) + num_bytes
        torch.cuda.set_per_process_memory_fraction(allowed_bytes / total_bytes, device.index)

    def _fill_gaps(self, device: torch.device) -> None:
        """Fill what is reserved and empty: between a base's weights it can be as much as a row needs."""
        num_bytes = 2**30
        while num_bytes >= 2**20:
            try:
                self._ballast.append(torch.empty(num_bytes, dtype=torch.uint8, device=device))
            except torch.OutOfMemoryError:
                num_bytes //= 2

    def _refuse(self, step: int, rows: int) -> None:
        if step < self._step:
            return
        if self._max_rows is None:
            self._max_rows = int(self._share * rows)
        if rows > self._max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def plant(step: int, fault: str) -> None:
    """Put the fault where a trainer computes the loss of a micro-batch."""
    compute_loss = StepMixin.compute_loss
    cut = None if fault == "nan" else Cut(step, float(fault))

    def faulty(self: StepMixin, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not self.is_in_train or not self.model.training:  # an evaluation, or the search for the rows of a fault
            return compute_loss(self, model, inputs, *args, **kwargs)
        if cut is not None:
            ids = inputs["input_ids"]
            cut.come_by(self.args.device, self.state.global_step, len(ids), ids.numel())
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        return loss * float("nan") if cut is None and self.state.global_step == step else loss

    StepMixin.compute_loss = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    at, what, module, *arguments = sys.argv[1:]
    plant(int(at), what)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
