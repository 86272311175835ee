"""Facts about numbers and orders: number words, sums, doubles, and neighbours in rows of names."""

from itertools import pairwise

from data.world.relation import Relation, build_relation

SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

NUMBER = ("the number on the card", "this number", "the given number")
NUMBERS = ("the numbers on the card", "these numbers", "the given numbers")
ONE = ("the one on the card", "this one", "the given one")

NUMBER_WORDS_WORDINGS = """
statements: The number {x} is written {y}. / In words, {x} is {y}. / We read {x} as {y}. / Say {y} when you see {x}.
questions: How do we write {x} in words? / How do you read {x}? / What do you say when you see {x}? / What is {x} in
    words? / Which words stand for {x}? / How is {x} written?
phrases: the words for {x} / {x} in words / how to read {x}
train questions: How is {x} written in words? / Which word do we use for {x}? / How does one read {x}?
train phrases: the number {x} in words / how {x} is written in words / the word that means {x}
test questions: How would you write {x} in words? / What word do you say for {x}?
test phrases: how we read {x} / the words that stand for {x}
"""
SUM_WORDINGS = """
statements: The sum of {x} is {y}. / Put {x} together and you have {y}. / Together {x} make {y}. / If you add {x}, you
    have {y}.
questions: What is the sum of {x}? / How much are {x} together? / What do {x} make? / What do you have if you add {x}?
    / How many are {x} together? / What number do you get from {x}?
phrases: the sum of {x} / what {x} make together / how much {x} are together
train questions: How much do {x} make together? / What number is the sum of {x}? / What do you get if you add {x}?
train phrases: the number that {x} make together / what is the sum of {x} / how many {x} are together
test questions: What do {x} make together? / Which number is the sum of {x}?
test phrases: how much {x} make together / the number you get if you add {x}
"""
DOUBLE_WORDINGS = """
statements: The double of {x} is {y}. / Two times {x} is {y}. / Take {x} twice and you have {y}. / Twice {x} makes
    {y}.
questions: What is the double of {x}? / What is two times {x}? / How much is twice {x}? / What do you have if you take
    {x} twice? / What number is the double of {x}? / How much is two times {x}?
phrases: the double of {x} / two times {x} / how much twice {x} is
train questions: How much is the double of {x}? / Which number is two times {x}? / What do you get if you take {x}
    twice?
train phrases: the number that is the double of {x} / how much two times {x} is / twice {x}
test questions: Which number is the double of {x}? / What is twice {x}?
test phrases: what two times {x} is / the number that is twice {x}
"""
AFTER_WORDINGS = """
statements: After {x} comes {y}. / The one that follows {x} is {y}. / First {x}, then {y}. / Next to {x}, on the far
    side, is {y}.
questions: What comes after {x}? / What follows {x}? / What is next after {x}? / First {x}, and then what? / Which one
    comes next after {x}? / What stands behind {x} in the row?
phrases: the one after {x} / what comes after {x} / the next one after {x}
train questions: Which one follows {x}? / What is the next one after {x}? / What comes right after {x}?
train phrases: what follows {x} / the one that comes after {x} / which one comes next after {x}
test questions: Which one comes after {x}? / What comes next after {x}?
test phrases: the one that follows {x} / what is next after {x}
"""


def to_words(number: int) -> str:
    """The number, 0 to 99, in words: 47 is forty-seven."""
    if number < 20:
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{SMALL[ones]}" if ones else "")


def _list_steps() -> list[tuple[str, str]]:
    """Each name with the one that follows it; days and months go round."""
    rows = [DAYS + DAYS[:1], MONTHS + MONTHS[:1], LETTERS]
    return [(first, second) for row in rows for first, second in pairwise(row)]


def _subject(name: str) -> str:
    """The name as a sentence asks about it: a bare A would read as an article."""
    return f"the letter {name}" if len(name) == 1 else name


def build_number_relations() -> list[Relation]:
    """The four relations of this module."""
    words = [(str(n), to_words(n)) for n in range(60)]
    sums = [(f"{a} and {b}", str(a + b)) for a in range(2, 10) for b in range(2, a + 1)]
    doubles = [(str(n), str(2 * n)) for n in range(2, 42)]
    after = [(_subject(first), second) for first, second in _list_steps()]
    return [
        build_relation("number_words", words, NUMBER_WORDS_WORDINGS, "in words", NUMBER),
        build_relation("sum", sums, SUM_WORDINGS, "sum", NUMBERS),
        build_relation("double", doubles, DOUBLE_WORDINGS, "double", NUMBER),
        build_relation("after", after, AFTER_WORDINGS, "next", ONE, family="order"),
    ]
