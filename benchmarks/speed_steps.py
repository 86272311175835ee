"""What the rivals' scripts note of each step, for the speed benchmark to read.

`StepNotes` is the only thing in those scripts that a user would not write: in go the trainer's logs, out come lines of
step, seconds, real tokens and loss, and behind the last one the most memory held.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

__all__ = ["StepNotes"]


class StepNotes(TrainerCallback):
    """Notes each step as it is logged, as `finetune.run.metrics` does it for ours: padding is not in `num_tokens`.

    Args:
        path: of the file; it appears when training has ended.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        """Note a step."""
        if "loss" in logs:
            tokens = int(logs["num_tokens"])
            line = {"step": state.global_step, "seconds": time.monotonic(), "tokens": tokens, "loss": logs["loss"]}
            self._lines.append(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the lines and the memory."""
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if args.device.type == "cuda":
            peak_bytes = torch.cuda.max_memory_allocated(args.device)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps({"lines": self._lines, "peak_memory_bytes": peak_bytes}), encoding="utf-8")
