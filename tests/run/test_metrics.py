"""metrics.jsonl: every step once, plain JSON, totals over interruptions, and a curve to look at."""

import json
import math

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from finetune.run.folder import RunFolder
from finetune.run.loss_plot import write_loss_plot
from finetune.run.metrics import MetricsWriter, read_metrics, read_totals
from tests.run.folders import start_folder


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path_factory.mktemp("arguments")), use_cpu=True, report_to=[])


def log(writer: MetricsWriter, arguments: TrainingArguments, step: int, **logs: float) -> None:
    writer.on_log(arguments, TrainerState(global_step=step, max_steps=9), TrainerControl(), logs=dict(logs))


def steps(folder: RunFolder) -> list[int]:
    return [line["step"] for line in read_metrics(folder.metrics_path)]


def test_a_trained_step_has_its_figures_in_one_line(build_trainer, tmp_path):
    folder = start_folder(tmp_path)
    writer = MetricsWriter(folder, resumed_step=None)
    trainer = build_trainer(folder.checkpoints_dir, [writer], max_steps=4, eval_strategy="steps", eval_steps=2)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    lines = read_metrics(folder.metrics_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    measured = {
        "loss",
        "learning_rate",
        "grad_norm",
        "epoch",
        "tokens",
        "tokens_per_second",
        "seconds",
        "peak_memory_bytes",
    }
    assert all(measured <= line.keys() for line in lines[1:])
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4]
    assert [line["tokens"] for line in lines] == [0, 100, 200, 300, 400]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert folder.read_status()["step"] == 4
    totals = read_totals(folder.metrics_path)
    assert totals.steps == 4
    assert totals.train_loss == pytest.approx(sum(line["loss"] for line in lines[1:]) / 4)
    assert totals.tokens == 400
    assert totals.peak_memory_bytes > 2**20


def test_an_evaluation_and_a_save_do_not_count_as_time_trained(arguments, tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    writer = MetricsWriter(start_folder(tmp_path), resumed_step=None)
    state, control = TrainerState(global_step=0, max_steps=2), TrainerControl()
    writer.on_train_begin(arguments, state, control)
    for step, evaluation_seconds in ((1, 100.0), (2, 0.0)):
        writer.on_step_begin(arguments, state, control)
        now += 2.0
        state.global_step = step
        writer.on_step_end(arguments, state, control)
        writer.on_log(arguments, state, control, logs={"loss": 1.0, "num_real_tokens": 50 * step})
        now += evaluation_seconds
        writer.on_evaluate(arguments, state, control)
        now += evaluation_seconds  # samples are answered after the evaluation
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["tokens_per_second"] for line in lines] == [25.0, 25.0]
    assert [line["seconds"] for line in lines] == [2.0, 204.0]


def test_the_clock_starts_once_and_the_evaluation_of_the_base_is_on_it(arguments, tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    writer = MetricsWriter(start_folder(tmp_path), resumed_step=None)
    now += 30.0
    log(writer, arguments, 0, eval_loss=2.0)
    now += 5.0
    state = TrainerState(max_steps=9)
    writer.on_train_begin(arguments, state, TrainerControl())
    now += 2.0
    log(writer, arguments, 1, loss=1.0, num_real_tokens=50)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in lines] == [30.0, 37.0]
    assert lines[1]["tokens_per_second"] == 25.0


def test_after_a_resume_every_step_stands_once_and_seconds_go_on(arguments, tmp_path):
    folder = start_folder(tmp_path)
    first = MetricsWriter(folder, resumed_step=None)
    for step in (1, 2, 3):
        log(first, arguments, step, loss=float(step))
    lines = read_metrics(folder.metrics_path)
    folder.metrics_path.write_text(
        "".join(json.dumps(line | {"seconds": 60.0}) + "\n" for line in lines) + '{"step": 4, "lo'
    )

    second = MetricsWriter(folder, resumed_step=2)
    assert folder.metrics_path.read_text().endswith('{"step": 4, "lo')  # nothing is cut before the first event
    log(second, arguments, 2, eval_loss=0.5)  # joins the line that was kept
    assert steps(folder) == [1, 2]
    log(second, arguments, 3, loss=30.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(folder.metrics_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]
    assert read_metrics(folder.metrics_path)[1]["eval_loss"] == 0.5
    seconds = [line["seconds"] for line in read_metrics(folder.metrics_path)]
    assert seconds == sorted(seconds)
    assert seconds[-1] >= 60.0


@pytest.mark.parametrize("garbage", ["[1]", "null", "3", '"step"', "{}", '{"step": "3"}', '{"step": 3, "loss": NaN}'])
def test_a_line_that_is_no_object_with_its_step_ends_what_is_read(arguments, tmp_path, garbage):
    folder = start_folder(tmp_path)
    for step in (1, 2):
        log(MetricsWriter(folder, resumed_step=step - 1), arguments, step, loss=1.0)
    with folder.metrics_path.open("a") as file:
        file.write(f"{garbage}\n")
    assert steps(folder) == [1, 2]
    assert read_totals(folder.metrics_path).steps == 2
    log(MetricsWriter(folder, resumed_step=2), arguments, 3, loss=1.0)
    assert steps(folder) == [1, 2, 3]


def test_a_fresh_start_leaves_no_line_of_an_earlier_one(arguments, tmp_path):
    folder = start_folder(tmp_path)
    log(MetricsWriter(folder, resumed_step=None), arguments, 5, loss=1.0)
    MetricsWriter(folder, resumed_step=None).on_train_begin(arguments, TrainerState(max_steps=9), TrainerControl())
    assert steps(folder) == []


def test_what_was_measured_first_at_a_step_stands(arguments, tmp_path):
    folder = start_folder(tmp_path)
    writer = MetricsWriter(folder, resumed_step=None)
    log(writer, arguments, 9, loss=1.0)
    log(writer, arguments, 9, eval_loss=0.7)
    log(writer, arguments, 9, eval_loss=0.6)  # of the best step's weights, put back after the run
    assert [line["eval_loss"] for line in read_metrics(folder.metrics_path)] == [0.7]


def test_a_loss_that_is_not_finite_is_null_and_the_line_plain_json(arguments, tmp_path):
    folder = start_folder(tmp_path)
    log(MetricsWriter(folder, resumed_step=None), arguments, 1, loss=math.nan, grad_norm=math.inf)
    line = json.loads(folder.metrics_path.read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None
    assert line["grad_norm"] is None


def test_the_trainers_closing_words_are_no_step(arguments, tmp_path):
    folder = start_folder(tmp_path)
    log(MetricsWriter(folder, resumed_step=None), arguments, 9, train_runtime=3.0, train_loss=1.0)
    assert steps(folder) == []


def test_a_loss_logged_every_third_step_weighs_three_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 3, "loss": 2.0, "seconds": 1.0, "peak_memory_bytes": 5},
        {"step": 4, "eval_loss": 9.0, "seconds": 2.0, "peak_memory_bytes": 7},
        {"step": 6, "loss": 1.0, "seconds": 3.0, "peak_memory_bytes": 6},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    totals = read_totals(path)
    assert (totals.train_loss, totals.steps, totals.seconds, totals.peak_memory_bytes) == (1.5, 6, 3.0, 7)
    assert totals.tokens_per_second is None


def test_steps_that_were_left_out_weigh_nothing_in_the_mean_loss(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [  # the steps trained have the losses 4, 1, 1, 1; 2 and 3 were left out, and so were 7 and 8
        {"step": 3, "loss": 4.0, "skipped": 2, "seconds": 1.0, "peak_memory_bytes": 5},
        {"step": 6, "loss": 1.0, "seconds": 3.0, "peak_memory_bytes": 6},
        {"step": 8, "loss": None, "skipped": 2, "seconds": 3.0, "peak_memory_bytes": 6},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_totals(path).train_loss == 7 / 4


def test_a_run_that_logged_nothing_has_empty_totals_and_no_plot(tmp_path):
    assert read_totals(tmp_path / "metrics.jsonl").train_loss is None
    write_loss_plot(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("num_steps", [1, 5, 300])
def test_the_plot_is_a_picture_of_short_and_long_runs(tmp_path, num_steps):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 0, "eval_loss": 3.0}] + [
        {"step": step, "loss": 2 + math.cos(step)} | ({"eval_loss": 2.5 / step} if step % 5 == 0 else {})
        for step in range(1, num_steps + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_loss_plot(path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_run_on_preferences_gets_a_panel_for_each_figure_it_logged(tmp_path):
    def draw(**further: float) -> int:
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(json.dumps({"step": step, "loss": 0.5} | further) + "\n" for step in (1, 2)))
        write_loss_plot(path, tmp_path / "loss.png")
        height = (tmp_path / "loss.png").read_bytes()[20:24]  # of the header of a PNG
        return int.from_bytes(height)

    panel = 2.5 * 120
    assert draw(**{"rewards/margins": 1.0}) == draw() + panel
    assert draw(**{"rewards/margins": 1.0, "rewards/accuracies": 0.5, "logps/chosen": -9.0}) == draw() + 3 * panel
    assert draw(reward=0.3, kl=0.1, **{"completions/mean_length": 4.0}) == draw() + 3 * panel


def test_other_processes_write_no_line(arguments, tmp_path):
    folder = start_folder(tmp_path, writes=False)
    log(MetricsWriter(folder, resumed_step=None), arguments, 1, loss=1.0)
    assert list(tmp_path.iterdir()) == []
