"""A tracker that is not installed is told before the run begins."""

import sys

import pytest

from finetune.errors import PlaceError
from finetune.run.trackers import check_trackers


def test_a_tracker_that_is_not_installed_is_told_with_what_to_type(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    command = r"-m pip install -c constraints\.txt -e '\.\[track\]'"
    with pytest.raises(PlaceError, match=rf"wandb and mlflow are not installed\.\n.*{command}"):
        check_trackers(["wandb", "mlflow"])


def test_trackers_that_are_installed_and_none_at_all_pass(monkeypatch, tmp_path) -> None:
    (tmp_path / "trackio.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    check_trackers(["trackio"])
    check_trackers([])
