"""Write the table of methods into `docs/methods.md`, between its two marks, from what the code answers.

    python docs/make_method_table.py

A test makes the page again and fails where it differs; another one tries each answer out.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # a script's own folder is all that Python looks in

from finetune.model.capabilities import QUESTIONS, Capabilities, find_capabilities  # noqa: E402
from finetune.recipe.json_schema import find_methods  # noqa: E402

PAGE = ROOT / "docs" / "methods.md"
STARTS = "<!-- Made by docs/make_method_table.py from the code; `make docs` writes it again. -->\n"
ENDS = "<!-- The end of what is made. -->\n"
COLUMNS = {
    "decoder": "decoder",
    "encoder": "encoder",
    "four_bit": "4-bit base",
    "packing": "packing",
    "checkpointing": "checkpointing",
    "merging": "merges",
    "switching_off": "switches off",
    "several": "several at once",
    "modules_to_save": "`modules_to_save`",
    "vllm": "vLLM",
    "llama_cpp": "llama.cpp",
    "ollama": "Ollama",
    "unsloth": "Unsloth",
    "plain_peft": "plain PEFT",
}
assert tuple(COLUMNS) == QUESTIONS


def build_table(found: list[Capabilities]) -> str:
    """The table: a row a method, a cell an answer; a cell with a star has a condition below."""
    lines = [
        f"| method | {' | '.join(COLUMNS.values())} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for able in found:
        answers = [getattr(able, question) for question in QUESTIONS]
        cells = [answer.word + ("*" if answer.why and answer.word != "no" else "") for answer in answers]
        lines.append(f"| {able.method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def build_reasons(found: list[Capabilities]) -> Iterator[str]:
    """What stands behind the cells: a line a reason, with the columns and the methods that it is given for."""
    methods: dict[tuple[str, str, str], list[str]] = {}
    for question in QUESTIONS:
        for able in found:
            answer = getattr(able, question)
            if answer.why:
                methods.setdefault((question, answer.word, answer.why), []).append(able.method)
    titles: dict[tuple[str, str, str], list[str]] = {}
    for (question, word, why), named in methods.items():
        whose = ", ".join(named) if len(named) < len(found) - 5 else "all others"
        titles.setdefault((word, why, whose), []).append(COLUMNS[question])
    for (word, why, whose), columns in titles.items():
        yield f"- {', '.join(columns)}, {word}{'' if word == 'no' else '*'}: {why} ({whose})\n"


def build_page() -> str:
    """The page with its made part anew."""
    above, _, rest = PAGE.read_text(encoding="utf-8").partition(STARTS)
    _, _, below = rest.partition(ENDS)
    found = [find_capabilities(method) for method in sorted(find_methods())]
    return f"{above}{STARTS}\n{build_table(found)}\n{''.join(build_reasons(found))}\n{ENDS}{below}"


def find_described() -> set[str]:
    """The methods that the page describes in its own words: those named in bold code, such as **`lora`**."""
    above, _, rest = PAGE.read_text(encoding="utf-8").partition(STARTS)
    return set(re.findall(r"\*\*`([a-z0-9_]+)`\*\*", above + rest.partition(ENDS)[2]))


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
    print("wrote docs/methods.md")
