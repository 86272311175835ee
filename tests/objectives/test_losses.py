"""The formulas agree with TRL's trainers on the same tensors, and start where they say they start."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast, Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

from finetune.data.batches import IGNORE_INDEX
from finetune.objectives.losses import (
    DPO_LOSSES,
    F_DIVERGENCES,
    Answers,
    LossSettings,
    count_trained_tokens,
    estimate_kl,
    kto_loss,
    loss_at_start,
    mixed_loss,
    orpo_loss,
    pair_logps,
    reward_loss,
    sequence_logps,
    token_mean_nll,
)
from tests.model.tiny_models import write_tiny_model

LOG_2 = math.log(2)
# The losses that compare the two answers' scores; the others have no form for another divergence than reverse KL.
COMPARING = ["sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm"]
SMOOTHED = LossSettings(label_smoothing=0.1)  # exo_pair is infinite without

PAIRS = Dataset.from_list(
    [
        {"prompt": "w1 w2 w3", "chosen": " w4 w5", "rejected": " w6 w7 w8 w9", "margin": 0.5},
        {"prompt": "w1 w5", "chosen": " w9 w8 w7 w6 w5 w4", "rejected": " w3", "margin": 0.0},
        {"prompt": "w7 w7 w7 w7", "chosen": " w10 w11", "rejected": " w12 w13", "margin": 2.0},
    ]
)
JUDGED = Dataset.from_list(
    [
        {"prompt": "w1 w2 w3", "completion": " w4 w5", "label": True},
        {"prompt": "w1 w5", "completion": " w9 w8 w7 w6 w5", "label": False},
        {"prompt": "w7 w7 w7 w7", "completion": " w12", "label": True},
        {"prompt": "w6 w1", "completion": " w2 w14 w3", "label": True},
    ]
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<pad>": 1, "</s>": 2} | {f"w{place}": place + 3 for place in range(100)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="</s>", padding_side="right"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def load_policy(folder: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))


def move(policy: PeftModel) -> None:
    """Leave the reference, as training does; TRL has kept what the adapter was when the trainer was built."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.named_parameters():
        if "lora_B.default" in name:
            parameter.data.normal_(0, 0.05, generator=generator)


def quiet(config: type, tmp_path_factory: pytest.TempPathFactory, **settings: Any) -> Any:
    shared = {"per_device_train_batch_size": 4, "bf16": False, "use_cpu": True, "report_to": "none"}
    folder = tmp_path_factory.mktemp("trainer")
    return config(output_dir=str(folder), gradient_checkpointing=False, **shared, **settings)


def first_batch(trainer: Trainer) -> dict[str, Any]:
    trainer.model.eval()
    [batch] = trainer.get_eval_dataloader(trainer.train_dataset)
    return dict(batch)


def logits_of(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def labels_of(ids: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), ids, IGNORE_INDEX)


# ---- the same numbers as TRL's trainers


@pytest.fixture(scope="module")
def dpo(folder, tokenizer, tmp_path_factory) -> tuple[DPOTrainer, dict[str, Tensor]]:
    arguments = quiet(DPOConfig, tmp_path_factory)
    trainer = DPOTrainer(
        load_policy(folder), args=arguments, train_dataset=PAIRS, eval_dataset=PAIRS, processing_class=tokenizer
    )
    move(trainer.model)
    return trainer, first_batch(trainer)


@pytest.fixture(scope="module")
def dpo_answers(dpo) -> Callable[[float | None], tuple[Answers, Answers]]:
    """The pairs of the trainer's batch, from logits of the same model."""
    trainer, batch = dpo
    ids, labels = batch["input_ids"], labels_of(batch["input_ids"], batch["completion_mask"])
    policy_logits = logits_of(trainer.model, ids, batch["attention_mask"])
    with trainer.model.disable_adapter():
        reference_logits = logits_of(trainer.model, ids, batch["attention_mask"])
    nll, num_tokens = -sequence_logps(policy_logits, labels), count_trained_tokens(labels)

    def build(ld_alpha: float | None) -> tuple[Answers, Answers]:
        logps, reference = (pair_logps(logits, labels, ld_alpha) for logits in (policy_logits, reference_logits))
        sides = zip(logps, reference, num_tokens.chunk(2), nll.chunk(2), strict=True)
        chosen, rejected = (Answers(*fields) for fields in sides)
        return chosen, rejected

    return build


@pytest.fixture
def ask_dpo(dpo, monkeypatch) -> Callable[..., float]:
    """What the DPOTrainer itself says with these settings."""
    trainer, batch = dpo

    def ask(loss_types: list[str], settings: LossSettings, weights: list[float] | None = None, **others: Any) -> float:
        values = {
            "loss_types": loss_types,
            "loss_weights": weights or [1.0] * len(loss_types),
            "beta": settings.beta,
            "label_smoothing": settings.label_smoothing,
            "f_divergence_type": settings.f_divergence_type,
            "f_alpha_divergence_coef": settings.f_alpha_divergence_coef,
        }
        for name, value in (values | others).items():
            monkeypatch.setattr(trainer, name, value)
        monkeypatch.setattr(trainer.args, "discopop_tau", settings.discopop_tau)
        with torch.no_grad():
            return trainer.compute_loss(trainer.model, batch).item()

    return ask


def test_every_loss_type_of_trl_is_here(ask_dpo):
    with pytest.raises(ValueError, match="Unknown loss type") as caught:
        ask_dpo(["none"], LossSettings())
    assert all(f"'{name}'" in str(caught.value) for name in DPO_LOSSES)
    assert str(caught.value).count("'") == 2 * len(DPO_LOSSES)


@pytest.mark.parametrize("settings", [SMOOTHED, LossSettings(beta=0.7, label_smoothing=1e-3, discopop_tau=0.5)])
@pytest.mark.parametrize("name", DPO_LOSSES)
def test_a_loss_is_that_of_trls_trainer(ask_dpo, dpo_answers, name, settings):
    losses = DPO_LOSSES[name](*dpo_answers(None), settings)
    assert losses.shape == (3,)
    assert losses.mean().item() == pytest.approx(ask_dpo([name], settings), rel=1e-5)


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("divergence", F_DIVERGENCES)
def test_a_divergence_is_that_of_trls_trainer(ask_dpo, dpo_answers, divergence, name):
    for alpha in (0.5, 1.0, 2.5) if divergence == "alpha_divergence" else (0.5,):
        settings = replace(SMOOTHED, f_divergence_type=divergence, f_alpha_divergence_coef=alpha)
        loss = DPO_LOSSES[name](*dpo_answers(None), settings).mean().item()
        assert loss == pytest.approx(ask_dpo([name], settings), rel=1e-5)


def test_the_divergences_give_different_losses(dpo_answers):
    losses = {
        DPO_LOSSES["sigmoid"](*dpo_answers(None), LossSettings(f_divergence_type=name)).mean().item()
        for name in F_DIVERGENCES
    }
    assert len(losses) == 4


@pytest.mark.parametrize("ld_alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "aot", "sft"])
def test_length_desensitization_is_that_of_trls_trainer(ask_dpo, dpo_answers, name, ld_alpha):
    loss = DPO_LOSSES[name](*dpo_answers(ld_alpha), SMOOTHED).mean().item()
    assert loss == pytest.approx(ask_dpo([name], SMOOTHED, ld_alpha=ld_alpha), rel=1e-5)


def test_a_weighted_list_is_that_of_trls_trainer(ask_dpo, dpo_answers):
    names, weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.5]
    losses = mixed_loss(*dpo_answers(None), SMOOTHED, names, weights)
    assert losses.shape == (3,)
    assert losses.mean().item() == pytest.approx(ask_dpo(names, SMOOTHED, weights), rel=1e-5)


def test_references_that_come_with_the_batch_serve_as_well(ask_dpo, dpo, dpo_answers, monkeypatch):
    _, batch = dpo
    given = {"ref_chosen_logps": torch.tensor([-9.0, -4.0, -7.5]), "ref_rejected_logps": torch.tensor([-8.0, -2.0, 0])}
    for name, logps in given.items():
        monkeypatch.setitem(batch, name, logps)
    sides = zip(dpo_answers(None), given.values(), strict=True)
    answers = [replace(side, reference_logps_B=logps) for side, logps in sides]
    loss = DPO_LOSSES["sigmoid"](*answers, LossSettings()).mean().item()
    assert loss == pytest.approx(ask_dpo(["sigmoid"], LossSettings(), precompute_ref_logps=True), rel=1e-5)


@pytest.fixture(scope="module")
def kto(folder, tokenizer, tmp_path_factory) -> tuple[KTOTrainer, dict[str, Tensor]]:
    arguments = quiet(KTOConfig, tmp_path_factory, train_sampling_strategy="sequential", beta=0.3)
    trainer = KTOTrainer(
        load_policy(folder), args=arguments, train_dataset=JUDGED, eval_dataset=JUDGED, processing_class=tokenizer
    )
    move(trainer.model)
    return trainer, first_batch(trainer)


def judged_logps(batch: dict[str, Tensor], model: torch.nn.Module, prefix: str = "") -> Tensor:
    ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
    return sequence_logps(logits_of(model, ids, mask), labels_of(ids, batch[f"{prefix}completion_mask"]))


@pytest.mark.parametrize("direction", [1, -1], ids=["closer", "further"])
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_kto_is_that_of_trls_trainer(kto, monkeypatch, name, direction):
    trainer, batch = kto
    monkeypatch.setattr(trainer, "loss_type", name)
    monkeypatch.setattr(trainer, "calculate_KL", name == "kto")
    monkeypatch.setattr(trainer, "desirable_weight", 1.5)
    monkeypatch.setattr(trainer, "undesirable_weight", 0.5)
    monkeypatch.setattr(trainer, "precompute_ref_logps", True)

    logps, kl_logps = judged_logps(batch, trainer.model), judged_logps(batch, trainer.model, "KL_")
    # References on either side of the policy: an estimate above 0, and one that is held at 0.
    reference, kl_reference = logps - direction * torch.tensor([1.0, 2, 3, 4]), kl_logps - direction * 2.5
    monkeypatch.setitem(batch, "ref_logps", reference)
    monkeypatch.setitem(batch, "ref_KL_logps", kl_reference)
    kl = estimate_kl(kl_logps, kl_reference) if name == "kto" else 0.0
    if name == "kto":
        assert kl.item() == pytest.approx(2.5 if direction > 0 else 0.0)

    losses = kto_loss(logps - reference, batch["label"], kl, 0.3, 1.5, 0.5)
    assert losses.shape == (4,)
    with torch.no_grad():
        assert losses.mean().item() == pytest.approx(trainer.compute_loss(trainer.model, batch).item(), rel=1e-5)


def test_kto_finds_its_reference_with_the_adapter_off(kto):
    trainer, batch = kto
    with torch.no_grad():
        asked = trainer.compute_loss(trainer.model, batch).item()
    policy = [judged_logps(batch, trainer.model, prefix) for prefix in ("", "KL_")]
    with trainer.model.disable_adapter():
        reference = [judged_logps(batch, trainer.model, prefix) for prefix in ("", "KL_")]
    losses = kto_loss(policy[0] - reference[0], batch["label"], estimate_kl(policy[1], reference[1]), 0.3)
    assert losses.mean().item() == pytest.approx(asked, rel=1e-5)


def test_orpo_is_that_of_trls_trainer(folder, tokenizer, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    arguments = quiet(ORPOConfig, tmp_path_factory, beta=0.4, max_length=64, remove_unused_columns=False)
    trainer = ORPOTrainer(load_policy(folder), args=arguments, train_dataset=PAIRS, processing_class=tokenizer)
    batch = first_batch(trainer)
    with torch.no_grad():
        asked = trainer.compute_loss(trainer.model, batch).item()

    means = []
    for side in ("chosen", "rejected"):
        ids, mask, labels = (batch[f"{side}_{name}"] for name in ("input_ids", "attention_mask", "labels"))
        logits = logits_of(trainer.model, ids, mask)
        means.append(sequence_logps(logits, labels) / count_trained_tokens(labels))
        if side == "chosen":
            whole_rows = labels_of(ids, mask)
            nll = token_mean_nll(-sequence_logps(logits, whole_rows), count_trained_tokens(whole_rows))
    losses = orpo_loss(*means, nll, beta=0.4)
    assert losses.shape == (3,)
    assert losses.mean().item() == pytest.approx(asked, rel=1e-5)


@pytest.mark.parametrize("coefficient", [None, 0.01])
@pytest.mark.parametrize("has_margins", [True, False])
def test_a_reward_models_loss_is_that_of_trls_trainer(folder, tokenizer, tmp_path_factory, has_margins, coefficient):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    arguments = quiet(RewardConfig, tmp_path_factory, center_rewards_coefficient=coefficient)
    rows = PAIRS if has_margins else PAIRS.remove_columns("margin")
    trainer = RewardTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    batch = first_batch(trainer)
    scores = logits_of(trainer.model, batch["input_ids"], batch["attention_mask"]).squeeze(-1)
    losses = reward_loss(*scores.chunk(2), batch["margin"] if has_margins else 0.0, coefficient or 0.0)
    assert losses.shape == (3,)
    with torch.no_grad():
        assert losses.mean().item() == pytest.approx(trainer.compute_loss(trainer.model, batch).item(), rel=1e-5)


# ---- by eye


def answers(ratios: list[float], num_tokens: int = 4) -> Answers:
    """Answers whose reference finds each at -20 nats."""
    logps = torch.tensor(ratios) - 20
    return Answers(logps, torch.full_like(logps, -20.0), torch.full_like(logps, num_tokens), -logps)


@pytest.mark.parametrize(
    ("name", "settings", "start"),
    [
        ("sigmoid", LossSettings(), LOG_2),
        ("sigmoid", LossSettings(beta=5, f_divergence_type="forward_kl"), LOG_2),
        ("hinge", LossSettings(), 1.0),
        ("ipo", LossSettings(), 25.0),
        ("ipo", LossSettings(beta=0.5), 1.0),
        ("exo_pair", LossSettings(label_smoothing=1e-3), 2.76125),
        ("nca_pair", LossSettings(), 2 * LOG_2),
        ("robust", LossSettings(label_smoothing=0.2), LOG_2),
        ("bco_pair", LossSettings(), 2 * LOG_2),
        ("sppo_hard", LossSettings(), 50.0),
        ("aot", LossSettings(label_smoothing=0.2), LOG_2),
        ("aot_unpaired", LossSettings(), LOG_2),
        ("apo_zero", LossSettings(), 1.0),
        ("apo_down", LossSettings(), 1.0),
        ("discopop", LossSettings(), (LOG_2 + 1) / 2),
        ("sft", LossSettings(), None),
        ("sigmoid_norm", LossSettings(), LOG_2),
    ],
)
def test_a_policy_equal_to_its_reference_scores_what_the_docstring_says(name, settings, start):
    found = loss_at_start([name], None, settings)
    assert found == (None if start is None else pytest.approx(start, rel=1e-5))


def test_the_start_of_a_list_is_the_weighted_sum_unless_a_loss_that_counts_depends_on_the_data():
    assert loss_at_start(["sigmoid", "hinge"], [0.5, 2.0], LossSettings()) == pytest.approx(LOG_2 / 2 + 2)
    assert loss_at_start(["sigmoid", "bco_pair"], None, LossSettings()) == pytest.approx(3 * LOG_2)
    assert loss_at_start(["sigmoid", "sft"], [1.0, 0.1], LossSettings()) is None
    assert loss_at_start(["sigmoid", "sft"], [1.0, 0.0], LossSettings()) == pytest.approx(LOG_2)


def test_every_list_needs_as_many_weights():
    with pytest.raises(ValueError, match="argument 2 is longer than argument 1"):
        loss_at_start(["sigmoid", "hinge"], [1.0], LossSettings())


def test_the_trainers_first_loss_is_the_one_foretold(folder, tokenizer, tmp_path_factory):
    arguments = quiet(DPOConfig, tmp_path_factory, loss_type=["sigmoid", "ipo"], loss_weights=[1.0, 0.1], beta=0.5)
    trainer = DPOTrainer(load_policy(folder), args=arguments, train_dataset=PAIRS, processing_class=tokenizer)
    with torch.no_grad():
        first = trainer.compute_loss(trainer.model, first_batch(trainer)).item()
    assert first == pytest.approx(loss_at_start(["sigmoid", "ipo"], [1.0, 0.1], LossSettings(beta=0.5)), rel=1e-5)


# ipo, sppo_hard and robust aim at a margin that can be overshot; exo_pair holds back at its labels' certainty,
# and apo_down draws the chosen answer down too.
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "bco_pair", "aot", "aot_unpaired", "apo_zero", "sigmoid_norm"])
def test_a_larger_margin_costs_less(name):
    grow = [DPO_LOSSES[name](answers([gain]), answers([-gain]), LossSettings()).item() for gain in (-4, -1, 0, 1, 4)]
    assert grow == sorted(grow, reverse=True)
    assert len(set(grow)) == 5


@pytest.mark.parametrize(
    ("name", "at"),
    [("ipo", (20.0, 0.0)), ("sppo_hard", (5.0, -5.0))],
    ids=["ipo: 1/(2 beta) a token", "sppo: 1/(2 beta) either way"],
)
def test_a_loss_with_a_target_is_0_there(name, at):
    chosen, rejected = at
    assert DPO_LOSSES[name](answers([chosen]), answers([rejected]), LossSettings()).item() == pytest.approx(0, abs=1e-6)


def test_aot_looks_at_the_batch_and_not_at_its_pairs():
    # The second pair is lost, the first one won by more: sorted, policy and reference have the same margins.
    chosen = Answers(torch.tensor([-1.0, -9.0]), torch.tensor([-9.0, -1.0]), torch.ones(2), torch.ones(2))
    rejected = Answers(torch.tensor([-5.0, -5.0]), torch.tensor([-5.0, -5.0]), torch.ones(2), torch.ones(2))
    assert DPO_LOSSES["aot"](chosen, rejected, LossSettings()).tolist() == pytest.approx([LOG_2, LOG_2])


@pytest.mark.parametrize("divergence", F_DIVERGENCES)
@pytest.mark.parametrize("name", DPO_LOSSES)
@pytest.mark.parametrize("far", [(-1000.0, 0.0), (0.0, -1000.0), (-1000.0, -1000.0), (0.0, 0.0)])
def test_gradients_stay_finite_far_from_the_reference(name, divergence, far):
    sides = [torch.tensor([logp, -3.0], requires_grad=True) for logp in far]
    chosen, rejected = (Answers(logps, torch.tensor([-2.0, -2.0]), torch.tensor([3, 2]), -logps) for logps in sides)
    settings = replace(SMOOTHED, f_divergence_type=divergence)
    loss = DPO_LOSSES[name](chosen, rejected, settings).mean()
    loss.backward()
    assert all(side.grad is None or side.grad.isfinite().all() for side in sides)
    # The square of e^80 is beyond float32; its gradient is not.
    assert loss.isfinite() or (name == "ipo" and divergence in ("forward_kl", "alpha_divergence"))


@pytest.mark.parametrize("mean", [-1000.0, -20.0, -1e-8, 0.0])
def test_the_odds_of_orpo_stay_finite(mean):
    chosen, rejected = torch.tensor([mean], requires_grad=True), torch.tensor([-0.5], requires_grad=True)
    loss = orpo_loss(chosen, rejected, torch.zeros(1))
    loss.sum().backward()
    assert loss.isfinite()
    assert chosen.grad.isfinite()


def test_equal_odds_cost_the_cross_entropy_and_beta_log_2():
    equal = torch.tensor([-0.7])
    assert orpo_loss(equal, equal, torch.tensor([1.25]), beta=0.2).item() == pytest.approx(1.25 + 0.2 * LOG_2)


def test_an_example_at_the_reference_costs_half_its_weight():
    losses = kto_loss(torch.zeros(2), torch.tensor([True, False]), 0.0, 0.1, 1.0, 3.0)
    assert losses.tolist() == pytest.approx([0.5, 1.5])


def test_equal_scores_cost_log_2_and_a_margin_that_is_kept_no_more():
    scores = torch.tensor([1.0, 3.0])
    assert reward_loss(scores, scores).tolist() == pytest.approx([LOG_2, LOG_2])
    assert reward_loss(scores, scores - 2, margins_B=2.0).tolist() == pytest.approx([LOG_2, LOG_2])
    assert (reward_loss(scores, -scores, center_rewards_coefficient=0.5) == reward_loss(scores, -scores)).all()


def test_only_trained_tokens_count():
    # Every token is as likely as any of the four: log 4 each. The first label has nothing before it.
    labels = torch.tensor([[3, 1, 2, IGNORE_INDEX], [IGNORE_INDEX, IGNORE_INDEX, 0, IGNORE_INDEX]])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        logps = sequence_logps(torch.zeros(2, 4, 4, dtype=dtype), labels)
        assert logps.tolist() == pytest.approx([-2 * math.log(4), -math.log(4)])
    assert count_trained_tokens(labels).tolist() == [2, 1]
    nll = token_mean_nll(-logps, count_trained_tokens(labels))
    assert nll.mean().item() == pytest.approx(math.log(4))


def test_the_tail_of_the_longer_answer_is_weighed():
    # One trained token against three.
    labels = torch.tensor([[IGNORE_INDEX, 1, IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX, 1, 2, 3]])
    for ld_alpha, tokens in [(None, 3.0), (1.0, 3.0), (0.5, 2.0), (0.0, 1.0)]:
        chosen, rejected = pair_logps(torch.zeros(2, 4, 4), labels, ld_alpha)
        assert (chosen.item(), rejected.item()) == pytest.approx((-math.log(4), -tokens * math.log(4)))
