"""Masks of masked-language modelling: BERT's shares, anew each epoch, and the same after a resume."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from finetune.data.batches import IGNORE_INDEX, MaskedCollator

PAD, CLS, SEP, MASK, VOCAB = 0, 1, 2, 3, 500
SPECIAL = [PAD, CLS, SEP, MASK]


def build_collator(**settings) -> MaskedCollator:
    return MaskedCollator(PAD, mask_token_id=MASK, vocab_size=VOCAB, special_ids=SPECIAL, **settings)


def build_rows(count: int, length: int, seed: int = 0) -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": [CLS, *torch.randint(4, VOCAB, (length,), generator=draw).tolist(), SEP]} for _ in range(count)
    ]


def test_of_15_percent_of_the_tokens_80_are_masked_10_are_others_and_10_stay():
    rows = build_rows(400, 126)
    batch = build_collator()(rows)
    ids, labels = batch["input_ids"], batch["labels"]
    originals = torch.tensor([row["input_ids"] for row in rows])
    chosen = labels != IGNORE_INDEX
    assert (labels[chosen] == originals[chosen]).all()
    assert (ids[~chosen] == originals[~chosen]).all()
    assert not chosen[:, [0, -1]].any(), "a special token was chosen"
    # 400 rows of 126 tokens: three standard errors are 0.005 of the share chosen and 0.014 of what becomes of them.
    assert chosen.float().sum() / (400 * 126) == pytest.approx(0.15, abs=0.005)
    assert (ids[chosen] == MASK).float().mean() == pytest.approx(0.8, abs=0.014)
    assert (ids[chosen] == originals[chosen]).float().mean() == pytest.approx(0.1, abs=0.012)
    others = ids[chosen & (ids != MASK) & (ids != originals)]
    assert not torch.isin(others, torch.tensor(SPECIAL)).any()


def test_the_share_is_the_one_that_was_asked_for():
    chosen = build_collator(mask_fraction=0.4)(build_rows(400, 126))["labels"] != IGNORE_INDEX
    assert chosen.float().sum() / (400 * 126) == pytest.approx(0.4, abs=0.007)


def test_a_short_row_has_one_masked_token_at_least_and_an_empty_one_none():
    rows = build_rows(50, 1)
    labels = build_collator(mask_fraction=0.001)(rows)["labels"]
    assert (labels != IGNORE_INDEX).sum(-1).tolist() == [1] * 50
    assert (build_collator()([{"input_ids": [CLS, SEP]}])["labels"] == IGNORE_INDEX).all()


def test_rows_are_padded_without_labels():
    batch = build_collator()([*build_rows(1, 5), *build_rows(1, 3)])
    assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    assert batch["input_ids"][1, 5:].tolist() == [PAD] * 2
    assert batch["labels"][1, 5:].tolist() == [IGNORE_INDEX] * 2
    assert batch["num_real_tokens"] == 12


def draw(collator: MaskedCollator, rows, epoch: int) -> torch.Tensor:
    collator.set_epoch(epoch)
    return collator(rows)["input_ids"]


def test_masks_hang_on_row_seed_and_epoch_and_on_nothing_drawn_before():
    rows = build_rows(8, 60)
    first = draw(build_collator(seed=1), rows, 2)
    resumed = build_collator(seed=1)
    torch.manual_seed(99)  # a resumed run's global generator stands elsewhere
    draw(resumed, rows[4:], 2)
    assert torch.equal(draw(resumed, rows, 2), first)
    assert torch.equal(draw(resumed, rows[3:5], 2), first[3:5]), "the batch's other rows made a difference"
    assert not torch.equal(draw(resumed, rows, 3), first)
    assert not torch.equal(draw(build_collator(seed=2), rows, 2), first)


def test_masks_of_evaluation_are_the_same_in_every_epoch_and_those_of_no_training_epoch():
    rows = build_rows(8, 60)
    collator = build_collator()
    held_out = collator.for_evaluation()
    before = held_out(rows)["input_ids"]
    epochs = [draw(collator, rows, epoch) for epoch in range(3)]
    assert torch.equal(held_out(rows)["input_ids"], before)
    assert not any(torch.equal(trained, before) for trained in epochs)


def test_a_worker_that_outlives_an_epoch_draws_the_next_ones_masks():
    rows = build_rows(8, 60)
    collator = build_collator()
    loader = DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        collator.set_epoch(epoch)
        found = torch.cat([batch["input_ids"] for batch in loader])
        assert torch.equal(found, draw(build_collator(), rows, epoch))
    assert torch.equal(draw(pickle.loads(pickle.dumps(collator)), rows, 1), found)
