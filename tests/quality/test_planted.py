"""500 faults planted by a part that knows nothing of the finder: 98 of 100 are found, and clean rows are left alone.

The real rows are used where they are, ours always; the faults of tokens are told by the census of a real preparation.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from finetune.data.quality.inspecting import find_faults
from finetune.data.sources import LoadedExamples, load_examples
from finetune.prepare import Prepared, prepare
from finetune.recipe.reading import build_recipe
from finetune.recipe.schema import SourceSettings
from tests.quality.pair_planter import plant_pair_sets
from tests.quality.planter import PlantedFile, plant
from tests.quality.token_planter import MAX_LENGTH, TokenFile, plant_tokens

ROOT = Path(__file__).parents[2]

# What the first 5,000 Alpaca-cleaned rows hold of themselves, read by hand: a finder that names these is right.
SPEAKS_AS_A_MODEL = """
465 547 601 734 766 803 1377 1401 1471 1563 1748 2002 2005 2139 2227 2344 2356 2475 2543 2545 2625 2630 2693 2797 2807
2825 2837 2917 3193 3306 3315 3432 3587 3636 3645 3714 3812 3932 3952 4080 4103 4106 4109 4276 4382 4469 4524 4566 4612
4642 4644 4646 4651 4782 4915 4920 4928"""  # "As an AI, I do not have …"
DECLINES = "38 100 142 595 737 789 2261 2295 3138 3219 3699 3869 3873 3924 4054 4595 4633"  # "I'm sorry, you did not …"
REPEATS_ANOTHER = "51 538 740 1416 1518"  # 38's question with another answer; one joke three times; 60's question
KNOWN = {int(number) for text in (SPEAKS_AS_A_MODEL, DECLINES, REPEATS_ANOTHER) for number in text.split()}

# A finding that says the same of a row, and more.
ALSO_FOUND_AS = {
    "near_duplicates": {"near_duplicates", "duplicates"},
    "near_eval_overlap": {"near_eval_overlap", "eval_overlap"},
}
COLUMNS = ("instruction", "input", "output")


@dataclass
class Tally:
    """What was found in all files together."""

    planted: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    num_clean: int = 0
    alarms: dict[tuple[str, int], str] = field(default_factory=dict)
    near_misses: list[str] = field(default_factory=list)
    num_near_misses: int = 0

    def add(self, name: str, planted: PlantedFile) -> None:
        flagged = inspect(planted)
        for kind, lines in planted.truth.items():
            self.planted[kind] += len(lines)
            for line in lines:
                if flagged.get(line, set()) & ALSO_FOUND_AS.get(kind, {kind}):
                    self.found[kind] += 1
                else:
                    self.missed.append(f"{kind} {quote(name, planted, line)}, found as {sorted(flagged.get(line, ()))}")
        for kind, lines in planted.near_misses.items():
            self.num_near_misses += len(lines)
            for line in lines:
                if line in flagged:
                    self.near_misses.append(f"{sorted(flagged[line])} (like {kind}) {quote(name, planted, line)}")
        for line, number in planted.clean.items():
            self.num_clean += 1
            if line in flagged:
                self.alarms[name, number] = f"{sorted(flagged[line])} #{number} {quote(name, planted, line)}"


def quote(name: str, planted: PlantedFile, line: int) -> str:
    return f"{name}:{line} {json.dumps(planted.texts[line], ensure_ascii=False)[:300]}"


def load(path: Path, kind: str) -> LoadedExamples:
    return load_examples(SourceSettings(path=str(path)), kind=kind, seed=1, on_bad_rows="skip")


def inspect(planted: PlantedFile) -> dict[int, set[str]]:
    """Find the faults of a file, and say under which names each line was found; what the reader refused is found."""
    train = load(planted.path, planted.kind)
    held_out = [(load(planted.held_out, planted.kind), planted.kind)] if planted.held_out else []
    rows = train.dataset["row"][:]
    flagged: dict[int, set[str]] = {line: {"empty_answers"} for line in set(planted.texts) - set(rows)}
    assert sum(source["bad_rows"] for source in train.report["sources"]) == len(flagged)
    for finding in find_faults(train, held_out, kind=planted.kind):
        # Of a bias in length no row is more guilty than another; it is looked for in sets of their own.
        if finding.name != "length_bias":
            for index in finding.rows:
                flagged.setdefault(rows[int(index)], set()).add(finding.name)
    return flagged


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="module")
def real(folder, shared_data) -> Tally:
    rows = json.loads((shared_data / "instructions" / "alpaca_cleaned_first5000.json").read_text(encoding="utf-8"))
    return tally(plant(rows, folder, seed=20, known=KNOWN))


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Tally:
    rows = json.loads((ROOT / "data" / "tiny_world" / "train.json").read_text(encoding="utf-8"))
    # One wording of each fact: another one of the same may well be called a near duplicate.
    facts = {row["fact"]: {name: row[name] for name in COLUMNS} for row in rows}
    clean = list(facts.values())
    return tally(plant(clean, tmp_path_factory.mktemp("own"), seed=21, share=0.12))


def tally(files: dict[str, PlantedFile]) -> Tally:
    counted = Tally()
    for name, planted in files.items():
        counted.add(name, planted)
    return counted


def check_found(counted: Tally) -> None:
    rates = {kind: counted.found[kind] / count for kind, count in counted.planted.items()}
    account = "\n".join(
        [str({kind: f"{counted.found[kind]}/{n}" for kind, n in counted.planted.items()}), *counted.missed]
    )
    assert counted.found.total() >= 0.98 * counted.planted.total(), account
    assert min(rates.values()) >= 0.9, account


@pytest.mark.slow
def test_planted_faults_are_found_among_5000_real_rows(real):
    assert real.planted.total() == 426
    check_found(real)


@pytest.mark.slow
def test_real_clean_rows_are_left_alone(real):
    alarms = [text for (_, number), text in real.alarms.items() if number not in KNOWN]
    assert real.num_clean > 4500
    assert len(alarms) <= 0.01 * real.num_clean, "\n".join(alarms)


@pytest.mark.slow
def test_rows_that_only_look_like_faults_are_left_alone(real):
    assert real.num_near_misses > 350
    assert not real.near_misses, "\n".join(real.near_misses)


def test_planted_faults_are_found_among_rows_of_our_own(own):
    assert own.planted.total() >= 60
    check_found(own)


def test_our_own_rows_are_left_alone(own):
    assert len(own.alarms) <= 0.01 * own.num_clean, "\n".join(own.alarms.values())
    assert not own.near_misses, "\n".join(own.near_misses)


@pytest.mark.slow
def test_a_set_of_pairs_is_called_biased_by_length_where_it_is(folder):
    wrong = []
    for path, is_biased in plant_pair_sets(folder, seed=22):
        names = {finding.name for finding in find_faults(load(path, "preference"), [], kind="preference")}
        if ("length_bias" in names) != is_biased:
            wrong.append(f"{path.name}: {'not ' if is_biased else ''}called biased")
    assert not wrong, wrong


def test_a_fault_that_is_taken_back_is_missed_by_the_tally(folder, tmp_path):
    """The tally itself can fail: an answer set right stands among the missed."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": "Name a colour of the sky.", "input": "", "output": "Blue."},
        {"instruction": "Explain rain."},
    ]
    rows[1] |= {"input": "", "output": "Clouds cool down, and their drops grow until they fall."}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    planted = PlantedFile(path, "conversation", truth={"refusals": [2]}, texts={1: rows[0], 2: rows[1]})
    counted = tally({"rows.jsonl": planted})
    with pytest.raises(AssertionError, match=re.escape("refusals rows.jsonl:2")):
        check_found(counted)


@pytest.fixture(scope="module")
def token_files(folder) -> dict[str, TokenFile]:
    return plant_tokens(folder, ROOT / "data" / "tiny_base" / "tokenizer.json", seed=23)


def prepare_rows(path: Path, **settings: object) -> Prepared:
    objective = settings.pop("objective", "sft")
    data = {"train": {"path": str(path)}, "max_length": MAX_LENGTH, "packing": False}
    data |= {"template": "alpaca"} if objective == "sft" else {}
    return prepare(
        build_recipe(
            {
                "name": "planted",
                "objective": objective,
                "model": {"model_name_or_path": str(ROOT / "data" / "tiny_base"), "device": "cpu"},
                "data": data | settings,
            }
        )
    )


def find_lines(prepared: Prepared, **wanted: object) -> list[int]:
    account = prepared.train.account
    return sorted(row["row"] for row in account if all(row[name] == value for name, value in wanted.items()))


def check_places(census: dict, name: str, lines: list[int]) -> None:
    shown = [int(place.rpartition(":")[2]) for place in census["first_places"].get(name, [])]
    assert shown == sorted(lines)[: len(shown)], name
    assert len(shown) == min(5, len(lines)), name


def test_rows_that_are_too_long_are_told_to_the_token(token_files):
    planted = token_files["drop"]
    prepared = prepare_rows(planted.path, too_long="drop")
    lengths = {row["row"]: row["full_length"] for row in prepared.train.account}
    assert {line: lengths[line] for line in planted.lengths} == planted.lengths
    assert find_lines(prepared, verdict="too_long") == planted.truth["too_long"]
    assert prepared.train.report["census"]["dropped"]["too_long"] == len(planted.truth["too_long"]) == 12
    check_places(prepared.train.report["census"], "too_long", planted.truth["too_long"])


def test_what_a_cut_takes_is_told_of_every_row(token_files):
    planted = token_files["cut"]
    prepared = prepare_rows(planted.path, too_long="truncate")
    census, truth = prepared.train.report["census"], planted.truth
    assert find_lines(prepared, verdict="cut") == truth["cut"]
    assert find_lines(prepared, verdict="nothing_trained") == truth["nothing_trained"]
    assert find_lines(prepared, unended=True) == truth["unended"]
    counted = {name: census[name] for name in ("cut", "answers_lost", "ends_lost", "unended")}
    counted["nothing_trained"] = census["dropped"]["nothing_trained"]
    assert counted == {name: len(lines) for name, lines in truth.items()}
    for name, lines in truth.items():
        check_places(census, name, lines)


@pytest.mark.parametrize(("name", "objective"), [("marks", "sft"), ("texts", "pretrain")])
def test_control_tokens_and_doubled_beginnings_are_told_of_every_row(token_files, name, objective):
    planted = token_files[name]
    for policy, begins_twice in (("allow", planted.truth["begins_twice"]), ("escape", [])):
        settings = {"objective": objective, "max_length": 1000, "special_tokens_in_data": policy}
        prepared = prepare_rows(planted.path, **settings)
        census = prepared.train.report["census"]
        assert find_lines(prepared, begins_twice=True) == begins_twice, policy
        assert census["begins_twice"] == len(begins_twice), policy
        held = sorted(row["row"] for row in prepared.train.account if row["control_tokens"])
        assert held == planted.truth["control_tokens"], policy
        assert census["control_tokens"] == {"rows": len(held), "tokens": planted.num_control_tokens}, policy
        check_places(census, "control_tokens", held)


@pytest.mark.slow
def test_five_hundred_faults_are_planted(real, token_files, folder):
    of_tokens = {(name, line) for name, file in token_files.items() for lines in file.truth.values() for line in lines}
    assert (
        real.planted.total() + sum(is_biased for _, is_biased in plant_pair_sets(folder, seed=22)) + len(of_tokens)
        == 500
    )
