"""Where the speed benchmark keeps what it has measured: one object a line, added to from call to call.

Goes in: a measurement with its line, contender and round. Comes out: what is there of this very code on this very
machine. Another machine, other threads, other code, other versions of the libraries or other numbers of steps have a
store of their own, so that no table mixes them.
"""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.recording import ROOT, find_emulation
from finetune.run.environment import read_environment

__all__ = ["Store", "find_store_path", "name_machine", "read_tree"]

# What decides a figure: the package, what measures it, the shapes and the tiny base. How figures are laid out does not.
_COUNTED = ("finetune/**/*.py", "finetune/**/*.jinja", "benchmarks/speed_*.py", "benchmarks/recipes/*.yaml",
            "data/tiny_base/*.safetensors")  # fmt: skip
_NOT_COUNTED = "speed_table.py"
_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def read_tree() -> str:
    """Name the code that is measured, by its content."""
    whole = hashlib.sha256()
    found = (path for pattern in _COUNTED for path in ROOT.glob(pattern) if path.name != _NOT_COUNTED)
    for path in sorted(found):
        whole.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    for library in _LIBRARIES:
        whole.update(f"{library} {version(library)}\n".encode())
    return whole.hexdigest()[:12]


def name_machine(device: str, threads: int | None) -> str:
    """Name what measures: the GPU, or the processor with its cores, and what it was held to."""
    environment = read_environment()
    cpu = environment["cpu"]
    name = environment["gpus"][0]["name"] if device == "cuda" else f"{cpu['model']} {cpu['cores_usable']} cores"
    held = [*sorted(find_emulation().values()), *([f"{threads} threads"] if threads else [])]
    return ", ".join([name, *held])


def find_store_path(folder: Path, machine: str, tree: str, steps: int | None) -> Path:
    """Find the store's file of a machine, a state of the code and a number of steps (None: the shapes' own)."""
    mark = hashlib.sha256(machine.encode()).hexdigest()[:6]
    return folder / f"{tree}_{mark}{'' if steps is None else f'_{steps}_steps'}.jsonl"


class Store:
    """What was measured so far.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, line: str, contender: str, round_number: int, figures: dict[str, Any]) -> None:
        """Write a measurement down, in a single write."""
        record = {"line": line, "contender": contender, "round": round_number, **figures}
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, json.dumps(record).encode() + b"\n")
        finally:
            os.close(file)

    def read(self) -> list[dict[str, Any]]:
        """Read all; a last line that a kill tore is left out, and of a measurement made twice the later one stands."""
        if not self.path.exists():
            return []
        *whole, _torn = self.path.read_text(encoding="utf-8").split("\n")
        by_place = {}
        for record in map(json.loads, whole):
            by_place[record["line"], record["contender"], record["round"]] = record
        return list(by_place.values())

    def find(self, line: str, contender: str, round_number: int) -> dict[str, Any] | None:
        """Find one measurement."""
        wanted = (line, contender, round_number)
        return next((one for one in self.read() if (one["line"], one["contender"], one["round"]) == wanted), None)
