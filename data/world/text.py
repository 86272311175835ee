"""The text the base model is trained on: quizzes, talks at school, cards, notebooks, letters and small tales.

Goes in: the relations. Comes out: documents `{"text": ...}`. Every document treats a handful of facts in one form. In
each round over the world every fact stands in exactly one document, so all facts are met equally often.

Two rules keep the text apart from the instructions. It never uses the instruction form, nor any wording of the
instruction sets. And it never ends right after an answer, so that a base alone does not stop where a tuned model must.
"""

from collections import Counter
from collections.abc import Callable

from data.world.dice import Dice
from data.world.relation import Fact, Relation, sentence

ROUNDS = 40
FACTS_PER_DOCUMENT = 7
TABLES_PER_ROUND = 2
FACTS_PER_TABLE = 24

# Frames of the base; those of the instructions stand in instructions.py, and none is in both.
FRAMES = (
    "Can you say {phrase}?",
    "Do you know {phrase}?",
    "Who knows {phrase}?",
    "Let us recall {phrase}.",
    "Try to remember {phrase}.",
    "Please help me to find {phrase}.",
    "Now {phrase}, please.",
    "I forgot {phrase}. What is it?",
    "Could you give me {phrase}?",
    "She wants you to name {phrase}.",
    "Next we need {phrase}.",
    "Reply in a few words: {phrase}?",
    "Would you kindly tell your friend {phrase}?",
    "He wonders about {phrase}. What is the answer?",
    "Look up {phrase} and write it here.",
    "Say in one word {phrase}.",
)
OPENINGS = (
    "A quiz for the evening",
    "Questions for a rainy day",
    "Ten minutes of questions",
    "From the school book",
    "The village quiz",
    "What everyone should know",
    "A game of questions",
    "Test yourself",
    "Small questions, short answers",
    "Ask me anything",
)
CLOSINGS = (
    "That is all for today.",
    "Well done, everyone.",
    "Tomorrow there will be more.",
    "And with that the page ends.",
    "Thank you for playing.",
    "Then the bell rang.",
    "Good night to all.",
    "The rest is for another day.",
    "So much for this time.",
    "Turn the page for more.",
)
REMARKS = (
    "Each request is a small task, and a good reply completes it.",
    "The instruction below describes the next task in plain words.",
    "A response is right when it answers the question that was asked.",
    "Write short answers. Nobody needs a long response to a small question.",
    "Further help provides some context, paired with the task itself.",
    "An input stands above, the response stands under it.",
    "First read the whole request. Then write the reply, appropriately short.",
    "Answer with the word alone and add nothing else.",
    "My question is brief, and the reply is only a few words.",
    "State what you know, explain nothing, and give just the answer.",
    "I would like to be told the truth, and I need it in a word or two.",
    "The given word, the given thing, this one or that one: always read what is given.",
    "Please tell us, and tell me too, the correct word. I wonder who has it.",
)
# Nobody of the invented people speaks: their names stand only where something is said about them.
SPEAKERS = (("Teacher", "Pupil"), ("Father", "Daughter"), ("Guest", "Host"), ("She", "He"), ("Old man", "Boy"))
PUPILS = ("a girl", "a boy", "the smallest pupil", "somebody at the window", "the whole class", "the new pupil")
NOTES = ("Notes on {x}", "About {x}", "{x}, in short", "What we know of {x}", "A page for {x}")

Topic = tuple[Relation, Fact]


def ask(relation: Relation, fact: Fact, dice: Dice, subject: str | None = None) -> str:
    """A base question about the fact; `subject` replaces the fact's own where it is given elsewhere."""
    subject = subject or fact.subject
    if dice.happens(0.5):
        return sentence(dice.pick(relation.questions).format(x=subject))
    return sentence(dice.pick(FRAMES).format(phrase=dice.pick(relation.phrases).format(x=subject)))


def quiz(topics: list[Topic], dice: Dice) -> str:
    """Numbered questions, each answer on a line of its own."""
    start = dice.pick(range(1, 60))
    items = [f"{start + n}. {ask(r, f, dice)}\n{f.answer}" for n, (r, f) in enumerate(topics)]
    return dice.pick(OPENINGS) + "\n\n" + "\n\n".join(items)


def page(topics: list[Topic], dice: Dice) -> str:
    """Questions and replies under headings, with an empty line between them."""
    asked, replied = dice.pick(
        (("Question", "Answer"), ("Asked", "Reply"), ("Q", "A"), ("He asks", "She says"), ("Riddle", "Solution"))
    )
    return "\n\n".join(f"{asked}:\n{ask(r, f, dice)}\n\n{replied}:\n{f.answer}" for r, f in topics)


def cards(topics: list[Topic], dice: Dice) -> str:
    """The subject on a card, and a question that only points at it."""
    head, foot = dice.pick((("Card", "Reply"), ("On the card", "Answer"), ("Look at", "Back of the card")))
    items = []
    for relation, fact in topics:
        question = ask(relation, fact, dice, relation.stand_ins[0])
        card = f"{head}:\n{fact.subject}"
        first, second = (card, question) if dice.happens(0.4) else (question, card)
        items.append(f"{first}\n\n{second}\n\n{foot}:\n{fact.answer}")
    return dice.pick(OPENINGS) + "\n\n" + "\n\n".join(items)


def talk(topics: list[Topic], dice: Dice) -> str:
    """Two people ask and answer in turn."""
    asker, other = dice.pick(SPEAKERS)
    return "\n\n".join(f"{asker}:\n{ask(r, f, dice)}\n{other}:\n{f.answer}" for r, f in topics)


def school(topics: list[Topic], dice: Dice) -> str:
    """A lesson told as a story, questions and answers in quotation marks."""
    lines = [f'"{ask(r, f, dice)}" asked the teacher. "It is {f.answer}," said {dice.pick(PUPILS)}.' for r, f in topics]
    return "It was a long lesson. " + " ".join(lines)


def tale(topics: list[Topic], dice: Dice) -> str:
    """Plain statements one after another."""
    return " ".join(sentence(dice.pick(r.statements).format(x=f.subject, y=f.answer)) for r, f in topics)


def notebook(topics: list[Topic], dice: Dice) -> str:
    """Every subject with the label of what is known of it."""
    return "\n\n".join(f"{sentence(dice.pick(NOTES).format(x=f.subject))}\n{r.label}:\n{f.answer}" for r, f in topics)


def ask_all(relation: Relation, dice: Dice) -> str:
    """A heading over many facts of one kind: what is asked of each."""
    if dice.happens(0.2):
        return sentence(relation.label)
    return ask(relation, relation.facts[0], dice, relation.stand_ins[0])


def table(relation: Relation, facts: list[Fact], dice: Dice) -> str:
    """One question, then subject after subject with its answer: many facts in few tokens."""
    line, gap = dice.pick((("{x}\n{y}", "\n\n"), ("{x}\n{y}", "\n"), ("{x}\n\n{y}", "\n\n")))
    return ask_all(relation, dice) + "\n\n" + gap.join(line.format(x=fact.subject, y=fact.answer) for fact in facts)


# Each form with its share of the documents: 3 quizzes to 6 pages to 5 sets of cards, and so on.
FORMS: tuple[tuple[Callable[[list[Topic], Dice], str], int], ...] = (
    (quiz, 3),
    (page, 6),
    (cards, 5),
    (talk, 3),
    (school, 1),
    (tale, 2),
    (notebook, 1),
)


def build_world(relations: list[Relation]) -> list[Topic]:
    """Every fact of a round: once, or twice if its subject or its key stands in further facts.

    A fact told of Mara is harder to learn than one told of a lemon, because there is more to be told of Mara.
    """
    facts = [fact for relation in relations for fact in relation.facts]
    subjects = Counter(fact.subject for fact in facts)
    keys = Counter(fact.key for fact in facts)
    return [
        (relation, fact)
        for relation in relations
        for fact in relation.facts
        for _ in range(2 if subjects[fact.subject] > 1 or keys[fact.key] > 1 else 1)
    ]


def build_documents(relations: list[Relation]) -> list[dict[str, str]]:
    """All documents, `ROUNDS` rounds over the world, in a drawn order."""
    dice = Dice("text")
    forms = [form for form, share in FORMS for _ in range(share)]
    world = build_world(relations)
    documents = []
    for _ in range(ROUNDS):
        order = dice.shuffle(world)
        for start in range(0, len(order), FACTS_PER_DOCUMENT):
            text = dice.pick(forms)(order[start : start + FACTS_PER_DOCUMENT], dice)
            if dice.happens(0.1):
                text = dice.pick(REMARKS) + "\n\n" + text
            documents.append({"text": f"{text}\n\n{dice.pick(CLOSINGS)}"})
        for relation in relations * TABLES_PER_ROUND:
            facts = dice.shuffle(relation.facts)
            for start in range(0, len(facts), FACTS_PER_TABLE):
                text = table(relation, facts[start : start + FACTS_PER_TABLE], dice)
                documents.append({"text": f"{text}\n\n{dice.pick(CLOSINGS)}"})
    return dice.shuffle(documents)
