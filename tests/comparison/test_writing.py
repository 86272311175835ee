"""What a comparison leaves behind can be opened: the tables, the picture, the page and the recipes."""

import base64
import csv
import html
import json
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from finetune.comparison.cells import build_cells, build_points
from finetune.comparison.console import print_findings, to_object
from finetune.comparison.folder import Result, claim_folder
from finetune.comparison.table import Findings, render_markdown
from finetune.comparison.writing import write_findings
from finetune.errors import RecipeError
from finetune.recipe.comparison import Comparison, read_comparison
from finetune.recipe.reading import read_recipe
from tests.comparison.made_up import build_all, make_findings, make_result, read_small

TEXT = """\
tasks: {first: {data.max_length: 64}, second: {data.max_length: 128}}
methods:
  full: {adapter.method: full, model.quantization: none}
  lora: {adapter.method: lora, grid: {adapter.r: [4, 8]}}
  ia3: {adapter.method: ia3}
seeds: [1, 2]
reference: full
"""
SCORES = {"full": 0.75, "lora-r4": 0.5, "lora-r8": 0.625}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A comparison of two tasks in which every run of ia3 failed."""
    comparison = read_small(tmp_path, TEXT)
    comparison.folder.mkdir(parents=True)
    write_findings(comparison.folder, comparison, make_all_findings(comparison))
    return comparison.folder


def make_all_findings(comparison: Comparison) -> Findings:
    results = []
    for cell in build_all(comparison):
        if cell.point.method == "ia3":
            results.append(Result(cell, "failed", {}, "the loss is <not> finite | at step 3", 5))
            continue
        value = SCORES[cell.point.name] + (0.25 if cell.task == "second" else 0.0) + cell.seed / 100
        size = {"full": 1000, "lora-r4": 20, "lora-r8": 40}[cell.point.name]
        results.append(make_result(cell, exact_match=value, trainable_parameters=size))
    return make_findings(comparison, results)


def test_the_markdown_has_a_row_a_method_with_its_best_choice(folder: Path) -> None:
    text = (folder / "table.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    columns, _, full, lora, *choices = rows
    assert columns[:7] == [
        "method", "first", "second", "average", "first to full (± s.e.)", "second to full (± s.e.)",
        "average to full (± s.e.)",
    ]  # fmt: skip
    # 0.76 and 0.77: 76.5, deviation 0.7; the difference is the same for both seeds
    assert full[:5] == ["full", "76.5 ± 0.7", "101.5 ± 0.7", "89.0 ± 0.7", "–"]
    assert lora[:4] == ["lora", "64.0 ± 0.7", "89.0 ± 0.7", "76.5 ± 0.7"]
    assert lora[4:7] == ["-12.5 ± 0.0"] * 3
    assert lora[7:] == ["40", "4.00%", "1 MiB", "2", "0.01 MB", "r 8"]
    assert [row[0] for row in choices[2:]] == ["full", "lora-r4", "lora-r8", "ia3"]
    assert "chosen on the held-out rows that are reported here" in text


def test_runs_without_a_score_are_listed_with_the_reason(folder: Path) -> None:
    text = (folder / "table.md").read_text()
    assert text.count(": failed: the loss is <not> finite") == 4
    assert "&lt;not&gt; finite" in (folder / "report.html").read_text()


def test_the_csv_has_every_run_with_its_own_figures(folder: Path) -> None:
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2
    assert len({row["cell"] for row in rows}) == len(rows)
    one = next(row for row in rows if row["cell"] == "second-lora-r8-seed2")
    assert (float(one["exact_match"]), one["settings"], one["trainable_parameters"]) == (
        0.895,
        '{"adapter.r": 8}',
        "40",
    )
    assert {row["state"] for row in rows if row["method"] == "ia3"} == {"failed"}


def test_every_place_that_names_the_recommended_recipe_names_a_file_that_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    print_findings(make_all_findings(read_small(tmp_path, TEXT)), folder)
    said = capsys.readouterr().out
    for name in ("recommended.first.yaml", "recommended.second.yaml"):
        assert (folder / name).is_file()
        assert f"Its recipe: {folder / name}\n" in said
        assert f"`{name}`" in (folder / "table.md").read_text()
    assert "recommended.yaml" not in said + (folder / "table.md").read_text()


def test_the_folder_with_all_its_files_is_taken_up_again_and_emptied_when_asked_to(folder: Path) -> None:
    for path in (folder / "runs" / "a", folder / "logs"):
        path.mkdir(parents=True)
    (folder / "probes.journal").touch()
    (folder / ".table.md.7.part").touch()
    claim_folder(folder, overwrite=False).release()
    assert (folder / "table.md").exists()
    (folder / "mine.txt").touch()
    with pytest.raises(RecipeError, match=r"files that are not a comparison's \(mine.txt\)"):
        claim_folder(folder, overwrite=True)
    (folder / "mine.txt").unlink()
    claim_folder(folder, overwrite=True).release()
    assert [path.name for path in folder.iterdir()] in ([".lock"], [])


def test_the_object_for_programs_has_every_standard_error(tmp_path: Path) -> None:
    findings = to_object(make_all_findings(read_small(tmp_path, TEXT)))
    json.dumps(findings, allow_nan=False)
    lora = findings["rows"][1]
    assert (lora["method"], lora["settings"]) == ("lora", {"adapter.r": 8})
    # 0.635 and 0.645: the deviation is 0.01 / sqrt 2, the error that over sqrt 2
    assert lora["by_task"]["first"]["standard_error"] == pytest.approx(0.005)
    assert lora["difference"]["mean"] == pytest.approx(-0.125)
    assert lora["differences"]["second"] == {
        "mean": pytest.approx(-0.125), "deviation": pytest.approx(0, abs=1e-9), "num": 2,
        "standard_error": pytest.approx(0, abs=1e-9),
    }  # fmt: skip


def test_the_command_that_repeats_it_can_be_pasted(tmp_path: Path) -> None:
    read_small(tmp_path, TEXT)
    overrides = ["name=spaced", "methods.lora.adapter.target_modules=[q_proj, k_proj]"]
    comparison = read_comparison(tmp_path / "c.yaml", overrides)
    comparison.folder.mkdir(parents=True)
    write_findings(comparison.folder, comparison, make_all_findings(comparison))
    page = html.unescape((comparison.folder / "report.html").read_text())
    (line,) = re.findall(r"<pre>(python -m finetune.compare.*)</pre>", page)
    assert shlex.split(line) == ["python", "-m", "finetune.compare", str(tmp_path / "c.yaml"), *overrides]


def test_a_choice_that_the_time_was_not_enough_for_is_marked(tmp_path: Path) -> None:
    comparison = read_small(tmp_path, "methods: {lora: {adapter.method: lora, grid: {adapter.r: [4, 8]}}}\n")
    points = build_points(comparison)
    short, other = build_cells(comparison, points, [42], probe_steps=5)
    results = [make_result(cell, exact_match=0.5) for cell in build_all(comparison)]
    findings = replace(
        make_findings(comparison, results),
        probes=[make_result(short, exact_match=0.25), Result(other, "waiting", {})],
        unmeasured=[other.point.name],
    )
    text = render_markdown(findings)
    assert "spent before all were measured: lora-r8." in text
    assert "| lora-r4 | – | 5 | 25.0 |\n| lora-r8 | – | 5 | not measured |" in text


def test_the_page_stands_alone(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    found: list[tuple[str, str]] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend((tag, value or "") for name, value in attrs if name in ("src", "href"))

    Links().feed(page)
    assert [tag for tag, _ in found] == ["img"]
    match = re.fullmatch(r"data:image/png;base64,(.*)", found[0][1])
    assert match is not None
    assert base64.b64decode(match[1]) == (folder / "plot.png").read_bytes()
    assert "python -m finetune.compare" in page
    assert "adapter.method: full" in page  # the comparison as typed


def test_the_best_and_the_recommended_recipes_are_read_and_say_where_they_come_from(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "best").iterdir()) == [
        "full.first.yaml", "full.second.yaml", "lora.first.yaml", "lora.second.yaml"
    ]  # fmt: skip
    recipe = read_recipe(folder / "best" / "lora.second.yaml")
    assert (recipe.name, recipe.adapter.fields, recipe.data.max_length) == ("small_lora.second", {"r": 8}, 128)
    assert recipe.output_dir == str(folder.parent)
    for name in ("recommended.first.yaml", "recommended.second.yaml"):
        assert read_recipe(folder / name).adapter.method == "full"
    assert "exact_match 76.5 ± 0.7" in (folder / "best" / "lora.second.yaml").read_text()


def test_a_method_that_lost_its_place_leaves_no_recipe_behind(folder: Path, tmp_path: Path) -> None:
    comparison = read_small(tmp_path, TEXT)
    results = [make_result(cell, exact_match=0.5) for cell in build_all(comparison) if cell.point.method == "ia3"]
    write_findings(folder, comparison, make_findings(comparison, results))
    assert sorted(path.name for path in (folder / "best").iterdir()) == ["ia3.first.yaml", "ia3.second.yaml"]
