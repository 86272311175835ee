"""Instructions in Alpaca's columns, for training and for the test, with the columns that let anyone check the split.

Goes in: the relations. Comes out: rows {instruction, input, output, task, fact}; a pipeline reads the first three,
`task` and `fact` prove that no fact is asked about, in the same task, on both sides.
"""

import re

from data.world.dice import Dice
from data.world.relation import Fact, Relation, sentence
from data.world.split import split_facts

ROWS_PER_TASK = 76  # training rows of a task at least; a task with more facts has a row for each
INPUT_FRACTION = 0.35

TRAIN_FRAMES = (
    "Tell me {phrase}.",
    "State {phrase}.",
    "Please name {phrase}.",
    "Write down {phrase}.",
    "I would like to know {phrase}.",
    "Could you tell me {phrase}?",
    "Say {phrase} and nothing else.",
    "Answer with {phrase}.",
    "I need {phrase}. What is it?",
    "In one or two words, give {phrase}.",
    "My question is about {phrase}.",
    "Find {phrase} and reply with it alone.",
    "Explain {phrase} in a few words.",
    "Do you remember {phrase}?",
)
TEST_FRAMES = (
    "Please tell us {phrase}.",
    "Kindly give {phrase}.",
    "Can you name {phrase}?",
    "Reply with {phrase}.",
    "I wonder about {phrase}. Could you say it?",
    "Please write {phrase}.",
)


def _row(relation: Relation, fact: Fact, wording: str, stand_in: str | None) -> dict[str, str]:
    """A row from a wording; with a stand-in the subject goes to the input."""
    instruction = sentence(wording.format(x=stand_in or fact.subject))
    given = fact.subject if stand_in else ""
    return {"instruction": instruction, "input": given, "output": fact.answer, "task": relation.name, "fact": fact.key}


def list_wordings(relation: Relation, held_out: bool) -> tuple[list[str], list[str]]:
    """The direct questions, and the phrases in their frames, of the training set or of the test."""
    frames = TEST_FRAMES if held_out else TRAIN_FRAMES
    phrases = relation.test_phrases if held_out else relation.train_phrases
    questions = relation.test_questions if held_out else relation.train_questions
    return list(questions), [frame.format(phrase=phrase) for frame in frames for phrase in phrases]


def build_rows(relations: list[Relation], held_out_keys: set[str], held_out: bool) -> list[dict[str, str]]:
    """The training rows, or with `held_out` the test rows, one for each held-out fact, in a drawn order."""
    dice = Dice("test instructions" if held_out else "train instructions")
    rows = []
    for relation in relations:
        facts = split_facts(relation, held_out_keys)[1 if held_out else 0]
        questions, framed = list_wordings(relation, held_out)
        num_rows = len(facts) if held_out else max(ROWS_PER_TASK, len(facts))
        drawn = [fact for _ in range(num_rows // len(facts) + 1) for fact in dice.shuffle(facts)][:num_rows]
        seen = set()
        for fact in drawn:
            row = None
            while row is None or (row["instruction"], row["input"]) in seen:
                wording = dice.pick(questions) if dice.happens(0.4) else dice.pick(framed)
                stand_in = relation.stand_ins[2 if held_out else 1] if dice.happens(INPUT_FRACTION) else None
                row = _row(relation, fact, wording, stand_in)
            seen.add((row["instruction"], row["input"]))
            rows.append(row)
    return dice.shuffle(rows)


def drop_given_away(relations: list[Relation], rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows that cannot be answered by repeating a word of the prompt, as "the plural of deer" can."""
    given = {
        fact.key
        for relation in relations
        for fact in relation.facts
        if re.search(rf"\b{re.escape(fact.answer)}\b", fact.subject, re.IGNORECASE)
    }
    return [
        row
        for row in rows
        if row["fact"] not in given
        and (
            "output" not in row or not re.search(rf"\b{re.escape(row['output'])}\b", row["instruction"], re.IGNORECASE)
        )
    ]
