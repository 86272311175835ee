"""A tokenizer without a pad token, or whose pad token is its end: what is trained, saved and generated all the same."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedTokenizerFast

from finetune.data.examples import Message
from finetune.data.serving import build_serving_renderer
from finetune.errors import RecipeError
from finetune.model.generation import generate_answers
from finetune.model.loading import load_for_inference
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.schema import ModelSettings
from tests.end_to_end.small_runs import SHAPE, run_small
from tests.inspection.small_tokenizers import END, build_byte_level

NUM_TOKENS = 257  # each byte, and the end
QUESTIONS = ("one?", "two two?", "three three three?")


def write_tokenizer(folder: Path, pad: str | None) -> Path:
    """Write a byte-level tokenizer without a template: no pad token, the end as one, or one added behind all others."""
    tokenizer: PreTrainedTokenizerFast = build_byte_level()
    assert tokenizer.pad_token is None and tokenizer.chat_template is None
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.save_pretrained(folder)
    return folder


def train_on(folder: Path, tokenizer: Path, **settings: object) -> Path:
    rows = [{"instruction": asked, "output": "yes"} for asked in QUESTIONS for _ in range(4)]
    (folder / "rows.json").write_text(json.dumps(rows))
    shape = SHAPE | {"vocab_size": NUM_TOKENS, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    settings = {
        "model": {
            "weights": "random", "config": shape, "tokenizer_name_or_path": str(tokenizer), "quantization": "none",
            "device": "cpu", "compute_dtype": "float32",
        },
        "adapter__lora_dropout": 0.0,
        "data": {"train": {"path": str(folder / "rows.json")}, "template": "alpaca", "max_length": 256,
                 "findings": {"duplicates": "report"}},
        "training__max_steps": 30,
        "training__per_device_train_batch_size": 3,
    } | settings  # fmt: skip
    return run_small(folder, **settings)


def test_without_a_pad_token_the_end_fills_the_rows_and_one_that_is_the_end_already_stays(tmp_path):
    for name, pad in (("none", None), ("end", END)):
        loaded = load_tokenizer(ModelSettings(model_name_or_path=str(write_tokenizer(tmp_path / name, pad))))
        assert (loaded.pad_token, loaded.eos_token, len(loaded)) == (END, END, NUM_TOKENS)


def test_the_end_is_learned_though_it_fills_the_rows_and_no_embedding_is_saved(tiny_base, tmp_path):
    run = train_on(tmp_path, write_tokenizer(tmp_path / "tokenizer", None))
    adapter = run / "adapter"
    names = load_file(adapter / "adapter_model.safetensors")
    assert names and not [name for name in names if "embed" in name or "lm_head" in name]
    saved = PreTrainedTokenizerFast.from_pretrained(adapter)
    assert (len(saved), saved.pad_token, saved.eos_token) == (NUM_TOKENS, END, END)
    assert "### Instruction" in saved.chat_template
    assert GenerationConfig.from_pretrained(adapter).eos_token_id == [0]

    speaker = load_for_inference(str(run))
    renderer = build_serving_renderer(speaker.tokenizer)
    prompts = [renderer.render_prompt([Message("user", asked)]) for asked in QUESTIONS]
    answers = generate_answers(
        speaker.model, speaker.tokenizer, prompts, stop_ids=speaker.eos_ids, max_new_tokens=12, batch_size=3
    )
    assert answers == ["yes"] * 3


def test_a_pad_token_added_behind_the_embeddings_is_refused_before_a_step(tiny_base, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer", "<pad>")
    with pytest.raises(RecipeError, match=rf"{NUM_TOKENS + 1} tokens and the model embeddings for {NUM_TOKENS}"):
        train_on(tmp_path, tokenizer)
    assert not (tmp_path / "small").exists()
