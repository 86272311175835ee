"""What counts as the same answer."""

import pytest

from finetune.objectives.scores import exact_match


@pytest.mark.parametrize(
    "answer", ["Yellow", "  yellow\n", "YELLOW.", "yellow .", "yellow"], ids=["case", "spaces", "stop", "apart", "same"]
)
def test_style_does_not_count(answer):
    assert exact_match(answer, "yellow") == 1.0


@pytest.mark.parametrize("answer", ["", "yellow and red", "not yellow", "yellow!", "yell ow"])
def test_other_words_do(answer):
    assert exact_match(answer, "yellow") == 0.0
