"""What DPO and KTO compare with: the model as it was when training began.

Either the base with the adapter switched off (a fresh adapter) or a frozen copy of the adapter that is
trained on, both read at every step; or their log-probabilities, taken once before the first step. Here
are the second way, the check that policy and reference begin as one, and the watch over the chosen answers.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from finetune.errors import RecipeError
from finetune.objectives.trainer import StepMixin

__all__ = ["WatchChosen", "check_start", "compute_reference", "stand_in", "use_reference"]

log = logging.getLogger("finetune.objectives.reference")

# How far apart the same log-probabilities may lie, summed over an answer of 100 tokens, in nats: a cached reference was
# taken in other batches, whose padding changes the order of the sums. A wrong reference is off by tens.
_TOLERANCE_NATS = {torch.float32: 0.05, torch.float16: 1.0, torch.bfloat16: 2.0}
_COLLAPSE_NATS = 10.0
_COLLAPSE_SHARE = 0.5


def stand_in() -> torch.nn.Module:
    """Build what TRL gets as its reference model, so that it makes no copy of the adapter; `None` takes its place."""
    return torch.nn.Identity()


def compute_reference(trainer: StepMixin, columns: tuple[str, ...]) -> dict[str, Tensor]:
    """Compute the log-probabilities of the start, the policy as it stands, for every row of the run.

    Args:
        trainer: of dpo or kto, with TRL's `compute_ref_log_probs`.
        columns: names of what that gives, in its order.

    Returns:
        `train.COLUMN` and `held_out.COLUMN`: float32, one number a row in the order of the rows, on the CPU.
    """
    sides = {"train": trainer.train_dataset, "held_out": trainer.eval_dataset}
    trainer.ref_model = trainer.model  # else TRL would switch the adapter off
    try:
        # A loader draws a seed for its workers; a run that finds its reference in the cache draws none.
        with torch.random.fork_rng():
            return {
                f"{side}.{name}": values
                for side, rows in sides.items()
                if rows is not None
                for name, values in _compute_columns(trainer, rows, columns).items()
            }
    finally:
        trainer.ref_model = None


def use_reference(trainer: StepMixin, reference: Mapping[str, Tensor]) -> None:
    """Put the log-probabilities of the start beside the rows."""
    for name, values in reference.items():
        side, _, column = name.partition(".")
        if side == "train":
            trainer.train_dataset = trainer.train_dataset.add_column(column, values.numpy())
        else:
            trainer.eval_dataset = trainer.eval_dataset.add_column(column, values.numpy())


def _compute_columns(trainer: StepMixin, rows: Dataset, columns: tuple[str, ...]) -> dict[str, Tensor]:
    """Compute them for all rows, each process of the launch its share."""
    order = torch.argsort(torch.tensor(rows["length"][:]), descending=True, stable=True)
    share = order[trainer.args.process_index :: trainer.args.world_size]
    size = trainer.args.precompute_ref_batch_size or trainer.args.per_device_eval_batch_size
    loader = DataLoader(rows.select(share.tolist()), batch_size=size, collate_fn=trainer.data_collator)
    found = []
    with trainer.as_in_training():
        for batch in tqdm(loader, desc="reference", unit=" batches", leave=False, disable=None):
            del batch["num_real_tokens"]
            inputs = trainer._prepare_inputs(batch)
            found.append(trainer.compute_ref_log_probs(trainer.model, inputs))
    own = {
        name: torch.cat([part.float().cpu() for part in parts])
        for name, parts in zip(columns, zip(*found, strict=True), strict=True)
        if parts[0] is not None  # KTO's other loss wants no KL
    }
    shares = [(share, own)]
    if trainer.args.world_size > 1:
        shares = [(share, own)] * trainer.args.world_size
        torch.distributed.all_gather_object(shares, (share, own))
    back = torch.argsort(torch.cat([places for places, _ in shares]))
    return {name: torch.cat([values[name] for _, values in shares])[back] for name in own}


def check_start(
    trainer: StepMixin, rewards: Mapping[str, float], inputs: Mapping[str, Tensor], loss: float, due: float | None
) -> None:
    """Check at the first step that the policy still is its reference.

    Args:
        trainer: of dpo or kto, whose first loss it is.
        rewards: mean implicit reward of the batch's answers by kind, beta times nats.
        inputs: the batch, for the length of its answers.
        loss: of the batch.
        due: what the loss of a policy equal to its reference is; None where that depends on the rows.

    Raises:
        RecipeError: they differ, with the likely cause.
    """
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float16 if trainer.args.fp16 else torch.float32
    off_nats = max((abs(reward) / trainer.beta for reward in rewards.values()), default=0.0)
    # Rounding walks: its sum over tokens grows with the root of their number.
    tokens = inputs["completion_mask"].sum(1).float().mean().item()
    if off_nats <= _TOLERANCE_NATS[dtype] * max(1.0, math.sqrt(tokens / 100)):
        return
    said = f"the loss is {loss:.4f}" + ("" if due is None else f", and {due:.4f} is due")
    raise RecipeError(
        f"step 1: {said}: policy and reference already differ, by {off_nats:.2f} nats an answer.\n"
        f"  {_find_cause(trainer)}"
    )


def _find_cause(trainer: StepMixin) -> str:
    drops = [module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    if drops:
        return f"Dropout of {max(drops)} works on the policy alone: leave `training.disable_dropout` at true."
    if trainer.precompute_ref_logps:
        return (
            "The reference was taken once, and this is not the model it was taken of. Without the cache:\n"
            "  training.precompute_ref_log_probs=false"
        )
    return (
        "The adapter's start changes the model's answers, and the reference is without it: choose a start that does "
        "not\n  (adapter.init_lora_weights: true), or take the reference from it: "
        "training.precompute_ref_log_probs=true"
    )


class WatchChosen(TrainerCallback):
    """Warns, once, where the chosen answers become unlikely: the well-known way in which DPO fails.

    The loss asks for a growing difference, and a model can grow it by making both answers unlikely, the rejected
    one faster (Pal et al. 2024, arXiv:2402.13228; Razin et al. 2024, arXiv:2410.08847).

    Args:
        beta: of the loss: a logged reward divided by it is in nats.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._times = 0
        self._is_told = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Compare the chosen answers' log-probability with the reference's of the same rows."""
        if logs is None or "rewards/chosen" not in logs or "logps/chosen" not in logs:
            return
        lost_nats = -logs["rewards/chosen"] / self._beta
        at_start_nats = logs["logps/chosen"] + lost_nats
        has_collapsed = lost_nats > max(_COLLAPSE_NATS, _COLLAPSE_SHARE * abs(at_start_nats))
        # One batch of odd rows is no trend.
        self._times = self._times + 1 if has_collapsed else 0
        if self._times == 2 and not self._is_told:
            self._is_told = True
            log.warning(
                "step %d: the chosen answers have lost %.0f nats since the start (%.0f -> %.0f): the margin grows by "
                "making both answers unlikely.\n  Try: a smaller learning rate, a larger beta, or an sft part: "
                "training.loss_type='[sigmoid, sft]'",
                state.global_step, lost_nats, at_start_nats, logs["logps/chosen"],
            )  # fmt: skip
