"""The watch over the chosen answers: it warns of the failure that a growing margin hides, and of nothing else."""

import logging

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from finetune.objectives.reference import WatchChosen

BETA = 0.1


@pytest.fixture
def watch(tmp_path, caplog):
    """Shows the watch one log after the other: the chosen answers' log-probability, and the reference's."""
    callback = WatchChosen(BETA)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[])
    caplog.set_level(logging.WARNING, "finetune")

    def show(*logps: tuple[float, float]) -> str:
        for chosen, reference in logps:
            logs = {"rewards/chosen": BETA * (chosen - reference), "logps/chosen": chosen}
            callback.on_log(arguments, TrainerState(global_step=7), TrainerControl(), logs=logs)
        return caplog.text

    return show


def test_chosen_answers_that_lose_half_of_their_log_probability_are_told_with_a_way_out(watch):
    said = watch((-40.0, -40.0), (-75.0, -40.0), (-78.0, -40.0))
    assert "step 7: the chosen answers have lost 38 nats since the start (-40 -> -78)" in said
    assert "larger beta" in said and "[sigmoid, sft]" in said


def test_it_is_said_once(watch):
    said = watch(*[(-90.0, -40.0)] * 5)
    assert said.count("have lost") == 1


@pytest.mark.parametrize(
    "logps",
    [
        [(-75.0, -40.0), (-41.0, -40.0), (-75.0, -40.0)],  # one batch of odd rows is no trend
        [(-50.0, -40.0)] * 3,  # a quarter
        [(-4.0, -1.0)] * 3,  # more than half of little
        [(-10.0, -40.0)] * 3,  # likelier
    ],
    ids=["once", "a quarter", "little", "likelier"],
)
def test_what_is_no_collapse_is_not_told(watch, logps):
    assert watch(*logps) == ""
