"""The loss of trained tokens in chunks is the plain one: value, gradients and figures, for every head it takes over."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed

from finetune.data.batches import IGNORE_INDEX
from finetune.objectives.trained_loss import HeadForm, find_trained, sum_trained_loss, use_trained_loss

FORMS = [HeadForm(), HeadForm(scale=0.25), HeadForm(cap=2.0), HeadForm(scale=3.0, cap=5.0)]


def compute_plainly(hidden: Tensor, head: nn.Linear, labels: Tensor, form: HeadForm) -> tuple[Tensor, int, float]:
    logits = head(hidden) * form.scale
    if form.cap is not None:
        logits = form.cap * torch.tanh(logits / form.cap)
    logps = torch.log_softmax(logits, -1)
    correct = int((logits.argmax(-1) == labels).sum())
    return F.cross_entropy(logits, labels, reduction="sum"), correct, float(-(logps.exp() * logps).sum().detach())


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 1, 256, 600])
def test_the_sum_its_figures_and_all_gradients_are_those_of_plain_cross_entropy(form, num_tokens):
    torch.manual_seed(num_tokens)
    head = nn.Linear(8, 30, dtype=torch.float64)
    hidden = torch.randn(num_tokens, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(30, (num_tokens,))
    inputs = [hidden, head.weight, head.bias]
    plain, correct, entropy = compute_plainly(hidden, head, labels, form)
    wanted = torch.autograd.grad(plain * 0.125, inputs)
    loss, num_correct, told_entropy = sum_trained_loss(hidden, head, labels, form)
    found = torch.autograd.grad(loss * 0.125, inputs)
    torch.testing.assert_close(loss, plain)
    assert (num_correct.item(), told_entropy.item()) == (correct, pytest.approx(entropy))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_under_a_float16_scaler_small_probabilities_keep_their_gradient():
    torch.manual_seed(0)
    head = nn.Linear(8, 4000, bias=False, dtype=torch.float16).requires_grad_(False)
    hidden = torch.randn(4, 8, dtype=torch.float16, requires_grad=True)
    labels = torch.randint(4000, (4,))
    loss, _, _ = sum_trained_loss(hidden, head, labels)
    (scaled,) = torch.autograd.grad(loss / 4e5 * 65536, hidden)
    exact = hidden.detach().float().requires_grad_()
    plain = F.cross_entropy(exact @ head.weight.float().t(), labels, reduction="sum")
    (wanted,) = torch.autograd.grad(plain / 4e5 * 65536, exact)
    torch.testing.assert_close(scaled.float(), wanted, rtol=2e-3, atol=2e-4)


def test_trained_tokens_are_found_with_their_number_and_without():
    labels = torch.tensor([[7, IGNORE_INDEX, 5, IGNORE_INDEX], [9, 8, IGNORE_INDEX, 4]])
    for number in (3, None):
        places, found = find_trained(labels, number)
        assert (places.tolist(), found.tolist()) == ([1, 4, 6], [5, 8, 4])


# ---- whole models

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.5,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("mistral", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "with a bias": ("phi", {}),
    "scaled down": ("cohere", {"logit_scale": 0.25}),
    "divided": ("granite", {"logits_scaling": 4.0}),
    "capped": ("gemma3_text", {"final_logit_softcapping": 3.0}),
}


def build(kind: str) -> PreTrainedModel:
    set_seed(0)
    model_type, fields = HEADS[kind]
    config = AutoConfig.for_model(model_type, **SHAPE | fields)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()


def build_batch(row_tokens: int = 9) -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (2, row_tokens), generator=torch.Generator().manual_seed(2))
    labels = ids.clone()
    labels[0, :4], labels[1, 5:] = IGNORE_INDEX, IGNORE_INDEX
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def measure(model: nn.Module, num_items: int | None) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**build_batch(), **({} if num_items is None else {"num_items_in_batch": num_items})).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(model: nn.Module, causal: PreTrainedModel) -> None:
    plain = [measure(model, num_items) for num_items in (None, 40)]
    with torch.no_grad():
        assert use_trained_loss(causal)
    for (wanted_loss, wanted), num_items in zip(plain, (None, 40), strict=True):
        loss, gradients = measure(model, num_items)
        assert loss == pytest.approx(wanted_loss, rel=1e-5)
        assert gradients.keys() == wanted.keys() and wanted
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 64)


@pytest.mark.parametrize("kind", HEADS)
def test_a_model_trained_whole_has_its_own_loss_and_gradients(kind):
    model = build(kind)
    check_equal(model, model)


@pytest.mark.parametrize("saved", [None, ["lm_head"]], ids=["frozen head", "trained head"])
def test_under_an_adapter_it_is_the_same_with_a_frozen_head_and_with_one_trained_beside(saved):
    causal = build("plain")
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, modules_to_save=saved)
    model = get_peft_model(causal, config)
    check_equal(model, causal)
    with model.disable_adapter(), torch.no_grad():
        without = model(**build_batch()).loss
    assert without.item() != pytest.approx(model(**build_batch()).loss.item())
    assert without.item() == pytest.approx(build("plain")(**build_batch()).loss.item(), rel=1e-5)


def test_a_head_that_is_more_than_a_linear_layer_keeps_its_own_way():
    with torch.no_grad():
        lora = build("plain")
        get_peft_model(lora, LoraConfig(target_modules=["lm_head"]))
        assert not use_trained_loss(lora)
        shifted = build("plain")
        shifted.lm_head.register_forward_hook(lambda module, inputs, output: output + torch.arange(64))
        assert not use_trained_loss(shifted)


# ---- what it costs


class Watch(TorchDispatchMode):
    """Counts what makes the host wait for a device, and keeps the size of the largest tensor of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.most_logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero")
        made = func(*args, **kwargs or {})
        is_weight = isinstance(made, Tensor) and made.shape[-2:] == (32, 64)
        if isinstance(made, Tensor) and made.dim() > 1 and made.shape[-1] == 64 and not is_weight:
            self.most_logits = max(self.most_logits, made.numel())
        return made


class Products(TorchDispatchMode):
    """Keeps the shapes of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "mm":
            self.shapes.add(tuple(args[0].shape))
        return func(*args, **kwargs or {})


def test_logits_are_made_of_trained_tokens_alone():
    batch, most = build_batch(row_tokens=60), []
    model = build("plain")
    for _ in range(2):
        with Watch() as watch:
            model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
        most.append(watch.most_logits)
        with torch.no_grad():
            use_trained_loss(model)
    num_trained = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    assert num_trained == 60
    assert most == [2 * 60 * 64, 64 * 64]  # filled up to a multiple of 64 tokens


def test_whatever_the_number_of_trained_tokens_the_products_have_few_shapes():
    head = nn.Linear(32, 64, bias=False)
    shapes = set()
    for num_tokens in range(1, 300):
        hidden = torch.zeros(num_tokens, 32, requires_grad=True)
        with Products() as products:
            sum_trained_loss(hidden, head, torch.zeros(num_tokens, dtype=torch.long))[0].backward()
        shapes |= products.shapes
    assert {rows for rows, _ in shapes} == {64, 128, 192, 256}


@pytest.mark.parametrize(("number", "waits"), [(9, 0), (None, 1)])
def test_no_device_is_asked_how_many_tokens_are_trained_where_their_number_is_known(number, waits):
    head, hidden = build("plain").lm_head, torch.randn(18, 32, requires_grad=True)
    labels = build_batch()["labels"]
    with Watch() as watch:
        places, found = find_trained(labels, number)
        loss, _, _ = sum_trained_loss(hidden[places], head, found)
        loss.backward()
    assert len(found) == 9
    assert watch.waits == waits
