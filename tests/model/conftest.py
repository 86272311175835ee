from pathlib import Path

import pytest

from tests.model.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Mistral in float32; tests read it and never write to it."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny_mistral"))
