"""The same recipe through either backend: the same batches, losses, parameters and files."""

import math

import pytest

from tests.end_to_end.small_runs import read_json, read_lines
from tests.unsloth.conftest import STEPS
from tests.unsloth.pairs_of_runs import (
    assert_same_adapters,
    assert_same_batches,
    assert_same_losses,
    describe_tensors,
    read_tensors,
)

pytestmark = pytest.mark.unsloth

IN_FLOAT32 = (
    "tiny_float32", "tiny_packed", "tiny_text", "tiny_recomputed", "tiny_sentencepiece", "stories_float32",
    "stories_packed",
)  # fmt: skip
IN_NF4 = ("tiny_nf4", "tiny_bfloat16", "tiny_saved_nf4", "stories_nf4")
ALL = IN_FLOAT32 + IN_NF4


def test_one_process_trained_through_unsloth_and_the_other_without_it(trained):
    assert not trained.transformers.process["unsloth"]
    assert trained.unsloth.process["unsloth"]
    for name in ALL:
        ours, theirs = trained[name]
        assert "Unsloth (CPU)" in (theirs / "log.txt").read_text(encoding="utf-8")
        assert "Unsloth" not in (ours / "log.txt").read_text(encoding="utf-8")
        assert read_lines(theirs)[1].keys() == read_lines(ours)[1].keys(), "the same figures"


@pytest.mark.parametrize("name", ALL)
def test_every_step_trains_the_same_ids_and_labels(trained, name):
    kept_apart_by = "position_ids" if name.endswith("packed") else "attention_mask"
    assert_same_batches(trained, name, named={"input_ids", "labels", kept_apart_by})
    micro_batches = 3 if name == "tiny_recomputed" else 1
    assert len(trained.unsloth.batches(name, "training")) == STEPS * micro_batches


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_every_loss_is_the_same_in_float32(trained, name):
    assert_same_losses(trained, name)
    assert len([line for line in read_lines(trained.unsloth[name]) if "loss" in line]) == STEPS


@pytest.mark.parametrize("name", IN_NF4)
def test_the_losses_are_the_same_to_three_hundredths_in_nf4(trained, name):
    ours, theirs = map(read_lines, trained[name])
    for figure, count in (("loss", STEPS), ("eval_loss", 3)):
        expected = [line[figure] for line in ours if figure in line]
        assert len(expected) == count
        # What has fallen to a five-hundredth of its start may differ by the roundings of the start.
        assert [line[figure] for line in theirs if figure in line] == pytest.approx(expected, rel=0.03, abs=0.002)
    at_the_end = [read_json(run / "summary.json")["eval_loss"] for run in trained[name]]
    assert at_the_end[1] == pytest.approx(at_the_end[0], rel=0.03)


@pytest.mark.parametrize("name", ALL)
def test_the_runs_learn(trained, name):
    for run in trained[name]:
        summary = read_json(run / "summary.json")
        assert summary["steps"] == STEPS
        assert summary["eval_loss"] < summary["eval_loss_before"] - 0.01


@pytest.mark.parametrize("name", ALL)
def test_the_adapters_have_the_same_keys_shapes_config_and_files(trained, name):
    assert_same_adapters(trained, name)


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_the_adapters_hold_the_same_numbers_but_for_rounding(trained, name):
    ours, theirs = map(read_tensors, trained[name])
    for key, tensor in ours.items():
        apart = (theirs[key] - tensor).norm() / tensor.norm()
        assert float(apart) < 0.01, key


def test_the_adapter_sits_on_every_linear_layer_in_float32(trained):
    # Seven layers in each of four blocks, two matrices each.
    tensors = describe_tensors(trained.unsloth["tiny_nf4"])
    assert len(tensors) == 7 * 4 * 2
    assert {str(dtype) for _, dtype in tensors.values()} == {"torch.float32"}
    sizes = [math.prod(shape) for shape, _ in tensors.values()]
    assert read_json(trained.unsloth["tiny_nf4"] / "summary.json")["trainable_parameters"] == sum(sizes)


@pytest.mark.parametrize("name", ALL)
def test_the_rows_are_counted_alike(trained, name):
    ours, theirs = (read_json(run / "data_report.json") for run in trained[name])
    assert theirs == ours
    if name.endswith("packed"):
        assert ours["train"]["census"]["packed_rows"] < ours["train"]["census"]["rows"]
