"""Compares the adapter methods: eight on instructions in NF4, or eighteen on three tasks of GLUE with a small encoder.

    python -m benchmarks.methods instructions [key=value ...]
    python -m benchmarks.methods glue|glue_sizes --texts CORPUS_FOLDER --glue GLUE_FOLDER [key=value ...]

For GLUE the encoder is made first, where outputs/glue_encoder has none: its tokenizer and its weights, from a folder
of `.jsonl.gz` files of `text`. Further arguments go to the comparison. What is finished is kept: the command can
be stopped and typed again. Writes `results/methods_WHAT_<machine>.json`, and table and plot beside it.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.recording import ROOT, run_recipe, write_result
from finetune.recipe.comparison import read_comparison

COMPARISONS = {
    "instructions": Path("recipes/compare_small.yaml"),
    "glue": Path("benchmarks/recipes/compare_glue_small.yaml"),
    "glue_sizes": Path("benchmarks/recipes/compare_glue_sizes.yaml"),
}
ENCODER = Path("outputs/glue_encoder")
TOKENIZER = Path("outputs/glue_tokenizer")
NUM_PIECES = 8192


def make_encoder(texts: Path) -> None:
    """Make the small encoder: a tokenizer, then weights by masking."""
    files = sorted(str(path) for path in texts.glob("*.jsonl.gz"))
    command = [sys.executable, "-m", "data.world.wordpiece", "--to", str(TOKENIZER), "--pieces", str(NUM_PIECES)]
    subprocess.run([*command, *files], check=True, cwd=ROOT)
    run_recipe("benchmarks/recipes/glue_encoder.yaml", ENCODER.name, ENCODER.parent, [f"data.train.path={texts}"])


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """Read every run of a comparison as its table has it."""
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Compare, and write what was found on this machine."""
    parser = argparse.ArgumentParser(description="Compare the adapter methods.")
    parser.add_argument("what", choices=COMPARISONS)
    parser.add_argument("--texts", type=Path, help="folder of .jsonl.gz files that the encoder is made from")
    parser.add_argument("--glue", type=Path, help="folder of GLUE's published files")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    overrides, made_from = list(arguments.overrides), {}
    if arguments.what != "instructions":
        if arguments.glue is None or (arguments.texts is None and not ENCODER.is_dir()):
            parser.error("glue takes --glue, and --texts where outputs/glue_encoder is not there")
        if not (ENCODER / "model").is_dir():
            make_encoder(arguments.texts)
        paths = [f"settings.data.{rows}.path={arguments.glue}" for rows in ("train", "eval")]
        overrides = [*paths, *overrides]
        summary = json.loads((ENCODER / "summary.json").read_text(encoding="utf-8"))
        made_from = {"encoder": {key: summary[key] for key in ("steps", "tokens", "eval_loss", "seconds")}}
    recipe = COMPARISONS[arguments.what]
    folder = read_comparison(recipe, overrides).folder
    subprocess.run([sys.executable, "-m", "finetune.compare", str(recipe), *overrides], check=True, cwd=ROOT)
    written = write_result(f"methods_{arguments.what}", {**made_from, "runs": read_runs(folder)})
    for name in ("table.md", "plot.png"):
        shutil.copy(folder / name, written.with_name(f"{written.stem}_{name}"))


if __name__ == "__main__":
    main()
