"""One recipe's prepared rows, chosen and shown: in the console, as one object, or as a page.

In go what the training code path prepared and the plain settings that say how to read it; out come the rows that were
asked for, and each of the three forms of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finetune import __version__
from finetune.data.examples import Origin
from finetune.data.tokens import TokenRows
from finetune.errors import RecipeError
from finetune.inspection import census_table
from finetune.inspection.console import build_console, print_census, print_rows
from finetune.inspection.page import render_page
from finetune.inspection.pieces import PieceReader
from finetune.inspection.rows import Row, find_rows_at, find_rows_numbered, take_first_rows, to_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Showing"]


@dataclass(frozen=True, slots=True)
class Showing:
    """What is shown.

    Attributes:
        name: of the run.
        objective: decides what a row holds.
        about: what the tokens were made from, by name, for the page.
        max_length: tokens of a row at most.
        mask_fraction: share of the tokens that `mlm` hides.
        tokenizer: of the run.
        train: the rows to train on.
        held_out: the rows that are evaluated on.
        labels: names of a classifier's labels; None: there are none, or they are numbers.
    """

    name: str
    objective: str
    about: Sequence[tuple[str, str]]
    max_length: int
    mask_fraction: float
    tokenizer: "PreTrainedTokenizerBase"
    train: TokenRows
    held_out: TokenRows | None
    labels: Sequence[str] | None

    @property
    def findings(self) -> Sequence[Mapping[str, Any]]:
        """Of the quality pass; none where the recipe leaves it out."""
        found: Sequence[Mapping[str, Any]] = self.train.report.get("findings", [])
        return found

    @property
    def note(self) -> str:
        """What is trained where no token of a row is marked; empty: the marked ones."""
        match self.objective:
            case "mlm":
                share = f"{self.mask_fraction:.0%} of those that are no control tokens"
                return f"Which tokens are masked is drawn anew in each epoch: {share}."
            case "classify":
                return "No token is trained: the label is."
            case "grpo" | "rloo":
                return "No token of a prompt is trained: the answers to it are sampled in the run."
        return ""

    def take_first(self, count: int) -> list[Row]:
        """Take the first rows that are trained on, so many or as many as there are."""
        return take_first_rows(self.train.account, count, objective=self.objective, labels=self.labels)

    def find(self, wanted: str) -> list[Row]:
        """Find what became of one row, by its number or its place; a place may be among the rows held out.

        Args:
            wanted: a number from 1, or `FILE:LINE`.

        Raises:
            RecipeError: there is no such row.
        """
        train, held_out = self.train.account, None if self.held_out is None else self.held_out.account
        if wanted.isdecimal():
            found = find_rows_numbered(train, int(wanted), objective=self.objective, labels=self.labels)
        else:
            source, _, line = wanted.rpartition(":")
            place = Origin(source, int(line))
            found = find_rows_at(train, place, objective=self.objective, labels=self.labels)
            if not found and held_out is not None:
                found = find_rows_at(held_out, place, objective=self.objective, labels=self.labels)
                told = {"held_out": "evaluated on, and not trained"}
                found = [replace(row, facts=told | dict(row.facts)) for row in found]
        if not found:
            count, first = self.train.report["rows_read"], train[0]
            raise RecipeError(
                f"--row {wanted}: there is no such row among the {count:,} to train on.\n"
                f"  A number counts those that were read, from 1; a place is named as in messages, such as "
                f"{Origin(first['source'], first['row'])}.\n"
                "  Bad rows that are left out, and those that a finding drops (`data.findings`), are not among them."
            )
        return found

    def print(self, rows: Sequence[Row], *, shows_ids: bool) -> None:
        """Print the census and rows to standard output."""
        report, console = self.train.report, build_console()
        print_census(console, report, self.findings)
        if rows:
            reader = PieceReader(self.tokenizer)
            print_rows(console, rows, reader, max_length=self.max_length, note=self.note, shows_ids=shows_ids)
        console.print(f"\nlabel hash {report['label_hash']}", soft_wrap=True)

    def to_object(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Rows, census, findings and label hash as plain values."""
        report = self.train.report
        return {
            "rows": [part for row in rows for part in to_object(row)],
            "census": census_table.to_object(report["census"]),
            "findings": self.findings,
            "label_hash": report["label_hash"],
        }

    def to_page(self, rows: Sequence[Row], *, shown: str) -> str:
        """Make the page; `shown` says which rows these are."""
        return render_page(
            title=self.name,
            about=[("objective", self.objective), *self.about, ("label hash", self.train.report["label_hash"])],
            report=self.train.report,
            findings=self.findings,
            rows=rows,
            reader=PieceReader(self.tokenizer),
            max_length=self.max_length,
            note=self.note,
            shown=shown,
            footer=f"Made by finetune {__version__}; the rows come from the code that training runs.",
        )
