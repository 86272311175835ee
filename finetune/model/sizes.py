"""How large a run's weights will be, before any is loaded: parameters counted on a model without memory.

In go the recipe's sections; out come numbers of parameters, and the bytes that the Hub's cache still lacks. The model
is laid out on torch's `meta` device from its config alone and the adapter attached as the run does it: 0.1 to 1 s for
a 7B shape, milliseconds for a small one.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from finetune.errors import FinetuneError
from finetune.model.access import find_cached
from finetune.model.adapter_starts import choose_start
from finetune.model.adapters import ParameterCount, attach_adapter, count_parameters
from finetune.model.base import BaseModel, load_config
from finetune.model.heads import find_builder
from finetune.model.targets import ADAPTER_WEIGHTS
from finetune.recipe.heads import Head
from finetune.recipe.places import expand, is_here
from finetune.recipe.schema import AdapterSettings, ModelSettings

__all__ = ["estimate_parameters", "find_tokenizer_bytes"]

# What stands in for a method that cannot be laid out without memory: more than each of them trains by its defaults.
_STAND_IN = AdapterSettings.model_validate({"method": "lora", "r": 64})
_LARGE_TOKENIZER_BYTES = 35_000_000
# These read the weights to choose what they train.
_READ_WEIGHTS = frozenset({"adamss", "boft", "frod", "unilora"})


def estimate_parameters(
    settings: ModelSettings, adapter: AdapterSettings, *, head: Head = "words", trained_dir: Path | None = None
) -> ParameterCount:
    """Count what a recipe will train, and the whole model with it; exact but for a few methods, then on the high side.

    Args:
        settings: the recipe's `model` section; its config is here already.
        adapter: the recipe's section.
        head: what the base ends with.
        trained_dir: folder of the adapter that is trained on; None: a fresh one.
    """
    with _quietly(), torch.device("meta"):
        model = find_builder(head).from_config(
            load_config(settings), dtype=torch.bfloat16, trust_remote_code=settings.trust_remote_code
        )
        total = count_parameters(model).total
        if trained_dir is not None:
            trained = _count_saved(trained_dir)
            return ParameterCount(trained, total + trained)
        if adapter.method in _READ_WEIGHTS:
            adapter = _STAND_IN
        if adapter.method == "lora":  # a start reads the weights, and may double the rank
            fields, _ = choose_start(adapter.fields)
            adapter = AdapterSettings.model_validate(fields | {"init_lora_weights": True})
        try:
            return _count_attached(model, adapter, head)
        except (RuntimeError, FinetuneError):
            # No memory to read from; or a fault that attaching in earnest tells. LoRA of r=128 trains about as many.
            return ParameterCount(total // 20, total)


def find_tokenizer_bytes(settings: ModelSettings) -> int:
    """Find the size of the tokenizer's files, which lie in every checkpoint: those of a folder, or as cached.

    Of one that is to be downloaded yet the size is that of a large one, Gemma's.
    """
    name = settings.tokenizer_name_or_path or settings.model_name_or_path
    if name is None:
        return 0
    if not is_here(name):
        cached = find_cached(name, "tokenizer.json", settings.revision if name == settings.model_name_or_path else None)
        return _LARGE_TOKENIZER_BYTES if cached is None else cached.stat().st_size
    place = Path(expand(name))
    if place.is_file():
        return place.stat().st_size
    return sum(path.stat().st_size for path in place.glob("*token*") if path.is_file())


def _count_attached(model: torch.nn.Module, adapter: AdapterSettings, head: Head) -> ParameterCount:
    model.requires_grad_(False)
    base = BaseModel(
        model=model,
        device=torch.device("meta"),
        compute_dtype=torch.bfloat16,
        quantization="none",
        attention="eager",
        commit=None,
        stored_dtype=torch.bfloat16,
        head=head,
    )
    return count_parameters(attach_adapter(base, adapter, seed=0))


def _count_saved(folder: Path) -> int:
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 - no dict
    return sum(torch.Size(shape).numel() for shape in shapes)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the libraries' and our own remarks for the time the adapter is attached in earnest."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
