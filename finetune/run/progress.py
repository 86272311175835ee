"""How a run shows itself while it goes: a bar on a terminal, a plain line now and then elsewhere.

Goes in: steps and the records of `metrics`. The bar stands on standard error with loss, tokens per
second, time left and peak memory. The plain lines go to the log in either case, so that log.txt tells
the story of the run; beside a bar the console leaves them out.
"""

import logging
import sys
import time
from typing import Any

from tqdm import tqdm

__all__ = ["PROGRESS_LOGGER", "Progress", "is_evaluation", "shows_bars", "to_duration", "to_gib"]

PROGRESS_LOGGER = "finetune.run.progress"  # the console leaves its lines out where a bar stands

log = logging.getLogger(PROGRESS_LOGGER)

_BETWEEN_LINES_SECONDS = 30.0


def shows_bars() -> bool:
    """Whether progress bars are drawn: standard error is a terminal."""
    return sys.stderr.isatty()


class Progress:
    """The bar and the lines of one run; silent in processes that do not write."""

    def __init__(self, *, writes: bool) -> None:
        self._writes = writes
        self._bar: tqdm[Any] | None = None
        self._started_seconds = 0.0
        self._last_line_seconds = -_BETWEEN_LINES_SECONDS
        self._first_step = 0
        self._total_steps = 0

    def start(self, step: int, total_steps: int) -> None:
        """Begin at `step`, which is above 0 where a run is taken up again."""
        self._first_step, self._total_steps = step, total_steps
        self._started_seconds = time.monotonic()
        if self._writes:
            self._bar = tqdm(
                total=total_steps,
                initial=step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                disable=not shows_bars(),
            )

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._bar is not None and not self._bar.disable:
            self._bar.update(step - self._bar.n)

    def show(self, record: dict[str, Any]) -> None:
        """Show a logged step: beside the bar at once, as a line when the last one is half a minute old."""
        if not self._writes:
            return
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(" ".join(_to_figures(record)), refresh=False)
        now = time.monotonic()
        is_last = record["step"] == self._total_steps
        if is_last or is_evaluation(record) or now - self._last_line_seconds >= _BETWEEN_LINES_SECONDS:
            self._last_line_seconds = now
            where = f"step {record['step']} of {self._total_steps}" if self._total_steps else "before the first step"
            log.info("%s", ", ".join([where, *_to_figures(record), *self._estimate_left(record["step"], now)]))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _estimate_left(self, step: int, now: float) -> list[str]:
        done = step - self._first_step
        if done <= 0 or step >= self._total_steps:
            return []
        return [f"{to_duration((now - self._started_seconds) / done * (self._total_steps - step))} left"]


_SHOWN = {
    "loss": "loss {:.4f}",
    "reward": "reward {:.3f}",
    "rewards/accuracies": "pairs right {:.0%}",
    "accuracy": "pairs right {:.0%}",
    "eval_loss": "held-out loss {:.4f}",
    "eval_reward": "held-out reward {:.3f}",
    "eval_score": "held-out score {:.4f}",
}


def is_evaluation(record: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl says how the held-out rows went."""
    return "eval_loss" in record or "eval_reward" in record


def _to_figures(record: dict[str, Any]) -> list[str]:
    figures = []
    for key, pattern in _SHOWN.items():
        if record.get(key) is not None:
            figures.append(pattern.format(record[key]))
    if record.get("tokens_per_second"):
        figures.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    figures.append(f"peak {to_gib(record['peak_memory_bytes'])}")
    return figures


def to_duration(seconds: float) -> str:
    """`2 h 05 min`, `4 min 10 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def to_gib(num_bytes: int) -> str:
    """`10.5 GiB`: memory in binary units, as the makers of GPUs and their tools count it."""
    return f"{num_bytes / 2**30:.1f} GiB"
