"""samples.md: what the model answered at each evaluation, to be read by people.

Goes in: a step and its questions with reference and answer. Texts stand in indented blocks, so that
whatever a model writes (headings, fences, HTML) stays text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.run.folder import RunFolder
from finetune.run.writing import write_text

__all__ = ["Sample", "cut_samples", "write_samples"]

_TITLE = "# Answers during the run\n"
_HEADING = re.compile(r"^\n## Step (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """A question, the right answer and the model's."""

    question: str
    reference: str
    answer: str


def write_samples(folder: RunFolder, step: int, samples: Sequence[Sample]) -> None:
    """Put the section of one step at the end of samples.md, in the place of an earlier one; without samples none."""
    if not folder.writes or not samples:
        return
    kept = [text for at, text in _read_sections(folder.samples_path) if at != step]
    folder.write_text(folder.samples_path, "".join([_TITLE, *kept, _to_section(step, samples)]))


def cut_samples(path: Path, resumed_step: int | None) -> None:
    """Drop the sections behind the step a run is taken up from, and all of them where it starts afresh."""
    if not path.exists():
        return
    if resumed_step is None:
        path.unlink()
        return
    kept = [text for step, text in _read_sections(path) if step <= resumed_step]
    write_text(path, "".join([_TITLE, *kept]))


def _read_sections(path: Path) -> list[tuple[int, str]]:
    """The steps that stand in samples.md, each with its section as written."""
    sections: list[tuple[int, str]] = []
    if not path.exists():
        return sections
    # What a model wrote is indented: only our own headings begin a line.
    starts = list(_HEADING.finditer(text := path.read_text(encoding="utf-8")))
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        end = len(text) if following is None else following.start()
        sections.append((int(start[1]), text[start.start() : end]))
    return sections


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
