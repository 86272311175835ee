"""The command line answers fast, with one message and the documented exit code."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from finetune import cli
from finetune.__main__ import VERBS, find_summaries
from finetune.__main__ import main as list_or_run
from finetune.cli import run_verb, training_verb
from finetune.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    FinetuneError,
    Interrupted,
    PlaceError,
    RecipeError,
)
from finetune.run.early_signals import EndNow

ROOT = Path(__file__).parents[1]


def leave(verb: object, *arguments: str) -> object:
    """Run a verb; its exit code."""
    with pytest.raises(SystemExit) as left:
        run_verb(verb, arguments)  # type: ignore[arg-type]
    return left.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("x"), 2),
        (DataError("x"), 3),
        (PlaceError("x"), 4),
        (DivergedError("x"), 5),
        (CheckpointError("x"), 6),
        (Interrupted("x", 143), 143),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_a_fault_is_a_message_without_a_traceback_and_its_exit_code(
    error: BaseException, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def verb() -> None:
        raise error

    assert leave(verb) == code
    said = capfd.readouterr().err
    assert said == ("Stopped by Ctrl-C.\n" if code == 130 else "x\n")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("rows.jsonl:3: no answer."), 3, "rows.jsonl:3: no answer."),
        (EndNow(signal.SIGTERM), 143, "Stopped by SIGTERM."),
        (EndNow(signal.SIGINT), 130, "Stopped by Ctrl-C."),
    ],
    ids=repr,
)
def test_a_signal_while_the_end_is_told_changes_neither_words_nor_exit_code(
    error: BaseException, code: int, words: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def verb() -> None:
        raise error

    def hit(message: str) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        say(message)

    say = cli._say
    monkeypatch.setattr(cli, "_say", hit)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert leave(verb) == code
    assert capfd.readouterr().err == f"{words}\n"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_debug_shows_the_traceback_of_a_fault(capfd: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        raise DataError("rows.jsonl:3: no answer.")

    assert leave(verb, "--debug") == 3
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert said.endswith("rows.jsonl:3: no answer.\n")


def test_a_long_message_is_cut_at_fifteen_lines(capfd: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        raise FinetuneError("\n".join(f"line {number}" for number in range(40)))

    assert leave(verb) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 15
    assert lines[-1] == "And 26 more lines."


def test_our_own_bug_passes_untouched() -> None:
    def verb() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_verb(verb, [])


def test_a_verb_keeps_its_own_parameters(capfd: pytest.CaptureFixture[str]) -> None:
    def verb(name: str, times: Annotated[int, typer.Option(help="How often.")] = 1) -> None:
        """Say a name."""
        print(name * times)

    assert leave(verb, "ab", "--times", "2") == 0
    assert capfd.readouterr().out == "abab\n"
    assert leave(verb, "--bogus") == 2
    assert "--bogus" in capfd.readouterr().err


def test_a_secret_typed_where_nothing_is_expected_is_not_repeated(capfd: pytest.CaptureFixture[str]) -> None:
    def verb(name: str) -> None:
        raise AssertionError(name)

    secret = "hf_abcDEFghiJKLmnoPQRstuVWXyz0123456789"
    with pytest.raises(SystemExit) as left:
        run_verb(verb, ["one", secret])
    said = capfd.readouterr().err
    assert left.value.code == 2
    assert "unexpected extra argument" in said
    assert secret not in said


def test_a_recipe_of_another_verb_names_that_verb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: {model_name_or_path: a/b}\ndata: {train: {path: rows.json}}\n")
    verb = training_verb("dpo", objectives=("dpo",), summary="Train on preferences.")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["dpo", str(path)])
        verb()
    assert left.value.code == 2
    assert f"Type: python -m finetune.sft {path}" in capfd.readouterr().err


def test_the_help_of_a_training_verb_sets_every_section_s_settings_in_one_column(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["sft", "--help"])
        training_verb("sft", objectives=("sft",), summary="Train.")()
    assert left.value.code == 0
    told = capfd.readouterr().out.partition("docs/recipe.md describes each:\n")[2]
    starts = [re.match(r" +(?:(\w+): +)?(?=\w)", line) for line in told.splitlines() if line]
    assert {start and start[1] for start in starts} >= {"recipe", "model", "classification", "training"}
    assert len({start and start.end() for start in starts}) == 1


def test_resume_and_overwrite_exclude_each_other(capfd: pytest.CaptureFixture[str]) -> None:
    verb = training_verb("sft", objectives=("sft",), summary="Train.")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["sft", "--resume", str(ROOT / "recipes/quickstart.yaml"), "--overwrite", "name=x"])
        verb()
    assert left.value.code == 2
    assert capfd.readouterr().err.startswith("command line: --resume and --overwrite exclude each other.")


FAST = """
import sys, time
start = time.perf_counter()
from finetune.__main__ import main
typo = ["sft", "recipes/quickstart.yaml", "--dry-run", "training.lr=1"]
for arguments in (["sft", "--help"], ["sft", "-h"], typo, ["stf"]):
    try:
        main(arguments)
    except SystemExit as left:
        print("exit", left.code)
print("seconds", time.perf_counter() - start)
print("heavy", sorted({"torch", "transformers", "trl", "peft", "datasets"} & set(sys.modules)))
"""


def test_help_and_faults_are_answered_in_under_a_second_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", FAST], capture_output=True, text=True, cwd=ROOT, check=True,
                          env={"PATH": "", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "40"})  # fmt: skip
    assert re.findall(r"^exit (\d)", done.stdout, re.MULTILINE) == ["0", "0", "2", "2"]
    seconds = re.search(r"^seconds (.*)", done.stdout, re.MULTILINE)
    assert seconds and float(seconds[1]) < 1
    assert "heavy []" in done.stdout
    assert "Example:" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "command line: `training` has no setting `lr`.\n  Here it is `training.learning_rate`." in done.stderr
    assert "There is no verb `stf`.\n  Did you mean `sft`?" in done.stderr


def test_a_reader_that_leaves_early_is_no_crash() -> None:
    script = "from finetune.cli import run_verb\ndef v(): [print('x' * 1000) for _ in range(1000)]\nrun_verb(v, [])"
    command = f'"{sys.executable}" -c "{script}" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (4, "")


def test_the_line_of_sft_names_every_objective_that_it_serves() -> None:
    served = ["sft", *(objective for objective, verb in cli._VERB_OF_OBJECTIVE.items() if verb == "sft")]
    assert re.findall(r"\((\w+)\)", find_summaries()["sft"]) == served


def test_the_verbs_that_are_listed_are_the_modules_that_run(capfd: pytest.CaptureFixture[str]) -> None:
    modules = [path for path in (ROOT / "finetune").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert {path.stem for path in modules} - {"__main__"} == set(VERBS)
    list_or_run([])
    listed = capfd.readouterr().out
    for verb, summary in find_summaries().items():
        assert re.search(rf"^  {verb} +{re.escape(summary)}$", listed, re.MULTILINE)
