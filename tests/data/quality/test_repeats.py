"""Repeats of rows: exact, near, shared with held-out rows, and answers that contradict each other."""

import numpy as np
import pytest

from finetune.data.examples import AnyExample, Conversation, Document, Labelled, Message
from finetune.data.quality.finding import Finding
from finetune.data.quality.inspecting import find_faults
from finetune.data.quality.near import find_near_pairs, is_near
from finetune.data.quality.pairs import find_length_bias
from finetune.data.quality.shingles import Signer, find_shingles, jaccard, to_words
from tests.data.quality.made_up import chat, judged, load, pair, texts_of

LONG = (
    "Photosynthesis is the process by which green plants turn sunlight, water and carbon dioxide into sugar and "
    "oxygen. It takes place in the chloroplasts of the leaves, and nearly all life on earth depends on it."
)


def find(examples: list[AnyExample], held_out: list[AnyExample] | None = None, kind: str = "conversation") -> dict:
    others = [] if held_out is None else [(load(held_out, name="eval.jsonl"), kind)]
    return {finding.name: finding for finding in find_faults(load(examples), others, kind=kind)}


def rows_of(findings: dict[str, Finding], name: str) -> list[int]:
    return findings[name].rows.tolist() if name in findings else []


def test_the_same_row_in_another_form_or_spacing_is_a_duplicate_and_the_first_stays() -> None:
    rows = [chat("Where is the café?", "There."), chat("Who?", "I."), chat("Where  is the cafe\u0301?\n", " There.\t")]
    found = find([*rows, chat("Where is the café?", "There!")])
    assert rows_of(found, "duplicates") == [2]
    assert found["duplicates"].examples[0].places == ["rows.jsonl:3", "rows.jsonl:1"]
    assert found["duplicates"].details == {"groups": 1}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("Is this letter a capital: A", "Yes"), ("Is this letter a capital: a", "No")),
        (("Fix it.", "for a in b:\n    c()\nd()"), ("Fix it.", "for a in b:\n    c()\n    d()")),
        (("Write a verse.", "The rain\nfalls"), ("Write a verse.", "The rain falls")),
    ],
)
def test_rows_that_differ_in_case_indentation_or_lines_are_no_duplicates_and_no_conflict(one, other) -> None:
    assert not {"duplicates", "conflicting_answers"} & set(find([chat(*one), chat(*other)]))


def test_rows_of_the_same_words_in_another_case_are_near() -> None:
    assert rows_of(find([chat("What is rain?", "Water."), chat("what is RAIN?", "water.")]), "near_duplicates") == [1]


def test_white_space_around_an_instruction_and_its_input_is_no_indentation() -> None:
    rows = [chat("Sort it.", "a b", given="b a"), chat("  Sort it. ", "a b", given=" b a\n")]
    assert rows_of(find(rows), "duplicates") == [1]


def test_a_row_whose_answer_is_not_trained_repeats_no_row_whose_answer_is() -> None:
    asked = Message("user", "What is rain?")
    rows = [Conversation((asked, Message("assistant", "Water.", weight=weight))) for weight in (None, 0, 1)]
    assert rows_of(find(rows), "duplicates") == [2]


def test_a_row_with_another_system_message_or_input_is_no_duplicate() -> None:
    rows = [chat("Go.", "Yes."), chat("Go.", "Yes.", system="Be brief."), chat("Go.", "Yes.", given="now")]
    assert not rows_of(find(rows), "duplicates")


@pytest.mark.parametrize(
    "answer",
    [
        LONG.replace("nearly all", "almost all"),
        LONG.replace("green plants", "plants").replace("takes place", "happens"),
        LONG + " I hope this helps.",
        LONG.replace(",", "").upper(),
        LONG.replace("chloroplasts", "chlorpolasts"),
    ],
)
def test_a_row_with_a_few_words_changed_is_a_near_duplicate(answer: str) -> None:
    found = find([chat("Explain photosynthesis.", LONG), chat("Explain photosynthesis.", answer)])
    assert rows_of(found, "near_duplicates") == [1]
    assert "duplicates" not in found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("What is 2 + 3?", "2 + 3 is 5."), ("What is 2 - 3?", "2 - 3 is -1.")),
        (("Name the capital of Peru.", "The capital is Lima."), ("Name the capital of Chile.", "It is Santiago.")),
        (
            ("A train goes 60 km in 2 hours. How fast is it on average over the whole trip?", "It goes 30 km an hour."),
            ("A train goes 90 km in 3 hours. How fast is it on average over the whole trip?", "It goes 30 km an hour."),
        ),
        (
            (f"{LONG}\nIs the statement about plants true or false?", "True."),
            (f"{LONG}\nIs the statement about plants true or false?", "False."),
        ),
        (
            ("Write a birthday wish for Anna.", "Dear Anna, happy birthday! May your day be full of joy and laughter."),
            ("Write a birthday wish for Boris.", "Dear Boris, happy birthday! May your day be full of joy and cake."),
        ),
    ],
)
def test_another_number_name_or_short_answer_makes_another_row(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert not is_near(texts_of(*one), texts_of(*other))
    assert is_near(texts_of(*one), texts_of(*one))


def test_rows_that_share_a_long_passage_and_ask_different_things_are_not_near() -> None:
    rows = [chat(f"{LONG} Where does it take place?", "In the chloroplasts."), chat(f"{LONG} Who needs it?", "All.")]
    assert not rows_of(find(rows), "near_duplicates")


def test_signatures_find_every_pair_above_the_threshold_and_the_exact_jaccard_is_what_it_says() -> None:
    words = [f"w{n}" for n in range(40)]
    changed = [*words[:20], "other", *words[21:]]
    shingles = [find_shingles(words), find_shingles(changed), find_shingles([f"v{n}" for n in range(40)])]
    assert jaccard(shingles[0], shingles[1]) == pytest.approx(35 / 41)
    signer = Signer()
    signatures = np.stack([signer.sign(one) for one in shingles])
    assert list(find_near_pairs(signatures)) == [(1, 0)]
    assert list(find_near_pairs(signatures[:1], signatures[1:])) == [(0, 0)]


def test_words_of_scripts_without_spaces_are_their_letters() -> None:
    assert to_words("C++ 是2+3") == ["c", "+", "+", "是", "2", "+", "3"]


def test_a_row_whose_prompt_a_held_out_row_asks_too_overlaps_whatever_its_answer() -> None:
    train = [chat("What is rain?", "Water."), chat("what is RAIN?", "Drops."), chat("What is snow?", "Ice.")]
    found = find(train, [chat("What is rain?", "Water.")])
    assert rows_of(found, "eval_overlap") == [0, 1]
    assert found["eval_overlap"].details == {"held_out_rows": 1, "same_answer": 1}
    assert found["eval_overlap"].examples[0].places == ["rows.jsonl:1", "eval.jsonl:1"]


def test_a_row_almost_like_a_held_out_one_and_its_repeats_overlap_nearly() -> None:
    near = chat("Explain photosynthesis.", LONG.replace("nearly", "almost"))
    found = find([chat("What is snow?", "Ice."), near, near], [chat("Explain what photosynthesis is.", LONG)])
    assert rows_of(found, "near_eval_overlap") == [1, 2]
    assert "eval_overlap" not in found


def test_an_earlier_turn_that_is_a_held_out_question_overlaps_unless_it_is_not_trained() -> None:
    def talk(weight: int | None) -> Conversation:
        first = Message("user", "What is rain?"), Message("assistant", "Water.", weight=weight)
        return Conversation((*first, Message("user", "And snow?"), Message("assistant", "Ice.")))

    found = find([talk(None), talk(0), talk(1)], [chat("What is rain?", "Drops.")])
    assert rows_of(found, "eval_overlap") == [0, 2]


def test_every_held_out_set_is_compared_with_whatever_its_kind() -> None:
    train = load([chat(f"What is {what}?", "It is.") for what in ("rain", "snow", "hail", "fog", "mist")])
    held_out = [
        (load([chat("What is rain?", "Water.")], name="eval.jsonl"), "conversation"),
        (load([pair("What is snow?", "Ice.", "Hot.")], name="pairs.jsonl"), "preference"),
        (load([Conversation((Message("user", "What is hail?"),))], name="prompts.jsonl"), "prompt"),
        (load([judged("WHAT is fog", "Air.", False)], name="judged.jsonl"), "judged"),
    ]
    found = {finding.name: finding for finding in find_faults(train, held_out, kind="conversation")}
    assert rows_of(found, "eval_overlap") == [0, 1, 2]
    assert [one.places[1] for one in found["eval_overlap"].examples] == [
        "eval.jsonl:1",
        "pairs.jsonl:1",
        "prompts.jsonl:1",
    ]
    assert rows_of(found, "near_eval_overlap") == [3]
    assert found["near_eval_overlap"].examples[0].places[1] == "judged.jsonl:1"


def test_a_question_overlaps_a_row_that_has_a_system_message_as_well() -> None:
    found = find([chat("What is rain?", "Water.", system="Be brief.")], [chat("What is rain?", "Drops.")])
    assert rows_of(found, "eval_overlap") == [0]


def test_nothing_overlaps_without_held_out_rows() -> None:
    assert not {"eval_overlap", "near_eval_overlap"} & set(find([chat("What is rain?", "Water.")] * 2))


def test_another_answer_to_the_same_prompt_conflicts_and_a_full_stop_does_not() -> None:
    rows = [chat("Is it so?", "Yes"), chat("Is it so?", "No"), chat("Is it so?", "yes."), chat("Is it?", "No")]
    assert rows_of(find(rows), "conflicting_answers") == [1]


def test_one_text_with_two_labels_conflicts_and_with_one_repeats() -> None:
    rows = [
        Labelled("A good film.", None, "1"),
        Labelled("A good  film.", None, "0"),
        Labelled("A good film.", None, "1"),
    ]
    found = find(rows, kind="labelled")
    assert rows_of(found, "conflicting_answers") == [1]
    assert rows_of(found, "duplicates") == [2]


def test_scores_conflict_when_they_differ_by_more_than_a_tenth_of_their_range() -> None:
    scores = [0.0, 5.0, 3.0, 3.4, 4.0]
    texts = ["low", "high", "so so", "so so", "so so"]
    rows = [Labelled(text, "other", score) for text, score in zip(texts, scores, strict=True)]
    assert rows_of(find(rows, kind="labelled"), "conflicting_answers") == [4]


def test_pairs_that_prefer_the_opposite_conflict_and_other_answers_do_not() -> None:
    rows = [pair("Hi?", "Hello.", "Bye."), pair("Hi?", "Bye.", "Hello."), pair("Hi?", "Hello.", "What?")]
    assert rows_of(find(rows, kind="preference"), "conflicting_answers") == [1]


def test_one_answer_judged_good_and_bad_conflicts_and_two_answers_do_not() -> None:
    rows = [judged("Hi?", "Hello.", True), judged("Hi?", "Bye.", False), judged("Hi?", "Hello.", False)]
    assert rows_of(find(rows, kind="judged"), "conflicting_answers") == [2]


def test_documents_repeat_and_have_no_answers_to_check() -> None:
    rows = [Document("N/A"), Document(LONG), Document(LONG.replace("nearly", "almost")), Document("N/A")]
    found = find(rows, kind="document")
    assert set(found) == {"duplicates", "near_duplicates"}
    assert rows_of(found, "duplicates") == [3]


def test_a_length_that_tells_the_chosen_answer_is_a_bias_and_chance_is_none() -> None:
    long, short = np.full(60, 50), np.full(60, 20)
    bias = find_length_bias(long, short)
    assert bias is not None
    assert (bias.favours, bias.pairs, bias.share, bias.is_strong) == ("longer", 60, 1.0, True)
    assert find_length_bias(short, long).favours == "shorter"
    mixed = np.where(np.arange(60) % 2 == 0, 50, 20)
    assert find_length_bias(mixed, 70 - mixed) is None
    assert find_length_bias(long[:8], short[:8]) is None, "eight of eight happen by chance once in 128"


def test_a_bias_is_found_in_pairs_and_names_no_row_to_drop() -> None:
    rows = [pair(f"Question {n}?", "A long answer with many words in it.", "No.") for n in range(40)]
    bias = find(rows, kind="preference")["length_bias"]
    assert bias.severity == "warning"
    assert bias.advice.startswith("The longer answer is the chosen one in 100% of the pairs")
    assert [one.places for one in bias.examples] == [[f"rows.jsonl:{n}"] for n in range(1, 6)]
    assert (bias.count, bias.rows.tolist(), bias.details["favours"]) == (40, [], "longer")
