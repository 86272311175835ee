"""Runs a verb with a hook inside: `python -m tests.faults.hooked PLAN.json -m finetune.sft RECIPE …`.

Goes in: a plan. Comes out: the verb, unchanged but for a trace of what it does (one JSON object a line, with the
monotonic clock that all processes share), and for what the plan asks: to die of SIGKILL at a given file operation of a
given save, or to take longer over a step's first micro-batch. Only the fault programme loads this; the package knows
nothing of it. Nothing heavy is imported here: a library's module is wrapped right after the verb has imported it.

A plan's keys: `trace`, the file written; `checkpoints`, the folder whose file operations count; and if wanted `events`
(true: every counted operation is traced), `kill` {"step", "event"}, `slow` {"step", "seconds"}, `step_seconds`.
"""

import functools
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# What changes the disk: before each of these it is in another state than before the last one.
_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# One data loader's rows: what names the rows of a batch, whatever its objective.
_IDS = "input_ids"


class Hook:
    """Writes the trace, counts file operations of saves and does what the plan asks."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._trace = os.open(plan["trace"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._checkpoints = str(Path(plan["checkpoints"]).resolve())
        self._is_training = False
        self._step = 0
        self._micro = 0
        self._saving: int | None = None  # step of the save under way: from its begin to the next step
        self._num_events = 0
        self._listens = False
        self.mark("start", pid=os.getpid())

    def mark(self, name: str, **values: Any) -> None:
        """Write one line; it has left the process before the call returns."""
        line = json.dumps({"mark": name, "t": time.monotonic(), **values}) + "\n"
        os.write(self._trace, line.encode())

    # ---- what is wrapped

    def wrap_trainer(self, module: ModuleType) -> None:
        """Wrap the library's trainer, on which the package's and TRL's both stand."""
        trainer = module.Trainer
        training_step, save, evaluate = trainer.training_step, trainer._save_checkpoint, trainer.evaluate
        train = trainer.train

        @functools.wraps(training_step)
        def traced_step(this: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if self._is_training:  # and not before it, where a rehearsal goes through the same function
                self._begin_step(this.state.global_step + 1, inputs[_IDS])
            return training_step(this, model, inputs, *args, **kwargs)

        @functools.wraps(save)
        def traced_save(this: Any, *args: Any, **kwargs: Any) -> Any:
            self._begin_save(this.state.global_step)
            return save(this, *args, **kwargs)

        @functools.wraps(evaluate)
        def traced_evaluate(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.mark("evaluation", step=this.state.global_step)
            result = evaluate(this, *args, **kwargs)
            self.mark("evaluated", step=this.state.global_step)
            return result

        @functools.wraps(train)
        def traced_train(this: Any, *args: Any, **kwargs: Any) -> Any:
            self._is_training = True
            result = train(this, *args, **kwargs)
            self._is_training, self._saving = False, None
            self.mark("trained", step=this.state.global_step)
            return result

        trainer.training_step, trainer._save_checkpoint = traced_step, traced_save
        trainer.evaluate, trainer.train = traced_evaluate, traced_train

    def wrap_prepare(self, module: ModuleType) -> None:
        """Wrap what reads the rows and turns them into tokens."""
        prepare = module.prepare

        @functools.wraps(prepare)
        def traced_prepare(*args: Any, **kwargs: Any) -> Any:
            self.mark("preparation", step=0)
            result = prepare(*args, **kwargs)
            self.mark("prepared", step=0)
            return result

        module.prepare = traced_prepare

    def _begin_step(self, step: int, ids: Any) -> None:
        self._saving = None
        self._micro = self._micro + 1 if step == self._step else 0
        self._step = step
        rows = f"{tuple(ids.shape)}".encode() + ids.cpu().numpy().tobytes()
        self.mark("step", step=step, micro=self._micro, ids=hashlib.sha256(rows).hexdigest()[:16])
        slow = self._plan.get("slow") or {}
        if self._micro:
            return
        time.sleep(slow.get("seconds", 0) if slow.get("step") == step else self._plan.get("step_seconds", 0))

    def _begin_save(self, step: int) -> None:
        self._saving, self._num_events = step, 0
        self.mark("save", step=step)
        if not self._listens and (self._plan.get("events") or self._plan.get("kill")):
            sys.addaudithook(self._hear)
            self._listens = True

    # ---- file operations

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self._saving is None or event not in _FILE_EVENTS or not self._is_ours(event, args):
            return
        self._num_events += 1
        name = self._describe(event, args)
        kill = self._plan.get("kill") or {}
        dies = kill.get("step") == self._saving and kill.get("event") == self._num_events
        if dies or self._plan.get("events"):
            saving, self._saving = self._saving, None  # the trace's own line is no operation of the save
            self.mark("killed" if dies else "event", step=saving, event=self._num_events, what=name)
            self._saving = saving
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_ours(self, event: str, args: tuple[Any, ...]) -> bool:
        path = args[0]
        if not isinstance(path, str | os.PathLike):
            return False
        if event == "open" and not args[2] & _WRITES:
            return False
        if (event == "os.mkdir" and os.path.lexists(path)) or (event == "os.remove" and self._is_missing(path)):
            return False  # asked for again, or never there: nothing changes
        # A tree is deleted by names relative to open folders, which cannot be told from here.
        return not os.path.isabs(path) or os.path.abspath(path).startswith(self._checkpoints)  # noqa: PTH100, PTH117

    def _is_missing(self, path: str | os.PathLike[str]) -> bool:
        return os.path.isabs(path) and not os.path.lexists(path)  # noqa: PTH117

    def _describe(self, event: str, args: tuple[Any, ...]) -> str:
        path = str(args[0]).removeprefix(f"{self._checkpoints}/")
        if event == "open":
            return f"open {args[1] or 'by flags'} {path}"
        return f"{event} {path}"


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module once that module's own code has run."""

    def __init__(self, wraps: dict[str, Callable[[ModuleType], None]]) -> None:
        self._wraps = wraps

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._wraps:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute, wrap = spec.loader.exec_module, self._wraps[name]

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            wrap(module)

        spec.loader.exec_module = execute_and_wrap
        return spec


def main() -> None:
    plan_path, dash_m, module, *arguments = sys.argv[1:]
    assert dash_m == "-m", "python -m tests.faults.hooked PLAN.json -m MODULE …"
    hook = Hook(json.loads(Path(plan_path).read_text(encoding="utf-8")))
    wraps = {"transformers.trainer": hook.wrap_trainer, "finetune.prepare": hook.wrap_prepare}
    for name in wraps.keys() & sys.modules.keys():  # in a process that was forked with the libraries in it
        wraps.pop(name)(sys.modules[name])
    sys.meta_path.insert(0, _AfterImport(wraps))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
