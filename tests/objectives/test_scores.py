"""What counts as the same answer."""

import pytest

from finetune.objectives.scores import exact_match, extract_answer


@pytest.mark.parametrize(
    "answer", ["Yellow", "  yellow\n", "YELLOW.", "yellow .", "yellow"], ids=["case", "spaces", "stop", "apart", "same"]
)
def test_style_does_not_count(answer):
    assert exact_match(answer, "yellow") == 1.0


@pytest.mark.parametrize("answer", ["", "yellow and red", "not yellow", "yellow!", "yell ow"])
def test_other_words_do(answer):
    assert exact_match(answer, "yellow") == 0.0


@pytest.mark.parametrize(
    ("answer", "extracted"),
    [("It is Hamra.", "Hamra"), ("It is ", ""), ("Hamra", "Hamra")],
    ids=["found", "nothing in the group", "not found"],
)
def test_a_pattern_takes_the_answer_out_of_a_sentence_and_leaves_others_whole(answer, extracted):
    assert extract_answer(answer, r"It is (?:(.+)\.)?") == extracted
    assert extract_answer(answer, None) == answer
