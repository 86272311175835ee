"""Each built-in function rewards what its name says, and the parts are added up by their weights."""

import pytest

from finetune.objectives.rewards import Reward, ToScore, build_rewards, mix
from finetune.recipe.schema import RewardSettings


def answered(answer: str, *, reference: str | None = None, num_tokens: int = 3) -> ToScore:
    return ToScore([7, 8], [*range(10, 10 + num_tokens), 2], answer, num_tokens, reference)


def build(**settings: object) -> Reward:
    [reward] = build_rewards([RewardSettings(**settings)], {})
    return reward


def score(one: ToScore, **settings: object) -> float:
    [value] = build(**settings).score([one])
    return value


@pytest.mark.parametrize(
    ("answer", "pattern", "value"),
    [
        (" Grey.", None, 1.0),
        ("grey and green", None, 0.0),
        ("grey\n\nWhat is next?", None, 0.0),
        ("grey\n\nWhat is next?", r"^\s*(.*)", 1.0),
        ("It is grey.", r"(\w+)\W*$", 1.0),
        ("grey", r"answer: (\w+)", 1.0),  # nothing found: the whole answer counts
    ],
)
def test_exact_match_compares_what_the_pattern_finds_with_the_rows_own_answer(answer, pattern, value):
    assert score(answered(answer, reference="grey"), function="exact_match", pattern=pattern) == value


def test_the_pattern_is_looked_for_in_the_rows_own_answer_too():
    one = answered("So there are 12.", reference="3 times 4 is <<3*4=12>>12.\n#### 12")
    assert score(one, function="exact_match", pattern=r"(\d+)\D*$") == 1.0


def test_exact_match_gives_nothing_where_the_row_has_no_answer():
    assert score(answered("grey"), function="exact_match") == 0.0


@pytest.mark.parametrize(("answer", "value"), [("Certainly. It is grey.", 1.0), ("grey.", 0.0), ("", 0.0)])
def test_a_pattern_is_searched_for_in_the_answer(answer, value):
    assert score(answered(answer), function="regex", pattern=r"^[A-Z].* is .*\.$") == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"colour": "grey"}', 1.0),
        (' [1, 2]\n', 1.0),
        ('"grey"', 1.0),
        ("grey", 0.0),
        ('{"colour": "grey"', 0.0),
        ('{"colour": "grey"} So it is.', 0.0),
        ("NaN", 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
)  # fmt: skip
def test_json_is_one_whole_value(answer, value):
    assert score(answered(answer), function="json") == value


@pytest.mark.parametrize(
    ("least", "most", "values"),
    [(2, 4, [0, 1, 1, 0]), (None, 4, [1, 1, 1, 0]), (2, None, [0, 1, 1, 1])],
)
def test_a_length_is_in_the_band_both_its_ends_included(least, most, values):
    answers = [answered("", num_tokens=number) for number in (1, 2, 4, 5)]
    assert build(function="length", min_tokens=least, max_tokens=most).score(answers) == values


def test_a_reward_model_scores_prompt_and_answer_with_the_token_that_ended_it():
    seen = []

    def score_ids(rows):
        seen.extend(rows)
        return [-1.5 for _ in rows]

    settings = RewardSettings(function="reward_model", path="outputs/reward", weight=2.0)
    rewards = build_rewards([settings], {"outputs/reward": score_ids})
    totals, parts = mix(rewards, [answered("grey", num_tokens=2)])
    assert seen == [[7, 8, 10, 11, 2]]
    assert (totals, parts) == ([-3.0], {"reward_model": [-1.5]})


def test_parts_are_added_up_by_weight_and_named_apart():
    settings = [
        RewardSettings(function="regex", pattern="a"),
        RewardSettings(function="exact_match", weight=2.0),
        RewardSettings(function="regex", pattern="b", weight=-0.5),
    ]
    rewards = build_rewards(settings, {})
    totals, parts = mix(rewards, [answered("ab", reference="ab"), answered("b", reference="a")])
    assert [reward.name for reward in rewards] == ["regex", "exact_match", "regex_2"]
    assert parts == {"regex": [1.0, 0.0], "exact_match": [1.0, 0.0], "regex_2": [1.0, 1.0]}
    assert totals == [2.5, -0.5]
    assert [reward.needs_reference for reward in rewards] == [False, True, False]
