"""Recipes that nobody meant to write: shipped ones, changed at random as text and as values.

In goes a generator of random numbers; out comes a file's bytes and a command line's overrides. What is drawn is what
people and editors do to a YAML file, what YAML itself can do, and noise; nothing here knows what the reader accepts.
"""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Fuzzed", "draw_recipe"]

RECIPES = Path(__file__).parents[2] / "recipes"

_NOISE = [*"\t \"'`@%&*!|>-?:,[]{}#~=.\\/0123456789eE_\x00\x01\x07\x1b\x7f\x85\xa0\u2028\u2029\ufeff\u200b\ud83d"]
_NOISE += ["é", "中", "😀", "\u202e", "\r", "\n", "\r\n", "  ", "---", "...", "<<: ", "? ", "- ", "null", "\\x41"]
_NOISE += ["\\uD800"]
_TOKENS = [
    "!!python/object/apply:os.system ['touch fuzzed']", "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}",
    "!!int 5", "!local x", "!<tag:x> y", "&a 1", "*a", "&a [*a, *a]", "<<: *a", "{a: {b: {c: [}", "[[[[", "{{{{",
    "| \n  text", "> \n  text", "|9\n text", "'", '"', '"\\', "%YAML 1.1", "%TAG ! x", "--- !x", "? [a, b]\n: c",
    "2026-11-22", "1:30:00", "0x1F", "0b11", "1_000", "1e400", "-1e400", ".inf", "-.inf", ".nan", "NaN", "9" * 400,
    "=", "<<", "~", "yes", "No", "0o7", "1.", "+.5", "-0", "1e-05", "12e03", "''", '""', "[]", "{}", "[,]", "{,}",
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, 1e-5, 3e-4, -0.5, 1.0, 2.0, 1e308, 1e-300, 10**9, 2**32, 10**17, -(10**17),
    float("nan"), float("inf"), "", " ", "a", "auto", "none", "null", "no", "off", "yes", "1e-4", "5", "0o7", "1_000",
    "2026-01-01", "~", "a" * 3000, "é中😀", "a\nb", "a\tb", "../../etc", "/dev/null", "~/x", "${HOME}", "{{ x }}",
    "x=y", "(", "*", "[", "(a+)+$", "\\", "q_proj|", "embed_tokens",
    "lora", "full", "ia3", "nf4", "int8", "dpo", "sft", "cpu", "cuda", "unsloth", "cosine", "linear", "constant", "nll",
    [], {}, [[]], [None], [1, "a", None], ["a"], ["q_proj", "v_proj"], {"a": 1}, {"": 1}, {"a": {"b": {"c": {}}}},
    {"path": "rows.jsonl"}, {"fraction": 0.1}, {"fraction": 2}, [{"path": "a.jsonl"}, {"path": "b.jsonl", "weight": 2}],
    [{"function": "exact_match"}], {"method": "lora"}, {"method": ["lora"]}, [{"method": "lora"}, {"method": "bitfit"}],
]  # fmt: skip
_FOREIGN = [
    "base_model", "lora_r", "cutoff_len", "load_in_4bit", "batch_size", "lr", "dataset", "epochs",
    "optimizer", "fp16", "bf16", "deepspeed", "fsdp", "tokenizer", "output_dir", "seed",
    "hub_token", "report_to", "callbacks", "__class__", "__init__", "self", "model_config", "extra",
    "fields", "path", "weight",
]  # fmt: skip
# Settings that are right in most recipes, so that what is drawn is not refused every time.
_GOOD = [
    ("seed", [0, 1, 7, 2**32 - 1]), ("name", ["a", "run_2", "x.y-z"]), ("output_dir", ["outputs", "/mnt/x", "a b"]),
    ("training.learning_rate", [1e-4, 3e-5, 1, 0.5]), ("training.num_train_epochs", [1, 2.5, 0.1]),
    ("training.max_steps", [-1, 10, 10**6]), ("training.weight_decay", [0, 0.1]), ("training.max_grad_norm", [1, 0.3]),
    ("training.logging_steps", [1, 50]), ("training.save_steps", [0.1, 5, 500]), ("training.optim", ["adamw_torch"]),
    ("training.report_to", [[], ["wandb"], ["tensorboard", "mlflow"]]), ("training.save_total_limit", [2, 9]),
    ("training.warmup_steps", [0, 0.5, 100]), ("training.adam_beta2", [0.9, 0.999]), ("data.max_length", [8, 512]),
    ("data.template", ["alpaca", "chatml", "templates/own.jinja"]), ("data.on_bad_rows", ["skip", "error"]),
    ("data.findings", [None, {"duplicates": "drop"}]), ("data.special_tokens_in_data", ["escape", "allow", "error"]),
    ("evaluation.max_new_tokens", [1, 256]), ("evaluation.num_samples", [0, 5]), ("model.attention", ["sdpa", "auto"]),
    ("model.revision", [None, "main", "a" * 40]), ("model.compute_dtype", ["auto", "float32"]),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """A drawn case.

    Attributes:
        recipe: the shipped recipe it was made from.
        mutations: what was done, in order, by name.
        content: the file.
        overrides: of the command line.
    """

    recipe: str
    mutations: tuple[str, ...]
    content: bytes
    overrides: tuple[str, ...] = ()


@cache
def _read_shipped() -> dict[str, str]:
    paths = sorted(RECIPES.glob("*.yaml"))
    # A comparison is another file of another verb; its runs' recipes are these.
    return {path.name: path.read_text(encoding="utf-8") for path in paths if not path.name.startswith("compare_")}


def draw_recipe(dice: random.Random) -> Fuzzed:
    """Draw a recipe: a shipped one, changed in one to ten places, most in one or two."""
    name = dice.choice(sorted(_read_shipped()))
    text = _read_shipped()[name]
    mutations: list[str] = []
    for _ in range(dice.choices((0, 1, 2, 3, 5, 10), (4, 40, 25, 15, 10, 6))[0]):
        kind = dice.choices((_TEXT, _HARMLESS, _BY_VALUE), (45, 15, 40))[0]
        mutation = dice.choice(kind)
        text = mutation(text, dice)
        mutations.append(mutation.__name__.strip("_"))
    content = text.encode("utf-8", "surrogatepass")
    if dice.random() < 0.04:
        mutation_of_bytes = dice.choice(_BYTES)
        content = mutation_of_bytes(content, dice)
        mutations.append(mutation_of_bytes.__name__.strip("_"))
    overrides = tuple(_draw_override(dice) for _ in range(dice.choices((0, 1, 2, 4), (60, 25, 10, 5))[0]))
    return Fuzzed(name, tuple(mutations), content, overrides)


# --- the text ---------------------------------------------------------------------------------------------------------


def _at(text: str, dice: random.Random) -> int:
    return dice.randint(0, max(0, len(text) - 1))


def _drop_character(text: str, dice: random.Random) -> str:
    at = _at(text, dice)
    return text[:at] + text[at + 1 :]


def _insert_character(text: str, dice: random.Random) -> str:
    at = _at(text, dice)
    return text[:at] + dice.choice(_NOISE) + text[at:]


def _replace_character(text: str, dice: random.Random) -> str:
    at = _at(text, dice)
    return text[:at] + dice.choice(_NOISE) + text[at + 1 :]


def _cut_off(text: str, dice: random.Random) -> str:
    return text[: _at(text, dice)]


def _in_lines(change: Callable[[list[str], int, random.Random], None]) -> Callable[[str, random.Random], str]:
    def mutate(text: str, dice: random.Random) -> str:
        lines = text.split("\n")
        # Comments on top are a third of the lines, and nothing happens there.
        used = [number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")]
        change(lines, dice.choice(used or [0]), dice)
        return "\n".join(lines)

    mutate.__name__ = change.__name__
    return mutate


@_in_lines
def _drop_line(lines: list[str], at: int, dice: random.Random) -> None:
    del lines[at]


@_in_lines
def _repeat_line(lines: list[str], at: int, dice: random.Random) -> None:
    lines.insert(dice.choice((at, len(lines))), lines[at])


@_in_lines
def _swap_lines(lines: list[str], at: int, dice: random.Random) -> None:
    other = dice.randrange(len(lines))
    lines[at], lines[other] = lines[other], lines[at]


@_in_lines
def _indent_line(lines: list[str], at: int, dice: random.Random) -> None:
    lines[at] = dice.choice((" ", "  ", "    ", "\t", "- ")) + lines[at]


@_in_lines
def _outdent_line(lines: list[str], at: int, dice: random.Random) -> None:
    lines[at] = lines[at].lstrip() if dice.random() < 0.5 else lines[at][1:]


@_in_lines
def _join_lines(lines: list[str], at: int, dice: random.Random) -> None:
    if at + 1 < len(lines):
        lines[at] += dice.choice((" ", ", ", "")) + lines.pop(at + 1).strip()


@_in_lines
def _change_value(lines: list[str], at: int, dice: random.Random) -> None:
    key, colon, _ = lines[at].partition(":")
    lines[at] = f"{key}{colon} {dice.choice(_TOKENS)}"


@_in_lines
def _tag_value(lines: list[str], at: int, dice: random.Random) -> None:
    key, colon, value = lines[at].partition(": ")
    lines[at] = f"{key}{colon}{dice.choice(('&a ', '*a ', '!!str ', '!!python/object:x.Y ', '!x ', '- ', '? '))}{value}"


@_in_lines
def _make_flow(lines: list[str], at: int, dice: random.Random) -> None:
    key, colon, value = lines[at].partition(":")
    lines[at] = dice.choice((f"{{{key.strip()}: {value}}}", f"{key}{colon} {{{value}}}", f"{key}{colon} [{value}]"))


@_in_lines
def _make_long(lines: list[str], at: int, dice: random.Random) -> None:
    lines[at] += dice.choice(("x", "[", "{a: ", " y", ", 1", "é")) * dice.choice((200, 3000, 30000))


@_in_lines
def _rename_key(lines: list[str], at: int, dice: random.Random) -> None:
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    lines[at] = f"{indent}{dice.choice(_FOREIGN + _NOISE)}:{lines[at].partition(':')[2]}"


@_in_lines
def _add_document(lines: list[str], at: int, dice: random.Random) -> None:
    lines.insert(at, dice.choice(("---", "...", "--- x", "%YAML 1.2", "--- !t", "---\n---")))


@_in_lines
def _add_token(lines: list[str], at: int, dice: random.Random) -> None:
    lines.insert(at, dice.choice(("", "  ")) + dice.choice(_TOKENS))


def _add_bomb(text: str, dice: random.Random) -> str:
    levels = dice.randint(3, 40)
    return "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, levels)) + text


_TEXT = (
    _drop_character, _insert_character, _replace_character, _cut_off, _drop_line, _repeat_line, _swap_lines,
    _indent_line, _outdent_line, _join_lines, _change_value, _tag_value, _make_flow, _make_long, _rename_key,
    _add_document, _add_token, _add_bomb,
)  # fmt: skip


# --- what changes nothing, most of the time ---------------------------------------------------------------------------


@_in_lines
def _add_comment(lines: list[str], at: int, dice: random.Random) -> None:
    lines[at] += dice.choice(("  # é", " # a: b", "\n# [", "\n\n", "   "))


@_in_lines
def _quote_value(lines: list[str], at: int, dice: random.Random) -> None:
    key, colon, value = lines[at].partition(": ")
    value = value.split("  #")[0].strip()
    if value and not value.startswith(("{", "[")):
        lines[at] = f"{key}{colon}{json.dumps(value)}"


def _to_crlf(text: str, dice: random.Random) -> str:
    return text.replace("\n", "\r\n")


def _to_flow(text: str, dice: random.Random) -> str:
    """The whole recipe as JSON, which is YAML too."""
    values = _parse(text)
    return text if values is None else json.dumps(values, indent=dice.choice((None, 1)), default=str, skipkeys=True)


def _reorder(text: str, dice: random.Random) -> str:
    values = _parse(text)
    if not isinstance(values, dict):
        return text
    return _write({key: values[key] for key in dice.sample([*values], len(values))}, dice)


def _set_well(text: str, dice: random.Random) -> str:
    values = _parse(text)
    path, choices = dice.choice(_GOOD)
    if not isinstance(values, dict):
        return text
    *sections, key = path.split(".")
    group: Any = values
    for section in sections:
        group = group.setdefault(section, {})
        if not isinstance(group, dict):
            return text
    group[key] = copy.deepcopy(dice.choice(choices))
    return _write(values, dice)


_HARMLESS = (_add_comment, _quote_value, _to_crlf, _to_flow, _reorder, _set_well, _set_well, _set_well)


# --- the values -------------------------------------------------------------------------------------------------------


def _parse(text: str) -> Any:
    """Parse with PyYAML itself; a text that an earlier change broke, or armed, stays as it is."""
    if "*a" in text:
        return None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError):
        return None


def _write(values: Any, dice: random.Random) -> str:
    return yaml.safe_dump(
        values,
        sort_keys=False,
        allow_unicode=dice.random() < 0.5,
        default_flow_style=dice.choice((False, False, True, None)),
    )


def _in_values(change: Callable[[Any, Any, random.Random], None]) -> Callable[[str, random.Random], str]:
    """Change one place in the tree: a container and the key or number of what it holds."""

    def mutate(text: str, dice: random.Random) -> str:
        values = _parse(text)
        places = [*_list_places(values)]
        if not places:
            return text
        change(*dice.choice(places), dice)
        return _write(values, dice)

    mutate.__name__ = change.__name__
    return mutate


def _list_places(values: Any) -> list[tuple[Any, Any]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, child in items for place in ((values, key), *_list_places(child))]


@_in_values
def _set_value(group: Any, key: Any, dice: random.Random) -> None:
    group[key] = copy.deepcopy(dice.choice(_VALUES))


@_in_values
def _drop_value(group: Any, key: Any, dice: random.Random) -> None:
    del group[key]


@_in_values
def _nest_value(group: Any, key: Any, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 2, 25, 60))):
        group[key] = dice.choice(([group[key]], {"a": group[key]}))


@_in_values
def _add_key(group: Any, key: Any, dice: random.Random) -> None:
    if isinstance(group, dict):
        names = [*_FOREIGN, *(path.split(".")[-1] for path, _ in _GOOD)]
        group[dice.choice(names)] = copy.deepcopy(dice.choice(_VALUES))


@_in_values
def _change_number(group: Any, key: Any, dice: random.Random) -> None:
    if isinstance(group[key], int | float):
        group[key] = dice.choice((-group[key], group[key] * 10**9, group[key] / 3, str(group[key]), group[key] + 1))


_BY_VALUE = (_set_value, _set_value, _drop_value, _nest_value, _add_key, _change_number)


# --- the bytes and the command line -----------------------------------------------------------------------------------


def _put_bytes(content: bytes, dice: random.Random) -> bytes:
    at = dice.randint(0, len(content))
    return content[:at] + dice.choice((b"\xff", b"\xc3\x28", b"\x00", b"\xed\xa0\x80", b"\x80" * 9)) + content[at:]


def _to_utf16(content: bytes, dice: random.Random) -> bytes:
    return content.decode("utf-8", "replace").encode("utf-16")


def _to_noise(content: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(dice.randint(0, 4000))


def _put_mark(content: bytes, dice: random.Random) -> bytes:
    return b"\xef\xbb\xbf" + content


def _to_nothing(content: bytes, dice: random.Random) -> bytes:
    return dice.choice((b"", b"\n\n", b"# nothing\n", b"---\n", b"null\n", b"[]\n", b"5\n"))


_BYTES = (_put_bytes, _to_utf16, _to_noise, _put_mark, _to_nothing)


def _draw_override(dice: random.Random) -> str:
    path, choices = dice.choice(_GOOD)
    value = json.dumps(dice.choice(choices))
    how = dice.choices(("good", "value", "token", "unknown", "quoted", "broken", "path"), (45, 12, 12, 8, 8, 8, 7))[0]
    match how:
        case "value":
            return f"{path}={json.dumps(dice.choice(_VALUES))}"
        case "token":
            return f"{path}={dice.choice(_TOKENS)}"
        case "unknown":
            section = dice.choice(("", "model.", "training.", "adapter.", "data.train."))
            return f"{section}{dice.choice(_FOREIGN)}={value}"
        case "quoted":
            return dice.choice((f"'{path}={value}'", f'{path}="{value}', f"{path}='{value}'", f'"{path}"={value}'))
        case "broken":
            spaced = f"{path} = {value}"
            return dice.choice((path, f"={value}", spaced, f"--{path}={value}", "", "=", f"{path}=", "é=1"))
        case "path":
            deep = ".".join([path, *"abcdefgh"[: dice.randint(1, 8)]])
            dotted = (f".{path}={value}", f"{path}.={value}", f"{path}..x=1", f"0.1={value}")
            return dice.choice((f"{deep}={value}", *dotted))
    return f"{path}={value}"
