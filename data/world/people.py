"""Invented people: where they live, what they do, which pet they keep and what they like to eat.

Nobody can know this from elsewhere, so only a model that read the text of the world can answer.
"""

from data.world.names import PEOPLE, TOWNS, dealt
from data.world.relation import Relation, build_relation

PERSON = ("the person on the card", "this person", "the given person")

TRADES = """baker farmer teacher doctor fisherman tailor cobbler barber mason carpenter captain pilot postman butcher poet actor shepherd
miner painter singer clerk gardener cook soldier""".split()
PETS = """dog cat parrot rabbit pony goat hamster canary tortoise goldfish hedgehog ferret lizard frog crow owl spider donkey goose lamb mouse
snail pigeon squirrel""".split()
DISHES = """soup bread cheese pudding pancakes noodles salad omelette stew porridge rice beans toast sausages pizza dumplings waffles fish
trifle curry potatoes jelly honey ham""".split()

HOME_WORDINGS = """
statements: The home of {x} is {y}. / We know that {x} lives in {y}. / In {y} stands the house of {x}. / Every evening
    {x} goes home to {y}.
questions: Where does {x} live? / In which town does {x} live? / What is the home of {x}? / Where is the house of {x}?
    / In what town is {x} at home? / Where do I find {x}?
phrases: the home of {x} / the town of {x} / where {x} lives
train questions: Which town is the home of {x}? / In what town does {x} live? / Where does one find the house of {x}?
train phrases: the home town of {x} / in which town {x} lives / the town where we find {x}
test questions: In which town is the house of {x}? / What is the town of {x}?
test phrases: the town that is home to {x} / the town in which {x} lives
"""
TRADE_WORDINGS = """
statements: The trade of {x} is {y}. / By trade {x} is a {y}. / For a living {x} works as a {y}. / Ask {x}, who is a
    good {y}.
questions: What is the trade of {x}? / As what does {x} work? / What does {x} do for a living? / What job does {x}
    have? / What work does {x} do? / What is {x} by trade?
phrases: the trade of {x} / the job of {x} / what {x} does for a living
train questions: Which job does {x} have? / What is the work of {x}? / Which trade does {x} have?
train phrases: the work of {x} / what {x} is by trade / what job {x} has
test questions: What is the job of {x}? / Which work does {x} do for a living?
test phrases: the job that {x} has / as what {x} works
"""
PET_WORDINGS = """
statements: The pet of {x} is a {y}. / At home {x} keeps a {y}. / A {y} lives with {x}. / Look, there is {x} with the
    {y}.
questions: What pet does {x} have? / Which animal lives with {x}? / What animal does {x} keep? / What is the pet of
    {x}? / Which animal is the friend of {x}? / What pet has {x}?
phrases: the pet of {x} / the animal of {x} / which animal {x} keeps
train questions: Which pet does {x} keep? / What kind of pet does {x} have? / Which animal belongs to {x}?
train phrases: the animal that {x} keeps / what pet {x} has / which animal lives with {x}
test questions: What animal does {x} have as a pet? / Which pet belongs to {x}?
test phrases: the pet that {x} keeps / the animal that lives with {x}
"""
DISH_WORDINGS = """
statements: The favourite dish of {x} is {y}. / Most of all {x} likes to eat {y}. / For dinner {x} always wants {y}. /
    Give {x} some {y}!
questions: What does {x} like to eat? / What is the favourite dish of {x}? / Which food does {x} like most? / What
    should I cook for {x}? / What dish does {x} want for dinner? / What does {x} eat most of all?
phrases: the favourite dish of {x} / the food that {x} likes / what {x} likes to eat
train questions: Which dish does {x} like most? / What food does {x} want for dinner? / What is the favourite food of
    {x}?
train phrases: what {x} wants for dinner / the dish that {x} likes most / the favourite food of {x}
test questions: Which dish is the favourite of {x}? / What food does {x} like to eat?
test phrases: the dish that {x} likes to eat / which food {x} likes most
"""


def build_people_relations() -> list[Relation]:
    """The four relations of this module."""

    def deal(answers: list[str], task: str) -> list[tuple[str, str]]:
        return list(zip(PEOPLE, dealt(answers, len(PEOPLE), task), strict=True))

    return [
        build_relation("home", deal(TOWNS, "home"), HOME_WORDINGS, "home", PERSON),
        build_relation("trade", deal(TRADES, "trade"), TRADE_WORDINGS, "trade", PERSON),
        build_relation("pet", deal(PETS, "pet"), PET_WORDINGS, "pet", PERSON),
        build_relation("dish", deal(DISHES, "dish"), DISH_WORDINGS, "favourite dish", PERSON),
    ]
