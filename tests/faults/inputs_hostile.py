"""YAML that is made to crash, stall, fill or take over whoever reads it, and bytes that are no YAML.

In goes a generator of random numbers and the file that executed code would make; out come the kind and the bytes.
"""

import random

__all__ = ["KINDS", "build_hostile", "draw_hostile"]

_GOOD = "name: x\nmodel:\n  model_name_or_path: a/b\ndata:\n  train: {path: rows.jsonl}\n"
_CODE = "open(%r, 'w')"

KINDS = (
    "duplicate key", "duplicate section", "duplicate nested key", "tab indent", "tab between", "anchor bomb",
    "merge bomb", "alias", "self reference", "python object", "python name", "python module", "python call with state",
    "several documents", "empty", "blank", "comments alone", "a list", "a word", "binary", "zeros", "image", "pickle",
    "10 MB of keys", "10 MB line", "10 MB comment", "10,000 levels of lists", "10,000 levels of maps",
    "240 levels of lines", "utf-16", "latin-1", "lone surrogate", "control character", "unclosed quote",
    "unclosed bracket", "set", "complex key", "other directive", "merge key", "10,000 digits", "3,500 unknown keys",
)  # fmt: skip


def draw_hostile(dice: random.Random, trap: str) -> tuple[str, bytes]:
    """Draw a kind, and a size or a place within it."""
    kind = dice.choice(KINDS)
    content = build_hostile(kind, dice, trap)
    return kind, content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")


def build_hostile(kind: str, dice: random.Random, trap: str) -> bytes | str:
    """Build the file of a kind; `trap` is a path that code in it would make a file of."""
    call = f"{_CODE % trap}"
    number = dice.randint(20, 80)
    match kind:
        case "duplicate key":
            return f"{_GOOD}name: y\n"
        case "duplicate section":
            return f"{_GOOD}data:\n  max_length: 8\n"
        case "duplicate nested key":
            return f"{_GOOD}training:\n  seed: 1\n  seed: 2\n"
        case "tab indent":
            return _GOOD.replace("\n  ", "\n\t")
        case "tab between":
            return f"{_GOOD}training:\n  max_steps: 1\n\tsave_steps: 2\n"
        case "anchor bomb":
            width = dice.choice((2, 9))
            bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]\n" for n in range(1, number))
            return f"a0: &a0 [x, x]\n{bomb}{_GOOD}"
        case "merge bomb":
            bomb = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}\n" for n in range(1, number))
            return f"a0: &a0 {{k: 1}}\n{bomb}{_GOOD}"
        case "alias":
            return f"{_GOOD}seed: &s 4\ntraining: {{max_steps: *s}}\n"
        case "self reference":
            return f"&a {{name: *a}}\n{_GOOD}"
        case "python object":
            how = dice.choice(("builtins.eval", "builtins.exec", "os.system", "subprocess.check_output"))
            argument = f"touch {trap}" if how[0] in "os" and how != "builtins.eval" else call
            return f'{_GOOD}output_dir: !!python/object/apply:{how} ["{argument}"]\n'
        case "python name":
            return f"{_GOOD}output_dir: !!python/name:os.system\n"
        case "python module":
            return f"{_GOOD}output_dir: !!python/module:this\n"
        case "python call with state":
            arguments = '["x", !!python/tuple [], {"extend": !!python/name:exec }]'
            return f'!!python/object/new:type\nargs: {arguments}\nlistitems: "{call}"\n'
        case "several documents":
            return f"{_GOOD}---\n{_GOOD}"
        case "empty":
            return b""
        case "blank":
            return b" \n\n \n"
        case "comments alone":
            return "# a recipe\n# of nothing\n"
        case "a list":
            return "- name: x\n- model: y\n"
        case "a word":
            return "recipe\n"
        case _:
            return _build_large(kind, dice, trap)


def _build_large(kind: str, dice: random.Random, trap: str) -> bytes | str:
    match kind:
        case "binary":
            return dice.randbytes(dice.choice((10, 1000, 30_000)))
        case "zeros":
            return bytes(dice.choice((1, 1000, 10_000_000)))
        case "image":
            return b"\x89PNG\r\n\x1a\n" + dice.randbytes(500)
        case "pickle":
            return f"cbuiltins\neval\n(S'{_CODE % trap}'\ntR.".replace("'w'", '"w"').encode()
        case "10 MB of keys":
            return _GOOD + "".join(f"key{n}: {n}\n" for n in range(620_000))
        case "10 MB line":
            return f"{_GOOD}output_dir: {'x' * 10_000_000}\n"
        case "10 MB comment":
            return f"# {'x' * 10_000_000}\n{_GOOD}"
        case "10,000 levels of lists":
            return f"{_GOOD}output_dir: {'[' * 10_000}{']' * dice.choice((0, 10_000))}\n"
        case "10,000 levels of maps":
            return f"{_GOOD}output_dir: {'{a: ' * 7_000}"
        case "240 levels of lines":
            return _GOOD + "".join(f"{' ' * n}a:\n" for n in range(1, 240))
        case "utf-16":
            return _GOOD.encode(dice.choice(("utf-16", "utf-16-le", "utf-16-be")))
        case "latin-1":
            return f"{_GOOD}output_dir: caf\xe9\n".encode("latin-1")
        case "lone surrogate":
            return f"{_GOOD}output_dir: " + dice.choice(("\ud800\n", '"\\ud800"\n', '"\\udfff\\ud800"\n'))
        case "control character":
            return _GOOD + "output_dir: " + dice.choice(("a\x00b", "a\x1bb", "a\x07", '"\\0"', '"\\e[2J"', "a\x7fb"))
        case "unclosed quote":
            return f'{_GOOD}output_dir: "x\n'
        case "unclosed bracket":
            return f"{_GOOD}training: {{max_steps: 1\n"
        case "set":
            return f"{_GOOD}training: !!set {{a, b}}\n"
        case "complex key":
            return f"{_GOOD}? [a, b]\n: c\n"
        case "other directive":
            return f"%YAML {dice.choice(('2.0', '9.9'))}\n---\n{_GOOD}"
        case "merge key":
            return f"{_GOOD}training:\n  <<: {{max_steps: 1}}\n"
        case "10,000 digits":
            return f"{_GOOD}seed: {'9' * 10_000}\n"
        case "3,500 unknown keys":
            return _GOOD + "".join(f"k{n}: 1\n" for n in range(3_500))
    raise ValueError(kind)
