import ast
from pathlib import Path

import pytest
import torch

from tests.reference.bases import TOKENS, load, shape_of, weights_of
from tests.reference.closeness import hold, relative_difference
from tests.reference.decoder import decode

BASES = [{"model_type": "mistral"}, {"model_type": "llama"}, {"model_type": "qwen2"}, {"quantization": "nf4"}]


@pytest.mark.parametrize("changes", BASES, ids=str)
def test_the_written_out_decoder_is_transformers_own(changes):
    base = load(**changes)
    with torch.no_grad():
        hold("decoder", logits=(base.model(TOKENS).logits, decode(weights_of(base), TOKENS, shape_of(base))))


@pytest.mark.parametrize(
    ("ours", "reference", "message"),
    [
        (torch.ones(2), torch.ones(3), "against"),
        (torch.tensor([1.0, torch.nan]), torch.ones(2), "not finite"),
        (torch.zeros(2), torch.zeros(2), "say nothing"),
    ],
)
def test_a_comparison_that_would_say_nothing_is_refused(ours, reference, message):
    with pytest.raises(AssertionError, match=message):
        hold("decoder", logits=(ours, reference))


def test_a_difference_is_a_fraction_of_the_largest_value():
    assert relative_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.5, 4.0])) == 0.125


@pytest.mark.parametrize("name", ["bitfit", "bottleneck", "decoder", "ia3", "lora", "nf4", "prefix"])
def test_a_reference_stands_on_torch_alone(name):
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {"tests.reference.decoder"}
    assert imported - own <= {"collections.abc", "dataclasses", "math", "statistics", "torch"}
