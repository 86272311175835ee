"""A comparison with a budget tries its choices by short runs, and runs what was best in full."""

from pathlib import Path

import pytest

from finetune.comparison.comparing import compare
from finetune.errors import CheckpointError
from finetune.recipe.comparison import read_comparison
from tests.end_to_end.small_runs import build_values, write_recipe

pytestmark = pytest.mark.slow


def test_a_budget_tries_every_choice_briefly_and_runs_the_best_in_full(tmp_path: Path) -> None:
    write_recipe(tmp_path / "base.yaml", build_values(tmp_path))
    path = tmp_path / "search.yaml"
    path.write_text(
        "name: search\nrecipe: base.yaml\n"
        f"output_dir: {tmp_path}\n"
        "settings: {training.max_steps: 6, data.eval: {fraction: 0.1}}\n"
        "methods:\n"
        "  lora: {adapter.method: lora, grid: {training.learning_rate: [1e-6, 3e-2]}}\n"
        "  bitfit: {adapter.method: bitfit}\n"
        "seeds: [3]\n"
        "workers: 2\n"
        "budget: {minutes: 5, probe_steps: [4]}\n"
    )
    lines: list[str] = []
    findings = compare(read_comparison(path), overwrite=False, say=lines.append)
    assert len(lines) == 2 + 2
    assert [result.cell.name for result in findings.results] == ["lora-learning_rate0.03-seed3", "bitfit-seed3"]
    assert {result.summary["steps"] for result in findings.probes} == {4}
    assert (tmp_path / "search" / "table.md").read_text().count("| lora-learning_rate") == 2
    again: list[str] = []
    assert compare(read_comparison(path), overwrite=False, say=again.append).rows == findings.rows
    assert again == []

    # Other settings under the same name are taken with --overwrite alone. Here there is time for one short run of each
    # method's first choice at most, and the failed one counts: what was measured decides, whatever others would score.
    path.write_text(
        path.read_text()
        .replace(
            "  lora: {", "  broken: {adapter.target_modules: [no_such_layer], grid: {adapter.r: [2, 4]}}\n  lora: {"
        )
        .replace("max_steps: 6", "max_steps: 5")
    )
    hurried = read_comparison(path, ["budget={minutes: 1e-9, probe_steps: [4]}", "workers=1"])
    with pytest.raises(CheckpointError, match=r"training\.max_steps was 6, now 5"):
        compare(hurried, overwrite=False, say=again.append)
    assert again == []
    short = compare(hurried, overwrite=True, say=again.append)
    assert [(result.cell.point.name, result.state) for result in short.probes] == [
        ("broken-r2", "failed"), ("lora-learning_rate1e-06", "waiting"),
        ("broken-r4", "waiting"), ("lora-learning_rate0.03", "waiting"),
    ]  # fmt: skip
    assert again[1] == (
        "The 1e-09 minutes of short runs are spent: 3 of 4 4-step runs are left out, and what was measured decides."
    )
    assert short.unmeasured == ["lora-learning_rate1e-06", "broken-r4", "lora-learning_rate0.03"]
    assert {result.cell.point.name for result in short.results if result.state == "done"} == {
        "lora-learning_rate1e-06", "bitfit"
    }  # fmt: skip
    assert {result.summary["steps"] for result in short.results if result.state == "done"} == {5}
