"""A prompt computed once gives the losses, gradients and figures of two; where it would not, it is computed twice."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from finetune.data.batches import IGNORE_INDEX, PairCollator
from finetune.data.shared_prompts import Widths, find_parts
from finetune.data.tokens import TokenRows
from finetune.errors import RecipeError
from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives import dpo
from finetune.objectives.building import RunArguments, TrainerParts
from finetune.objectives.dpo import PreferenceTrainer
from finetune.objectives.guilty_rows import find_guilty_rows
from finetune.objectives.pairs import answer_logps
from finetune.objectives.reference import compute_reference
from finetune.objectives.shared_prompts import (
    SERVED_FAMILIES,
    SharedPrompts,
    Work,
    choose_prompts,
    estimate_pair_work,
    find_why_apart,
)
from finetune.objectives.trainer import StepMixin
from finetune.recipe.reading import build_recipe
from finetune.recipe.schema import AdapterSettings, DataSettings, ModelSettings, SourceSettings, TrainingSettings
from tests.model.saved_runs import write_base
from tests.model.test_capabilities import ADAPTERS, REQUIRED_FIELDS, SMALL

LORA = {"method": "lora", "r": 4, "target_modules": "all-linear"}
# Prompt, chosen and rejected answer, in tokens. Of the last pair both answers begin with the same two.
PAIRS = [(20, 9, 6), (12, 4, 11), (16, 7, 7), (5, 3, 8)]
ALIKE_TOKENS = 2


def draw(count: int, seed: int, vocabulary: int = 120) -> list[int]:
    return torch.randint(4, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def build_pairs(vocabulary: int = 120) -> list[dict[str, Any]]:
    rows = []
    for number, (prompt_tokens, chosen_tokens, rejected_tokens) in enumerate(PAIRS):
        prompt = draw(prompt_tokens, 3 * number, vocabulary)
        chosen, rejected = (
            draw(chosen_tokens, 3 * number + 1, vocabulary),
            draw(rejected_tokens, 3 * number + 2, vocabulary),
        )
        if number == len(PAIRS) - 1:
            rejected[:ALIKE_TOKENS] = chosen[:ALIKE_TOKENS]
        masked = [IGNORE_INDEX] * prompt_tokens
        rows.append(
            {
                "chosen_ids": prompt + chosen, "chosen_labels": masked + chosen,
                "rejected_ids": prompt + rejected, "rejected_labels": masked + rejected,
                "length": prompt_tokens + max(chosen_tokens, rejected_tokens),
            }
        )  # fmt: skip
    return rows


# ---- the models


def build_family(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """A decoder of two layers in float64, its weights wide enough for a token more in sight to show."""
    fields = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if family in ("gemma", "gemma2", "gemma3_text", "glm", "glm4", "qwen3"):
        fields["head_dim"] = 8
    config = AutoConfig.for_model(family, **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def score_both(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the answers of a batch: each with its prompt, and behind one."""
    with torch.no_grad():
        apart, _ = answer_logps(model, batch)
        with SharedPrompts(model, work=None).in_force(batch) as answers:
            once, _ = answer_logps(model, answers)
    return apart, once


@pytest.mark.parametrize("family", sorted(SERVED_FAMILIES))
def test_answers_are_as_likely_behind_one_prompt_as_behind_two(family):
    apart, once = score_both(build_family(family), PairCollator(0)(build_pairs(vocabulary=97)))
    torch.testing.assert_close(once, apart, rtol=1e-6, atol=1e-6)  # many have norms in float32
    assert apart.std() > 1


def test_the_gradients_of_every_weight_are_equal_to_the_last_digits_of_float64():
    """Phi computes all of it in float64; each answer counts by another weight, so that none can hide behind others."""
    model, batch = build_family("phi"), PairCollator(0)(build_pairs(vocabulary=97))
    found = []
    for is_shared in (False, True):
        model.zero_grad()
        with SharedPrompts(model, work=None).in_force(batch) if is_shared else nullcontext(batch) as inputs:
            logps, _ = answer_logps(model, inputs)
        (logps * torch.arange(1, 9)).sum().backward()
        found.append({name: value.grad for name, value in model.named_parameters()})
    apart, once = found
    for name, gradient in apart.items():
        torch.testing.assert_close(once[name], gradient, rtol=1e-10, atol=1e-10)
        assert gradient.abs().max() > 1e-3 or name.endswith("k_proj.bias")  # to which a softmax is blind


@pytest.mark.parametrize(("attention", "dtype", "nats"), [
    ("eager", torch.float64, 1e-5),  # its softmax is taken in float32
    ("sdpa", torch.float32, 2e-4),
    ("eager", torch.float32, 2e-4),
    ("sdpa", torch.bfloat16, 1.0),
])  # fmt: skip
def test_kernels_and_precisions_differ_by_rounding(attention, dtype, nats):
    model = build_family("llama", attention).to(dtype)
    apart, once = score_both(model, PairCollator(0)(build_pairs(vocabulary=97)))
    torch.testing.assert_close(once, apart, rtol=0, atol=nats)


# ---- a trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def tokenizer(folder) -> PreTrainedTokenizerFast:
    return load_tokenizer(ModelSettings(model_name_or_path=str(folder)))


class Made(SimpleNamespace):
    """A trainer with what it was made of."""

    trainer: PreferenceTrainer


def make(
    folder: Path, tokenizer: PreTrainedTokenizerFast, output_dir: Path, *, adapter: dict[str, Any] = LORA,
    choice: str = "never", quantization: str = "none", **training: Any,
) -> Made:  # fmt: skip
    settings = ModelSettings(
        model_name_or_path=str(folder), quantization=quantization, compute_dtype="float32", device="cpu"
    )
    base = load_base(settings)
    asked = {"gradient_checkpointing": False, "per_device_train_batch_size": 4} | training
    training_settings = TrainingSettings(**asked)
    run = RunArguments(
        name="test", device=base.device, compute_dtype=base.compute_dtype, evaluates=True, seed=1,
        checkpoints_dir=output_dir / "checkpoints",
    )  # fmt: skip
    rows = Dataset.from_list(build_pairs())
    trainer = dpo.build_trainer(
        TrainerParts(
            base=base,
            model=attach_adapter(base, AdapterSettings(**adapter), seed=1),
            tokenizer=tokenizer,
            arguments=dpo.build_arguments(training_settings, run),
            train=TokenRows(rows, rows, {}, ""),
            held_out=TokenRows(rows, rows, {}, ""),
            data=DataSettings(train=SourceSettings(path="rows.jsonl"), packing=False, share_prompts=choice),
            training=training_settings,
        ),
    )
    return Made(trainer=trainer, base=base)


def move(trainer: PreferenceTrainer) -> None:
    """Move the policy away from its reference, in float64."""
    trainer.model.double()
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    trainer._tokens_not_noted = 1  # as behind the first step, whose loss is held against the start's


@pytest.fixture(scope="module")
def moved(folder, tokenizer, tmp_path_factory) -> PreferenceTrainer:
    made = make(folder, tokenizer, tmp_path_factory.mktemp("moved"))
    move(made.trainer)
    return made.trainer


@contextmanager
def set_to(trainer: PreferenceTrainer, **values: Any) -> Iterator[None]:
    before = {name: getattr(trainer, name) for name in values}
    vars(trainer).update(values)
    try:
        yield
    finally:
        vars(trainer).update(before)


def step(trainer: PreferenceTrainer, shared: SharedPrompts | None) -> tuple[Tensor, list[Tensor], dict[str, float]]:
    """Loss, gradients and figures of all pairs as one batch."""
    trainer.model.zero_grad()
    trainer.find_train_figures().clear()
    tokens_before = trainer._total_train_tokens
    with set_to(trainer, shared_prompts=shared):
        loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(list(trainer.train_dataset)))
    loss.backward()
    gradients = [value.grad.clone() for value in trainer.model.parameters() if value.grad is not None]
    figures = {name: values[-1] for name, values in trainer.find_train_figures().items()}
    figures["num_tokens"] = trainer._total_train_tokens - tokens_before
    return loss.detach(), gradients, figures


LOSSES = {
    name: {"loss_types": [name], "loss_weights": [1.0]}
    for name in (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    )
} | {
    "two losses": {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "length-desensitized": {"ld_alpha": 0.3},
    "another divergence": {"f_divergence_type": "js_divergence"},
    "weighted": {"use_weighting": True},
}  # fmt: skip


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES)
def test_every_loss_and_its_gradients_and_figures_are_those_of_prompts_computed_apart(moved, settings):
    with set_to(moved, label_smoothing=0.1, **settings):
        loss, gradients, figures = step(moved, None)
        once_loss, once_gradients, once_figures = step(moved, SharedPrompts(moved.model, work=None))
    torch.testing.assert_close(once_loss, loss, rtol=1e-7, atol=1e-9)
    assert once_figures == pytest.approx(figures, rel=1e-6, abs=1e-7)
    assert len(gradients) == 28  # two matrices of LoRA on each of seven layers in two blocks
    largest = max(gradient.abs().max().item() for gradient in gradients)
    assert largest > 1e-3
    for once, apart in zip(once_gradients, gradients, strict=True):  # the norms compute in float32
        torch.testing.assert_close(once, apart, rtol=1e-6, atol=1e-6 * largest)


def test_recomputed_activations_give_the_same_gradients(moved):
    _, gradients, _ = step(moved, None)
    moved.model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        _, recomputed, _ = step(moved, SharedPrompts(moved.model, work=None))
    finally:
        moved.model.gradient_checkpointing_disable()
    for once, apart in zip(recomputed, gradients, strict=True):
        torch.testing.assert_close(once, apart, rtol=1e-6, atol=1e-8)


# ---- what is saved


@contextmanager
def counted(trainer: PreferenceTrainer) -> Iterator[dict[str, int]]:
    """Count the tokens that pass the embedding, a base product and the head, and the calls of the product."""
    counts = dict.fromkeys(("embedding", "product", "head", "calls"), 0)
    product = next(
        one for name, one in trainer.model.named_modules() if name.endswith("layers.1.mlp.down_proj.base_layer")
    )
    watched = {
        "embedding": trainer.model.get_input_embeddings(),
        "product": product,
        "head": trainer.model.get_output_embeddings(),
    }

    def watch(name: str) -> Any:
        def count(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
            counts[name] += output.shape[:-1].numel()
            counts["calls"] += name == "product"

        return count

    hooks = [module.register_forward_hook(watch(name)) for name, module in watched.items()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def test_the_tokens_of_a_pair_through_the_model_are_its_own_and_the_prompt_once(moved):
    """A prompt of 20 tokens, answers of 9 and 6: policy and reference each see 35 tokens instead of 2 x 29."""
    batch = moved.data_collator([moved.train_dataset[0]])
    with counted(moved) as apart, torch.no_grad():
        moved._compute_loss(moved.model, {k: v for k, v in batch.items() if torch.is_tensor(v)}, False)
    shared = SharedPrompts(moved.model, work=None)
    with set_to(moved, shared_prompts=shared), counted(moved) as once, torch.no_grad():
        moved._compute_loss(moved.model, {k: v for k, v in batch.items() if torch.is_tensor(v)}, False)
    assert apart == {"embedding": 2 * 58, "product": 2 * 58, "head": 2 * 58, "calls": 2}
    # The head sees the prompt's last token and 9 of an answer, for both.
    assert once == {"embedding": 2 * 35, "product": 2 * 35, "head": 2 * 20, "calls": 2}


def test_a_batch_is_laid_out_once_for_policy_and_reference(moved, monkeypatch):
    laid_out = []

    def count(batch: Any) -> Any:
        laid_out.append(len(batch["input_ids"]))
        return find_parts(batch)

    monkeypatch.setattr("finetune.objectives.shared_prompts.find_parts", count)
    with counted(moved) as counts:
        step(moved, SharedPrompts(moved.model, work=None))
    assert counts["calls"] == 2  # policy and reference
    assert laid_out == [2 * len(PAIRS)]


def test_work_is_counted_from_the_shapes_of_the_layers(folder, tokenizer, tmp_path):
    """Two blocks: q, o, k, v, gate, up, down; LoRA of rank 4 on each; attention 64 wide. Quantized ones count alike."""
    products = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    lora = 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    for quantization in ("none", "nf4"):
        made = make(folder, tokenizer, tmp_path, quantization=quantization)
        assert estimate_pair_work(made.trainer.model) == Work(2 * (products + lora), 2 * 2 * 64)


@pytest.mark.parametrize(
    ("widths", "work", "is_worth"),
    [
        (Widths(1, side=12, row=14, answer=3, shared=10), Work(1, 0), True),
        (Widths(1, side=12, row=24, answer=12, shared=0), Work(1, 0), False),  # nothing is shared
        # Two short prompts and long answers: 190 tokens instead of 200, but a mask of 190 x 190 instead of two
        # triangles of 100 x 100.
        (Widths(1, side=100, row=190, answer=91, shared=10), Work(10_000, 1), True),
        (Widths(1, side=100, row=190, answer=91, shared=10), Work(100, 1), False),
    ],
)
def test_prompts_are_shared_where_that_is_less_work(widths, work, is_worth):
    assert SharedPrompts(torch.nn.Identity(), work=work).is_worth(widths) is is_worth  # type: ignore[arg-type]


def test_a_batch_whose_sides_are_longer_than_the_window_is_left_as_it_is():
    widths = Widths(1, side=12, row=14, answer=3, shared=10)
    for window, is_worth in ((12, True), (11, False)):
        shared = SharedPrompts(torch.nn.Identity(), work=None, max_tokens=window)  # type: ignore[arg-type]
        assert shared.is_worth(widths) is is_worth


# ---- the reference, evaluation, and what else reads batches


def measure_reference(trainer: PreferenceTrainer, shared: SharedPrompts | None) -> dict[str, Tensor]:
    with set_to(trainer, shared_prompts=shared):
        return compute_reference(trainer, dpo.PreferenceTrainer.reference_columns)


def test_a_reference_that_is_taken_once_has_the_same_numbers(moved):
    apart = measure_reference(moved, None)
    once = measure_reference(moved, SharedPrompts(moved.model, work=None))
    assert once.keys() == apart.keys()
    for name, values in apart.items():
        torch.testing.assert_close(once[name], values, rtol=1e-6, atol=1e-6)


def test_the_answers_are_scored_and_the_held_out_loss_is_measured_alike(moved):
    batch = moved.data_collator(list(moved.train_dataset))
    apart = (*moved.score_answers(dict(batch)), moved.measure_held_out()["eval_loss"])
    with set_to(moved, shared_prompts=SharedPrompts(moved.model, work=None)), counted(moved) as counts:
        once = (*moved.score_answers(dict(batch)), moved.measure_held_out()["eval_loss"])
    torch.testing.assert_close(once[0], apart[0], rtol=1e-6, atol=1e-6)
    assert once[1].tolist() == apart[1].tolist() == [9, 4, 7, 3, 6, 11, 7, 8]
    assert once[2] == pytest.approx(apart[2], rel=1e-6)
    assert counts["embedding"] == 3 * len(PAIRS) * 35  # the first pair's row is the widest; scored, policy, reference


def test_a_batch_that_is_cut_where_memory_runs_out_is_shared_part_by_part(moved):
    loss, gradients, _ = step(moved, None)
    moved.model.zero_grad()
    moved.micro_batches.rows = 1
    try:
        with set_to(moved, shared_prompts=SharedPrompts(moved.model, work=None)), counted(moved) as counts:
            batch = moved.data_collator(list(moved.train_dataset))
            moved.current_gradient_accumulation_steps = 1
            told = moved.micro_batches.train(moved.model, batch, None, super(StepMixin, moved).training_step)
    finally:
        moved.micro_batches.rows = None
    assert counts["embedding"] == 2 * (35 + 27 + 30 + 14)  # each pair alone, without padding
    assert told.item() == pytest.approx(loss.item(), rel=1e-6)
    found = [value.grad for value in moved.model.parameters() if value.grad is not None]
    for once, apart in zip(found, gradients, strict=True):
        torch.testing.assert_close(once, apart, rtol=1e-6, atol=1e-8)


def test_the_rows_of_a_step_are_found_and_measured_one_by_one(moved):
    batch = moved.data_collator(list(moved.train_dataset))
    apart = find_guilty_rows(
        moved,
        [(True, dict(batch))],
        moved.train_dataset.add_column("source", ["a"] * 4).add_column("row", [0, 1, 2, 3]),
    )
    with set_to(moved, shared_prompts=SharedPrompts(moved.model, work=None)):
        once = find_guilty_rows(moved, [(True, dict(batch))], None)
    losses = {row.key: row.loss for row in apart}
    assert sorted(row.row for row in apart) == [0, 1, 2, 3]
    assert {row.key: row.loss for row in once} == pytest.approx(losses, rel=1e-5)


def test_the_first_loss_is_ln_2_and_the_checkpointed_step_says_so(folder, tokenizer, tmp_path):
    made = make(folder, tokenizer, tmp_path, choice="always", gradient_checkpointing=True)
    batch = made.trainer.data_collator(list(made.trainer.train_dataset))
    loss = made.trainer.compute_loss(made.trainer.model.train(), batch)  # checks its start itself
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


# ---- whether


def test_a_run_decides_by_its_rows_and_says_what_it_saves(folder, tokenizer, tmp_path, caplog):
    """The four pairs as one batch: 4 rows of 35 tokens instead of 8 of 29, which is 40 % fewer."""
    caplog.set_level(logging.INFO, "finetune")
    assert make(folder, tokenizer, tmp_path, choice="auto").trainer.shared_prompts is not None
    assert "Both answers of a pair stand behind one prompt, which is computed once: 40 % fewer tokens" in caplog.text
    assert make(folder, tokenizer, tmp_path, choice="never").trainer.shared_prompts is None


def test_an_objective_that_reads_no_such_setting_refuses_it():
    values = {"name": "r", "objective": "orpo", "model": {"model_name_or_path": "org/base"}}
    data = {"train": {"path": "rows.jsonl"}, "share_prompts": "always"}
    with pytest.raises(RecipeError, match="`share_prompts` is read by `objective: dpo` alone; this one is orpo"):
        build_recipe(values | {"data": data})
    assert build_recipe(values | {"objective": "dpo", "data": data}).data.share_prompts == "always"


def test_short_prompts_before_long_answers_are_left_where_they_are(folder, tokenizer, tmp_path, caplog):
    caplog.set_level(logging.INFO, "finetune")
    made = make(folder, tokenizer, tmp_path)
    rows = build_pairs()
    for row in rows:
        other = draw(30, 99)
        row |= {"rejected_ids": row["chosen_ids"][:1] + other, "rejected_labels": [IGNORE_INDEX, *other]}
        row |= {"chosen_ids": row["chosen_ids"][:1] + other[::-1], "chosen_labels": [IGNORE_INDEX, *other[::-1]]}
        row["length"] = 31
    made.trainer.train_dataset = Dataset.from_list(rows)
    assert choose_prompts(made.trainer, "auto", made.base) is None
    assert "prompts computed once would save 0 % of the work" in caplog.text
    assert choose_prompts(made.trainer, "always", made.base) is not None


def test_what_excludes_shared_prompts_is_named_and_always_is_then_refused(folder, tokenizer, tmp_path, caplog):
    caplog.set_level(logging.INFO, "finetune")
    made = make(folder, tokenizer, tmp_path, adapter=LORA | {"lora_dropout": 0.1})
    text_config = made.base.model.config

    def why() -> str:
        assert choose_prompts(made.trainer, "auto", made.base) is None
        reason = find_why_apart(made.trainer, made.base)
        assert reason is not None and f"computed with its prompt: {reason}." in caplog.text
        with pytest.raises(RecipeError, match=r"`data\.share_prompts: always`"):
            choose_prompts(made.trainer, "always", made.base)
        return reason

    text_config.sliding_window = 28  # the longest row has 29 tokens
    assert why() == "the rows have up to 29 tokens, and the model's attention reaches 28 back"
    text_config.sliding_window = 29
    assert find_why_apart(made.trainer, made.base) is None
    drop = next(one for one in made.trainer.model.modules() if isinstance(one, torch.nn.Dropout))
    drop.p = 0.1
    assert why() == "dropout draws other numbers for each answer's prompt"
    drop.p = 0.0
    made.trainer.aux_loss_enabled = True
    assert "experts" in why()
    made.trainer.aux_loss_enabled = False
    object.__setattr__(made.base, "attention", "flash_attention_2")
    assert "the attention kernel flash_attention_2 takes no mask between tokens" in why()
    object.__setattr__(made.base, "attention", "sdpa")
    object.__setattr__(made.base, "backend", "unsloth")
    assert why() == "`backend: unsloth` has masks of its own"


@pytest.mark.parametrize(
    ("adapter", "why"),
    [
        ({"method": "prompt_tuning", "num_virtual_tokens": 4}, "`method: prompt_tuning` puts learned vectors in front"),
        ({"method": "prefix_tuning", "num_virtual_tokens": 4}, "`method: prefix_tuning` puts learned vectors in front"),
        (
            {"method": "combined", "parts": [{"method": "lora"}, {"method": "prompt_tuning", "num_virtual_tokens": 4}]},
            "`method: prompt_tuning` puts learned vectors in front",
        ),
        ({"method": "adaption_prompt", "adapter_len": 4, "adapter_layers": 2}, "`method: adaption_prompt` lets a"),
        (LORA | {"alora_invocation_tokens": [5, 6]}, "`alora_invocation_tokens` are searched for"),
    ],
)  # fmt: skip
def test_methods_that_look_at_more_than_a_token_keep_each_answer_with_its_prompt(
    folder, tokenizer, tmp_path, adapter, why
):
    made = make(folder, tokenizer, tmp_path, adapter=adapter, choice="auto")
    assert made.trainer.shared_prompts is None
    assert (find_why_apart(made.trainer, made.base) or "").startswith(why)


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::UserWarning:peft\.tuners\.", "ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("method", ADAPTERS)
def test_with_every_method_that_is_served_the_answers_are_as_likely(folder, tokenizer, tmp_path, method):
    fields = REQUIRED_FIELDS.get(method, {}) | SMALL.get(method, {})
    made = make(folder, tokenizer, tmp_path, adapter={"method": method, **fields})
    if find_why_apart(made.trainer, made.base) is not None:
        assert method in (
            "prompt_tuning",
            "p_tuning",
            "prefix_tuning",
            "cartridge",
            "adaption_prompt",
            "shadow",
            "lily",
        )
        return
    torch.manual_seed(0)
    for parameter in made.trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    apart, once = score_both(made.trainer.model.eval(), made.trainer.data_collator(list(made.trainer.train_dataset)))
    torch.testing.assert_close(once, apart, rtol=1e-4, atol=1e-3)
