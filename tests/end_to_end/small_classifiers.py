"""Classifiers of a second each, in this process: a BERT and a Llama of two layers on sentences of thirty words.

Their weights are random and lie in folders, as a pretrained base does, so that a result can be opened elsewhere.
"""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, set_seed

from finetune.recipe.reading import build_recipe
from finetune.train import train
from tests.data.small_encoder import CLS, PAD, SEP, SPECIAL, WORDS, build_tokenizer
from tests.end_to_end.small_runs import RECIPE_TEXT, read_json

PRAISE, BLAME = ("good", "fine", "great"), ("bad", "dull", "old")
NUMBERS = ("one", "two", "three", "four", "five")
SIZES = {
    "vocab_size": len(SPECIAL + WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 48,
    "initializer_range": 0.2,  # wide enough for a mistake to show
    "pad_token_id": PAD,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
}
LORA = {"method": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
SMALL = {
    "name": "small",
    "objective": "classify",
    "seed": 3,
    "model": {"quantization": "none", "device": "cpu", "compute_dtype": "float32"},
    "adapter": LORA,
    "data": {"max_length": 32},
    "training": {
        "max_steps": 3,
        "save_steps": 100,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
    },
}

# Of several lengths, so that a batch of them is padded; two are not among the rows to train on.
ASKED = ["the film was good", "a play is not good", "an old old film is dull and new", "fine", "the play was the play"]
DOCUMENTS = {"objective": "mlm", "data__mask_fraction": 0.4}

Rows = list[dict[str, Any]]


def write_encoder(folder: Path) -> Path:
    """Write a BERT with a head for masked tokens, as encoders are published."""
    set_seed(0)
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def write_decoder(folder: Path) -> Path:
    """Write a Llama that continues text; its config names no pad token, as Llama's own does not."""
    set_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES | {"pad_token_id": None}, num_key_value_heads=1)).save_pretrained(folder)
    build_tokenizer(with_types=False).save_pretrained(folder)
    return folder


def build_sentences() -> list[tuple[str, str]]:
    """All sentences such as `the film was good`, with the word that ends each."""
    parts = product(("a", "the", "an"), ("film", "play"), ("was", "is"), PRAISE + BLAME)
    return [(" ".join(words), words[-1]) for words in parts]


def build_reviews() -> Rows:
    """72 sentences, each of `praise` or `blame`: its last word decides."""
    return [{"text": text, "label": "praise" if word in PRAISE else "blame"} for text, word in build_sentences()]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def build_small(output_dir: Path, base: Path, **settings: Any) -> dict[str, Any]:
    """The small recipe's values with some put over them: `training__max_steps=3` for `training.max_steps`."""
    values: dict[str, Any] = deepcopy(SMALL) | {"output_dir": str(output_dir)}
    values["model"]["model_name_or_path"] = str(base)
    for path, value in settings.items():
        *sections, key = path.split("__")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return values


def run_small(output_dir: Path, base: Path, *, resume: bool = False, **settings: Any) -> Path:
    """Train the small recipe; the run's folder."""
    recipe = build_recipe(build_small(output_dir, base, **settings))
    return train(recipe, recipe_text=RECIPE_TEXT, resume=resume)


def learn(folder: Path, base: Path, rows: str, *, steps: int = 40, **settings: Any) -> dict[str, Any]:
    """Train and measure on a quarter of the rows; the run's summary."""
    learning = {"data__train": {"path": rows}, "data__eval": {"fraction": 0.25}}
    learning |= {"training__max_steps": steps, "training__eval_steps": steps // 2}
    return read_json(run_small(folder, base, **learning | settings) / "summary.json")
