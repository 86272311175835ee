"""Answers that teach nothing are found, and those that only look so are not."""

import pytest

from finetune.data.quality.answers import find_boilerplate, find_refusal, is_empty, is_too_short

ASKED = "Describe the process of photosynthesis."


@pytest.mark.parametrize("answer", ["", " \n\t", "\u200b", "\u200b \ufeff", "\u00a0", "\u3000", "\u2800", "\u00ad"])
def test_an_answer_of_what_cannot_be_seen_is_empty(answer: str) -> None:
    assert is_empty(answer)


@pytest.mark.parametrize("answer", ["7", ".", "🙂", "是", "\u200bA"])
def test_an_answer_with_one_visible_sign_is_not_empty(answer: str) -> None:
    assert not is_empty(answer)


@pytest.mark.parametrize("answer", ["N/A", "n/a.", "TODO", "<noinput>", "...", "-", "!!!", "[Your answer here]", "TBD"])
def test_a_placeholder_or_punctuation_alone_is_too_short(answer: str) -> None:
    assert is_too_short(answer, ASKED)


@pytest.mark.parametrize("answer", ["True", "7", "B", "No", "x", "-5", "∞", "👍", "$", "是", "None", "0.", "NaCl"])
def test_an_answer_of_one_word_number_or_picture_is_an_answer(answer: str) -> None:
    assert not is_too_short(answer, ASKED)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Which punctuation mark ends a question?", "?"),
        ("What does JavaScript give for a missing value: null or undefined?", "undefined"),
        ('Is there a price? Otherwise write "N/A".', "N/A"),
        ("What does `print({})` print?", "{}"),
        ("What does list() return in Python?", "[]"),
        ("Which signs hold a tuple?", "()"),
        ("Which key starts a search in vim?", "/"),
        ("What stands for per cent?", "%"),
        ("What is the output of print('-')?", "-"),
        ("What is the path of the root directory?", "/"),
    ],
)
def test_what_was_asked_for_is_no_placeholder(asked: str, answer: str) -> None:
    assert not is_too_short(answer, asked)


@pytest.mark.parametrize("answer", ["{}", "/", "-", ".", "%", '""'])
def test_signs_that_nothing_asked_for_are_too_short(answer: str) -> None:
    assert is_too_short(answer, ASKED)


def test_a_dash_is_no_answer_to_which() -> None:
    assert is_too_short("-", "Which city is the capital of France?")


def test_three_dots_are_no_sign_that_was_asked_for() -> None:
    assert is_too_short("...", "Which punctuation marks do you know?")


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with that request.",
        "Sorry, but I am not able to answer that.",
        "I’m sorry, but I can’t share that.",
        "I must decline to answer.",
        "I cannot in good conscience help with this.",
        "As an AI language model, I am unable to browse the internet.",
        "Unfortunately, I cannot answer this question.",
        "I'm sorry, you did not provide an article to summarize.",
        "It is against my guidelines to discuss this topic.",
        "I would prefer not to answer that.",
        "This request violates my guidelines.",
    ],
)
def test_a_refusal_at_the_start_is_found(answer: str) -> None:
    assert find_refusal(f"\n{answer}", ASKED) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry for your loss. My thoughts are with you.",
        "I cannot recommend this restaurant enough! The food was superb.",
        "I can't wait to see you on Saturday.",
        "I can't help but smile when I think of you.",
        "I apologize for the delay. Your order has shipped.",
        "Unfortunately, we cannot accept returns after 30 days.",
        "I am unable to attend the meeting on Friday.",
        "That's my sister's and my car.",
        "A refusal may read: \"I'm sorry, but I can't help with that.\"",
        "Plants turn light into sugar. I cannot help with more than that.",
    ],
)
def test_polite_words_and_other_peoples_refusals_are_none(answer: str) -> None:
    assert find_refusal(answer, ASKED) is None


def test_declining_as_one_was_told_to_is_no_refusal() -> None:
    asked = "Use the context. If you don't know the answer, just say that you don't know.\nWho is Terry?"
    answer = "I'm sorry, I cannot answer that question as the context does not name him."
    assert find_refusal(answer, asked) is None
    assert find_refusal(answer, "Who is Terry?") == 0


def test_an_apology_in_a_letter_that_was_asked_for_is_no_refusal() -> None:
    answer = "I'm sorry, but I cannot come to the party."
    assert find_refusal(answer, "Write a message to a friend who invited you.") is None
    assert find_refusal(answer, ASKED) == 0


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I don't have personal opinions.",
        "The GDP is large. However, as an AI, I cannot verify this.",
        "I'm an AI assistant, so I have no taste.",
        "I am just a language model.",
        "As of my last knowledge update in September 2021, there were eight.",
        "I was trained by OpenAI.",
        "I do not have personal beliefs or emotions.",
        "As an AI-powered assistant, I can tell you.",
    ],
)
def test_an_assistant_speaking_of_itself_is_boilerplate(answer: str) -> None:
    assert find_boilerplate(answer, ASKED) is not None


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("What is GPT-3?", "GPT-3 is a language model trained by OpenAI."),
        ("Who is she?", "She works as an AI engineer at a startup."),
        ("What do chatbots say?", 'Many say "As an AI language model, I cannot feel".'),
        ("Are you a robot?", "Yes, I am an AI assistant."),
        ("Imagine you are an AI therapist and give advice.", "As an AI therapist, I understand your worries."),
        ("Describe yourself.", "As an assistant manager, I am responsible for the store."),
        ("Tell me of your job.", "My programming skills include Python."),
    ],
)
def test_text_about_assistants_and_parts_that_were_asked_for_are_no_boilerplate(asked: str, answer: str) -> None:
    assert find_boilerplate(answer, asked) is None
