"""The prompt of a pair computed once: where that can be had, whether it pays, and how a model is brought to do it.

In goes a trainer of pairs with its rows; out comes a `SharedPrompts`, or None with the reason told. Batches stay what
their collator makes them, so that whoever counts, cuts or searches them finds what was there before. While a batch is
computed, two hooks stand at the model: the first hands it the shared rows of `data.shared_prompts` instead of the
answers it is called with, the second hands its head the answers' hidden states instead of the rows'. So the head, the
loss and the figures see the answers from the token before their first trained one on, and no logits of a prompt.

Equal to answers in rows of their own but for rounding: every token attends to the same ones, at the same positions.
Policy and reference of a batch go the same way, so that a run still begins as its reference.

Source of the idea: Wang and Hegde 2024 (arXiv:2410.20305), with FlexAttention; here it is the mask of a dense kernel.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.data.batches import IGNORE_INDEX
from finetune.data.shared_prompts import Widths, build_shared_rows, find_parts
from finetune.errors import PlaceError, RecipeError
from finetune.model.base import BaseModel
from finetune.model.combined import CombinedConfig
from finetune.objectives.batch_parts import EXPERTS_BALANCE
from finetune.objectives.pairs import answer_logps
from finetune.objectives.trainer import StepMixin

__all__ = ["SERVED_FAMILIES", "SharedPrompts", "Work", "choose_prompts", "estimate_pair_work", "find_why_apart"]

log = logging.getLogger("finetune.objectives.shared_prompts")

Choice = Literal["auto", "always", "never"]

# Decoders whose attention takes a mask of four dimensions as it is and whose tokens meet nowhere else, each tried by
# tests/objectives/test_shared_prompts.py. Others are not worse; nobody has looked. Mixtures of experts are left out:
# which expert a token gets hangs on the last digit.
SERVED_FAMILIES = frozenset(
    {"apertus", "arcee", "cohere", "cohere2", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2"}
    | {"gpt_neox", "granite", "llama", "ministral3", "mistral", "nemotron", "olmo", "olmo2", "olmo3", "phi", "phi3"}
    | {"qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"}
)
# `documents` is sdpa where no documents are named.
_KERNELS = ("sdpa", "documents", "eager")
# Methods that look at more than a token's own hidden state: two attend by themselves, and Lily weighs its experts by a
# mean over all tokens of a batch (PEFT 0.21).
_UNSERVED_METHODS = frozenset({PeftType.ADAPTION_PROMPT, PeftType.SHADOW, PeftType.LILY})
# Less of the work saved is not worth another layout.
_LEAST_SAVED_FRACTION = 0.05
_MEASURED_BATCHES = 64
# Of the pair that both layouts are tried on; and how far its answers' log-probabilities may lie apart, in nats a token.
_TRIED_TOKENS = {"prompt": 12, "chosen": 9, "rejected": 6}
_TOLERANCE_NATS = {torch.float32: 2e-3, torch.float16: 0.03, torch.bfloat16: 0.1}


# ---- what a batch costs


@dataclass(frozen=True, slots=True)
class Work:
    """What a model multiplies and adds, forward, by what it is multiplied with.

    Attributes:
        per_token: the linear layers' weights. The head's are left out: that it sees the answers alone speaks for
            shared rows too, but is no reason to have them.
        per_pair_of_tokens: one token's attention to another one, in all layers.
    """

    per_token: int
    per_pair_of_tokens: int

    def count(self, widths: Widths, *, is_shared: bool) -> float:
        """Count the products of a batch in either layout, padding included.

        Kernels may pass over what a causal mask hides, half of a plain row, but not over holes in a mask of its own.
        """
        if is_shared:
            tokens = widths.num_pairs * widths.row
            return self.per_token * tokens + self.per_pair_of_tokens * tokens * widths.row
        tokens = 2 * widths.num_pairs * widths.side
        return self.per_token * tokens + self.per_pair_of_tokens * tokens * widths.side / 2


def estimate_pair_work(model: PreTrainedModel | PeftModel) -> Work:
    """Estimate the work of a model from the shapes of its layers, adapters included."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    of_head = {id(module) for module in head.modules()}
    layers = [module for module in model.modules() if id(module) not in of_head]
    fields = config.to_dict()
    width = config.num_attention_heads * (fields.get("head_dim") or config.hidden_size // config.num_attention_heads)
    return Work(
        # A quantized weight does not show its shape, the layer does.
        per_token=sum(one.in_features * one.out_features for one in layers if isinstance(one, nn.Linear))
        + sum(one.weight.numel() for one in layers if isinstance(one, Conv1D)),
        per_pair_of_tokens=2 * config.num_hidden_layers * width,
    )


# ---- the two hooks


class SharedPrompts:
    """Lets a model compute the prompts of a batch once.

    Args:
        model: that is called for the logits, under any wrapper; with a head of its own.
        work: of the model; None: share whatever it costs.
        max_tokens: that a side may have, the model's sliding window; None: any number.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, work: Work | None, max_tokens: int | None = None) -> None:
        self._model = model
        self._work = work
        self._max_tokens = max_tokens

    def is_worth(self, widths: Widths) -> bool:
        """Whether a batch's prompts are computed once; one in which nothing is shared stays as it is."""
        if not widths.shared or (self._max_tokens is not None and widths.side > self._max_tokens):
            return False
        work = self._work
        return work is None or work.count(widths, is_shared=True) < work.count(widths, is_shared=False)

    @contextmanager
    def in_force(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Let the model's calls within compute this batch with its prompts once.

        The batch is laid out here and the device waited for once, however many calls follow: TRL (1.14) makes those of
        policy and reference in one.

        Args:
            batch: of a `PairCollator`, on the model's device.

        Yields:
            What the calls are to be made with and their logits compared with: the batch, its answers alone in it; the
            batch as it is where sharing is not worth it.
        """
        parts = find_parts(batch)
        if not self.is_worth(parts.widths):
            yield dict(batch)
            return
        rows = build_shared_rows(batch, parts)
        called_with = {
            "input_ids": rows.input_ids_BS,
            "position_ids": rows.position_ids_BS,
            "attention_mask": self._to_kernel_mask(rows.may_see_BSS),
        }

        def give_rows(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs | called_with

        def give_answers(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden_BSD, *others = args
            return hidden_BSD.flatten(0, 1)[rows.places_RW.to(hidden_BSD.device)], *others

        at_model = self._model.register_forward_pre_hook(give_rows, with_kwargs=True)
        at_head = self._model.get_output_embeddings().register_forward_pre_hook(give_answers)
        try:
            yield {**batch, "input_ids": rows.answer_ids_RW, "completion_mask": rows.completion_mask_RW}
        finally:
            at_model.remove()
            at_head.remove()

    def _to_kernel_mask(self, may_see_BSS: Tensor) -> Tensor:
        """Turn the mask into what the model's kernel takes: truth for sdpa, something to be added for eager."""
        mask = may_see_BSS[:, None]
        if self._model.config._attn_implementation != "eager":
            return mask
        dtype = self._model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


# ---- whether


def choose_prompts(trainer: StepMixin, choice: Choice, base: BaseModel) -> SharedPrompts | None:
    """Choose whether a run computes prompts once, and say so in a line.

    Args:
        trainer: of pairs, with its model and its rows.
        choice: `data.share_prompts`.
        base: what the model stands on.

    Returns:
        None: each answer is computed with a prompt of its own.

    Raises:
        RecipeError: `always` with something that excludes it.
        PlaceError: `always`, and this device computes something else so.
    """
    if choice == "never":
        return None
    why = find_why_apart(trainer, base)
    if why is not None:
        if choice == "always":
            raise RecipeError(
                f"`data.share_prompts: always`: {why}.\n"
                "  Let the run decide: data.share_prompts=auto     Or compute each answer by itself: never"
            )
        log.info("Each answer of a pair is computed with its prompt: %s.", why)
        return None
    work = estimate_pair_work(trainer.model)
    shared = SharedPrompts(trainer.model, work=work if choice == "auto" else None, max_tokens=_find_window(base.model))
    saved_tokens, saved_work = _measure_saved(trainer, shared, work)
    if choice == "auto" and saved_work < _LEAST_SAVED_FRACTION:
        log.info(
            "Each answer of a pair is computed with its prompt: prompts computed once would save %.0f %% of the work.",
            100 * saved_work,
        )
        return None
    apart_nats = _measure_difference(trainer, SharedPrompts(trainer.model, work=None))
    if not apart_nats <= _TOLERANCE_NATS[base.compute_dtype]:
        told = f"on {base.device} it changes an answer's log-probability by {apart_nats:.2g} nats a token"
        if choice == "always":
            raise PlaceError(f"`data.share_prompts: always`: {told}.\n  Without it: data.share_prompts=never")
        log.warning("Each answer of a pair is computed with its prompt: computed once, %s.", told)
        return None
    log.info(
        "Both answers of a pair stand behind one prompt, which is computed once: %.0f %% fewer tokens through the "
        "model, padding included.", 100 * saved_tokens,
    )  # fmt: skip
    return shared


def find_why_apart(trainer: StepMixin, base: BaseModel) -> str | None:
    """Say why each answer has to be computed with a prompt of its own; None where it need not.

    Args:
        trainer: of pairs.
        base: what its model stands on.
    """
    args, config = trainer.args, base.model.config.get_text_config()
    window_tokens, longest_tokens = _find_window(base.model), max(trainer.train_dataset["length"][:])
    drops = (module.p for module in trainer.model.modules() if isinstance(module, nn.Dropout))
    excluded = {
        f"`backend: {base.backend}` has masks of its own": base.backend != "transformers",
        f"the attention kernel {base.attention} takes no mask between tokens": base.attention not in _KERNELS,
        f"no one has tried it with {config.model_type}": config.model_type not in SERVED_FAMILIES,
        f"the rows have up to {longest_tokens:,} tokens, and the model's attention reaches {window_tokens} back": (
            window_tokens is not None and window_tokens < longest_tokens
        ),
        "dropout draws other numbers for each answer's prompt": any(probability > 0 for probability in drops),
        "training.use_liger_kernel reads hidden states past the head": trainer.use_liger_kernel,
        EXPERTS_BALANCE: trainer.aux_loss_enabled,
        "training.torch_compile compiles the model as a whole": args.torch_compile,
        "the model is sharded": trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled,
    }
    return next((why for why, is_so in excluded.items() if is_so), None) or _find_why_adapter(trainer.model)


def _find_why_adapter(model: nn.Module) -> str | None:
    """Say which adapter looks at more than a token's own hidden state; None where none does."""
    if not isinstance(model, PeftModel):
        return None
    configs: list[PeftConfig] = list(model.peft_config.values())
    parts = [part for one in configs for part in (one.build_parts() if isinstance(one, CombinedConfig) else [one])]
    for part in parts:
        name = str(part.peft_type.value).lower()
        if part.is_prompt_learning:
            return f"`method: {name}` puts learned vectors in front of each answer's prompt"
        if part.peft_type in _UNSERVED_METHODS:
            return f"`method: {name}` lets a token hang on others of its batch by itself"
        if isinstance(part, LoraConfig) and part.alora_invocation_tokens:
            return "`alora_invocation_tokens` are searched for in a row of one answer"
    return None


def _find_window(model: PreTrainedModel) -> int | None:
    """Find how many tokens back the model's attention reaches, itself included; None: all of them."""
    window = model.config.get_text_config().to_dict().get("sliding_window")
    return None if window is None else int(window)


def _measure_saved(trainer: StepMixin, shared: SharedPrompts, work: Work) -> tuple[float, float]:
    """Measure on some batches of the run which share of its tokens and of its work is saved, padding included.

    Rows of like length, as they lie together in training, from the whole range of lengths.
    """
    rows, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    order = torch.argsort(torch.tensor(rows["length"][:]), stable=True)
    starts = torch.arange(0, max(len(order) - size, 0) + 1, size)
    chosen = starts[torch.linspace(0, len(starts) - 1, min(len(starts), _MEASURED_BATCHES)).long()]
    plain_tokens = tokens = plain_work = cost = 0.0
    for start in chosen.tolist():
        batch = trainer.data_collator([rows[place] for place in order[start : start + size].tolist()])
        widths = find_parts(batch).widths
        is_shared = shared.is_worth(widths)
        plain_tokens += 2 * widths.num_pairs * widths.side
        tokens += widths.num_pairs * (widths.row if is_shared else 2 * widths.side)
        plain_work += work.count(widths, is_shared=False)
        cost += work.count(widths, is_shared=is_shared)
    return 1 - tokens / plain_tokens, 1 - cost / plain_work


def _measure_difference(trainer: StepMixin, shared: SharedPrompts) -> float:
    """Measure on this device how far a pair's log-probabilities lie apart in the two layouts, in nats a token.

    Random numbers are left as they were found.
    """
    model = trainer.model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prompt, chosen, rejected = (
            torch.randint(model.get_input_embeddings().num_embeddings, (num,)).tolist()
            for num in _TRIED_TOKENS.values()
        )
        batch = trainer.data_collator([_build_pair(prompt, chosen, rejected)])
        inputs = {name: value.to(trainer.args.device) for name, value in batch.items() if torch.is_tensor(value)}
        with trainer.as_in_training():
            apart, num_tokens = answer_logps(model, inputs)
            with shared.in_force(inputs) as answers:
                once, _ = answer_logps(model, answers)
    return float(((apart - once).abs() / num_tokens).max())


def _build_pair(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, list[int]]:
    masked = [IGNORE_INDEX] * len(prompt)
    return {
        "chosen_ids": [*prompt, *chosen],
        "chosen_labels": [*masked, *chosen],
        "rejected_ids": [*prompt, *rejected],
        "rejected_labels": [*masked, *rejected],
    }
