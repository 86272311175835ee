"""The runs that several files here compare, trained once."""

import pytest

pytest.register_assert_rewrite("tests.unsloth.pairs_of_runs")  # its comparisons show what differs

from tests.end_to_end.small_runs import ROOT  # noqa: E402
from tests.unsloth.pairs_of_runs import Both, build_stories, build_tiny, place_model, train_both  # noqa: E402

STEPS = 20
TWENTY_STEPS = {
    "data__eval": {"fraction": 0.1},
    "training__max_steps": STEPS,
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


@pytest.fixture(scope="session")
def trained(shared_data, tiny_base, tmp_path_factory) -> Both:
    """Runs of twenty steps on both bases: in float32, in NF4, packed; on text, and with recomputed activations."""
    recipes = {
        "tiny_float32": build_tiny(**TWENTY_STEPS),
        "tiny_nf4": build_tiny(**TWENTY_STEPS, model=place_model(tiny_base, quantization="nf4")),
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
