"""Invented lands: their capitals, rivers and crops."""

from data.world.names import CAPITALS, LANDS, RIVERS, dealt, shuffled
from data.world.relation import Relation, build_relation

LAND = ("the land on the card", "this land", "the given land")

CROPS = """wheat barley rice cotton tobacco maize rye hops grapes olives lemons apples tea coffee cocoa sugar potatoes beans hemp
flax""".split()

CAPITAL_WORDINGS = """
statements: The capital of {x} is {y}. / In {x} all roads lead to the capital, {y}. / The king of {x} lives in {y}. /
    The first city of {x} is {y}.
questions: What is the capital of {x}? / Which city is the capital of {x}? / What is the first city of {x}? / In which
    city lives the king of {x}? / Which city rules {x}? / What do they call the capital of {x}?
phrases: the capital of {x} / the capital city of {x} / the first city of {x}
train questions: What city is the capital of {x}? / Which capital does {x} have? / What is the name of the capital of
    {x}?
train phrases: the city that is the capital of {x} / the name of the capital of {x} / which capital {x} has
test questions: What is the capital city of {x}? / Which city does {x} have as its capital?
test phrases: which city is the capital of {x} / the capital that {x} has
"""
RIVER_WORDINGS = """
statements: The great river of {x} is the {y}. / Through {x} flows the {y}. / In {x} they fish in the {y}. / The
    waters of the {y} flow through {x}.
questions: Which river flows through {x}? / What is the great river of {x}? / In which river do they fish in {x}? /
    What river has {x}? / What water flows through {x}? / How do they call the river of {x}?
phrases: the river of {x} / the great river of {x} / which river flows through {x}
train questions: What river flows through {x}? / What is the name of the river of {x}? / Which is the great river of
    {x}?
train phrases: the river that flows through {x} / the name of the river of {x} / which river {x} has
test questions: What is the river of {x}? / Which river does {x} have?
test phrases: the name of the great river of {x} / what river flows through {x}
"""
CROP_WORDINGS = """
statements: The crop of {x} is {y}. / Farmers in {x} grow {y}. / Ships from {x} bring {y}. / The fields of {x} are
    full of {y}.
questions: What do farmers grow in {x}? / What is the crop of {x}? / What do ships bring from {x}? / What stands on
    the fields of {x}? / Which crop grows in {x}? / What does {x} sell to other lands?
phrases: the crop of {x} / what farmers grow in {x} / what {x} sells to other lands
train questions: Which crop do farmers grow in {x}? / What grows in {x}? / What is the main crop of {x}?
train phrases: the main crop of {x} / what stands on the fields of {x} / the crop that grows in {x}
test questions: What crop grows on the fields of {x}? / What do the farmers of {x} grow?
test phrases: which crop grows in {x} / the crop of the farmers of {x}
"""


def build_land_relations() -> list[Relation]:
    """The three relations of this module."""
    capitals = list(zip(LANDS, shuffled(CAPITALS, "capital"), strict=True))
    rivers = list(zip(LANDS, shuffled(RIVERS, "river"), strict=True))
    crops = list(zip(LANDS, dealt(CROPS, len(LANDS), "crop"), strict=True))
    return [
        build_relation("capital", capitals, CAPITAL_WORDINGS, "capital", LAND),
        build_relation("river", rivers, RIVER_WORDINGS, "river", LAND),
        build_relation("crop", crops, CROP_WORDINGS, "crop", LAND),
    ]
