"""How good the model is before the first step and after the last: the same figures, taken the same way.

In go the trainer and what was prepared; out comes a `Measured`. The first one goes to metrics.jsonl as
step 0, from where a resumed run has it.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from peft import PeftModel

from finetune.data.batches import PairCollator
from finetune.model.tokenizer import find_pad_id
from finetune.objectives.answers import Answered, Answerer, mean_score
from finetune.objectives.general_text import measure_text_loss
from finetune.objectives.labelled import LabelledRows
from finetune.objectives.pairs import PairFigures, compare, score_pairs
from finetune.objectives.trainer import StepMixin
from finetune.prepare import Prepared

__all__ = ["Gauge", "Measured", "drop_changed", "from_figures", "to_figures", "to_summary", "to_words"]

log = logging.getLogger("finetune.measuring")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one state of the weights is worth; None and empty where the recipe did not ask.

    Attributes:
        held_out: figures of the held-out rows by their name in metrics.jsonl: `eval_loss`, or `eval_reward`.
        exact_match: share of the questions answered right, 0 to 1.
        answer_tokens: mean length of the answers to the questions.
        pairs: how well it tells the held-out pairs apart.
        base_pairs: the same of the base without its adapter, where the run starts from a trained one.
        general_loss: loss of the general text, in nats per token.
        samples: answers for people to read.
    """

    held_out: Mapping[str, float]
    exact_match: float | None = None
    answer_tokens: float | None = None
    pairs: PairFigures | None = None
    base_pairs: PairFigures | None = None
    general_loss: float | None = None
    samples: Sequence[Answered] = ()


@dataclass(frozen=True, slots=True)
class Gauge:
    """Measures whatever weights the model holds at the moment.

    Attributes:
        trainer: holds the model and the held-out rows.
        answerer: answers the questions.
        prepared: the questions and the pairs.
        batch_size: pairs scored at once.
    """

    trainer: StepMixin
    answerer: Answerer
    prepared: Prepared
    batch_size: int

    def measure(self, *, with_base: bool = False) -> Measured:
        """Measure all that the recipe asks for.

        Args:
            with_base: tell the pairs apart with the adapter switched off too.
        """
        held_out = self.trainer.measure_held_out() if self.prepared.held_out is not None else {}
        answered, samples = self._answer()
        return Measured(
            held_out=held_out,
            exact_match=mean_score(answered) if answered else None,
            answer_tokens=sum(one.num_tokens for one in answered) / len(answered) if answered else None,
            pairs=self._compare_pairs(),
            base_pairs=self._compare_pairs(without_adapter=True) if with_base else None,
            general_loss=self._measure_general_text(),
            samples=samples,
        )

    def hash_asked(self) -> dict[str, str]:
        """Hash what is asked, by its name in metrics.jsonl; what is not asked has none."""
        prepared, settings, hashes = self.prepared, self.answerer.settings, {}
        if prepared.held_out is not None:
            hashes["held_out_hash"] = prepared.held_out.report["label_hash"]
        if prepared.questions:
            asked = [(one.prompt_ids, one.reference) for one in prepared.questions]
            scored = (settings.metric, settings.answer_pattern, settings.max_new_tokens)
            hashes["questions_hash"] = hashlib.sha256(json.dumps([asked, scored]).encode()).hexdigest()
        if prepared.pairs is not None:
            hashes["pairs_hash"] = prepared.pairs.report["label_hash"]
        if prepared.general_text is not None:
            hashes["general_text_hash"] = prepared.general_text.report["label_hash"]
        return hashes

    def _measure_general_text(self) -> float | None:
        """Measure the loss of the general text; every process measures all of it."""
        if self.prepared.general_text is None:
            return None
        trainer = self.trainer
        with trainer.as_in_training(float32_logits=False):
            return measure_text_loss(
                trainer.model,
                self.prepared.general_text.dataset,
                pad_token_id=find_pad_id(self.prepared.tokenizer),
                batch_size=self.batch_size,
                device=trainer.args.device,
            )

    def _answer(self) -> tuple[Sequence[Answered], Sequence[Answered]]:
        answered = self.answerer.answer(self.prepared.questions)
        num_samples = len(self.prepared.samples)
        return answered, answered[:num_samples] if answered else self.answerer.answer(self.prepared.samples)

    def _compare_pairs(self, *, without_adapter: bool = False) -> PairFigures | None:
        if self.prepared.pairs is None:
            return None
        trainer, model = self.trainer, self.trainer.model
        off = model.disable_adapter() if without_adapter and isinstance(model, PeftModel) else nullcontext()
        collator = PairCollator(find_pad_id(self.prepared.tokenizer))
        with off, trainer.as_in_training(float32_logits=False):
            scores = score_pairs(trainer.score_answers, self.prepared.pairs.dataset, collator, self.batch_size)
        return compare(scores, per_token=trainer.scores_per_token)


def to_figures(measured: Measured) -> dict[str, float]:
    """Name the figures as metrics.jsonl has them."""
    figures = dict(measured.held_out)
    for name in ("exact_match", "answer_tokens", "general_loss"):
        if (value := getattr(measured, name)) is not None:
            figures[name] = value
    for pairs, suffix in ((measured.pairs, ""), (measured.base_pairs, "_base")):
        if pairs is not None:
            figures |= {f"preference_{name}{suffix}": value for name, value in asdict(pairs).items()}
    return figures


def from_figures(line: Mapping[str, Any]) -> Measured:
    """Read back what `to_figures` named, from the first line of metrics.jsonl; without the answers themselves."""

    def read_pairs(suffix: str) -> PairFigures | None:
        if line.get(f"preference_accuracy{suffix}") is None:
            return None
        return PairFigures(**{field.name: line[f"preference_{field.name}{suffix}"] for field in fields(PairFigures)})

    return Measured(
        held_out={name: value for name, value in line.items() if name.startswith("eval_") and value is not None},
        exact_match=line.get("exact_match"),
        answer_tokens=line.get("answer_tokens"),
        pairs=read_pairs(""),
        base_pairs=read_pairs("_base"),
        general_loss=line.get("general_loss"),
    )


def drop_changed(measured: Measured, then: Mapping[str, Any], now: Mapping[str, Any]) -> Measured:
    """Drop the figures of what is asked otherwise by now, and say so: beside those of the end they would mean nothing.

    Args:
        measured: at the start.
        then: from `Gauge.hash_asked` at the start; a run of an earlier version has none.
        now: the same of today.
    """
    changed = [name for name in _ASKED if name in then and then[name] != now.get(name)]
    if not changed:
        return measured
    log.warning(
        "Changed since the run began: %s; their figures of the start are left out.",
        ", ".join(_ASKED[name][0] for name in changed),
    )
    nothing = Measured(held_out={})
    dropped: dict[str, Any] = {figure: getattr(nothing, figure) for name in changed for figure in _ASKED[name][1]}
    return replace(measured, **dropped)


def to_summary(before: Measured, after: Measured) -> dict[str, Any]:
    """Name the figures before and after as summary.json has them; those that nobody asked for are left out."""
    figures: dict[str, Any] = {}
    for name, pick in _COMPARED.items():
        figures |= {f"{name}_before": pick(before), name: pick(after)}
    if before.base_pairs is not None:
        figures |= {
            "preference_accuracy_base": before.base_pairs.accuracy, "preference_margin_base": before.base_pairs.margin
        }  # fmt: skip
    scores = {name.removeprefix(_SCORES): value for name, value in after.held_out.items() if name.startswith(_SCORES)}
    if scores:
        figures["scores"] = scores
    return {name: value for name, value in figures.items() if value is not None or name.startswith("eval_loss")}


def to_words(before: Measured, after: Measured, labelled: LabelledRows | None = None) -> dict[str, str | float | None]:
    """Name the figures in words, for the model card."""
    words: dict[str, str | float | None] = {} if labelled is None else {"scored by": labelled.metric.name}
    for name, pick in _COMPARED.items():
        said = _IN_WORDS[name]
        words |= {f"{said} at the start": pick(before), said: pick(after)}
    return words


# By the name of its hash: what was asked, and the figures that came of it.
_ASKED = {
    "held_out_hash": ("the held-out rows", ("held_out",)),
    "questions_hash": ("the questions", ("exact_match", "answer_tokens")),
    "pairs_hash": ("the held-out pairs", ("pairs", "base_pairs")),
    "general_text_hash": ("the general text", ("general_loss",)),
}
# A classifier's further scores in metrics.jsonl.
_SCORES = "eval_scores/"
# Figures of a run by their name in summary.json.
_COMPARED: dict[str, Callable[[Measured], float | None]] = {
    "eval_loss": lambda measured: measured.held_out.get("eval_loss"),
    "eval_reward": lambda measured: measured.held_out.get("eval_reward"),
    "score": lambda measured: measured.held_out.get("eval_score"),
    "exact_match": lambda measured: measured.exact_match,
    "answer_tokens": lambda measured: measured.answer_tokens,
    "general_loss": lambda measured: measured.general_loss,
    "preference_accuracy": lambda measured: None if measured.pairs is None else measured.pairs.accuracy,
    "preference_margin": lambda measured: None if measured.pairs is None else measured.pairs.margin,
}
_IN_WORDS = {
    "eval_loss": "held-out loss",
    "eval_reward": "held-out reward",
    "score": "held-out score",
    "exact_match": "exact match",
    "answer_tokens": "tokens of an answer",
    "general_loss": "loss of general text",
    "preference_accuracy": "preference accuracy on held-out pairs",
    "preference_margin": "preference margin on held-out pairs",
}
