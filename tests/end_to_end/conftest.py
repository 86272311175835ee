"""What the small classifiers are trained on, written once for all of their tests."""

from pathlib import Path

import pytest

from tests.end_to_end.small_classifiers import ASKED, build_reviews, write_decoder, write_encoder, write_rows


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def decoder(tmp_path_factory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows") / "reviews.jsonl", build_reviews())


@pytest.fixture(scope="session")
def asked(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("asked") / "asked.jsonl", [{"text": text} for text in ASKED])
