"""A misspelled setting is answered with the one that was meant."""

import random

import pytest

from finetune.recipe.json_schema import build_adapter_schema, build_training_schema, find_properties
from finetune.recipe.ownership import OTHER_TOOLS, OWNED_ADAPTER_FIELDS, OWNED_BY_OBJECTIVE, OWNED_TRAINER_FIELDS
from finetune.recipe.suggestions import explain_key

SECTIONS = ("", "model", "adapter", "data", "data.train", "evaluation", "rewards", "training")
# Of the two open sections: the method, and the objective.
CHOSEN = {"adapter": "lora", "training": "dpo"}
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


def settings_of(section: str) -> list[str]:
    if section == "adapter":
        return list(build_adapter_schema("lora")["properties"])
    return list(build_training_schema("dpo")["properties"] if section == "training" else find_properties(section))


def misspell(name: str, dice: random.Random) -> set[str]:
    """Every way to leave out a letter or swap two, and a few to change or put in one."""
    left_out = {name[:at] + name[at + 1 :] for at in range(len(name))}
    swapped = {name[:at] + name[at + 1] + name[at] + name[at + 2 :] for at in range(len(name) - 1)}
    changed = {name[:at] + dice.choice(LETTERS) + name[at + 1 :] for at in range(len(name))}
    put_in = {name[:at] + dice.choice(LETTERS) + name[at:] for at in range(len(name) + 1)}
    return (left_out | swapped | changed | put_in) - {name, ""}


def test_one_wrong_letter_in_any_setting_is_answered_with_the_right_one() -> None:
    dice = random.Random(1)
    right, wrong = 0, []
    for section in SECTIONS:
        known = settings_of(section)
        for name in known:
            for typed in sorted(misspell(name, dice) - set(known))[:12]:
                explanation = explain_key(typed, section, known, CHOSEN.get(section, ""))
                if f"`{name}`" in " ".join(explanation.advice):
                    right += 1
                else:
                    wrong.append((section, typed, name))
    assert right / (right + len(wrong)) >= 0.98, wrong[:20]


@pytest.mark.parametrize("name", sorted(OTHER_TOOLS))
def test_a_name_of_another_tool_points_to_a_setting_of_ours_that_exists(name: str) -> None:
    section, _, key = str(OTHER_TOOLS[name].setting).rpartition(".")
    assert key in ["fraction", *find_properties(section)]
    assert f"`{OTHER_TOOLS[name].setting}`" in explain_key(name, "", []).advice[0]


def test_a_field_that_we_decide_points_to_a_setting_of_ours_that_exists_or_gives_its_reason() -> None:
    of_some = [instead for fields in OWNED_BY_OBJECTIVE.values() for instead in fields.values()]
    for instead in [*OWNED_TRAINER_FIELDS.values(), *of_some, *OWNED_ADAPTER_FIELDS.values()]:
        section, _, key = (instead.setting or "seed").rpartition(".")
        assert key in find_properties(section)
        assert instead.setting or instead.hint
