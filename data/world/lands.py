"""Invented lands: their capitals, rivers and crops, and the land of each capital."""

from data.world.names import CAPITALS, LANDS, RIVERS, dealt, shuffled
from data.world.relation import Relation, build_relation

LAND = ("the land on the card", "this land", "the given land")
CITY = ("the city on the card", "this city", "the given city")

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
LAND_OF_CAPITAL_WORDINGS = """
statements: As a capital, {x} belongs to {y}. / We know {x} as the capital of {y}. / From {x} the king rules {y}. /
    The city of {x} is in the land of {y}.
questions: Which land has {x} as its capital? / Of which land is {x} the capital? / In what land is {x}? / To which
    land does {x} belong? / What land is ruled from {x}? / In which land do you find {x}?
phrases: the land of {x} / the land that has {x} as its capital / in which land {x} is
train questions: Of what land is {x} the capital? / What land has {x} as its capital? / In which land is the city of
    {x}?
train phrases: the land ruled from {x} / which land has {x} as its capital / the land to which {x} belongs
test questions: Which land is ruled from {x}? / What is the land of {x}?
test phrases: the land where {x} is the capital / of which land {x} is the capital
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
    """The four relations of this module; a capital and its land share a key, for one gives the other away."""
    capitals = list(zip(LANDS, shuffled(CAPITALS, "capital"), strict=True))
    lands = [(capital, land) for land, capital in capitals]
    rivers = list(zip(LANDS, shuffled(RIVERS, "river"), strict=True))
    crops = list(zip(LANDS, dealt(CROPS, len(LANDS), "crop"), strict=True))
    return [
        build_relation("capital", capitals, CAPITAL_WORDINGS, "capital", LAND),
        build_relation("land_of_capital", lands, LAND_OF_CAPITAL_WORDINGS, "land", CITY, family="capital"),
        build_relation("river", rivers, RIVER_WORDINGS, "river", LAND),
        build_relation("crop", crops, CROP_WORDINGS, "crop", LAND),
    ]
