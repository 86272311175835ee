"""Adapters as they are before the first step, attached through one backend and saved.

`python -m tests.unsloth.starts BACKEND FOLDER RECIPE.yaml ...`: each recipe's adapter goes to FOLDER/NAME, as PEFT
saves it, with `trainable.json`: the shape of every parameter that is trained, dropout, and logits of a few tokens.
"""

import json
import sys
from pathlib import Path

from finetune.model.backends import start_backend
from finetune.recipe.reading import read_recipe


def main(arguments: list[str]) -> None:
    backend, folder, *recipes = arguments
    start_backend(backend)
    for path in map(Path, recipes):
        save_start(path, backend, Path(folder) / path.stem)


def save_start(path: Path, backend: str, folder: Path) -> None:
    import torch

    from finetune.model.adapters import attach_adapter
    from finetune.model.base import load_base

    recipe = read_recipe(path, [f"model.backend={backend}"])
    base = load_base(recipe.model, max_length=recipe.data.max_length, seed=recipe.seed)
    model = attach_adapter(base, recipe.adapter, recipe.seed, checkpointing=recipe.training.gradient_checkpointing)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(4, 36)[None]).logits
    said = {
        "trainable": {
            name: list(parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad
        },
        "dropout": sorted({module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}),
        "logits": logits[0, :, :8].flatten().tolist(),
    }
    (folder / "trainable.json").write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
