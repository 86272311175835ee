"""The figures of a finished run: summary.json, and the few lines that end it on the console."""

from dataclasses import asdict, dataclass
from typing import Any

from finetune.run.progress import to_duration, to_gib

__all__ = ["Summary", "render_summary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to. None: not measured, because the recipe did not ask for it.

    Attributes:
        status: of the run; `done` where a result was saved.
        steps: optimizer steps trained.
        resumed_from: steps at which the run was taken up again.
        train_loss: mean over all steps, in nats per token.
        eval_loss_before: held-out loss of the base, before the first step.
        eval_loss: held-out loss of the result.
        best_step: step whose weights are the result; None: the last one.
        exact_match_before: share of the questions the base answered right, 0 to 1.
        exact_match: share of the questions the result answered right, 0 to 1.
        questions: number of questions asked; None where none were.
        trainable_parameters: parameters that were trained.
        total_parameters: of the whole model, 4-bit weights counted by their true number.
        adapter_bytes: size of the result on the disk.
        tokens: real tokens trained on.
        tokens_per_second: of the time trained.
        peak_memory_bytes: most memory held.
        seconds: wall time, the stops between not counted.
        device: what it ran on.
    """

    status: str
    steps: int
    resumed_from: list[int]
    train_loss: float | None
    eval_loss_before: float | None = None
    eval_loss: float | None = None
    best_step: int | None = None
    exact_match_before: float | None = None
    exact_match: float | None = None
    questions: int | None = None
    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    tokens: int
    tokens_per_second: float | None
    peak_memory_bytes: int
    seconds: float
    device: str

    def to_json(self) -> dict[str, Any]:
        """The object of summary.json; what concerns answers is in it only where answers were scored."""
        values = asdict(self)
        if self.questions is None:
            for key in ("exact_match_before", "exact_match", "questions"):
                del values[key]
        return values


def render_summary(summary: Summary, result: str, run: str) -> str:
    """Lay the summary out in lines of at most 80 columns (long paths apart).

    Args:
        summary: the figures.
        result: where the adapter or model lies.
        run: what to hand to `finetune.chat`.
    """
    rows = [("steps", f"{summary.steps:,}")]
    if summary.resumed_from:
        rows.append(("resumed at", f"step {', '.join(map(str, summary.resumed_from[-5:]))}"))
    if summary.best_step is not None and summary.best_step != summary.steps:
        rows.append(("best step", f"{summary.best_step}: its weights are the result"))
    if summary.train_loss is not None:
        rows.append(("training loss", f"{summary.train_loss:.4f} (mean over all steps)"))
    if summary.eval_loss is not None:
        rows.append(("held-out loss", _to_change(summary.eval_loss_before, summary.eval_loss, "{:.4f}")))
    if summary.exact_match is not None:
        change = _to_change(summary.exact_match_before, summary.exact_match, "{:.1%}")
        rows.append(("exact match", f"{change} of {summary.questions} questions"))
    share = summary.trainable_parameters / summary.total_parameters
    counted = f"{summary.trainable_parameters:,} of {summary.total_parameters:,} parameters"
    rows.append(("trained", f"{counted} ({share:.2%})"))
    rows.append(("time", _to_speed(summary)))
    rows.append(("peak memory", f"{to_gib(summary.peak_memory_bytes)} on {summary.device}"))
    rows.append(("result", f"{result} ({_to_disk_size(summary.adapter_bytes)})"))
    rows.append(("talk to it", f"python -m finetune.chat {run}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _to_change(before: float | None, after: float, pattern: str) -> str:
    return pattern.format(after) if before is None else f"{pattern.format(before)} -> {pattern.format(after)}"


def _to_speed(summary: Summary) -> str:
    rate = "" if summary.tokens_per_second is None else f", {summary.tokens_per_second:,.0f} tokens/s"
    return f"{to_duration(summary.seconds)}{rate}"


def _to_disk_size(num_bytes: int) -> str:
    """`1.8 MB`, `14.2 GB`: decimal units, as disks and the Hub count."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= length:
            return f"{num_bytes / length:.1f} {unit}"
    return f"{num_bytes} bytes"
