"""Rows 37 and 39: files that would run code, offered to every loader.

A trap is a file that a pickle, a template or a repository's Python would make if anything of it were executed.
"""

import contextlib
import io
import json
import pickle
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from finetune.errors import FinetuneError
from tests.faults.inputs_recipes import peak_bytes
from tests.faults.measures import Outcome, Rig, register

__all__ = ["MALICIOUS", "MaliciousFiles", "judge_malicious", "write_victim"]

MAX_BYTES = 300_000_000
_STEPS = 4


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def _pickle(trap: Path, dice: Random) -> bytes:
    """A pickle as pickle itself, torch's zip or torch's older form writes it."""
    import torch

    how = dice.choice(("pickle", "zip", "legacy"))
    held = {"base_model.model.weight": torch.zeros(2), "trap": _Trap(trap)}
    if how == "pickle":
        return pickle.dumps(held, protocol=dice.randint(0, 5))
    buffer = io.BytesIO()
    torch.save(held, buffer, _use_new_zipfile_serialization=how == "zip")
    return buffer.getvalue()


def _malformed_tensors(trap: Path, dice: Random) -> bytes:
    """A safetensors file that lies about itself."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    changed = dice.choice(
        (
            {"shape": [2**40, 2**20]},
            {"shape": [-1, 2]},
            {"data_offsets": [0, 2**60]},
            {"data_offsets": [16, 0]},
            {"data_offsets": [-16, 0]},
            {"dtype": "PICKLE"},
            {"shape": [3, 3]},
            {},
        )
    )
    header = json.dumps({"w": entry | changed, "v": entry}).encode()
    length = dice.choice((len(header), len(header), 2**63, 2**31, 0, 1, len(header) - 3, 10**8))
    cut = dice.choice((None, None, 0, 4, 8, 20))
    return (struct.pack("<Q", length) + header + b"\0" * dice.choice((16, 15, 0)))[:cut]


def _nested_header(trap: Path, dice: Random) -> bytes:
    header = b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return struct.pack("<Q", len(header)) + header


def write_victim(folder: Path) -> Path:
    """Train the small run whose files are replaced: an adapter, and two checkpoints of a run that is not over."""
    from tests.end_to_end.small_runs import run_small

    return run_small(folder, training__max_steps=_STEPS, training__save_steps=2, name="victim")


# Each puts something malicious into a copied run, and says how the run is then opened.
Plant = Callable[[Path, Path, Random], None]


def _as_adapter_pickle(run: Path, trap: Path, dice: Random) -> None:
    (run / "adapter" / "adapter_model.safetensors").unlink()
    (run / "adapter" / "adapter_model.bin").write_bytes(_pickle(trap, dice))


def _beside_adapter(run: Path, trap: Path, dice: Random) -> None:
    name = dice.choice(("adapter_model.bin", "training_args.bin", "pytorch_model.bin", "optimizer.pt"))
    (run / "adapter" / name).write_bytes(_pickle(trap, dice))


def _in_safetensors(content: Callable[[Path, Random], bytes]) -> Plant:
    def plant(run: Path, trap: Path, dice: Random) -> None:
        (run / "adapter" / "adapter_model.safetensors").write_bytes(content(trap, dice))

    return plant


def _as_template(run: Path, trap: Path, dice: Random) -> None:
    call = dice.choice(
        (
            "{{ cycler.__init__.__globals__.os.system('touch TRAP') }}",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ lipsum.__globals__['os'].popen('touch TRAP') }}",
            "{{ namespace.__init__.__globals__.os.system('touch TRAP') }}",
            "{% for c in [].__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
        )
    ).replace("TRAP", str(trap))
    (run / "adapter" / "chat_template.jinja").write_text(call + "{% for m in messages %}{{ m.content }}{% endfor %}")


def _as_remote_code(run: Path, trap: Path, dice: Random) -> None:
    (run / "adapter" / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Evil: pass\n")
    for name, key in (("tokenizer_config.json", "AutoTokenizer"), ("config.json", "AutoConfig")):
        path = run / "adapter" / name
        values = json.loads(path.read_text()) if path.is_file() else {"model_type": "mistral"}
        held = [f"evil.Evil{''}", None] if key == "AutoTokenizer" else "evil.Evil"
        path.write_text(json.dumps(values | {"auto_map": {key: held}, "tokenizer_class": "Evil"}))


def _in_checkpoint(run: Path, trap: Path, dice: Random) -> None:
    """A pickle in the newest checkpoint under a name that transformers would load; most times the record is forged."""
    from finetune.run.checkpoints import find_fault, read_record, write_record

    newest = max((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    step = int(newest.name.split("-")[1])
    names = ("optimizer.pt", "optimizer.bin", "rng_state.pth", "scheduler.pt", "training_args.bin", "scaler.pt")
    present = [path.name for path in newest.iterdir() if path.suffix == ".safetensors"]
    name = dice.choice([*names, *present])
    (newest / name).write_bytes(_pickle(trap, dice))
    if dice.random() < 0.7:
        own = ("step", "written_at", "libraries", "files", "record_sha256")
        made_from = {key: value for key, value in read_record(newest).items() if key not in own}
        write_record(newest, step=step, made_from=made_from)
        assert find_fault(newest) is None, "a forged record has to be believed"
    shutil.rmtree(run / "adapter")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "interrupted"}))


def _open_run(run: Path) -> None:
    from finetune.model.loading import load_for_inference

    load_for_inference(str(run), device="cpu", quantization="none")


def _ask_run(run: Path) -> None:
    from finetune.data.serving import History, build_serving_renderer
    from finetune.model.loading import load_for_inference

    speaker = load_for_inference(str(run), device="cpu", quantization="none")
    History(build_serving_renderer(speaker.tokenizer), None, None).ask("Which colour?")


def _open_adapter(run: Path) -> None:
    from tests.end_to_end.small_runs import run_small

    # Another name than the run that it goes on from.
    run_small(run.parent, name="after", training__max_steps=1, adapter={"init_from": str(run / "adapter")})


def _resume(run: Path) -> None:
    from tests.end_to_end.small_runs import run_small

    run_small(run.parent, resume=True, name=run.name, training__max_steps=_STEPS, training__save_steps=2)


def _open_base(pickled: bool) -> Callable[[Path], None]:
    def open_base(run: Path) -> None:
        from finetune.model.base import load_base
        from finetune.recipe.schema import ModelSettings

        settings = {"model_name_or_path": str(run / "base"), "quantization": "none", "device": "cpu"}
        load_base(ModelSettings(**settings, allow_pickled_weights=pickled))

    return open_base


def _as_base(name: str, content: Callable[[Path, Random], bytes]) -> Plant:
    def plant(run: Path, trap: Path, dice: Random) -> None:
        from tests.end_to_end.small_runs import SHAPE, TINY

        (run / "base").mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / file, run / "base")
        (run / "base" / "config.json").write_text(json.dumps(SHAPE | {"architectures": ["MistralForCausalLM"]}))
        (run / "base" / name).write_bytes(content(trap, dice))

    return plant


# Kind -> what is planted, how it is opened, and whether opening it can only be refused.
MALICIOUS: dict[str, tuple[Plant, Callable[[Path], None], bool]] = {
    "a pickle as the adapter, opened to chat": (_as_adapter_pickle, _open_run, True),
    "a pickle as the adapter, trained on": (_as_adapter_pickle, _open_adapter, True),
    "pickles beside the adapter, opened to chat": (_beside_adapter, _open_run, False),
    "pickles beside the adapter, trained on": (_beside_adapter, _open_adapter, False),
    "a pickle named safetensors, opened to chat": (_in_safetensors(_pickle), _open_run, True),
    "a pickle named safetensors, trained on": (_in_safetensors(_pickle), _open_adapter, True),
    "malformed safetensors, opened to chat": (_in_safetensors(_malformed_tensors), _open_run, True),
    "malformed safetensors, trained on": (_in_safetensors(_malformed_tensors), _open_adapter, True),
    "safetensors with a nested header": (_in_safetensors(_nested_header), _open_run, True),
    "a template that breaks out": (_as_template, _ask_run, False),
    "a tokenizer with code of its own": (_as_remote_code, _open_run, False),
    "a pickle in a checkpoint, resumed": (_in_checkpoint, _resume, False),
    "a base in pickles": (_as_base("pytorch_model.bin", _pickle), _open_base(False), True),
    "a base in pickles that are allowed": (_as_base("pytorch_model.bin", _pickle), _open_base(True), True),
    "a base of malformed safetensors": (_as_base("model.safetensors", _malformed_tensors), _open_base(False), True),
}


def judge_malicious(kind: str, victim: Path, folder: Path, dice: Random, *, baseline_bytes: int | None = None) -> str:
    """Plant one thing into a copy of a run and open it; what is wrong with that, "" where nothing is.

    Args:
        kind: one of `MALICIOUS`.
        victim: a finished run of `write_victim`.
        folder: an empty one.
        dice: draws what is planted.
        baseline_bytes: this process's peak before the first case, which later ones are held against too: a peak never
            falls, so that of the case before would hide as much again. By default that before this one.
    """
    plant, open_it, is_refused = MALICIOUS[kind]
    run, trap = folder / victim.name, folder / "executed"
    shutil.copytree(victim, run)
    plant(run, trap, dice)
    before = peak_bytes() if baseline_bytes is None else baseline_bytes
    wrong = ""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            open_it(run)
        wrong = "opened" if is_refused else ""
    except FinetuneError as error:
        wrong = f"{len(str(error).splitlines())} lines: {error}" if len(str(error).splitlines()) > 15 else ""
    except Exception as error:  # the traceback that must not be
        wrong = f"{type(error).__name__}: {error}"[:300]
    grown = peak_bytes() - before
    if trap.exists():
        return "executed"
    return wrong or (f"took {grown / 1e6:.0f} MB" if grown > MAX_BYTES else "")


@register
class MaliciousFiles:
    """Pickles, malformed safetensors, templates and code offered to every loader."""

    name = "malicious_files"
    title = "malicious files never executed, and refused with a message where there is nothing else to load"
    row = "37, 39"
    target = 100
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline."""
        with TemporaryDirectory() as folder:
            victim = write_victim(Path(folder))
            kinds = list(MALICIOUS)
            baseline_bytes = peak_bytes()
            for case in count(first_case):
                if time.monotonic() >= deadline:
                    return
                kind = kinds[case % len(kinds)]
                with TemporaryDirectory() as place:
                    dice = rig.draw(self.name, case)
                    wrong = judge_malicious(kind, victim, Path(place), dice, baseline_bytes=baseline_bytes)
                figures = {"executed": int(wrong == "executed")}
                yield Outcome(case, passed=not wrong, drawn={"kind": kind}, detail=wrong, figures=figures)
