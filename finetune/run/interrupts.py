"""SIGTERM and Ctrl-C: a run that is asked to stop saves first, and says how to go on.

While steps are being trained a signal is only noted; at the end of the step (or of the save that is
under way) the run is saved and stopped. An evaluation is not waited for: the trainer asks `is_stopping`,
saves, and leaves it to the resumed run. Before and after, when there is nothing to save, it ends at once.
A second Ctrl-C always ends at once, until the run is on its way out: from there on both signals are
ignored until `status.json` says how it ended. Once the result takes its place there is nothing left to
stop: a signal is not heard any more, and the run is done a moment later.

Slurm and a terminal send the signal to the data workers too. Those leave it to this process: a worker that died of
it would take the step with it that is to be saved.

Transformers' own `enable_jit_checkpoint` stays off: it saves in the middle of a step, waits three
seconds of the grace period first, writes outside the callbacks that commit a checkpoint, and does
not know Ctrl-C.
"""

import logging
import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from finetune.errors import Interrupted
from finetune.run.early_signals import EndNow, name_signal, was_terminated
from finetune.run.folder import RunFolder

__all__ = ["Interrupts"]

log = logging.getLogger("finetune.run.interrupts")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher that forwards the terminal's Ctrl-C delivers one key press twice.
_ONE_KEY_PRESS_SECONDS = 0.5


class Interrupts(TrainerCallback):
    """Context manager around a run, and callback of its trainer.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.received: signal.Signals | None = None
        self._folder = folder
        self._is_training = False
        self._is_leaving = False
        self._received_at_seconds = 0.0
        self._before: dict[signal.Signals, Any] = {}
        # Blocked and not ignored: a data worker of torch installs its own handler for SIGTERM later.
        os.register_at_fork(after_in_child=self._hold_back)

    def __enter__(self) -> Self:
        if was_terminated():
            self.received = signal.SIGTERM
            raise self._build_error("left at once")
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        try:
            for number in _SIGNALS:
                signal.signal(number, self._handle)
            return self
        except KeyboardInterrupt as error:  # `with` leaves by `__exit__` only what it has entered
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The folder has yet to write how the run ended. A signal says nothing new any more, and would cut that short.
        self._is_leaving = True
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._folder.when_left = self._give_back
        if isinstance(error, EndNow):
            self.received = self.received or signal.Signals(error.number)  # of the handler before this one
            raise self._build_error("left at once") from None

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def is_stopping(self) -> bool:
        """Whether the run is to save now and stop; every process of a launch asks at the same moment."""
        return self._is_training and self._anyone_received()

    def raise_if_received(self) -> None:
        """Ask after `trainer.train()`: it returns normally when it was stopped.

        Raises:
            Interrupted: a signal came; 143 for SIGTERM, 130 for Ctrl-C.
        """
        if self.received is not None:
            raise self._build_error("saved")

    def _build_error(self, how: str) -> Interrupted:
        assert self.received is not None
        name = name_signal(self.received)
        step, total = self._folder.step, self._folder.total_steps
        where = f"at step {step} of {total}" if total else "before the first step"
        goes_on = self._folder.started or self._folder.has_checkpoint  # of a run that was being taken up again
        again = "the same command with --resume" if goes_on else "the same command, nothing was written"
        return Interrupted(
            f"{self._folder.path} was stopped by {name} {where}, {how}.\n  Go on: {again}",
            exit_code=128 + self.received,
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._folder.done or self._folder.closing or self._is_leaving:
            return
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at_seconds = signal.Signals(number), now
            if not self._is_training:
                raise EndNow(number)
            if self._folder.writes:
                log.warning("Stopping: the run is saved at the end of this step. Ctrl-C again leaves at once.")
            return
        # A second SIGTERM counts where nothing is being saved: a library may have swallowed the first.
        ends_now = number == signal.SIGINT or not self._is_training
        if ends_now and now - self._received_at_seconds > _ONE_KEY_PRESS_SECONDS:
            raise EndNow(number)

    def _hold_back(self) -> None:
        """Keep both signals from a forked worker; it ends with its loader, or with its parent."""
        if self._before:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    # ---- callback

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on a signal waits for the end of the step."""
        self._is_training = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop where a signal came during the step."""
        if self._anyone_received():
            control.should_save = True
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop where a signal came behind the evaluation's last batch; the step before it has ended."""
        if self.is_stopping():
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop where a signal came during the save: this checkpoint is the one to go on from."""
        if self.is_stopping():
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything is saved: from here on a signal ends at once."""
        self._is_training = False

    def _anyone_received(self) -> bool:
        """Whether a signal came to any process: all must stop at the same step, or they wait for each other forever."""
        processes = PartialState()
        if processes.num_processes > 1:
            mine = 0 if self.received is None else int(self.received)
            total = int(reduce(torch.tensor(mine, device=processes.device), reduction="sum"))
            if total and self.received is None:
                self.received = signal.SIGTERM
        return self.received is not None
