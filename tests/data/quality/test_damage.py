"""Leftovers of templates, damaged text and rows in another language are found, and what only looks so is not."""

import pytest

from finetune.data.quality.damage import find_damage
from finetune.data.quality.language import find_main_language, find_other_language, identify_asked
from finetune.data.quality.markers import find_leftover
from tests.data.quality.made_up import texts_of

ASKED = "Name a nice thing."


@pytest.mark.parametrize(
    "answer",
    [
        "### Response:\nA tree.",
        "A tree.\n\n### Instruction:\nName another.",
        "[INST] Hello [/INST] A tree.",
        "A tree.<|im_end|>",
        "<|im_start|>assistant\nA tree.",
        "A tree. <|endoftext|> Name another.",
        "A tree. </s>",
        "A special tree in a string of trees.</s>",
        "<s> A tree.",
        "A tree.<|eot_id|>",
        "<start_of_turn>model\nA tree.",
        "A tree.\n\nHuman: What else do you like?",
        "Assistant: A tree.",
        "USER: Name it.\nASSISTANT: A tree.",
    ],
)
def test_a_mark_of_a_template_is_found_where_a_template_puts_it(answer: str) -> None:
    assert find_leftover(texts_of(ASKED, answer)) is not None


@pytest.mark.parametrize(
    "question",
    [
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\nGo.",
        "Human: Name three colours.\n\nAssistant:",
        "USER: Name three colours. ASSISTANT:",
        "Name three colours.\n\n### Response:",
        "<<SYS>>\nBe nice.\n<</SYS>>\n\nName a tree.",
    ],
)
def test_a_prompt_that_was_rendered_before_is_found(question: str) -> None:
    assert find_leftover(texts_of(question, "Fine.")) is not None


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (ASKED, "<p>Was <s>$10</s>, now $5.</p>"),
        (ASKED, "The token <|im_start|> begins a turn."),
        (ASKED, "Use `<s>` here."),
        (ASKED, "```\n<|im_start|>user\nhi<|im_end|>\n```"),
        ("How does Llama 2 format a prompt?", "It puts [INST] before the words."),
        (ASKED, "### Instructions\n1. Mix."),
        (ASKED, "### Response time\nIt was low."),
        ("Write a dialogue with an assistant.", "User: Hi.\nAssistant: Hello."),
        (ASKED, "User: admin\nPassword: secret"),
        (ASKED, "Dog: four legs\nHuman: two legs"),
    ],
)
def test_a_text_that_speaks_of_marks_holds_no_leftover(asked: str, answer: str) -> None:
    assert find_leftover(texts_of(asked, answer)) is None


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", ["The café was closed.", "He said “hello”.", "It’s naïve.", "Price: £20", "2πr"])
def test_text_decoded_with_another_encoding_is_damaged(text: str, encoding: str) -> None:
    damaged = text.encode().decode(encoding, "replace")
    assert find_damage(texts_of(ASKED, damaged)) is not None


@pytest.mark.parametrize("text", ["The caf\ufffd was closed.", "a\x00b", "the dog \x96 a hound", "a\x08"])
def test_lost_signs_and_control_characters_are_damage(text: str) -> None:
    assert find_damage(texts_of(ASKED, text)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "SÃO PAULO, IRMÃ, NÃO",
        "L’été à Nîmes – «déjà vu» … 5 €",
        "Tiếng Việt rất đẹp",
        "x² ≈ 3.5 ± 0.2 µm, ½ × ¾, 20 °C",
        "Привет, мир. 日本語 Ελληνικά 👩‍🚀",
        "“Quoted” – it’s fine™ © ®",
        "tab\tand\nnew line\x0c",
    ],
)
def test_accents_signs_and_other_scripts_are_no_damage(text: str) -> None:
    assert find_damage(texts_of(ASKED, text)) is None


def test_a_row_about_encodings_may_quote_damage() -> None:
    assert find_damage(texts_of("Why does UTF-8 show as donâ€™t?", "It was read as Windows-1252: donâ€™t.")) is None


def is_other(question: str, answer: str) -> bool:
    texts = texts_of(question, answer)
    return identify_asked(texts)[0] != "en" and find_other_language(texts, "en") is not None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Nenne drei Farben.", "Rot, Blau und Grün sind drei Farben."),
        ("¿Cuál es la capital de Francia?", "La capital de Francia es París."),
        ("Écris un poème sur la mer.", "La mer est bleue et le vent est doux ce matin."),
        ("解释光合作用。", "植物利用阳光把二氧化碳和水变成糖和氧气。"),
        ("Столица России?", "Столица России — Москва."),
    ],
)
def test_a_row_wholly_in_another_language_is_found(question: str, answer: str) -> None:
    assert is_other(question, answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Translate to French: Good morning, my friend", "Bonjour, mon ami, comment allez-vous?"),
        ("Translate into English.\nIch habe heute keine Zeit.", "I have no time today."),
        ("Correct the mistakes.\nJe suis allée au magasin hier", "Je suis allé au magasin hier."),
        ("Name 5 famous composers.", "Johann Sebastian Bach, Antonio Vivaldi, Georg Friedrich Händel"),
        ('What does "carpe diem" mean?', "Seize the day."),
        ("SELECT * FROM users WHERE id = 1", "SELECT name FROM users WHERE id = 1"),
    ],
)
def test_a_translation_names_and_code_are_in_the_main_language(question: str, answer: str) -> None:
    assert not is_other(question, answer)


def test_the_main_language_is_the_one_that_most_rows_are_surely_in() -> None:
    main, counts = find_main_language([("en", True), ("en", True), ("de", True), ("fr", False), ("fr", False)])
    assert main == "en"
    assert counts == {"en": 2, "de": 1}
