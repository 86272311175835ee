"""One recipe's prepared rows, chosen and shown: in the console, as one object, or as a page.

In go what the training code path prepared and the plain settings that say how to read it; out come the rows that were
asked for, and each of the three forms of them.
"""

from collections.abc import Collection, Mapping, Sequence
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

_PIECES_DRAWN = 5


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
        headers: ids that count as control tokens beside the tokenizer's own: those of the template.
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
    headers: Collection[int]
    train: TokenRows
    held_out: TokenRows | None
    labels: Sequence[str] | None

    @property
    def findings(self) -> Sequence[Mapping[str, Any]] | None:
        """Of the quality pass; None where the recipe has nothing looked for."""
        found: Sequence[Mapping[str, Any]] | None = self.train.report.get("findings")
        return found

    @property
    def note(self) -> str:
        """What is trained where no token of a row is marked; empty: the marked ones."""
        match self.objective:
            case "mlm":
                share = f"{self.mask_fraction:.0%} of those that are no control tokens"
                return f"Which tokens are masked is drawn anew in each epoch: {share}."
            case "classify":
                return "No token carries loss: the label of the whole text does."
            case "reward":
                return "No token carries loss: the score of the whole answer does, read at its last token."
            case "grpo" | "rloo":
                return "No token of a prompt is trained: the answers to it are sampled in the run."
        return ""

    def take_first(self, count: int) -> list[Row]:
        """Take the first rows that are trained on, so many or as many as there are."""
        return take_first_rows(self.train.account, count, objective=self.objective, labels=self.labels)

    def find(self, wanted: str) -> list[Row]:
        """Find what became of one row, by its number or its place; a place may be among the rows held out.

        Args:
            wanted: the number of an example of the training side, from 1, or `FILE:LINE`.

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
            raise RecipeError(self._say_not_there(wanted))
        return found

    def _say_not_there(self, wanted: str) -> str:
        report, first = self.train.report, self.train.account[0]
        count = report["rows_read"]
        return "\n".join(
            [
                f"--row {wanted}: there is no such row among the {count:,} examples to train on.",
                f"  A number is that of an example of the training side, 1 to {count:,}.",
                f"  A place is named as in messages, such as {Origin(first['source'], first['row'])}.",
                *(f"  {reason}" for reason in self._list_reasons(wanted)),
            ]
        )

    def _list_reasons(self, wanted: str) -> list[str]:
        """What else a row of the files may have become; the very reason where the report names the place."""
        report = self.train.report
        reasons = []
        for source in report["sources"]:
            for reason, found in source["bad_reasons"].items():
                if wanted in found["first"]:
                    return [f"It is a bad row that is left out: {reason}."]
        source, _, line = wanted.rpartition(":")
        for finding in self.findings or []:
            if source and int(line) in finding["dropped"].get(source, ()):
                return [f"It was left out: `data.findings.{finding['name']}: drop`. {finding['advice']}"]
        bad = sum(source["bad_rows"] for source in report["sources"])
        if bad:
            reasons.append(f"It may be one of the {bad:,} bad rows that are left out (`data.on_bad_rows`).")
        if "split" in report:
            num_held_out = report["split"]["of"] - report["split"]["rows"]
            reasons.append(f"It may be one of the {num_held_out:,} rows held out (`data.eval`): name its place.")
        dropping = [finding["name"] for finding in self.findings or [] if finding["rows_dropped"]]
        if dropping:
            named = ", ".join(f"`data.findings.{name}`" for name in dropping)
            reasons.append(f"It may be one of the {report['rows_dropped']:,} that findings drop ({named}).")
        return reasons

    def print(self, rows: Sequence[Row], *, is_one: bool, shows_ids: bool) -> None:
        """Print the census and rows to standard output.

        Args:
            rows: to print.
            is_one: they are all that became of one row: of its pieces the first are printed.
            shows_ids: whether each token's id is listed below.
        """
        report, console = self.train.report, build_console()
        print_census(console, report, self.findings, objective=self.objective)
        if rows:
            drawn, reader = rows[: _PIECES_DRAWN if is_one else None], PieceReader(self.tokenizer, self.headers)
            print_rows(console, drawn, reader, max_length=self.max_length, note=self.note, shows_ids=shows_ids)
            if len(drawn) < len(rows):
                console.print(f"\n… and {len(rows) - len(drawn):,} more pieces")
        console.print(f"\nlabel hash {report['label_hash']}", soft_wrap=True)

    def to_object(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Rows, census, sources, findings and label hash as plain values."""
        report = self.train.report
        return {
            "rows": [part for row in rows for part in to_object(row)],
            "census": census_table.to_object(report["census"]),
            "sources": report["sources"],
            "findings": self.findings,
            "label_hash": report["label_hash"],
        }

    def to_page(self, rows: Sequence[Row], *, is_one: bool) -> str:
        """Make the page.

        Args:
            rows: to show.
            is_one: they are all that became of one row: of its pieces the first are shown.
        """
        shown = "" if is_one else ", the first that are trained on"
        drawn = rows[: _PIECES_DRAWN if is_one else None]
        if len(drawn) < len(rows):
            shown += f", and {len(rows) - len(drawn):,} more pieces"
        return render_page(
            title=self.name,
            about=[("objective", self.objective), *self.about, ("label hash", self.train.report["label_hash"])],
            report=self.train.report,
            findings=self.findings,
            objective=self.objective,
            rows=drawn,
            reader=PieceReader(self.tokenizer, self.headers),
            max_length=self.max_length,
            note=self.note,
            shown=shown,
            footer=f"Made by finetune {__version__}; the rows come from the code that training runs.",
        )
