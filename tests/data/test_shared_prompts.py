"""What two sides begin with stands in a row once, and no token sees another one than before."""

import random

import pytest
import torch

from finetune.data.batches import IGNORE_INDEX, PairCollator
from finetune.data.shared_prompts import SharedRows, Widths, build_shared_rows, find_parts

PAD = 0


def pair(chosen: list[int], rejected: list[int], prompt_tokens: int) -> dict[str, list[int]]:
    """A row of the collator; the first so many tokens of either side are not trained."""
    masked = [IGNORE_INDEX] * prompt_tokens
    return {
        "chosen_ids": chosen,
        "chosen_labels": masked + chosen[prompt_tokens:],
        "rejected_ids": rejected,
        "rejected_labels": masked + rejected[prompt_tokens:],
    }


def lay(*pairs: dict[str, list[int]]) -> tuple[SharedRows, Widths]:
    batch = PairCollator(PAD)(pairs)
    parts = find_parts(batch)
    return build_shared_rows(batch, parts), parts.widths


def draw_mask(rows: SharedRows, pair: int = 0) -> list[str]:
    return ["".join("x" if seen else "." for seen in line) for line in rows.may_see_BSS[pair].tolist()]


def test_a_row_holds_the_prompt_the_chosen_answer_and_the_rejected_one_whose_positions_go_on_from_the_prompt():
    rows, widths = lay(pair([1, 5, 6, 7, 2], [1, 5, 8, 2], 2))
    assert rows.input_ids_BS.tolist() == [[1, 5, 6, 7, 2, 8, 2]]
    assert rows.position_ids_BS.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert widths == Widths(num_pairs=1, side=5, row=7, answer=4, shared=2)


def test_an_answer_sees_the_prompt_and_itself_alone():
    rows, _ = lay(pair([1, 5, 6, 7, 2], [1, 5, 8, 2], 2))
    assert draw_mask(rows) == [
        "x......",
        "xx.....",
        "xxx....",
        "xxxx...",
        "xxxxx..",
        "xx...x.",
        "xx...xx",
    ]


def test_the_last_token_of_the_prompt_predicts_the_first_of_both_answers():
    rows, _ = lay(pair([1, 5, 6, 7, 2], [1, 5, 8, 2], 2))
    assert rows.answer_ids_RW.tolist() == [[5, 6, 7, 2], [5, 8, 2, 2]]
    assert rows.completion_mask_RW.tolist() == [[0, 1, 1, 1], [0, 1, 1, 0]]
    assert rows.places_RW.tolist() == [[1, 2, 3, 4], [1, 5, 6, 6]]


def test_a_prompt_that_is_merged_with_one_answer_is_shared_up_to_there():
    # The boundary of the text lies behind token 5; in the rejected side it was merged with what follows into 9.
    rows, widths = lay(pair([1, 4, 5, 6, 2], [1, 4, 9, 2], 2))
    assert widths.shared == 2
    assert rows.input_ids_BS.tolist() == [[1, 4, 5, 6, 2, 9, 2]]
    assert rows.position_ids_BS.tolist() == [[0, 1, 2, 3, 4, 2, 3]]


def test_words_that_both_answers_begin_with_are_trained_for_both():
    rows, widths = lay(pair([1, 5, 6, 7, 2], [1, 5, 6, 8, 2], 2))
    assert widths == Widths(num_pairs=1, side=5, row=7, answer=4, shared=3)
    assert rows.answer_ids_RW.tolist() == [[5, 6, 7, 2], [5, 6, 8, 2]]
    assert rows.completion_mask_RW.tolist() == [[0, 1, 1, 1], [0, 1, 1, 1]]
    assert rows.places_RW.tolist() == [[1, 2, 3, 4], [1, 2, 5, 6]]


def test_an_answer_that_is_the_beginning_of_the_other_has_no_token_of_its_own():
    rows, _ = lay(pair([1, 5, 6], [1, 5, 6, 7, 2], 2), pair([1, 5, 6, 7, 2], [1, 5, 6], 2))
    assert rows.input_ids_BS.tolist() == [[1, 5, 6, 7, 2], [1, 5, 6, 7, 2]]
    assert rows.position_ids_BS.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert rows.places_RW.tolist()[0] == [1, 2, 2, 2]  # chosen of the first pair
    assert rows.places_RW.tolist()[3] == [6, 7, 7, 7]  # rejected of the second


def test_sides_that_share_nothing_do_not_see_each_other():
    rows, widths = lay(pair([3, 5, 6], [4, 5, 6], 1))
    assert widths.shared == 0
    assert rows.position_ids_BS.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert draw_mask(rows)[3:] == ["...x..", "...xx.", "...xxx"]


def test_what_fills_a_row_up_is_seen_by_nothing_else():
    rows, widths = lay(pair([1, 5, 6, 7, 2], [1, 5, 8, 2], 2), pair([1, 9, 2], [1, 8, 2], 1))
    assert widths.row == 7
    assert rows.position_ids_BS[1, :5].tolist() == [0, 1, 2, 1, 2]
    assert not rows.may_see_BSS[1, :5, 5:].any()
    assert rows.may_see_BSS.diagonal(dim1=1, dim2=2).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_token_of_either_side_sees_its_own_side_and_no_more(seed):
    """For random pairs: a row, read through the mask, gives back both sides token by token, with their positions."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(3):
        prompt = [draw.randrange(1, 4) for _ in range(draw.randrange(0, 5))]
        sides = [prompt + [draw.randrange(1, 4) for _ in range(draw.randrange(1, 6))] for _ in range(2)]
        pairs.append(pair(*sides, len(prompt)))
    rows, widths = lay(*pairs)
    ids = rows.input_ids_BS.flatten()
    for number, one in enumerate(pairs):
        for side, name in enumerate(("chosen", "rejected")):
            line = number + side * len(pairs)
            for answer_id, trained, place in zip(
                rows.answer_ids_RW[line], rows.completion_mask_RW[line], rows.places_RW[line], strict=True
            ):
                row, column = divmod(int(place), widths.row)
                seen = torch.nonzero(rows.may_see_BSS[row, column]).flatten()
                position = int(rows.position_ids_BS[row, column])
                assert row == number and ids[place] == answer_id
                assert rows.input_ids_BS[row, seen].tolist() == one[f"{name}_ids"][: position + 1]
                assert rows.position_ids_BS[row, seen].tolist() == list(range(position + 1))
                assert not trained or one[f"{name}_labels"][position] != IGNORE_INDEX
        chosen, rejected = rows.completion_mask_RW[number], rows.completion_mask_RW[number + len(pairs)]
        assert int(chosen.sum()) == sum(label != IGNORE_INDEX for label in one["chosen_labels"])
        assert int(rejected.sum()) == sum(label != IGNORE_INDEX for label in one["rejected_labels"])
