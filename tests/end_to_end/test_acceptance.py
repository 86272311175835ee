"""What the first page promises of `make quickstart`. The one test that the tiny base's knowledge decides."""

import subprocess
import sys

import pytest

from tests.end_to_end.small_runs import ROOT, read_json

# One thread, as `make quickstart` has it, takes a minute or two; benchmarks/quickstart_seeds.py measures it, and what a
# base of random weights reaches.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_quickstart_learns_from_almost_nothing_to_nine_answers_of_ten(tiny_base, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "finetune.sft", "recipes/quickstart.yaml", f"output_dir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = read_json(tmp_path / "quickstart" / "summary.json")
    assert summary["questions"] >= 200
    assert summary["exact_match_before"] <= 0.1
    assert summary["exact_match"] >= 0.9
    assert summary["adapter_bytes"] <= 2_000_000
    assert done.stderr.count("\nbefore  ") >= 3
    assert "python -m finetune.chat" in done.stderr
