"""The runs that several files here compare, trained once."""

import shutil
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.unsloth.pairs_of_runs")  # its comparisons show what differs

from finetune.model.base import load_base  # noqa: E402
from finetune.model.tokenizer import load_tokenizer  # noqa: E402
from finetune.recipe.schema import ModelSettings  # noqa: E402
from tests.end_to_end.small_runs import ROOT, TINY  # noqa: E402
from tests.unsloth.pairs_of_runs import Both, build_stories, build_tiny, place_model, train_both  # noqa: E402

STEPS = 20
TWENTY_STEPS = {
    "data__eval": {"fraction": 0.1},
    "training__max_steps": STEPS,
    "training__rehearsal": False,  # its batch is no step's
    "training__eval_steps": 10,
    "training__learning_rate": 2e-3,
    "evaluation__num_samples": 1,
}
PACKED = {"data__packing": True, "data__max_length": 256, "training__per_device_train_batch_size": 1}
RECOMPUTED = {"training__gradient_checkpointing": True, "training__gradient_accumulation_steps": 3}
TEXT = {
    "objective": "pretrain",
    "data": {
        "train": {"path": str(ROOT / "data/tiny_world/text.jsonl.gz"), "format": "text", "limit": 60},
        "eval": {"fraction": 0.1},
        "max_length": 128,
        "packing": False,
    },
}


def save_in_nf4(tmp_path_factory) -> Path:
    """The tiny base as its files hold it once it was quantized and saved."""
    base = load_base(ModelSettings(model_name_or_path=str(TINY), quantization="nf4", device="cpu"))
    folder = tmp_path_factory.mktemp("saved_nf4")
    base.model.save_pretrained(folder)
    load_tokenizer(ModelSettings(model_name_or_path=str(TINY))).save_pretrained(folder)
    return folder


def without_tokenizer(tiny_base, tmp_path_factory) -> Path:
    """The tiny base's weights and config alone."""
    folder = tmp_path_factory.mktemp("weights")
    for path in tiny_base.iterdir():
        if not path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def trained(shared_data, tiny_base, tmp_path_factory) -> Both:
    """Runs of twenty steps on both bases: in float32, in NF4, packed; on text, and with recomputed activations."""
    recipes = {
        "tiny_float32": build_tiny(**TWENTY_STEPS),
        "tiny_nf4": build_tiny(**TWENTY_STEPS, model=place_model(tiny_base, quantization="nf4")),
        "tiny_bfloat16": build_tiny(
            **TWENTY_STEPS, model=place_model(tiny_base, quantization="nf4", compute_dtype="bfloat16")
        ),
        "tiny_saved_nf4": build_tiny(
            **TWENTY_STEPS, model=place_model(save_in_nf4(tmp_path_factory), quantization="nf4")
        ),
        "tiny_sentencepiece": build_tiny(
            **TWENTY_STEPS,
            model=place_model(without_tokenizer(tiny_base, tmp_path_factory))
            | {"tokenizer_name_or_path": str(tiny_base / "tokenizer.model")},
        ),
        "tiny_packed": build_tiny(**TWENTY_STEPS | PACKED),
        "tiny_text": build_tiny(**TWENTY_STEPS | TEXT),
        "tiny_recomputed": build_tiny(**TWENTY_STEPS | RECOMPUTED),
        "stories_float32": build_stories(shared_data, **TWENTY_STEPS),
        "stories_nf4": build_stories(
            shared_data,
            **TWENTY_STEPS,
            model=place_model(shared_data / "models" / "stories260K", quantization="nf4"),
        ),
        "stories_packed": build_stories(shared_data, **TWENTY_STEPS | PACKED | {"data__max_length": 512}),
    }
    return train_both(tmp_path_factory.mktemp("trained"), recipes)
