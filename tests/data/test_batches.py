"""Packed documents do not read each other; nothing but real tokens is counted or trained; pairs lie as TRL has them."""

import itertools

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from finetune.data.batches import IGNORE_INDEX, Collator, JudgedCollator, PairCollator, choose_layout

DOCUMENTS = [[1, 5, 6, 7, 2], [1, 8, 9, 2], [1, 10, 11, 12, 13, 2], [1, 14, 2]]


def packed_row(*documents: list[int]) -> dict[str, list[int]]:
    ids = [token for document in documents for token in document]
    return {"input_ids": ids, "labels": ids, "seq_lengths": [len(document) for document in documents]}


def tiny_model(attention: str) -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=attention,
    )
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_packed_documents_equal_those_of_each_document_alone(attention):
    model = tiny_model(attention)
    # The second row is shorter, so that padding is there as well.
    batch = Collator("packed", pad_token_id=0)([packed_row(*DOCUMENTS[:3]), packed_row(DOCUMENTS[3], DOCUMENTS[1])])
    assert "attention_mask" not in batch
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        places = [(0, 0, 0), (0, 5, 1), (0, 9, 2), (1, 0, 3), (1, 3, 1)]
        for row, start, document in places:
            alone = model(input_ids=torch.tensor([DOCUMENTS[document]]), use_cache=False).logits[0]
            torch.testing.assert_close(packed[row, start : start + len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_an_all_ones_mask_would_let_packed_documents_read_each_other():
    """The reason why packed batches carry no attention mask: with one, the same rows give other logits."""
    model = tiny_model("sdpa")
    batch = Collator("packed", pad_token_id=0)([packed_row(*DOCUMENTS[:3])])
    with torch.no_grad():
        right = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        wrong = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=torch.ones_like(batch["input_ids"]),
            use_cache=False,
        ).logits
    assert (right - wrong).abs().max() > 1e-3


def test_the_first_token_of_each_packed_document_is_never_trained():
    batch = Collator("packed", pad_token_id=0)([packed_row(*DOCUMENTS[:2])])
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 5, 6, 7, 2, IGNORE_INDEX, 8, 9, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]


def test_flat_batches_are_one_row_without_padding():
    batch = Collator("flat", pad_token_id=0)([packed_row(*DOCUMENTS[:2]), packed_row(DOCUMENTS[3])])
    assert batch["input_ids"].shape == (1, 12)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]]


def test_flat_batches_of_unpacked_rows_restart_at_every_row():
    rows = [{"input_ids": document, "labels": document} for document in DOCUMENTS[:2]]
    batch = Collator("flat", pad_token_id=0)(rows)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]


def test_a_flat_batch_names_the_length_of_every_document_where_it_is_asked_to():
    rows = [packed_row(*DOCUMENTS[:3]), packed_row(DOCUMENTS[3]), packed_row(DOCUMENTS[1], DOCUMENTS[0])]
    batch = Collator("flat", pad_token_id=0, names_lengths=True)(rows)
    lengths = batch["packed_seq_lengths"]
    assert lengths.tolist() == [5, 4, 6, 3, 4, 5]
    assert lengths.dtype == torch.int32
    assert lengths.sum() == batch["input_ids"].shape[1] == batch["num_real_tokens"]
    unpacked = Collator("flat", pad_token_id=0, names_lengths=True)(
        [{"input_ids": document, "labels": document} for document in ([7], *DOCUMENTS[:2])]
    )
    assert unpacked["packed_seq_lengths"].tolist() == [1, 5, 4]


@pytest.mark.parametrize(("layout", "names"), [("flat", False), ("packed", True), ("padded", True)])
def test_no_other_batch_names_lengths_which_transformers_would_not_know(layout, names):
    rows = [packed_row(*DOCUMENTS[:2]), packed_row(DOCUMENTS[3])]
    named = Collator(layout, pad_token_id=0, names_lengths=names)(rows)
    assert named.keys() == Collator(layout, pad_token_id=0)(rows).keys()
    assert "packed_seq_lengths" not in named


def test_padded_batches_mask_their_padding_and_never_train_it():
    rows = [{"input_ids": document, "labels": document} for document in (DOCUMENTS[0], DOCUMENTS[3])]
    batch = Collator("padded", pad_token_id=31)(rows)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 7, 2], [1, 14, 2, 31, 31]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist()[1] == [IGNORE_INDEX, 14, 2, IGNORE_INDEX, IGNORE_INDEX]


@pytest.mark.parametrize("layout", ["packed", "padded", "flat"])
def test_only_real_tokens_are_counted(layout):
    rows = [packed_row(*DOCUMENTS[:2]), packed_row(DOCUMENTS[3])]
    assert Collator(layout, pad_token_id=0)(rows)["num_real_tokens"] == 12


def test_flash_attention_takes_flat_batches_and_others_follow_packing():
    assert choose_layout(packing=True, attention="flash_attention_2") == "flat"
    assert choose_layout(packing=False, attention="flash_attention_2") == "flat"
    assert choose_layout(packing=True, attention="sdpa") == "packed"
    assert choose_layout(packing=False, attention="sdpa") == "padded"


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_unsloths_kernels_take_packed_rows_flat_and_others_padded_whatever_transformers_calls_its_own(attention):
    assert choose_layout(packing=True, attention=attention, by_unsloth=True) == "flat"
    assert choose_layout(packing=False, attention=attention, by_unsloth=True) == "padded"


PAIRS = [
    {
        "chosen_ids": [1, 5, 6, 7, 2],
        "chosen_labels": [IGNORE_INDEX, IGNORE_INDEX, 6, 7, 2],
        "rejected_ids": [1, 5, 8, 2],
        "rejected_labels": [IGNORE_INDEX, IGNORE_INDEX, 8, 2],
    },
    {
        "chosen_ids": [1, 9, 2],
        "chosen_labels": [IGNORE_INDEX, 9, 2],
        "rejected_ids": [1, 10, 11, 2],
        "rejected_labels": [IGNORE_INDEX, 10, 11, 2],
    },
]
JUDGED = [
    {
        "input_ids": [1, 5, 6, 2],
        "labels": [IGNORE_INDEX, IGNORE_INDEX, 6, 2],
        "kl_input_ids": [1, 5, 8, 9, 2],
        "kl_labels": [IGNORE_INDEX, IGNORE_INDEX, 8, 9, 2],
        "desirable": True,
    },
    {
        "input_ids": [1, 8, 9, 2],
        "labels": [IGNORE_INDEX, 8, 9, 2],
        "kl_input_ids": [1, 6, 2],
        "kl_labels": [IGNORE_INDEX, 6, 2],
        "desirable": False,
    },
]


def test_chosen_answers_lie_above_the_rejected_ones_and_only_answers_are_marked():
    batch = PairCollator(pad_token_id=31)(PAIRS)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 7, 2], [1, 9, 2, 31, 31], [1, 5, 8, 2, 31], [1, 10, 11, 2, 31]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 1, 1, 0]]
    assert batch["num_real_tokens"] == 16
    assert all(batch[name].dtype == torch.int64 for name in ("input_ids", "attention_mask", "completion_mask"))
    assert "ref_chosen_logps" not in batch


def test_the_references_log_probabilities_come_along_where_rows_have_them():
    rows = [row | {"ref_chosen_logps": -1.5 - n, "ref_rejected_logps": -3.0} for n, row in enumerate(PAIRS)]
    batch = PairCollator(pad_token_id=0)(rows)
    torch.testing.assert_close(batch["ref_chosen_logps"], torch.tensor([-1.5, -2.5]))
    torch.testing.assert_close(batch["ref_rejected_logps"], torch.tensor([-3.0, -3.0]))
    judged = JudgedCollator(pad_token_id=0)([row | {"ref_logps": -1.0, "ref_KL_logps": -2.0} for row in JUDGED])
    torch.testing.assert_close(judged["ref_logps"], torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(judged["ref_KL_logps"], torch.tensor([-2.0, -2.0]))


def test_judged_answers_lie_beside_those_of_other_rows():
    batch = JudgedCollator(pad_token_id=31)(JUDGED)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 2], [1, 8, 9, 2]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    assert batch["KL_input_ids"].tolist() == [[1, 5, 8, 9, 2], [1, 6, 2, 31, 31]]
    assert batch["KL_attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["KL_completion_mask"].tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert batch["label"].tolist() == [True, False]
    assert batch["num_real_tokens"] == 8


def test_a_flat_batch_names_its_documents_by_where_they_begin_and_how_long_the_longest_is():
    rows = [packed_row(*DOCUMENTS[:2]), packed_row(DOCUMENTS[3])]
    batch = Collator("flat", pad_token_id=0, names_documents=True)(rows)
    lengths = [len(DOCUMENTS[place]) for place in (0, 1, 3)]
    assert batch["cu_seq_lens_q"].tolist() == [0, *itertools.accumulate(lengths)]
    assert batch["cu_seq_lens_q"].dtype == batch["cu_seq_lens_k"].dtype == torch.int32
    assert (batch["max_length_q"], batch["max_length_k"]) == (max(lengths), max(lengths))
    assert "cu_seq_lens_q" not in Collator("packed", pad_token_id=0, names_documents=True)(rows)


def test_a_flat_batch_of_packed_rows_is_filled_up_with_a_document_that_nobody_reads():
    long = list(range(3, 43))
    collator = Collator("flat", pad_token_id=0, names_documents=True)
    batch = collator([packed_row(long, DOCUMENTS[0])])
    assert batch["input_ids"].shape == (1, 64)
    assert batch["cu_seq_lens_q"].tolist() == [0, 40, 45, 64]
    assert batch["input_ids"][0, 45:].unique().tolist() == [0]
    assert batch["labels"][0, 45:].unique().tolist() == [IGNORE_INDEX]
    assert batch["num_real_tokens"] == 45
    assert batch["num_trained_tokens"] == 45 - 2  # the first of each
    unpacked = collator([{"input_ids": long, "labels": long}])
    assert unpacked["input_ids"].shape == (1, 40)


def test_what_fills_a_flat_batch_up_is_no_longer_than_its_longest_document():
    batch = Collator("flat", pad_token_id=0, names_documents=True)([packed_row(*DOCUMENTS[:2])])
    assert batch["input_ids"].shape == (1, 9)


@pytest.mark.parametrize("layout", ["packed", "padded", "flat"])
def test_trained_tokens_are_counted_as_the_loss_sees_them(layout):
    batch = Collator(layout, pad_token_id=0)([packed_row(DOCUMENTS[1]), packed_row(DOCUMENTS[3])])
    assert batch["num_trained_tokens"] == int((batch["labels"] != IGNORE_INDEX).sum()) == 5


def test_packed_rows_lie_flat_where_documents_are_attended_apart_and_single_ones_stay_padded():
    assert choose_layout(packing=True, attention="documents") == "flat"
    assert choose_layout(packing=False, attention="documents") == "padded"
