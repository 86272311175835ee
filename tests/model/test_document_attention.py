"""Packed documents have the loss and gradients that they have alone; rows of other kinds are those of sdpa."""

import functools
import gc
import importlib
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed

from finetune.data.batches import Collator
from finetune.model import document_attention
from finetune.model.document_attention import DOCUMENTS, SERVED_MODEL_TYPES, leave_masks_out

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.5,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# Of mixtures: all experts, so that rounding chooses none; their products know no float64.
EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OF_TYPE: dict[str, dict[str, Any]] = {
    "mixtral": EXPERTS, "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16}, "qwen3_moe": EXPERTS,
    "seed_oss": {"attention_dropout": 0.0, "residual_dropout": 0.0},
}  # fmt: skip
LENGTHS = (5, 12, 1, 9)


def build(model_type: str, attention: str, dtype: torch.dtype = torch.float64, **fields: Any) -> PreTrainedModel:
    set_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE | OF_TYPE.get(model_type, {}) | fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    if attention == DOCUMENTS:
        leave_masks_out(model)
    return model


def draw_documents(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 64, (length,), generator=generator).tolist() for length in lengths]


def build_batch(documents: list[list[int]]) -> dict[str, Any]:
    ids = list(itertools.chain.from_iterable(documents))
    row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(document) for document in documents]}
    batch = Collator("flat", 0, names_documents=True)([row])
    return {name: value for name, value in batch.items() if not name.startswith("num_")}


def sum_alone(model: PreTrainedModel, documents: list[list[int]]) -> Tensor:
    """The loss of each document in a row of its own, summed."""
    total = torch.zeros((), dtype=torch.float64)
    for document in documents:
        ids = torch.tensor([document])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits.double(), ids[0, 1:], reduction="sum")
    return total


def sum_packed(model: PreTrainedModel, documents: list[list[int]]) -> Tensor:
    batch = build_batch(documents)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[0, :-1]
    return F.cross_entropy(logits.double(), labels[0, 1:], reduction="sum")


def find_gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def check_equal(
    packed: PreTrainedModel, alone: PreTrainedModel, tolerance: float, lengths: tuple[int, ...] = LENGTHS
) -> None:
    documents = draw_documents(lengths)
    loss, wanted_loss = sum_packed(packed, documents), sum_alone(alone, documents)
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=tolerance)
    gradients, wanted = find_gradients(packed, loss), find_gradients(alone, wanted_loss)
    assert gradients.keys() == wanted.keys() and len(wanted) > 10
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, wanted[name], rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("model_type", sorted(SERVED_MODEL_TYPES))
def test_loss_and_gradients_of_packed_documents_are_those_of_the_documents_alone(model_type):
    # Several of these compute norms, positions or the softmax in float32, whatever the model's dtype.
    dtype = torch.float32 if EXPERTS.items() <= OF_TYPE.get(model_type, {}).items() else torch.float64
    check_equal(build(model_type, DOCUMENTS, dtype), build(model_type, "sdpa", dtype), tolerance=2e-4)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
def test_in_float32_they_are_equal_but_for_rounding_and_in_bfloat16_within_its_digits(model_type):
    check_equal(build(model_type, DOCUMENTS, torch.float32), build(model_type, "sdpa", torch.float32), tolerance=2e-4)
    documents = draw_documents()
    rounded = sum_packed(build(model_type, DOCUMENTS, torch.bfloat16), documents)
    assert rounded.item() == pytest.approx(
        sum_alone(build(model_type, "sdpa", torch.bfloat16), documents).item(), rel=2e-2
    )


@pytest.mark.parametrize(("model_type", "fields"), [("mistral", {}), ("gemma3_text", {"final_logit_softcapping": 5.0})])
def test_a_window_shorter_than_a_document_hides_what_it_hides_of_it_alone(model_type, fields):
    windowed = {"sliding_window": 4} | fields
    check_equal(build(model_type, DOCUMENTS, **windowed), build(model_type, "sdpa", **windowed), tolerance=2e-4)
    documents = draw_documents()
    whole = sum_packed(build(model_type, DOCUMENTS, **fields, sliding_window=64), documents)
    assert sum_packed(build(model_type, DOCUMENTS, **windowed), documents).item() != pytest.approx(whole.item())


@pytest.mark.parametrize("window", [None, 4])
def test_what_fills_a_row_and_its_documents_up_changes_nothing(window):
    lengths = (40, 5)
    assert build_batch(draw_documents(lengths))["input_ids"].shape == (1, 64)
    fields = {"sliding_window": window}
    check_equal(build("mistral", DOCUMENTS, **fields), build("mistral", "sdpa", **fields), 2e-4, lengths)


@pytest.mark.parametrize(("width", "dtype", "few"), [
    (40, torch.bfloat16, {32, 64}), (40, torch.float32, set(range(1, 60))), (32, torch.bfloat16, set(range(1, 60))),
])  # fmt: skip
def test_a_cpu_compiles_its_16_bit_kernels_for_few_lengths_and_compiles_none_in_float32(monkeypatch, width, dtype, few):
    lengths = set()

    def attend(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        lengths.add(query.shape[2])
        return query

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    query, key = torch.zeros(1, 4, 60, width, dtype=dtype), torch.zeros(1, 2, 60, width, dtype=dtype)
    for length in range(1, 60):
        row = document_attention._Row(torch.tensor([0, length, 60], dtype=torch.int32), 59, None, 0.0, None)
        assert document_attention._attend_one_by_one(torch.nn.Module(), query, key, key, row).shape == (1, 60, 4, width)
    assert lengths == few


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("width", "computed"), [(32, torch.float32), (40, torch.bfloat16)])
def test_narrow_heads_of_16_bits_are_attended_in_float32(monkeypatch, width, computed, autocast):
    seen = set()
    attend = F.scaled_dot_product_attention

    def watch(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype)
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    set_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    query, key = torch.randn(1, 4, 60, width, dtype=dtype), torch.randn(1, 2, 60, width, dtype=dtype)
    row = document_attention._Row(torch.tensor([0, 20, 60], dtype=torch.int32), 40, None, 0.0, None)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = document_attention._attend_one_by_one(torch.nn.Module(), query, key, key, row)
    assert (seen, out.dtype) == ({computed}, torch.bfloat16)
    alone = attend(query[:, :, 20:].double(), *[key[:, :, 20:].double()] * 2, is_causal=True, enable_gqa=True)
    assert torch.allclose(out[:, 20:].double(), alone.transpose(1, 2), atol=2e-2)


def test_recomputed_layers_are_told_of_the_documents_too():
    documents = draw_documents()
    kept, recomputed = build("mistral", DOCUMENTS), build("mistral", DOCUMENTS)
    recomputed.gradient_checkpointing_enable({"use_reentrant": False})
    kept.train(), recomputed.train()
    wanted = find_gradients(kept, sum_packed(kept, documents))
    for name, gradient in find_gradients(recomputed, sum_packed(recomputed, documents)).items():
        assert torch.equal(gradient, wanted[name]), name


@pytest.mark.parametrize("window", [None, 4])
def test_one_mask_of_the_whole_row_which_a_t4_has_gives_the_same(monkeypatch, window):
    monkeypatch.setattr(document_attention, "_find_way", lambda *_: document_attention._attend_under_one_mask)
    fields = {"sliding_window": window}
    check_equal(build("mistral", DOCUMENTS, **fields), build("mistral", "sdpa", **fields), tolerance=2e-4)


# ---- what is not packed


def compute_padded(model: PreTrainedModel) -> Tensor:
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def compute_rows(model: PreTrainedModel) -> Tensor:
    """Two packed rows, whose documents are known by their positions alone."""
    ids, places = torch.tensor([[5, 6, 7, 8], [9, 3, 4, 6]]), torch.tensor([[0, 1, 0, 1], [0, 1, 2, 0]])
    return model(input_ids=ids, position_ids=places, use_cache=False).logits


def compute_answers(model: PreTrainedModel) -> Tensor:
    ids, mask = torch.tensor([[0, 0, 7, 8], [9, 3, 4, 6]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)


@pytest.mark.parametrize("compute", [compute_padded, compute_rows, compute_answers])
def test_rows_whose_documents_are_not_named_are_those_of_sdpa_to_the_bit(compute):
    for fields in ({}, {"sliding_window": 3}):
        models = [build("mistral", attention, torch.float32, **fields).eval() for attention in (DOCUMENTS, "sdpa")]
        with torch.no_grad():
            ours, theirs = (compute(model) for model in models)
        assert torch.equal(ours, theirs)


# ---- what it costs


class Watch(TorchDispatchMode):
    """Counts what makes the host wait for a device, and keeps the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "item", "is_nonzero"):
            self.waits.append(name)
        made = func(*args, **kwargs or {})
        if isinstance(made, Tensor):
            self.shapes.add(tuple(made.shape))
        return made


def watch_step(attention: str) -> Watch:
    batch = build_batch(draw_documents())
    model = build("mistral", attention, torch.float32)
    if attention == "sdpa":
        batch = {name: batch[name] for name in ("input_ids", "labels", "position_ids")}
    with Watch() as watched:
        model(**batch, use_cache=False).loss.backward()
    return watched


def test_no_mask_of_the_whole_row_is_made_and_no_device_is_asked_where_documents_begin():
    num_tokens = sum(LENGTHS)
    ours, theirs = watch_step(DOCUMENTS), watch_step("sdpa")
    assert theirs.waits and any(shape[-2:] == (num_tokens, num_tokens) for shape in theirs.shapes)
    assert ours.waits == [] and not any(shape[-2:] == (num_tokens, num_tokens) for shape in ours.shapes)


def test_a_block_mask_goes_with_its_row(monkeypatch):
    monkeypatch.setattr(document_attention, "flex_attention_forward", lambda *args, **kwargs: (torch.zeros(1), None))
    for _ in range(3):
        row = document_attention._Row(torch.tensor([0, 5, 8], dtype=torch.int32), 5, 4, 0.0, None)
        query = torch.zeros(1, 2, 8, 8)
        document_attention._attend_by_flex(torch.nn.Identity(), query, query, query, row)
        assert len(document_attention._block_masks) == 1
        del row
    gc.collect()
    assert len(document_attention._block_masks) == 0


@pytest.mark.parametrize("knows_groups", [True, False])
def test_the_variable_length_kernel_is_told_what_this_version_of_it_takes(monkeypatch, knows_groups):
    told: dict[str, Any] = {}

    def varlen_attn(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        told.update(kwargs, key_heads=key.shape[1])
        return query

    def of_2_11(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:  # fmt: skip
        return varlen_attn(query, key, value, scale=scale, window_size=window_size)

    document_attention._find_varlen_keywords.cache_clear()
    module = importlib.import_module("torch.nn.attention.varlen")
    newest = functools.wraps(module.varlen_attn)(varlen_attn)
    monkeypatch.setattr(module, "varlen_attn", newest if knows_groups else of_2_11)
    row = document_attention._Row(torch.tensor([0, 5, 8], dtype=torch.int32), 5, 4, 0.0, None)
    query, key = torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 8, 8)
    try:
        document_attention._attend_by_varlen(torch.nn.Identity(), query, key, key, row)
    finally:
        document_attention._find_varlen_keywords.cache_clear()
    assert told["window_size"] == (3, 0)
    assert told["key_heads"] == (2 if knows_groups else 4)
    assert told.get("enable_gqa", False) is knows_groups
