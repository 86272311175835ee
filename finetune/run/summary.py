"""The figures of a finished run: summary.json, and the few lines that end it on the console."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finetune.run.disk import to_size
from finetune.run.progress import to_duration, to_gib

__all__ = ["Summary", "render_summary"]

_WHERE_SCORED = (
    "exact_match", "answer_tokens", "questions", "eval_reward", "preference_", "pairs", "general_loss", "metric",
    "score", "majority_score", "eval_rows", "accepted_mismatches",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to. None: not measured, because the recipe did not ask for it.

    Attributes:
        status: of the run; `done` where a result was saved.
        steps: optimizer steps trained.
        resumed_from: steps at which the run was taken up again.
        accepted_mismatches: settings that `--allow-mismatch` let it go on with: key, value then and now, and the step.
        train_loss: mean over all steps; of sft and pretrain in nats per token, else of a pair, an answer or a batch.
        eval_loss_before: held-out loss at the start: of the base, or of the adapter that is trained on.
        eval_loss: held-out loss of the result.
        skipped_steps: steps whose update was left out, because the loss or the gradient was not finite.
        loss_spikes: logged losses far above those before them.
        best_step: step whose weights are the result; None: the last one.
        exact_match_before: share of the questions answered right at the start, 0 to 1.
        exact_match: share of the questions the result answered right, 0 to 1.
        answer_tokens_before: mean length of those answers at the start.
        answer_tokens: of the result's.
        questions: number of questions asked; None where none were.
        eval_reward_before: mean reward of the answers to held-out prompts at the start.
        eval_reward: of the result's.
        preference_accuracy_base: share of the held-out pairs whose chosen answer is the likelier one, per token, under
            the base, where the run starts from a trained adapter.
        preference_accuracy_before: the same at the start.
        preference_accuracy: the same of the result.
        preference_margin_base: by how many nats per token the chosen answer is the likelier one (a reward model: by how
            much its score is higher), on the mean.
        preference_margin_before: the same at the start.
        preference_margin: the same of the result.
        pairs: number of held-out pairs; None where there are none.
        general_loss_before: loss of a general text that is not trained on, in nats per token, at the start.
        general_loss: of the result: what it has risen by was forgotten.
        metric: name of the score of a classifier.
        score_before: of the held-out rows at the start; a fresh head's, by chance.
        score: of the result.
        scores: all that the task is scored by, of the result: name -> value.
        majority_score: what always giving the commonest label of the training rows scores; None for numbers.
        eval_rows: number of held-out rows that were scored.
        trainable_parameters: parameters that were trained.
        total_parameters: of the whole model, 4-bit weights counted by their true number.
        adapter_bytes: size of the result on the disk.
        tokens: real tokens trained on.
        tokens_per_second: of the time trained.
        peak_memory_bytes: most memory held.
        micro_batch_rows: rows trained at once since memory ran out; None: as the recipe says.
        memory_spending: what idle memory was spent on: numbers of layers and weights, and bytes; where a step was
            measured, what it held: on a GPU at its fullest moment, beyond what was there before it; on a CPU for its
            backward pass; predicted and measured; None: on nothing.
        seconds: wall time, the stops between not counted.
        device: what it ran on.
        predicted: what the plan before the run had said of some of these figures, by their names; None: no plan.
    """

    status: str
    steps: int
    resumed_from: list[int]
    train_loss: float | None
    skipped_steps: int = 0
    loss_spikes: int = 0
    eval_loss_before: float | None = None
    eval_loss: float | None = None
    best_step: int | None = None
    accepted_mismatches: list[dict[str, Any]] | None = None
    exact_match_before: float | None = None
    exact_match: float | None = None
    answer_tokens_before: float | None = None
    answer_tokens: float | None = None
    questions: int | None = None
    eval_reward_before: float | None = None
    eval_reward: float | None = None
    preference_accuracy_base: float | None = None
    preference_accuracy_before: float | None = None
    preference_accuracy: float | None = None
    preference_margin_base: float | None = None
    preference_margin_before: float | None = None
    preference_margin: float | None = None
    pairs: int | None = None
    general_loss_before: float | None = None
    general_loss: float | None = None
    metric: str | None = None
    score_before: float | None = None
    score: float | None = None
    scores: dict[str, float] | None = None
    majority_score: float | None = None
    eval_rows: int | None = None
    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    tokens: int
    tokens_per_second: float | None
    peak_memory_bytes: int
    micro_batch_rows: int | None = None
    memory_spending: dict[str, Any] | None = None
    seconds: float
    device: str
    predicted: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of summary.json; what concerns answers, rewards or pairs is in it only where they were scored."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None or not name.startswith(_WHERE_SCORED)
        }


def render_summary(summary: Summary, result: str, run: str, *, head: str = "words") -> str:
    """Lay the summary out in lines of at most 80 columns (long paths apart).

    Args:
        summary: the figures.
        result: where the adapter or model lies.
        run: what to hand to `finetune.chat`.
        head: what the model ends with: `words` answer, a `score` rewards, `labels` classify, `masked` ones restore.
    """
    rows = [("steps", f"{summary.steps:,}")]
    if summary.resumed_from:
        rows.append(("resumed at", f"step {', '.join(map(str, summary.resumed_from[-5:]))}"))
    if summary.skipped_steps:
        rows.append(("left out", f"{summary.skipped_steps} steps, not finite; their rows: non_finite.jsonl"))
    if summary.loss_spikes:
        rows.append(("loss spikes", f"{summary.loss_spikes}, marked in metrics.jsonl"))
    for one in summary.accepted_mismatches or []:
        rows.append(("goes on with", f"{one['key']} {one['now']} from step {one['step']} (before: {one['then']})"))
    if summary.best_step is not None and summary.best_step != summary.steps:
        rows.append(("best step", f"{summary.best_step}: its weights are the result"))
    if summary.train_loss is not None:
        rows.append(("training loss", f"{summary.train_loss:.4f} (mean over all steps)"))
    if summary.eval_loss is not None:
        rows.append(("held-out loss", _to_change(summary.eval_loss_before, summary.eval_loss, "{:.4f}")))
    if summary.exact_match is not None:
        change = _to_change(summary.exact_match_before, summary.exact_match, "{:.1%}")
        rows.append(("exact match", f"{change} of {summary.questions} questions"))
    if summary.answer_tokens is not None:
        change = _to_change(summary.answer_tokens_before, summary.answer_tokens, "{:.1f}")
        rows.append(("their length", f"{change} tokens"))
    if summary.eval_reward is not None:
        rows.append(("held-out reward", _to_change(summary.eval_reward_before, summary.eval_reward, "{:.3f}")))
    if summary.general_loss is not None:
        rows.append(("general text", f"loss {_to_change(summary.general_loss_before, summary.general_loss, '{:.4f}')}"))
    rows += _to_pair_rows(summary)
    rows += _to_score_rows(summary)
    share = summary.trainable_parameters / summary.total_parameters
    counted = f"{summary.trainable_parameters:,} of {summary.total_parameters:,} parameters"
    rows.append(("trained", f"{counted} ({share:.2%})"))
    rows.append(("time", _to_speed(summary)))
    at_once = "" if summary.micro_batch_rows is None else f", {summary.micro_batch_rows} rows at once (it ran out)"
    rows.append(("peak memory", f"{to_gib(summary.peak_memory_bytes)} on {summary.device}{at_once}"))
    if summary.predicted is not None:
        rows += zip(("predicted", ""), _to_prediction(summary, summary.predicted), strict=False)
    rows.append(("result", f"{result} ({to_size(summary.adapter_bytes)})"))
    if head == "words":
        rows.append(("talk to it", f"python -m finetune.chat {run}"))
    elif head == "score":
        rows.append(("reward with it", f"{{function: reward_model, path: {run}}} under `rewards`"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _to_pair_rows(summary: Summary) -> list[tuple[str, str]]:
    """The table of held-out pairs: base, start and result, each with its accuracy and margin."""
    if summary.preference_accuracy is None:
        return []
    states = [
        ("base", summary.preference_accuracy_base, summary.preference_margin_base),
        ("start", summary.preference_accuracy_before, summary.preference_margin_before),
        ("result", summary.preference_accuracy, summary.preference_margin),
    ]
    rows = [("held-out pairs", f"{summary.pairs} pairs: accuracy    margin")]
    for state, accuracy, margin in states:
        if accuracy is not None and margin is not None:
            rows.append((f"  {state}", f"{accuracy:>20.1%} {margin:>+9.3f}"))
    return rows


def _to_score_rows(summary: Summary) -> list[tuple[str, str]]:
    """The score of a classifier, what the commonest label alone would reach, and the task's further scores."""
    if summary.score is None or summary.metric is None:
        return []
    said = _to_change(summary.score_before, summary.score, "{:.4f}")
    majority = "" if summary.majority_score is None else f"; the commonest label alone: {summary.majority_score:.4f}"
    rows = [(summary.metric.replace("_", " "), f"{said} on {summary.eval_rows:,} held-out rows{majority}")]
    further = {name: value for name, value in (summary.scores or {}).items() if name != summary.metric}
    if further:
        rows.append(("further scores", ", ".join(f"{name} {value:.4f}" for name, value in further.items())))
    return rows


def _to_change(before: float | None, after: float, pattern: str) -> str:
    return pattern.format(after) if before is None else f"{pattern.format(before)} -> {pattern.format(after)}"


def _to_speed(summary: Summary) -> str:
    rate = "" if summary.tokens_per_second is None else f", {summary.tokens_per_second:,.0f} tokens/s"
    return f"{to_duration(summary.seconds)}{rate}"


def _to_prediction(summary: Summary, predicted: Mapping[str, Any]) -> list[str]:
    """Figures of the plan, each in front of the measured one: a line of the peak, and one of what is like for like."""
    planned_bytes, planned_rate = predicted["peak_memory_bytes"], predicted["tokens_per_second"]
    # A plan is of training steps; the evaluations are measured with them, and on a CPU all else of the process.
    said = [f"peak of a step {to_gib(planned_bytes)} / measured {to_gib(summary.peak_memory_bytes)} of the whole run"]
    further = []
    spent = summary.memory_spending or {}
    if "predicted_step_bytes" in spent and "measured_step_bytes" in spent:
        planned, measured = to_size(spent["predicted_step_bytes"]), to_size(spent["measured_step_bytes"])
        further.append(f"activations {planned} / measured {measured}")
    if planned_rate is not None and summary.tokens_per_second is not None:
        further.append(f"{planned_rate:,.0f} / {summary.tokens_per_second:,.0f} tokens/s")
    return [*said, ", ".join(further)] if further else said
