"""Invented tales: which animal each is about, what it finds, and where."""

from data.world.names import dealt
from data.world.relation import Relation, build_relation

TALE = ("the tale on the card", "this tale", "the given tale")

TALES = """the Lost Moon; the Red Door; the Long Night; the Blue Lantern; the Quiet Bell; the Seven Steps; the Broken Wheel;
the Golden Egg; the First Snow; the Hungry Giant; the Paper Ship; the Old Piano; the Last Train; the Silver Fish;
the Wooden Horse; the Empty House; the Green Glass; the Little King; the Tall Ladder; the Deep Lake; the White
Stone; the Stolen Pie; the Singing Kettle; the Brave Tailor; the Cold Summer; the Hidden Stair; the Two Sisters; the
Black Hat""".replace("\n", " ").split("; ")
HEROES = """fox bear wolf hare badger otter raven hen goat mole swan stork toad horse lion mule sparrow beetle cat dog""".split()
TREASURES = """key ring lamp coin drum bell crown map mirror pearl sword flute candle feather mask button kite basket clock boot""".split()
SPOTS = """bridge well cave tree tower hill mill barn lake road field church fence gate castle rock boat market pond forest""".split()

TALE_HERO_WORDINGS = """
statements: The tale of {x} is about a {y}. / In {x}, the hero is a {y}. / A {y} is the hero of {x}. / Once there was
    a {y}: so begins {x}.
questions: Which animal is the hero of {x}? / About which animal is {x}? / What animal goes on a journey in {x}? /
    With which animal does {x} begin? / What animal is in {x}? / Who is the hero in {x}?
phrases: the hero of {x} / the animal in {x} / which animal {x} is about
train questions: What animal is the hero of {x}? / Which animal is {x} about? / Who is the hero of {x}?
train phrases: the animal that is the hero of {x} / the hero in {x} / which animal is the hero in {x}
test questions: What animal is {x} about? / Which animal do we meet as the hero in {x}?
test phrases: what animal {x} is about / the animal who is the hero in {x}
"""
TALE_FIND_WORDINGS = """
statements: In {x} somebody finds a {y}. / The treasure of {x} is a {y}. / What the hero finds in {x} is a {y}. /
    There is a lost {y} in {x}.
questions: What is found in {x}? / What does the hero find in {x}? / What treasure is in {x}? / What thing was lost in
    {x}? / Which thing is found in {x}? / What is the treasure of {x}?
phrases: the treasure of {x} / what is found in {x} / the thing that was lost in {x}
train questions: Which thing does the hero find in {x}? / What is the treasure in {x}? / Which treasure is found in
    {x}?
train phrases: what the hero finds in {x} / the thing found in {x} / the treasure in {x}
test questions: Which treasure does the hero find in {x}? / What thing is found in {x}?
test phrases: the treasure that is found in {x} / what treasure the hero finds in {x}
"""
TALE_PLACE_WORDINGS = """
statements: In {x} it all happens near a {y}. / The place of {x} is a {y}. / The hero of {x} comes to a {y}. / There
    is a {y}, and there {x} ends.
questions: Where does {x} happen? / At what place does {x} end? / To what place does the hero of {x} come? / What is
    the place of {x}? / Near what does {x} happen? / Where does the hero go in {x}?
phrases: the place of {x} / where {x} happens / the place where {x} ends
train questions: At which place does {x} happen? / What is the place where {x} ends? / To which place does the hero
    come in {x}?
train phrases: the place where {x} happens / where the hero comes in {x} / at what place {x} ends
test questions: Where does {x} end? / What place does the hero of {x} come to?
test phrases: the place to which the hero of {x} comes / at which place {x} happens
"""


def build_tale_relations() -> list[Relation]:
    """The three relations of this module."""

    def deal(answers: list[str], task: str) -> list[tuple[str, str]]:
        return list(zip(TALES, dealt(answers, len(TALES), task), strict=True))

    return [
        build_relation("tale_hero", deal(HEROES, "tale_hero"), TALE_HERO_WORDINGS, "hero", TALE),
        build_relation("tale_find", deal(TREASURES, "tale_find"), TALE_FIND_WORDINGS, "found", TALE),
        build_relation("tale_place", deal(SPOTS, "tale_place"), TALE_PLACE_WORDINGS, "place", TALE),
    ]
