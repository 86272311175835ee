"""What Unsloth changes beside the model is undone, or said: output, folders, log, settings."""

import re

import pytest

from tests.end_to_end.small_runs import read_json
from tests.unsloth.conftest import TWENTY_STEPS
from tests.unsloth.pairs_of_runs import Runs, build_tiny, train_through_unsloth

pytestmark = pytest.mark.unsloth

REPLACED = ("paged_adamw_8bit", "adamw_torch")
OPTIMIZERS = (*REPLACED, "adamw_torch_fused")


@pytest.fixture(scope="module")
def replaced(tiny_base, tmp_path_factory) -> Runs:
    """Runs with an optimizer that needs a GPU, one that Unsloth has another of on a CPU, and the one it takes."""
    few = TWENTY_STEPS | {"training__max_steps": 2, "training__eval_steps": 2}
    recipes = {name: build_tiny(**few, training__optim=name) for name in OPTIMIZERS}
    return train_through_unsloth(tmp_path_factory.mktemp("replaced"), recipes)


@pytest.mark.parametrize("asked", REPLACED)
def test_an_optimizer_that_unsloth_replaces_is_told_with_both_names(replaced, asked):
    log = (replaced[asked] / "log.txt").read_text(encoding="utf-8")
    [line] = [line for line in log.splitlines() if " WARNING finetune" in line and "asked for was" in line]
    assert line.endswith(f"`training.optim`: asked for was {asked}, the library takes adamw_torch_fused.")
    assert line[line.index("`training.optim`") :] in replaced.stderr


def test_an_optimizer_that_stays_is_not_told(replaced):
    assert "asked for was" not in (replaced["adamw_torch_fused"] / "log.txt").read_text(encoding="utf-8")


def test_standard_output_stays_clean(trained):
    assert trained.unsloth.stdout == ""


def test_standard_output_stays_clean_where_unsloth_tells_what_it_replaces(replaced):
    assert replaced.stdout == ""


def test_nothing_is_written_where_the_command_is_given(trained, replaced):
    for runs in (trained.unsloth, replaced):
        assert not list(runs.working_dir.iterdir())


def test_a_run_is_not_counted_by_anybody(trained):
    assert trained.unsloth.process["statistics_switch"] == "1"


def test_every_line_is_said_once(trained):
    assert trained.unsloth.process["handlers_brought"] == 0
    log = (trained.unsloth["tiny_float32"] / "log.txt").read_text(encoding="utf-8")
    lines = [line for line in log.splitlines() if " INFO finetune" in line]
    assert len(lines) == len(set(lines))
    both = (trained.transformers, trained.unsloth)
    summaries = [len(re.findall(r"^trained {2,}\d", runs.stderr, re.MULTILINE)) for runs in both]
    assert summaries == [11, 11], "one a run"
    assert log.count("before the first step") == 1


def test_the_resolved_recipes_differ_in_the_backend_and_the_attention_asked_for_alone(trained):
    ours, theirs = (read_json(run / "resolved.json") for run in trained["tiny_float32"])
    assert (ours["model"].pop("backend"), theirs["model"].pop("backend")) == ("transformers", "unsloth")
    assert (ours["model"].pop("attention"), theirs["model"].pop("attention")) == ("sdpa", "auto")
    assert ours.pop("output_dir") != theirs.pop("output_dir")
    assert theirs == ours
