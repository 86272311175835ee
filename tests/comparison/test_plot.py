"""The picture shows the numbers of the table: sizes across, scores up, three deviations to each side."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.image import imread

from finetune.comparison.folder import Result
from finetune.comparison.plot import build_figure
from finetune.comparison.table import Findings
from finetune.comparison.writing import write_findings
from tests.comparison.made_up import build_all, make_findings, make_result, read_small

TEXT = """\
tasks: {first: {data.max_length: 64}, second: {data.max_length: 128}}
methods:
  full: {adapter.method: full, model.quantization: none}
  lora: {adapter.method: lora, grid: {adapter.r: [8, 4], training.learning_rate: [1e-3, 1e-4]}}
seeds: [1, 2]
"""
# Of each size the second learning rate is the worse one.
SCORES = {"full": 0.75, "lora-r4-learning_rate0.001": 0.5, "lora-r8-learning_rate0.001": 0.625}


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """Two tasks; the first has no score of full, which has one size alone."""
    results = []
    for cell in build_all(read_small(tmp_path, TEXT)):
        if (cell.point.method, cell.task) == ("full", "first"):
            results.append(Result(cell, "failed", {}, "the memory is full"))
            continue
        size = {"full": 1000}.get(cell.point.method, 5 * int(cell.recipe.adapter.fields.get("r", 0)))
        value = SCORES.get(cell.point.name, 0.25) + 0.01 * cell.seed
        results.append(make_result(cell, score=value, trainable_parameters=size, majority_score=0.125))
    return make_findings(read_small(tmp_path, TEXT), results, score="score")


def test_a_line_goes_through_the_best_score_of_every_size_with_a_band_of_three_deviations(findings: Findings) -> None:
    first, second = build_figure(findings).axes
    assert (first.get_xscale(), first.get_xlabel(), first.get_ylabel()) == ("log", "trainable parameters", "score")
    assert [first.get_title(), second.get_title()] == ["first", "second"]
    for axes in (first, second):
        (line,) = [line for line in axes.lines if line.get_label() == "lora"]
        assert list(line.get_xdata()) == [20, 40]
        assert list(line.get_ydata()) == pytest.approx([0.515, 0.64])
        # seeds 1 and 2: 0.005 to each side of the mean, a deviation of 0.01 / sqrt 2
        band = 3 * 0.01 / np.sqrt(2)
        (area,) = [drawn for drawn in axes.collections if isinstance(drawn, PolyCollection)]
        corners = area.get_paths()[0].vertices
        for size, mean in ((20, 0.515), (40, 0.64)):
            heights = corners[corners[:, 0] == size, 1]
            assert (heights.min(), heights.max()) == pytest.approx((mean - band, mean + band))


def test_a_method_of_one_size_is_a_point_with_a_bar(findings: Findings) -> None:
    second = build_figure(findings).axes[1]
    (bar,) = second.containers
    (segment,) = bar.lines[2][0].get_segments()
    band = 3 * 0.01 / np.sqrt(2)
    assert segment.tolist() == [[1000, pytest.approx(0.765 - band)], [1000, pytest.approx(0.765 + band)]]


def test_the_commonest_label_alone_is_a_dashed_line(findings: Findings) -> None:
    for axes in build_figure(findings).axes:
        (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert list(line.get_ydata()) == [0.125, 0.125]


def test_every_method_is_named_once_also_one_without_a_score_on_the_first_task(findings: Findings) -> None:
    (legend,) = build_figure(findings).legends
    assert [text.get_text() for text in legend.get_texts()] == ["full", "lora", "always the commonest label"]


def test_without_any_score_the_panels_are_empty(tmp_path: Path) -> None:
    comparison = read_small(tmp_path, TEXT)
    results = [Result(cell, "waiting", {}) for cell in build_all(comparison)]
    figure = build_figure(make_findings(comparison, results, score="score"))
    assert [len(axes.lines) for axes in figure.axes] == [0, 0]
    assert figure.legends == []


def test_the_file_is_the_picture(findings: Findings, tmp_path: Path) -> None:
    comparison = read_small(tmp_path, TEXT)
    comparison.folder.mkdir(parents=True)
    write_findings(comparison.folder, comparison, findings)
    width, height = build_figure(findings).get_size_inches() * 120
    assert imread(comparison.folder / "plot.png").shape[:2] == (height, width)
