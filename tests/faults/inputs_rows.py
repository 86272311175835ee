"""Rows 23 to 28: malformed lines named, injected control tokens kept out, rows that stand twice reported.

Judged through the functions that a run loads and renders its rows with, in this process.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune.data.templates import SHIPPED
from finetune.errors import DataError, FinetuneError
from tests.faults.inputs_planting import PlantedRows, draw_rows
from tests.faults.measures import Outcome, Rig, register

__all__ = ["InjectedTokens", "MalformedLines", "PlantedCopies", "cache_in", "judge_rows"]

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"

MAX_LINES = 15
_PLACES_SHOWN = 5


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Let the rows' cache lie in a folder of the measure's own."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def judge_rows(planted: PlantedRows, folder: Path) -> str:
    """Load a planted file under both policies; what is wrong with the answers, "" where nothing is.

    Args:
        planted: the file and the truth about it.
        folder: to write it into; the caches of `datasets` are the caller's.
    """
    path = folder / planted.filename
    path.write_bytes(planted.content)
    return _judge_stop(planted, path) or _judge_skip(planted, path)


def _load(planted: PlantedRows, path: Path, on_bad_rows: str):
    from finetune.data.sources import load_examples
    from finetune.recipe.schema import SourceSettings

    return load_examples(SourceSettings(path=str(path)), kind=planted.reads, seed=0, on_bad_rows=on_bad_rows)


def _judge_stop(planted: PlantedRows, path: Path) -> str:
    """Judge the answer where the first bad row stops: code 3, file, line, and a reason that fits."""
    try:
        loaded = _load(planted, path, "error")
    except FinetuneError as error:
        message, code = str(error), error.exit_code
    except Exception as error:  # the traceback that must not be
        return f"{type(error).__name__}: {error}"[:300]
    else:
        if planted.lines:
            return "accepted"
        rows = len(set(loaded.dataset["row"]))
        return "" if rows == planted.num_good else f"{rows} rows read of {planted.num_good}"
    first = message.splitlines()[0]
    if not planted.lines:
        return f"refused: {first}"
    if code != 3 or len(message.splitlines()) > MAX_LINES:
        return f"exit {code}, {len(message.splitlines())} lines: {first}"
    if not first.startswith(f"{path}:{planted.lines[0]}: "):
        return f"line {planted.lines[0]} is told as {first.removeprefix(str(path.parent))}"
    reason = first.removeprefix(f"{path}:{planted.lines[0]}: ")
    if not reason.isprintable():
        return f"a character that cannot be shown: {reason!r}"[:300]
    return "" if any(word in reason for word in planted.words) else f"another reason: {reason}"


def _judge_skip(planted: PlantedRows, path: Path) -> str:
    """Judge the account where bad rows are left out: how many, and where the first five stand."""
    try:
        report = _load(planted, path, "skip").report["sources"][0]
    except DataError as error:
        return "" if not planted.skippable or planted.num_good == 0 else f"skip: refused: {error}".splitlines()[0]
    except Exception as error:
        return f"skip: {type(error).__name__}: {error}"[:300]
    if not planted.skippable:
        return "skip: accepted"
    if (report["rows"], report["bad_rows"]) != (planted.num_good, len(planted.lines)):
        return f"skip: {report['rows']} rows and {report['bad_rows']} bad ones"
    places = {place for entry in report["bad_reasons"].values() for place in entry["first"]}
    wanted = {f"{path}:{line}" for line in planted.lines[:_PLACES_SHOWN]}
    if not wanted <= places or not places <= {f"{path}:{line}" for line in planted.lines}:
        return f"skip: {sorted(places)} told instead of {sorted(wanted)}"
    return ""


@register
class MalformedLines:
    """Files of good rows with one kind of fault planted, under both policies.

    Among them are files that are good all the same (a byte order mark, CRLF). These count only where they are refused
    or read as fewer rows, so that the target is one of malformed files.
    """

    name = "malformed_lines"
    title = (
        "files with malformed lines: the line named with a reason that fits, and counted where it is skipped "
        "(files that are odd but good are read beside them, and count only where they are not)"
    )
    row = "23, 24, 25, 26"
    target = 2000
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline."""
        with TemporaryDirectory() as folder, cache_in(Path(folder)):
            for case in count(first_case):
                if time.monotonic() >= deadline:
                    return
                planted = draw_rows(rig.draw(self.name, case))
                wrong = judge_rows(planted, Path(folder))
                drawn = {"kind": planted.kind, "shape": planted.shape, "lines": planted.lines}
                figures = {"lines": len(planted.lines), "odd_but_good_files": int(not planted.lines)}
                weight = int(bool(planted.lines or wrong))
                yield Outcome(case, passed=not wrong, drawn=drawn, detail=wrong, weight=weight, figures=figures)


# What tests/data/test_injections.py draws of a template with a tokenizer, and the tokenizers that it has without the
# folder of shared data, where Llama-2's lies. Held against it before the first case: importing it here takes seconds.
_INJECTIONS_EACH = 180
_TOKENIZERS = ("mistral", "byte_level", "other_forms")


def _list_pairs() -> list[tuple[str, str]]:
    """Every shipped template with every tokenizer that is there; those of the shared folder last."""
    tokenizers = (*_TOKENIZERS, "llama2") if SHARED.is_dir() else _TOKENIZERS
    return [(name, which) for which in tokenizers for name in SHIPPED]


@register
class InjectedTokens:
    """The injections of tests/data/test_injections.py: a template with a tokenizer a case."""

    name = "injected_tokens"
    title = "control tokens injected into a row's fields: none forged, none trained where its field is not"
    row = "27"
    target = len(_list_pairs()) * _INJECTIONS_EACH  # 5,040 with the shared data, 3,780 without
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline; behind the last pair of a template and a tokenizer there is none."""
        from tests.data.test_injections import EACH, TOKENIZERS

        assert (EACH, {*TOKENIZERS}) == (_INJECTIONS_EACH, {*_TOKENIZERS, "llama2"}), "the target counts others"
        pairs = _list_pairs()
        for case in range(first_case, len(pairs)):
            if time.monotonic() >= deadline:
                return
            name, which = pairs[case]
            wrong, num_tokens = judge_injections(name, which, SHARED)
            drawn = {"template": name, "tokenizer": which, "injections": EACH}
            figures = {"forged_or_trained": len(wrong), "left_to_themselves": num_tokens}
            yield Outcome(case, not wrong, drawn, "; ".join(wrong[:3])[:300], weight=EACH, figures=figures)


def judge_injections(name: str, which: str, shared: Path) -> tuple[list[str], int]:
    """Render the injections drawn for a template and a tokenizer; those that got through, by what was done.

    Returns:
        Those, and how many control tokens the same texts would have become.
    """
    from tests.data.test_injections import UNTRAINED, bind, control_of, draw_injections, find_tokenizer, trained_of

    tokenizer, renderer = find_tokenizer(which, shared), bind(name, which, shared)
    injections = draw_injections(name, which, tokenizer)
    rows = renderer.render([one.row for one in injections])
    plain = renderer.render([one.harmless for one in injections])
    wrong = []
    for one, row, harmless in zip(injections, rows, plain, strict=True):
        if control_of(row.input_ids, tokenizer) != control_of(harmless.input_ids, tokenizer):
            wrong.append(f"forged: {one.what}")
        elif one.field in UNTRAINED and trained_of(row) != trained_of(harmless):
            wrong.append(f"trained: {one.what}")
    return wrong, sum(row.num_control_tokens for row in rows)


@register
class PlantedCopies:
    """Rows that stand twice, nearly twice, or among the evaluated ones too, planted by tests/quality.

    A case is one planted row; the cases of a set of files follow each other.
    """

    name = "planted_copies"
    title = "planted rows reported, each counted by itself: duplicates and overlaps with evaluation, exact and near"
    row = "28"
    target = 500
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases until the deadline."""
        first_set, first_row = divmod(first_case, COPIES_EACH)
        for number in count(first_set):
            if time.monotonic() >= deadline:
                return
            with TemporaryDirectory() as folder, cache_in(Path(folder) / "cache"):
                copies = judge_copies(Path(folder), rig.draw(self.name, number).randrange(2**32))
            assert len(copies) == COPIES_EACH, f"{len(copies)} copies were planted"
            for row in range(first_row if number == first_set else 0, COPIES_EACH):
                kind, missed = copies[row]
                drawn = {"files": number, "kind": kind}
                yield Outcome(number * COPIES_EACH + row, not missed, drawn, missed[:300], figures={kind: 1})


_COPIES = ("duplicates", "near_duplicates", "eval_overlap", "near_eval_overlap")
# What tests/quality/planter.py plants of them in a set of files at the share below, whatever the seed.
COPIES_EACH = 22


def judge_copies(folder: Path, seed: int) -> list[tuple[str, str]]:
    """Plant copies among the tiny world's rows; of each its kind, and where it stands if the report does not name it.

    Args:
        folder: an empty one for the files.
        seed: what the planter draws from.
    """
    from tests.quality.planter import plant
    from tests.quality.test_planted import ALSO_FOUND_AS, COLUMNS, inspect, quote

    rows = json.loads((ROOT / "data" / "tiny_world" / "train.json").read_text(encoding="utf-8"))
    # One wording of each fact: another one of the same may well be called a near duplicate.
    facts = {row["fact"]: {name: row[name] for name in COLUMNS} for row in rows}
    copies = []
    for name, planted in plant(list(facts.values()), folder, seed, share=0.12).items():
        flagged = inspect(planted)
        for kind in _COPIES:
            for line in planted.truth.get(kind, ()):
                is_found = flagged.get(line, set()) & ALSO_FOUND_AS.get(kind, {kind})
                copies.append((kind, "" if is_found else quote(name, planted, line)))
    return copies
