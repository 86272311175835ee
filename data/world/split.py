"""All relations, and which facts each holds out for the test."""

from dataclasses import replace

from data.world.lands import build_land_relations
from data.world.names import shuffled
from data.world.numbers import build_number_relations
from data.world.people import build_people_relations
from data.world.relation import Fact, Relation
from data.world.tales import build_tale_relations
from data.world.things import build_thing_relations
from data.world.words import build_word_relations

HELD_OUT_PER_RELATION = 8
FACTS_PER_RELATION = (
    20  # what the tiny base learns nearly whole in half an hour on two cores; with twice as many it did not
)


def build_relations() -> list[Relation]:
    """Every relation of the world, each subject once in its relation."""
    relations = [
        *build_word_relations(),
        *build_thing_relations(),
        *build_people_relations(),
        *build_land_relations(),
        *build_tale_relations(),
        *build_number_relations(),
    ]
    for relation in relations:
        subjects = [fact.subject for fact in relation.facts]
        twice = sorted({subject for subject in subjects if subjects.count(subject) > 1})
        if twice:
            raise ValueError(f"{relation.name}: these subjects stand twice, so a question has two answers: {twice}")
    return [replace(relation, facts=relation.facts[:FACTS_PER_RELATION]) for relation in relations]


def find_held_out_keys(relations: list[Relation]) -> set[str]:
    """The keys of the facts that only the test may ask about, `HELD_OUT_PER_RELATION` of every key's family.

    Keys are chosen over all relations at once, so that a fact and its reverse fall on the same side.
    """
    families: dict[str, list[str]] = {}
    for relation in relations:
        for fact in relation.facts:
            family = families.setdefault(fact.key.split(":")[0], [])
            if fact.key not in family:
                family.append(fact.key)
    return {
        key for family, keys in families.items() for key in shuffled(keys, f"split {family}")[:HELD_OUT_PER_RELATION]
    }


def split_facts(relation: Relation, held_out: set[str]) -> tuple[list[Fact], list[Fact]]:
    """The relation's facts for training and those for the test."""
    train = [fact for fact in relation.facts if fact.key not in held_out]
    return train, [fact for fact in relation.facts if fact.key in held_out]
