"""Runs of a tiny Mistral with an adapter that changes answers, saved as training saves them, in seconds."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from finetune.data.templates import load_template
from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.reading import build_recipe, to_resolved

ROOT = Path(__file__).parents[2]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write_base(folder: Path, **overrides: Any) -> Path:
    """Write a Mistral of two layers with random weights, wide enough for rounding to show, and a real tokenizer."""
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copy(ROOT / "data" / "tiny_base" / name, folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    MistralForCausalLM(MistralConfig(**(sizes | overrides))).save_pretrained(folder)
    return folder


def write_run(
    run_dir: Path,
    base_dir: Path | str,
    *,
    adapter: Mapping[str, Any] | None = None,
    quantization: str = "nf4",
    compute_dtype: str = "float32",
    template: str = "alpaca",
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a finished run whose adapter was moved away from its start by random numbers instead of training."""
    model = {"model_name_or_path": str(base_dir), "quantization": quantization, "compute_dtype": compute_dtype,
             "device": "cpu"}  # fmt: skip
    recipe = build_recipe(
        {
            "name": run_dir.name,
            "model": model,
            "adapter": dict(adapter or {"method": "lora", "r": 8}),
            "data": {"train": {"path": "rows.json"}, "template": template, "max_length": 64, "packing": False},
            "training": {"gradient_checkpointing": False} | dict(training or {}),
        }
    )
    attached = attach_adapter(load_base(recipe.model), recipe.adapter, recipe.seed)
    assert isinstance(attached, PeftModel)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapter_dir = run_dir / "adapter"
    attached.save_pretrained(adapter_dir, save_embedding_layers=False)
    tokenizer = load_tokenizer(recipe.model)
    tokenizer.chat_template = load_template(template, tokenizer).serving_source
    tokenizer.save_pretrained(adapter_dir)
    GenerationConfig(eos_token_id=[tokenizer.eos_token_id]).save_pretrained(adapter_dir)
    (run_dir / "resolved.json").write_text(json.dumps(to_resolved(recipe)))
    (run_dir / "status.json").write_text(json.dumps({"status": "done", "step": 4, "pid": 1, "reason": ""}))
    return run_dir
