"""Batches taken apart into the rows they were made of, by the collators themselves, and found among the rows read."""

import math
from dataclasses import replace
from typing import Any

import pytest
from datasets import Dataset

from finetune.data.batches import IGNORE_INDEX, Collator, JudgedCollator, LabelCollator, MaskedCollator, PairCollator
from finetune.objectives.guilty_rows import GuiltyRow, find_places, render_guilty_rows, take_apart

PAD, NOT = 0, IGNORE_INDEX
ROWS = [
    {"input_ids": [1, 5, 6, 2], "labels": [NOT, NOT, 6, 2]},
    {"input_ids": [1, 7, 2], "labels": [NOT, 7, 2]},
]
PAIR = {
    "chosen_ids": [1, 5, 8],
    "chosen_labels": [NOT, NOT, 8],
    "rejected_ids": [1, 5, 9, 2],
    "rejected_labels": [NOT, NOT, 9, 2],
}
OTHER_PAIR = {"chosen_ids": [1, 6], "chosen_labels": [NOT, 6], "rejected_ids": [1, 7], "rejected_labels": [NOT, 7]}


def take(inputs: Any, answers_a_row: int = 1) -> list[GuiltyRow]:
    return take_apart(inputs, 1, in_odd_batch=False, answers_a_row=answers_a_row)


def shapes(row: GuiltyRow) -> dict[str, tuple[int, ...]]:
    assert row.alone is not None
    return {name: tuple(value.shape) for name, value in row.alone.items() if name != "num_real_tokens"}


def test_padded_rows_lose_their_padding():
    first, second = take(Collator("padded", PAD)(ROWS))
    assert (first.key, second.key) == (((1, 5, 6, 2),), ((1, 7, 2),))
    assert (first.trained_tokens, second.trained_tokens) == (2, 2)
    assert second.alone["num_real_tokens"] == 3
    assert shapes(second) == {"input_ids": (1, 4), "labels": (1, 4), "attention_mask": (1, 4)}


@pytest.mark.parametrize("layout", ["packed", "flat"])
def test_packed_rows_come_apart_where_positions_restart_and_padding_is_none(layout):
    packed = {"input_ids": [1, 5, 6, 2, 1, 7, 2], "labels": [NOT, NOT, 6, 2, NOT, 7, 2], "seq_lengths": [4, 3]}
    rows = take(Collator(layout, PAD, names_lengths=True)([packed, ROWS[1]]))
    assert [row.key for row in rows] == [((1, 5, 6, 2),), ((1, 7, 2),), ((1, 7, 2),)]
    assert rows[1].alone["position_ids"].tolist() == [[0, 1, 2]]
    assert rows[1].alone["labels"].tolist() == [[NOT, 7, 2]]
    if layout == "flat":
        assert rows[1].alone["packed_seq_lengths"].tolist() == [3]


def test_the_two_answers_of_a_pair_stay_together():
    reference = [{"ref_chosen_logps": -1.0 - n, "ref_rejected_logps": -2.0} for n in range(2)]
    rows = [PAIR | reference[0], OTHER_PAIR | reference[1]]
    first, second = take(PairCollator(PAD)(rows), answers_a_row=2)
    assert first.key == ((1, 5, 8), (1, 5, 9, 2))
    assert second.key == ((1, 6), (1, 7))
    assert (first.trained_tokens, first.num_tokens) == (3, 7)
    assert second.alone["input_ids"].tolist() == [[1, 6, PAD, PAD], [1, 7, PAD, PAD]]
    assert second.alone["ref_chosen_logps"].tolist() == [-2.0]


def test_judged_answers_keep_their_judgement_and_their_other_prompt():
    rows = [
        {**row, "kl_input_ids": [1, 9], "kl_labels": [NOT, 9], "desirable": place == 0}
        for place, row in enumerate(ROWS)
    ]
    first, second = take(JudgedCollator(PAD)(rows))
    assert (first.key, second.key) == (((1, 5, 6, 2),), ((1, 7, 2),))
    assert [row.alone["label"].tolist() for row in (first, second)] == [[True], [False]]
    assert shapes(second)["KL_input_ids"] == (1, 2)


def test_labelled_texts_have_no_trained_tokens_but_a_label():
    rows = [{"input_ids": [1, 5, 2], "label": 3}, {"input_ids": [1, 2], "label": 4}]
    first, second = take(LabelCollator(PAD)(rows))
    assert (first.trained_tokens, second.key) == (None, ((1, 2),))
    assert second.alone["labels"].tolist() == [4]


def test_masked_tokens_are_put_back():
    collator = MaskedCollator(PAD, mask_token_id=3, vocab_size=50, special_ids=[0, 1, 2, 3], mask_fraction=0.9)
    rows = [{"input_ids": [1, *range(10, 30), 2]}, {"input_ids": [1, 40, 41, 2]}]
    batch = collator(rows)
    assert 3 in batch["input_ids"][0].tolist(), "masks were drawn"
    assert [list(row.key[0]) for row in take(batch)] == [row["input_ids"] for row in rows]


def test_a_prompt_with_several_answers_is_one_row_without_a_loss_of_its_own():
    rows = take([{"prompt": [1, 5], "reference": "a"}, {"prompt": [1, 5], "reference": "a"}, {"prompt": [1, 6]}])
    assert [(row.key, row.alone) for row in rows] == [(((1, 5),), None), (((1, 6),), None)]


# ---- found among the rows read


def test_rows_are_found_by_their_ids_and_of_twins_the_first():
    account = Dataset.from_dict(
        {
            "input_ids": [[], [1, 7, 2], [1, 7, 2], [1, 5, 6, 2]],
            "source": ["a.json", "a.json", "b.json", "b.json"],
            "row": [1, 2, 1, 2],
        }
    )
    keys = {((1, 7, 2),), ((1, 5, 6, 2),), ((1, 9, 2),)}
    assert find_places(account, keys) == {((1, 7, 2),): ("a.json", 2), ((1, 5, 6, 2),): ("b.json", 2)}


def test_pairs_are_found_by_both_answers_and_prompts_by_theirs():
    places = {"source": ["a.json"] * 2, "row": [1, 2]}
    pairs = Dataset.from_dict({"chosen_ids": [[1], [1]], "rejected_ids": [[2], [3]], **places})
    assert find_places(pairs, {((1,), (3,))}) == {((1,), (3,)): ("a.json", 2)}
    assert find_places(Dataset.from_dict({"prompt": [[1], [4]], **places}), {((4,),)}) == {((4,),): ("a.json", 2)}


# ---- said


def tell(loss: float | None, row: int = 7) -> GuiltyRow:
    return GuiltyRow(1, True, ((1, 2, 3),), 2, None, "a.json", row, loss, "text")


def test_a_message_names_three_guilty_rows_and_counts_the_others():
    lines = render_guilty_rows([*(tell(math.nan, row) for row in range(1, 6)), tell(1.0)])
    assert lines[0] == "a.json:1 (3 tokens): its loss alone is nan"
    assert lines[3] == "and 2 rows more whose loss alone is not finite"
    assert len(lines) == 4


def test_rows_that_are_sound_by_themselves_are_said_to_be():
    assert render_guilty_rows([tell(2.5)])[0] == "Each row by itself has a finite loss; the highest:"
    assert render_guilty_rows([tell(None)]) == ["a.json:7 (3 tokens)"], "nothing is said of what was not measured"


def test_of_rows_that_were_not_measured_those_of_the_odd_micro_batch_are_named():
    elsewhere = replace(tell(None, 8), in_odd_batch=False)
    assert render_guilty_rows([tell(None, 7), elsewhere]) == ["a.json:7 (3 tokens)"]


def test_a_loss_that_json_has_no_number_for_is_a_word():
    assert tell(math.inf).to_json(4)["loss"] == "inf"
    assert tell(0.5).to_json(4) == {
        "step": 4, "micro_batch": 1, "source": "a.json", "row": 7, "tokens": 3, "trained_tokens": 2, "loss": 0.5,
        "text": "text",
    }  # fmt: skip
