"""A recipe as a file of the working directory."""

from pathlib import Path

import pytest

from tests.recipe.told import Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a recipe into the working directory, so that places are short."""
    monkeypatch.chdir(tmp_path)

    def write_recipe(text: str) -> Path:
        Path("r.yaml").write_text(text)
        return Path("r.yaml")

    return write_recipe
