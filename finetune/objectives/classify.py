"""Classification: a label or a number for a text or a pair of texts, on transformers' Trainer.

The base ends with the head that transformers gives its architecture; head and adapter are trained on ready rows.
At every evaluation the held-out rows are scored as their task is, and the best score's weights are the result.

Shape suffixes: B rows of a batch, N rows, C outputs.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import EvalPrediction, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from finetune.data.batches import LabelCollator
from finetune.data.tokens import TokenRows
from finetune.model.tokenizer import find_pad_id
from finetune.objectives.building import BY_LENGTH, RunArguments, TrainerParts, build, build_config
from finetune.objectives.label_scores import Metric
from finetune.objectives.labelled import LabelledRows
from finetune.objectives.resumable import ResumableTrainer
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import TrainingSettings

__all__ = ["LabelTrainer", "build_arguments", "build_trainer", "label_loss"]


def label_loss(
    outputs: Any,
    labels_B: Tensor,
    *,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of a micro-batch: cross entropy of labels, squared error of numbers, in float32.

    Args:
        outputs: of the model, with `logits` of shape (B, C).
        labels_B: int64 places of labels, or float32 numbers.
        num_items_in_batch: rows of the whole step, over which the mean is taken; None: of this batch.
        label_smoothing: share of each label that is spread over all; 0 to 1.

    Returns:
        A scalar, in nats or squared units.
    """
    logits_BC = outputs["logits"].float()
    if labels_B.is_floating_point():
        total = F.mse_loss(logits_BC.reshape(-1), labels_B, reduction="sum")
    else:
        total = F.cross_entropy(logits_BC, labels_B, reduction="sum", label_smoothing=label_smoothing)
    return total / (len(labels_B) if num_items_in_batch is None else num_items_in_batch)


class LabelTrainer(StepMixin):
    """transformers' Trainer with what must sit inside the step, and scores beside the loss.

    Args:
        metric: what the held-out rows are scored by.
        held_out: the held-out rows by their part; the first part is evaluated during training.
        **kwargs: the Trainer's.
    """

    counts = ("_tokens_not_noted",)

    def __init__(self, *, metric: Metric, held_out: Mapping[str, TokenRows], **kwargs: Any) -> None:
        self._metric = metric
        self._held_out = held_out
        self._evaluated_loss = 0.0
        self._smoothing = kwargs["args"].label_smoothing_factor
        super().__init__(
            compute_loss_func=self._compute_label_loss,
            compute_metrics=self._score_evaluation,
            **kwargs,
        )
        self.label_smoother = None  # the loss smooths by itself

    def _compute_label_loss(
        self, outputs: Any, labels_B: Tensor, *, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Smooth the labels that are trained on, and never those that are measured on."""
        smoothing = self._smoothing if self.model.training else 0.0
        return label_loss(outputs, labels_B, num_items_in_batch=num_items_in_batch, label_smoothing=smoothing)

    figures = ResumableTrainer.figures  # transformers' own trainer averages the loss alone

    def sum_loss(self, loss: float, inputs: dict[str, Any]) -> tuple[float, float]:
        """Sum a batch's loss over its rows."""
        return self.sum_counted_loss(loss, float(len(inputs["input_ids"])))

    def measure_held_out(self) -> dict[str, float]:
        """Measure loss and scores of all held-out rows with the weights as they are.

        Returns:
            `eval_loss` of the first part, `eval_scores/NAME` of each score, with the part's name in front where there
            are two, and `eval_score`, the mean over the parts, as GLUE's table has MNLI.
        """
        figures: dict[str, float] = {}
        main = []
        for part, rows in self._held_out.items():
            logits_NC = self.predict_logits(rows.dataset)
            labels_N = np.asarray(rows.dataset["label"][:])
            scores = self._metric.score(logits_NC, labels_N)
            main.append(scores[self._metric.name])
            figures.setdefault("eval_loss", _to_loss(logits_NC, labels_N))
            figures |= {f"eval_{name}": value for name, value in _name_scores(part, scores).items()}
        return figures | {"eval_score": sum(main) / len(main)}

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss is of each row once, where several processes repeat some to fill up the last batch."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self._evaluated_loss
        return output

    def predict_logits(self, rows: Dataset) -> NDArray[np.float32]:
        """Compute the model's outputs for rows, in their order: (N, C).

        Every process computes all of them: a row more or less in one of them would change the score.
        """
        order = np.argsort(rows["length"][:])[::-1]
        size = self.args.per_device_eval_batch_size
        logits_NC: NDArray[np.float32] = np.empty((len(rows), self.model.config.num_labels), dtype=np.float32)
        with self.as_in_training():
            for start in tqdm(range(0, len(order), size), desc="outputs", leave=False, disable=None):
                places = order[start : start + size]
                batch = self.data_collator([rows[int(place)] for place in places])
                found = self.micro_batches.evaluate(batch, self._compute_logits)
                logits_NC[places] = np.concatenate([logits_BC for _, logits_BC in found])
        return logits_NC

    def _compute_logits(self, batch: Mapping[str, Any]) -> NDArray[np.float32]:
        """Compute the model's outputs for a batch, or the part of one that memory holds: (B, C)."""
        inputs = {
            name: value.to(self.args.device)
            for name, value in batch.items()
            if isinstance(value, Tensor) and name != "labels"
        }
        logits_BC: NDArray[np.float32] = self.model(**inputs).logits.float().cpu().numpy()
        return logits_BC

    def _score_evaluation(self, evaluated: EvalPrediction) -> dict[str, float]:
        """Score an evaluation during training; the trainer puts `eval_` in front of the names."""
        logits = evaluated.predictions
        logits_NC = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        scores = self._metric.score(logits_NC, np.asarray(evaluated.label_ids))
        self._evaluated_loss = _to_loss(logits_NC, np.asarray(evaluated.label_ids))
        part = next(iter(self._held_out))
        return {"score": scores[self._metric.name]} | _name_scores(part, scores)


def _to_loss(logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> float:
    """Compute the mean loss of outputs that were gathered."""
    return float(label_loss({"logits": torch.from_numpy(logits_NC)}, torch.from_numpy(labels_N)))


def _name_scores(part: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Name scores as metrics.jsonl does, the part in front where there are two."""
    return {f"scores/{part}/{name}" if part else f"scores/{name}": value for name, value in scores.items()}


def build_arguments(training: TrainingSettings, run: RunArguments) -> TrainingArguments:
    """Build the trainer's own config; the best step is the one with the best score.

    Raises:
        RecipeError: the library refuses a setting.
    """
    own = {"label_names": ["labels"], **BY_LENGTH}
    return build_config(TrainingArguments, training, run, own, best=("eval_score", True))


def build_trainer(parts: TrainerParts, *, labelled: LabelledRows) -> LabelTrainer:
    """Build the trainer of one run.

    Args:
        parts: its base is told the pad token, by which a decoder finds the last token of a row.
        labelled: all held-out rows, and what they are scored by.
    """
    parts.base.model.config.get_text_config().pad_token_id = find_pad_id(parts.tokenizer)
    return build(partial(LabelTrainer, metric=labelled.metric, held_out=labelled.held_out), LabelCollator, parts)
