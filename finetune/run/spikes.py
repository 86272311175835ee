"""Loss spikes: a logged loss far above those before it is marked, said once, and counted; the run goes on.

`SpikeWatch` is a trainer callback that stands before `MetricsWriter`: a line of metrics.jsonl gets `"spike": true`.

The rule is that of OLMo 2's spike score (2 OLMo 2 Furious, arXiv:2501.00656, section 4.1), a loss at least seven
standard deviations from the rolling mean, made fit for short runs: of the last 50 logged losses and not 1,000, upwards
alone, and with a least rise, since a few losses that are nearly equal have hardly any deviation. A loss that falls
stays below its rolling mean, so the steep start of a run raises no alarm; and a spike widens the deviation it is held
against next, so a loss that has jumped and stays up is marked once and not at every line.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable
from statistics import fmean, pstdev
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from finetune.run.folder import RunFolder
from finetune.run.metrics import read_metrics

__all__ = ["SpikeWatch", "is_spike"]

log = logging.getLogger("finetune.run.spikes")

_WINDOW = 50
_FEWEST = 10
_DEVIATIONS = 7.0
_LEAST_FACTOR = 1.5
_LEAST_RISE = 0.1  # in the loss's own unit: below it there is nothing to look into


def is_spike(loss: float, before: Iterable[float]) -> bool:
    """Whether a loss is a spike after those before it.

    Args:
        loss: that was logged.
        before: at most the last 50 logged; of fewer than 10 nothing is said.
    """
    window = list(before)
    if len(window) < _FEWEST:
        return False
    mean = fmean(window)
    limit = max(mean + _DEVIATIONS * pstdev(window, mean), mean * _LEAST_FACTOR, mean + _LEAST_RISE)
    return loss > limit


class SpikeWatch(TrainerCallback):
    """Marks the lines whose loss is a spike.

    Args:
        folder: the run's; lines that are kept of its metrics.jsonl are the first losses of a resumed run.
        resumed_step: step the run is taken up from; None: a fresh start.
    """

    def __init__(self, folder: RunFolder, *, resumed_step: int | None) -> None:
        self._folder = folder
        self._resumed_step = resumed_step
        self._before: deque[float] = deque(maxlen=_WINDOW)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the losses from before an interruption, so that a resumed run marks what the unbroken one would."""
        self._before.clear()
        if self._resumed_step is None or not self._folder.writes:
            return
        lines = read_metrics(self._folder.metrics_path)
        kept = [line["loss"] for line in lines if line["step"] <= self._resumed_step and "loss" in line]
        self._before.extend(loss for loss in kept if loss is not None)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Mark the line."""
        if not self._folder.writes or logs is None or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            return
        if is_spike(loss, self._before):
            logs["spike"] = True
            log.warning(
                "step %d: the loss is %.4g, far above the mean of %.4g over the %d lines before: a spike. The run goes "
                "on.\n  If more follow: a lower training.learning_rate, or a look at the rows of this step.",
                state.global_step, loss, fmean(self._before), len(self._before),
            )  # fmt: skip
        self._before.append(loss)
