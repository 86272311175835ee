"""A comparison is read strictly: every fault at once, with its line and what to type."""

import time
from pathlib import Path

import pytest

from finetune.comparison.cells import build_cells, build_points
from finetune.errors import RecipeError
from finetune.recipe.comparison import Comparison, read_comparison
from tests.recipe.told import Write

BASE = """\
name: base
model: {model_name_or_path: org/base, quantization: nf4}
adapter: {method: lora, r: 8}
data:
  train: {path: org/rows, format: alpaca}
  eval: {fraction: 0.1}
training: {max_steps: 10}
"""
GOOD = """\
name: small
recipe: base.yaml
settings:
  training.max_steps: 60
methods:
  lora: {adapter.method: lora, adapter.r: 8}
  ia3:
    adapter.method: ia3
    training.learning_rate: 5e-2
grid:
  training.learning_rate: [1e-3, 3e-3]
seeds: [42, 1]
reference: lora
score: eval_loss
workers: 1
budget: {minutes: 3, probe_steps: [2, 6], keep: 0.5}
"""


@pytest.fixture
def write_both(write: Write) -> Write:
    """A comparison beside the recipe that it starts from."""

    def write_comparison(text: str) -> Path:
        path = write(text)
        Path("base.yaml").write_text(BASE)
        return path

    return write_comparison


def read_all(path: Path, *overrides: str) -> Comparison:
    """Read a comparison, and check its runs as the verb does."""
    comparison = read_comparison(path, overrides)
    build_cells(comparison, build_points(comparison), comparison.seeds)
    return comparison


def test_a_good_comparison_keeps_what_was_typed(write_both: Write) -> None:
    comparison = read_all(write_both(GOOD))
    assert comparison.folder == Path("outputs/small")
    assert [method.name for method in comparison.methods] == ["lora", "ia3"]
    assert comparison.seeds == (42, 1)
    assert comparison.budget is not None
    assert (comparison.budget.minutes, comparison.budget.probe_steps, comparison.budget.keep) == (3.0, (2, 6), 0.5)


FAULTS = [
    # what was typed in place of a part of GOOD, its line, the message and the advice
    ("seeds:", "seds:", 12, "a comparison has no setting `seds`.", "Did you mean `seeds`?"),
    ("workers: 1", "training: {max_steps: 3}", 15, "no setting `training`.", "over it: settings: {training.…: …}"),
    ("training.max_steps: 60", "training.max_stepz: 60", 4, "`training` has no setting `max_stepz`.", "`max_steps`?"),
    ("training.max_steps: 60", "training.max_steps: many", 4, "`training.max_steps` wants a whole number", ""),
    ("training.max_steps: 60", "seed: 3", 4, "`seed` is not set under `settings`.", "Write them in `seeds`"),
    ("training.max_steps: 60", "name.x: 3", 4, "`name.x` cannot be set", ""),
    ("adapter.r: 8", "adapter.rr: 8", 6, "method lora: `adapter` has no setting `rr`.", "`r`"),
    ("adapter.method: ia3", "adapter.method: ia33", 8, "`adapter.method` cannot be the text `ia33`.", "mean `ia3`"),
    ("adapter.method: ia3", "adapter.method: ia3\n    adapter.r: 4", 9, "method ia3: `adapter` has no setting `r`.",
     "the method here is ia3"),
    ("[1e-3, 3e-3]", "1e-3", 11, "`grid` wants a list of values for `training.learning_rate`.", "E.g. [4, 8, 16]."),
    ("[1e-3, 3e-3]", "[1e-3, 0.001]", 11, "`training.learning_rate` has a value twice in `grid`.", ""),
    ("[1e-3, 3e-3]", "[1e-3, -1]", 11, "method lora: `training.learning_rate` is -1; it must be above 0.", ""),
    ("seeds: [42, 1]", "seeds: 42", 12, "`seeds` wants a list of whole numbers.", "E.g. [42, 1, 2]."),
    ("seeds: [42, 1]", "seeds: [1, 1]", 12, "`seeds` has a number twice.", ""),
    ("reference: lora", "reference: lor", 13, "`reference` names no method.", "Did you mean `lora`?"),
    ("score: eval_loss", "score: eval_los", 14, "`score` cannot be `eval_los`.", "Did you mean `eval_loss`?"),
    ("workers: 1", "workers: 0", 15, "`workers` wants a whole number of at least 1.", ""),
    ("minutes: 3", "minuts: 3", 16, "`budget` has no setting `minuts`.", "Did you mean `minutes`?"),
    ("[2, 6]", "[6, 2]", 16, "`budget.probe_steps` wants a list of whole numbers that rise.", "E.g."),
    ("keep: 0.5", "keep: 5", 16, "`budget.keep` wants a share between 0 and 1.", ""),
    ("recipe: base.yaml", "recipe: bas.yaml", 0, "there is no recipe `bas.yaml`.", "Did you mean base.yaml?"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "instead", "line", "what", "advice"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_a_fault_is_told_with_file_line_and_what_to_type(
    write_both: Write, typed: str, instead: str, line: int, what: str, advice: str
) -> None:
    assert GOOD.count(typed) == 1
    with pytest.raises(RecipeError) as error:
        read_all(write_both(GOOD.replace(typed, instead)))
    first, _, rest = str(error.value).partition("\n")
    assert what in first
    assert advice in rest
    if line:
        assert first.startswith(f"r.yaml:{line}: ")


def test_all_faults_of_all_runs_are_told_at_once(write_both: Write) -> None:
    text = GOOD.replace("adapter.r: 8", "adapter.rr: 8").replace("method: ia3", "method: ia4").replace("60", "x")
    with pytest.raises(RecipeError) as error:
        read_all(write_both(text))
    places = [line.split(" ")[0] for line in str(error.value).splitlines() if line.startswith("r.yaml")]
    assert places == ["r.yaml:4:", "r.yaml:6:", "r.yaml:8:"]


def test_a_fault_is_answered_in_well_under_a_second(write_both: Write) -> None:
    path = write_both(GOOD.replace("adapter.r: 8", "adapter.rr: 8"))
    began = time.monotonic()
    with pytest.raises(RecipeError):
        read_all(path)
    assert time.monotonic() - began < 1


def test_the_command_line_lies_over_the_file(write_both: Write) -> None:
    path = write_both(GOOD)
    comparison = read_all(path, "name=other", "seeds=[7]", "settings.training.max_steps=3", "workers=2")
    (cell, *_) = build_cells(comparison, build_points(comparison), comparison.seeds)
    assert cell.recipe.output_dir == "outputs/other/runs"
    assert (comparison.name, comparison.workers, cell.seed, cell.recipe.training.max_steps) == ("other", 2, 7, 3)
    longer = read_all(path, "methods.lora.adapter.r=2", "methods.lora.grid.adapter.lora_alpha=[4, 8]")
    ranks = {(point.method, cell.recipe.adapter.fields.get("r")) for point, cell in pair_up(longer)}
    assert ranks == {("lora", 2), ("ia3", None)}
    assert len(build_points(longer)) == 2 * 2 + 1  # lora's two settings; ia3 sets its own learning rate
    with pytest.raises(RecipeError, match=r"command line: .*no setting `max_stepz`"):
        read_all(path, "settings.training.max_stepz=3")


def pair_up(comparison: Comparison):
    points = build_points(comparison)
    cells = build_cells(comparison, points, comparison.seeds[:1])
    return [(cell.point, cell) for cell in cells]


def test_a_comparison_without_anything_held_out_is_refused(write_both: Write) -> None:
    path = write_both(GOOD.replace("score: eval_loss", ""))
    Path("base.yaml").write_text(BASE.replace("  eval: {fraction: 0.1}\n", ""))
    with pytest.raises(RecipeError, match=r"by `eval_loss`, and nothing is held out for it\.\n  Hold rows out"):
        read_all(path)


def test_without_a_share_a_third_is_kept(write_both: Write) -> None:
    comparison = read_all(write_both(GOOD.replace(", keep: 0.5", "")))
    assert comparison.budget is not None
    assert comparison.budget.keep == pytest.approx(1 / 3)


def test_a_comparison_that_is_not_there_names_the_nearest(write_both: Write) -> None:
    write_both(GOOD)
    with pytest.raises(RecipeError, match=r"there is no comparison `rr.yaml`.\n  Did you mean r.yaml\?"):
        read_comparison(Path("rr.yaml"))
