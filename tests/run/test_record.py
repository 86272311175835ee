"""What a run says of itself: its environment, its log, its samples and its summary."""

import io
import json
import logging
import sys
import warnings
from dataclasses import replace

import pytest

from finetune.errors import PlaceError
from finetune.run.environment import name_device, read_environment
from finetune.run.launch import count_processes, is_main_process
from finetune.run.logging import log_to_console
from finetune.run.non_finite import cut_non_finite_rows, write_non_finite_rows
from finetune.run.progress import Progress, to_duration
from finetune.run.samples import Sample, cut_samples, write_samples
from finetune.run.summary import Summary, render_summary
from tests.run.folders import start_folder


@pytest.mark.parametrize(
    ("variables", "is_main"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "3", "LOCAL_RANK": "0"}, False), ({"LOCAL_RANK": "1"}, False)],
    ids=str,
)
def test_rank_0_of_the_launch_is_the_one_that_writes(monkeypatch, variables, is_main):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is is_main


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert count_processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert count_processes() == read_environment()["num_processes"] == 4


def test_the_environment_names_versions_and_machine_and_keeps_no_value_of_a_variable(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary_canary")
    monkeypatch.setenv("HOME_ADDRESS", "canary street")
    monkeypatch.setattr(sys, "argv", ["finetune", "r.yaml", "x.api_key=canary", "--token", "canary", "seed=3"])
    environment = read_environment()
    assert {"torch", "transformers", "peft", "finetune"} <= environment["packages"].keys()
    assert environment["memory_bytes"] > 2**28
    assert environment["cpu"]["cores"] >= 1
    assert "HF_TOKEN" in environment["variables_set"]
    assert environment["command"] == ["finetune", "r.yaml", "x.api_key=***", "--token", "***", "seed=3"]
    assert "canary" not in json.dumps(environment)


def test_the_device_has_the_name_people_know():
    assert name_device("cpu")


def test_the_console_is_plain_and_the_file_has_times_and_the_libraries_warnings(tmp_path, capsys):
    with log_to_console() as log_file:
        logging.getLogger("finetune.train").info("26 rows read")
        log_file.open(tmp_path / "log.txt")
        logging.getLogger("somelibrary").info("chatter")
        logging.getLogger("somelibrary").warning("a token was added")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("soon deprecated", FutureWarning, stacklevel=1)
    logging.getLogger("finetune.train").info("after the run")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "26 rows read\n")
    text = (tmp_path / "log.txt").read_text()
    assert "INFO finetune.train: 26 rows read" in text
    assert "WARNING somelibrary: a token was added" in text
    assert "soon deprecated" in text
    assert "chatter" not in text
    assert "after the run" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (PlaceError("the disk is full.\n  Make room"), "ERROR finetune: the disk is full.\n  Make room\n"),
        (ValueError("a bug beside hf_" + "Canary" * 5), "ValueError: a bug beside ***\n"),
    ],
    ids=type,
)
def test_the_file_ends_with_what_ended_the_run_and_the_console_leaves_it_to_the_command_line(
    tmp_path, capsys, error, found
):
    with pytest.raises(type(error)), log_to_console() as log_file:
        log_file.open(tmp_path / "log.txt")
        raise error
    text = (tmp_path / "log.txt").read_text()
    assert text.endswith(found)
    assert ("Traceback" in text) == isinstance(error, ValueError)
    assert "Canary" not in text
    assert capsys.readouterr() == ("", "")


def test_what_was_said_before_the_run_may_write_reaches_the_file_in_order(tmp_path, capsys):
    path = tmp_path / "log.txt"
    path.write_text("the run until it was interrupted\n")
    log = logging.getLogger("finetune.train")
    with log_to_console() as log_file:
        log.info("26 rows read")
        log.info("2 rows dropped")
        assert path.read_text() == "the run until it was interrupted\n"
        log_file.open(path)
        log.info("the first step")
    assert [line.rpartition(": ")[2] for line in path.read_text().splitlines()] == [
        "the run until it was interrupted", "26 rows read", "2 rows dropped", "the first step",
    ]  # fmt: skip
    assert capsys.readouterr().err == "26 rows read\n2 rows dropped\nthe first step\n"


def test_an_attempt_that_never_opens_its_file_speaks_on_the_console_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with log_to_console():
        logging.getLogger("finetune.train").info("26 rows read")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == "26 rows read\n"


def test_other_processes_leave_the_speaking_to_the_first(tmp_path, capsys):
    with log_to_console(writes=False) as log_file:
        log_file.open(tmp_path / "log.txt")
        logging.getLogger("finetune.train").warning("said once is enough")
        logging.getLogger("finetune.train").error("this process failed")
    assert capsys.readouterr().err == "this process failed\n"
    assert not (tmp_path / "log.txt").exists()


def test_without_a_terminal_progress_is_a_line_now_and_then(caplog, capsys):
    record = {"loss": 1.25, "tokens_per_second": 1234.4, "peak_memory_bytes": 2**30}
    progress = Progress(writes=True)
    with caplog.at_level(logging.INFO, logger="finetune"):
        progress.start(0, 1000)
        for step in range(1, 1001):
            progress.advance(step)
            progress.show({"step": step, **record})
        progress.close()
    first, last = caplog.messages
    assert first.startswith("step 1 of 1000, loss 1.2500, 1,234 tokens/s, peak 1.0 GiB, ")
    assert first.endswith(" left")
    assert last == "step 1000 of 1000, loss 1.2500, 1,234 tokens/s, peak 1.0 GiB"
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_shows_loss_speed_and_memory(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(writes=True)
    progress.start(4, 8)
    progress.show({"step": 5, "loss": 1.25, "tokens_per_second": 1234.4, "peak_memory_bytes": 2**30})
    progress.advance(8)
    progress.close()
    assert "8/8" in terminal.getvalue()
    assert "loss 1.2500 1,234 tokens/s peak 1.0 GiB" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min")]
)
def test_durations_are_said_in_two_units(seconds, words):
    assert to_duration(seconds) == words


def test_samples_stay_text_whatever_a_model_writes(tmp_path):
    folder = start_folder(tmp_path)
    write_samples(folder, 5, [Sample("What is 2+2?", "4", "## Step 9\n```\n<script>\n\n")])
    write_samples(folder, 10, [Sample("And\u20283+3?", "6", "")])
    lines = folder.samples_path.read_text().split("\n")
    assert [line for line in lines if line.startswith(("#", "<", "`"))] == [
        "# Answers during the run", "## Step 5", "### 1", "## Step 10", "### 1",
    ]  # fmt: skip
    assert "*(empty)*" in lines


def test_samples_behind_the_step_resumed_from_are_cut(tmp_path):
    folder = start_folder(tmp_path)
    for step in (5, 10, 15):
        write_samples(folder, step, [Sample("q", "r", "## Step 99")])
    cut_samples(folder.samples_path, 10)
    text = folder.samples_path.read_text()
    assert "## Step 10" in text
    assert "## Step 15" not in text
    cut_samples(folder.samples_path, None)
    assert not folder.samples_path.exists()


def test_rows_of_steps_behind_the_step_resumed_from_are_cut(tmp_path):
    folder = start_folder(tmp_path)
    for step in (5, 10, 15):
        write_non_finite_rows(folder, step, [{"step": step, "text": "one\u2028row"}, {"step": step, "text": ""}])
    cut_non_finite_rows(folder.non_finite_path, 10)
    lines = folder.non_finite_path.read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["step"] for line in lines] == [5, 5, 10, 10]
    cut_non_finite_rows(folder.non_finite_path, 4)
    assert not folder.non_finite_path.exists()


@pytest.mark.parametrize("torn", [b'{"st', b'{"st\n', b"\0\0\0\0\n", b"[]\n", b'{"step": null}\n', b"\xff\xfe\n"])
def test_the_rows_before_a_line_that_a_disk_has_lost_are_kept(tmp_path, torn):
    folder = start_folder(tmp_path)
    write_non_finite_rows(folder, 1, [{"step": 1, "text": "one"}])
    whole = folder.non_finite_path.read_bytes()
    folder.non_finite_path.write_bytes(whole + torn)
    cut_non_finite_rows(folder.non_finite_path, 5)
    assert folder.non_finite_path.read_bytes() == whole
    folder.non_finite_path.write_bytes(whole + torn)
    write_non_finite_rows(folder, 7, [{"step": 7}])
    assert folder.non_finite_path.read_bytes() == whole + b'{"step": 7}\n'


def test_without_samples_no_section_is_written_and_a_second_one_replaces_the_first(tmp_path):
    folder = start_folder(tmp_path)
    write_samples(folder, 5, [])
    assert not folder.samples_path.exists()
    write_samples(folder, 5, [Sample("q", "r", "before the interruption")])
    write_samples(folder, 10, [Sample("q", "r", "## Step 5\n\n## Step 5")])
    once = folder.samples_path.read_text()
    write_samples(folder, 10, [Sample("q", "r", "after it")])
    write_samples(folder, 10, [Sample("q", "r", "## Step 5\n\n## Step 5")])
    assert folder.samples_path.read_text() == once
    write_samples(folder, 5, [Sample("q", "r", "after it")])
    text = folder.samples_path.read_text()
    assert text.count("\n## Step 5\n") == 1
    assert "before the interruption" not in text


SUMMARY = Summary(
    status="done", steps=975, resumed_from=[400], train_loss=1.0345, eval_loss_before=1.9, eval_loss=1.01,
    best_step=900, exact_match_before=0.02, exact_match=0.94, questions=200, trainable_parameters=41_943_040,
    total_parameters=7_283_675_136, adapter_bytes=167_832_240, tokens=9_834_400, tokens_per_second=2345.6,
    peak_memory_bytes=11_300_000_000, seconds=4192.4, device="NVIDIA A100-SXM4-40GB",
)  # fmt: skip


def test_the_summary_fits_a_narrow_terminal_and_tells_how_to_talk_to_the_result():
    text = render_summary(SUMMARY, "outputs/mistral_alpaca/adapter", "outputs/mistral_alpaca")
    assert text.splitlines() == [
        "steps          975",
        "resumed at     step 400",
        "best step      900: its weights are the result",
        "training loss  1.0345 (mean over all steps)",
        "held-out loss  1.9000 -> 1.0100",
        "exact match    2.0% -> 94.0% of 200 questions",
        "trained        41,943,040 of 7,283,675,136 parameters (0.58%)",
        "time           1 h 09 min, 2,346 tokens/s",
        "peak memory    10.5 GiB on NVIDIA A100-SXM4-40GB",
        "result         outputs/mistral_alpaca/adapter (167.8 MB)",
        "talk to it     python -m finetune.chat outputs/mistral_alpaca",
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_the_plan_stands_beside_what_was_measured_a_steps_activations_against_activations():
    predicted = {"peak_memory_bytes": 750_000_000, "tokens_per_second": 3564.0}
    spending = {"num_layers": 4, "predicted_step_bytes": 60_937_408, "measured_step_bytes": 61_492_736}
    lines = render_summary(replace(SUMMARY, predicted=predicted, memory_spending=spending), "a", "b").splitlines()
    place = lines.index("predicted      peak of a step 0.7 GiB / measured 10.5 GiB of the whole run")
    assert lines[place + 1] == "               activations 60.9 MB / measured 61.5 MB, 3,564 / 2,346 tokens/s"
    assert max(map(len, lines)) <= 80
    # Nothing was measured of a step, and the plan knew no speed: the peak alone.
    predicted["tokens_per_second"] = None
    lines = render_summary(replace(SUMMARY, predicted=predicted, memory_spending={"num_layers": 4}), "a", "b")
    assert lines.splitlines()[place + 1].startswith("result ")


def test_the_summary_of_preferences_is_a_table_of_base_start_and_result():
    figures = {
        "preference_accuracy_base": 0.481, "preference_accuracy_before": 0.546, "preference_accuracy": 0.972,
        "preference_margin_base": -0.2, "preference_margin_before": 0.01, "preference_margin": 2.5, "pairs": 108,
        "answer_tokens_before": 1.1, "answer_tokens": 4.2,
    }  # fmt: skip
    lines = render_summary(replace(SUMMARY, **figures), "a", "b", head="score").splitlines()
    table = lines[lines.index("held-out pairs  108 pairs: accuracy    margin") :][1:4]
    assert [line.split() for line in table] == [
        ["base", "48.1%", "-0.200"], ["start", "54.6%", "+0.010"], ["result", "97.2%", "+2.500"]
    ]  # fmt: skip
    assert "their length    1.1 -> 4.2 tokens" in lines
    assert lines[-1].startswith("reward with it")
    assert max(map(len, lines)) <= 80


def test_the_summary_file_speaks_of_answers_only_where_some_were_scored():
    promised = {
        "status", "steps", "train_loss", "eval_loss_before", "eval_loss", "trainable_parameters", "adapter_bytes",
        "tokens_per_second", "peak_memory_bytes", "seconds", "resumed_from",
    }  # fmt: skip
    scored = {"exact_match_before", "exact_match", "questions"}
    assert promised | scored <= SUMMARY.to_json().keys()
    unscored = Summary(**(SUMMARY.to_json() | dict.fromkeys(scored))).to_json()
    assert promised <= unscored.keys()
    assert not scored & unscored.keys()
