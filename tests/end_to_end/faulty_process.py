"""Runs a verb in one process of a launch with a fault inside: `… faulty_process METHOD STEP FAULT MODULE ARGUMENTS`.

METHOD is one of the trainer's, STEP the number of steps done when it is called, FAULT `SIGTERM` as it begins or `nan`
in what it gives.
"""

import os
import runpy
import signal
import sys
from typing import Any

from finetune.objectives.trainer import StepMixin


def plant(method: str, step: int, fault: str) -> None:
    function = getattr(StepMixin, method)

    def faulty(self: StepMixin, *args: Any, **kwargs: Any) -> Any:
        is_here = self.is_in_train and self.state.global_step == step
        if is_here and fault == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        given = function(self, *args, **kwargs)
        return given * float("nan") if is_here and fault == "nan" and self.model.training else given

    setattr(StepMixin, method, faulty)


if __name__ == "__main__":
    name, at, what, module, *arguments = sys.argv[1:]
    plant(name, int(at), what)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
