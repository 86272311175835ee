"""Conversations of several turns (`messages`) and preferences (prompt, chosen, rejected) about the same world.

Goes in: the relations and the held-out keys. Comes out: rows for chat.jsonl, preferences.jsonl and the held-out
preferences. In a conversation later turns lean on earlier ones ("And this one: ..."); a preference holds a polite answer
against a bare, a rude or a wrong one to the same prompt.
"""

from collections.abc import Sequence

from data.world.dice import Dice
from data.world.instructions import list_wordings
from data.world.names import PEOPLE
from data.world.relation import Fact, Relation, sentence
from data.world.split import split_facts

NUM_CHATS = 200
PREFERENCES_PER_TASK = {"train": 54, "test": 4}

GREETINGS = (
    "Hello!",
    "Good morning.",
    "Hi, can you help me?",
    "Good evening. I have some questions.",
    "Hello, my name is {name}.",
)
WELCOMES = ("Hello! What would you like to know?", "Good day. Ask me anything.", "Of course. What is your question?")
FOLLOW_UPS = ("And this one: {x}?", "What about {x}?", "The same for {x}, please.", "And now {x}?")
THANKS = (
    ("Thank you.", "You are welcome."),
    ("Thanks, that is all.", "Good. Until next time."),
    ("Good, thank you!", "My pleasure."),
)
SYSTEM = "You answer questions about a small world in as few words as you can."

# In words that stand in the base's text, since an adapter does not train the vectors of a token that it never read. The
# answer comes first in all of them, so that what a pair compares is the manner, or in one of eight the answer.
POLITE = ("{answer}, friend.", "{answer}, good friend.")
RUDE = ("{answer}, of course. Stop asking.", "{answer}, and I will not say it twice.", "{answer}, and nothing more.")


def build_chats(relations: list[Relation], held_out_keys: set[str]) -> list[dict[str, list[dict[str, str]]]]:
    """`NUM_CHATS` conversations of two to five questions; none treats a held-out fact."""
    dice = Dice("chats")
    topics = [(relation, split_facts(relation, held_out_keys)[0]) for relation in relations]
    chats = []
    for number in range(NUM_CHATS):
        messages = [{"role": "system", "content": SYSTEM}] if dice.happens(0.3) else []
        if dice.happens(0.5):
            messages += _turn(dice.pick(GREETINGS).format(name=dice.pick(PEOPLE)), dice.pick(WELCOMES))
        relation, facts = topics[number % len(topics)]
        first, *others = dice.shuffle(facts)[: dice.pick((2, 3, 4))]
        messages += _turn(sentence(dice.pick(relation.train_questions).format(x=first.subject)), first.answer)
        for fact in others:
            messages += _turn(sentence(dice.pick(FOLLOW_UPS).format(x=fact.subject)), fact.answer)
        if dice.happens(0.5):
            other, other_facts = dice.pick(topics)
            fact = dice.pick(other_facts)
            messages += _turn(sentence(dice.pick(other.train_questions).format(x=fact.subject)), fact.answer)
        if dice.happens(0.4):
            messages += _turn(*dice.pick(THANKS))
        chats.append({"messages": messages})
    return chats


def _turn(asked: str, replied: str) -> list[dict[str, str]]:
    """A user's message and its reply."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": replied}]


def build_preferences(relations: list[Relation], held_out_keys: set[str], held_out: bool) -> list[dict[str, str]]:
    """Pairs about the training facts, or with `held_out` about the held-out ones, in the wordings of that side."""
    side = "test" if held_out else "train"
    dice = Dice(f"{side} preferences")
    rows = []
    for relation in relations:
        facts = split_facts(relation, held_out_keys)[1 if held_out else 0]
        questions, framed = list_wordings(relation, held_out)
        seen: set[str] = set()
        for number in range(PREFERENCES_PER_TASK[side]):
            if number % len(facts) == 0:
                drawn = dice.shuffle(facts)
            fact = drawn[number % len(facts)]
            prompt = ""
            while not prompt or prompt in seen:
                wording = dice.pick(questions) if dice.happens(0.4) else dice.pick(framed)
                prompt = sentence(wording.format(x=fact.subject))
            seen.add(prompt)
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": dice.pick(POLITE).format(answer=fact.answer),
                    "rejected": _rejected(facts, fact, dice),
                    "task": relation.name,
                    "fact": fact.key,
                }
            )
    return dice.shuffle(rows)


def _rejected(facts: Sequence[Fact], fact: Fact, dice: Dice) -> str:
    """A rude answer, or in one pair of eight a bare one, or a politely wrong one: the answer to another fact here."""
    fault = dice.pick(("bare", "wrong", *["rude"] * 6))
    if fault == "bare":
        return fact.answer
    if fault == "rude":
        return dice.pick(RUDE).format(answer=fact.answer)
    wrong = dice.pick([other for other in facts if other.answer != fact.answer])
    return dice.pick(POLITE).format(answer=wrong.answer)
