"""Values that YAML 1.1, YAML 1.2 and people read differently, and what each is in a field of each type.

The table was written by hand: what stands unquoted on the left is the value on the right, or is told with the words
that a person needs. Each is read twice, from the file and from the command line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.recipe.reading import read_recipe, to_resolved

__all__ = ["CASES", "OddValue", "Told", "judge_value"]


@dataclass(frozen=True, slots=True)
class Told:
    """An answer with exit code 2, at the value's line, that holds these words."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OddValue:
    """A value as it is typed, where, and what is expected: the value it is, or what is told."""

    setting: str
    typed: str
    expected: Any
    on_command_line: bool = False


def told(*words: str) -> Told:
    return Told(words)


_TABLE: dict[str, dict[str, Any]] = {
    # a number
    "training.learning_rate": {
        "2e-4": 2e-4, "1e-05": 1e-5, "1E-3": 1e-3, ".5": 0.5, "1.": 1.0, "+1e-4": 1e-4, "1": 1.0, "1.0e-05": 1e-5,
        "0.0002": 2e-4, "1_000": told("wants a number", "`1_000`", "1000"), "0o7": told("wants a number", "7"),
        "0x1F": told("wants a number"), "no": told("wants a number", "`no`"), "~": told("a number", "nothing (null)"),
        "": told("a number", "nothing (null)"), "2026-11-22": told("wants a number", "`2026-11-22`"),
        "'2e-4'": told("wants a number", "Without the quotes"), "1e400": told("wants a number"),
        ".inf": told("wants a number"), ".nan": told("wants a number"), "1,5": told("wants a number"),
        "1e-4e": told("wants a number"), "true": told("wants a number", "`true`"), "2 e-4": told("wants a number"),
        "12:30:00": told("wants a number"), "[1e-4]": told("wants a number", "a list"), "-1e-4": told("above 0"),
    },
    # a whole number
    "training.max_steps": {
        "10": 10, "007": 7, "+7": 7, "-1": -1, "1_000": told("a whole number", "Write 1000."),
        "0o7": told("a whole number", "Write 7."), "0b11": told("a whole number"), "1e3": told("Write 1000."),
        "10.0": told("Write 10."), "10.5": told("a whole number", "`10.5`"), "~": told("a whole number", "null"),
        "'10'": told("Without the quotes 10 is a number."), "off": told("a whole number", "`off`"),
        "yes": told("a whole number"), "1 000": told("a whole number"), "2026-11-22": told("a whole number"),
        "true": told("a whole number", "`true`"), "99999999999999999999": told("a whole number"),
    },
    # a text
    "output_dir": {
        "no": "no", "off": "off", "on": "on", "yes": "yes", "y": "y", "0o7": "0o7", "0x1F": "0x1F", "1_000": "1_000",
        "2026-11-22": "2026-11-22", "2026-11-22T10:00:00Z": "2026-11-22T10:00:00Z", "12:30:00": "12:30:00",
        ".inf": ".inf", ".nan": ".nan", "1.2.3": "1.2.3", "1e400": "1e400", "'~'": "~", '"5"': "5", "=": "=",
        "<<": "<<",
        "5": told("wants a text", '"5"'), "2e-4": told("wants a text"), ".5": told("wants a text"),
        "true": told("wants a text", '"true"'), "~": told("wants a text", "null"), "null": told("wants a text"),
        "''": told("empty text"),
    },
    # true or false
    "data.packing": {
        "true": True, "True": True, "TRUE": True, "false": False, "no": told("true or false", "Write false."),
        "off": told("true or false", "Write false."), "No": told("Write false."), "yes": told("Write true."),
        "on": told("Write true."), "1": told("true or false", "`1`"), "0": told("true or false"),
        "~": told("true or false", "null"), "'true'": told("true or false", "Write true."), "y": told("true or false"),
        "0o7": told("true or false"), "2026-11-22": told("true or false"),
    },
    # may be left empty
    "data.eval": {"~": None, "null": None, "": None, "{fraction: .5}": {"fraction": 0.5},
                  "{fraction: 2e-1}": {"fraction": 0.2},
                  "no": told("a group of settings"), "0.1": told("a group of settings")},
    "training.early_stopping_patience": {"~": None, "none": told("a whole number"), "no": told("a whole number")},
    # a choice
    "model.quantization": {
        "none": "none", "'nf4'": "nf4", "no": told("cannot be", "nf4, fp4, int8, none"), "~": told("one of", "null"),
        "off": told("cannot be", "none"), "4": told("cannot be", "`4`"), "NF4": told("Did you mean `nf4`?"),
        "false": told("cannot be", "`false`"),
    },
    # a list
    "training.report_to": {
        "[]": [], "[wandb]": ["wandb"], "wandb": told("a list", "Write [wandb]."), "none": told("a list"),
        "~": told("a list"), "[no]": told("cannot be", "`no`"), "[1]": told("cannot be", "`1`"),
    },
    # a library's own fields
    "adapter.lora_dropout": {".5": 0.5, "0": 0, "no": told("a number"), "1_0": told("a number", "10")},
    "adapter.use_rslora": {"true": True, "yes": told("Write true."), "off": told("Write false.")},
    "adapter.target_modules": {"all-linear": "all-linear", "[q_proj, v_proj]": ["q_proj", "v_proj"],
                               "5": told("found `5`"), "(q_proj": told("no regular expression")},
    "training.weight_decay": {"1e-2": 0.01, "0": 0, "off": told("a number"), "2026-11-22": told("a number")},
    # a name that is a folder's too
    "name": {"no": "no", "0o7": "0o7", "2026-11-22": "2026-11-22", "1_000": "1_000", "5": told("wants a text"),
             "2e-4": told("wants a text"), "~": told("wants a text"), "true": told("wants a text"),
             "12:30": told("cannot be")},
}  # fmt: skip


def _list_cases() -> Iterator[OddValue]:
    for setting, values in _TABLE.items():
        for typed, expected in values.items():
            yield OddValue(setting, typed, expected)
            yield OddValue(setting, typed, expected, on_command_line=True)


CASES = tuple(_list_cases())

_GOOD = """\
name: values
output_dir: outputs
model:
  model_name_or_path: a/b
adapter:
  bias: none
data:
  train: {path: rows.jsonl}
training:
  logging_steps: 1
"""


def _write(setting: str, typed: str | None) -> tuple[str, int]:
    """The good recipe with the setting in place of its own one, or without it, and the setting's line."""
    section, _, key = setting.rpartition(".")
    lines = [line for line in _GOOD.splitlines() if not line.startswith(f"{key}:")]
    place = lines.index(f"{section}:") + 1 if section else len(lines)
    if typed is not None:
        lines.insert(place, f"{'  ' if section else ''}{key}: {typed}")
    return "\n".join(lines) + "\n", place + 1


def judge_value(case: OddValue, folder: Path) -> str:
    """Read a good recipe with this value; what is wrong with the answer, "" where nothing is."""
    path = folder / "recipe.yaml"
    text, line = _write(case.setting, None if case.on_command_line else case.typed)
    path.write_text(text, encoding="utf-8")
    overrides = [f"{case.setting}={case.typed}"] if case.on_command_line else []
    where = f"{case.setting}={case.typed}{' on the command line' if overrides else ''}"
    try:
        value: Any = to_resolved(read_recipe(path, overrides))
    except FinetuneError as error:
        return _judge_message(error, case, "command line" if overrides else f"{path}:{line}", where)
    for key in case.setting.split("."):
        value = value[key]
    if isinstance(case.expected, Told):
        return f"{where}: taken as {value!r}"
    same = value == case.expected and isinstance(value, bool) == isinstance(case.expected, bool)
    return "" if same else f"{where}: taken as {value!r}"


def _judge_message(error: FinetuneError, case: OddValue, place: str, where: str) -> str:
    message = str(error)
    if not isinstance(case.expected, Told):
        return f"{where}: refused: {message}"
    if error.exit_code != 2 or not message.startswith(f"{place}: "):
        return f"{where}: not at {place}: {message}"
    missing = [words for words in case.expected.words if words not in message]
    return f"{where}: does not say {missing}: {message}" if missing else ""
