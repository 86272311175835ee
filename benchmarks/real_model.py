"""Trains a real pretrained model (stories260K) on real rows (Alpaca-cleaned) by the recipe of Mistral-7B, in NF4.

    python -m benchmarks.real_model [DATA_DIR] [key=value ...]

DATA_DIR holds `models/stories260K` and `instructions/alpaca_cleaned_first5000.json`; `../shared/data` by default.
Further arguments go to the recipe as overrides. Writes `results/real_model_<machine>.json`.
"""

import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.recording import DATA_DIR, run_recipe, write_result

RECIPE = "recipes/mistral_alpaca.yaml"
MODEL, DATA = Path("models") / "stories260K", Path("instructions") / "alpaca_cleaned_first5000.json"
SETTINGS = ("data.max_length=512", "training.learning_rate=1e-3", "training.max_steps=200")


def main() -> None:
    """Train, and write how far the held-out loss fell and how many rows were dropped."""
    places = [argument for argument in sys.argv[1:] if "=" not in argument]
    overrides = [argument for argument in sys.argv[1:] if "=" in argument]
    data_dir = Path(places[0]).resolve() if places else DATA_DIR
    for part in (MODEL, DATA):
        if not (data_dir / part).exists():
            raise SystemExit(f"{data_dir / part} is not there.\n  Name the folder that holds it: DATA_DIR")
    with tempfile.TemporaryDirectory() as folder:
        named = [f"model.model_name_or_path={data_dir / MODEL}", f"data.train.path={data_dir / DATA}"]
        run = run_recipe(RECIPE, "real_model", Path(folder), [*named, *SETTINGS, *overrides])
    before, after = run.summary["eval_loss_before"], run.summary["eval_loss"]
    dropped = {side: run.data_report[side]["census"]["dropped"] for side in ("train", "eval")}
    print(f"\nheld-out loss {before:.4f} -> {after:.4f}: {1 - after / before:.1%} lower; dropped rows: {dropped}")
    figures = {
        "recipe": RECIPE,
        "model": MODEL.name,
        "data": DATA.name,
        "overrides": [*SETTINGS, *overrides],
        "eval_loss_fall_fraction": round(1 - after / before, 4),
        "rows_dropped": dropped,
        "process_seconds": run.process_seconds,
        **run.summary,
    }
    on_gpu = torch.cuda.is_available() and "model.device=cpu" not in overrides
    write_result("real_model", figures, machine=torch.cuda.get_device_name(0) if on_gpu else None)


if __name__ == "__main__":
    main()
