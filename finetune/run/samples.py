"""samples.md: what the model answered at each evaluation, to be read by people.

Goes in: a step and its questions with reference and answer. Texts stand in indented blocks, so that
whatever a model writes (headings, fences, HTML) stays text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.run.folder import RunFolder

__all__ = ["Sample", "cut_samples", "write_samples"]

_TITLE = "# Answers during the run\n"
_HEADING = re.compile(r"^## Step (\d+)$")


@dataclass(frozen=True, slots=True)
class Sample:
    """A question, the right answer and the model's."""

    question: str
    reference: str
    answer: str


def write_samples(folder: RunFolder, step: int, samples: Sequence[Sample]) -> None:
    """Add the section of one step to samples.md."""
    if not folder.writes:
        return
    path = folder.samples_path
    text = path.read_text(encoding="utf-8") if path.exists() else _TITLE
    folder.write_text(path, text + _to_section(step, samples))


def cut_samples(path: Path, resumed_step: int | None) -> None:
    """Drop the sections behind the step a run is taken up from, and all of them where it starts afresh."""
    if not path.exists():
        return
    if resumed_step is None:
        path.unlink()
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        heading = _HEADING.match(line.rstrip("\n"))
        if heading and int(heading[1]) > resumed_step:
            break
        kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


def _to_section(step: int, samples: Sequence[Sample]) -> str:
    parts = [f"\n## Step {step}\n"]
    for number, sample in enumerate(samples, start=1):
        parts.append(f"\n### {number}\n")
        for title, text in (("Question", sample.question), ("Reference", sample.reference), ("Answer", sample.answer)):
            parts.append(f"\n{title}:\n\n{_to_block(text)}\n")
    return "".join(parts)


def _to_block(text: str) -> str:
    # splitlines also ends a line at the rarer separators, which an editor would show as one.
    lines = text.splitlines()
    return "\n".join(f"    {line}".rstrip() for line in lines) if text.strip() else "*(empty)*"
