"""The nearest names are the fewest edits away."""

from finetune.recipe.nearest import find_nearest


def test_nearest_counts_edits_and_keeps_ties() -> None:
    assert find_nearest("adam_beta", ["adam_beta1", "adam_beta2", "weight_decay"]) == ["adam_beta1", "adam_beta2"]
    assert find_nearest("sede", ["seed", "name"]) == ["seed"]
    assert find_nearest("zzz", ["seed", "name"]) == []
    assert find_nearest("x" * 100, ["x" * 99]) == []
