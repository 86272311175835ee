"""What happens to one process of a run happens to the run: all stop at the same step, and go on as one."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.run.layout import find_checkpoints, find_step
from tests.end_to_end.small_runs import ROOT, build_values, read_figures, read_json, read_weights, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tiny_base")]

SETTINGS = {
    "data__train": {"path": "data/tiny_world/train.json", "limit": 20},
    "data__eval": {"fraction": 0.2},
    "evaluation__num_samples": 1,
    "training__per_device_train_batch_size": 1,
    "training__per_device_eval_batch_size": 1,
    "training__eval_steps": 5,
    "training__max_steps": 6,
}
TERMINATED = 128 + signal.SIGTERM


def find_free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run_two(folder: Path, *fault: str, flags: tuple[str, ...] = ()) -> tuple[list[int], list[str]]:
    """Run in two processes that nobody watches over, the second with a fault; exit codes and what each said."""
    folder.mkdir(exist_ok=True)
    recipe = write_recipe(folder / "typed.yaml", build_values(folder, **SETTINGS))
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    verb = ["finetune.sft", str(recipe), *flags]
    processes = []
    for rank in (0, 1):
        module = ["tests.end_to_end.faulty_process", *fault] if fault and rank == 1 else []
        environment = launch | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *module, *verb],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def test_sigterm_to_one_process_stops_both_at_one_step_and_the_resumed_run_is_the_unbroken_one(tmp_path):
    codes, said = run_two(tmp_path / "whole")
    assert codes == [0, 0], said
    whole, stopped = tmp_path / "whole" / "small", tmp_path / "stopped" / "small"
    for fault, step in ((("training_step", "2", "SIGTERM"), 3), (("prediction_step", "5", "SIGTERM"), 5)):
        codes, said = run_two(tmp_path / "stopped", *fault, flags=("--resume",))
        assert codes == [TERMINATED, TERMINATED], said
        assert not any("Traceback" in one for one in said)
        status = read_json(stopped / "status.json")
        assert (status["status"], status["step"]) == ("interrupted", step)
        checkpoint = find_checkpoints(stopped / "checkpoints")[-1]
        assert find_step(checkpoint) == step
        assert {"COMPLETE.json", "random_state_0.json", "random_state_1.json"} <= {
            path.name for path in checkpoint.iterdir()
        }
    codes, said = run_two(tmp_path / "stopped", flags=("--resume",))
    assert codes == [0, 0], said
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)
    assert (stopped / "samples.md").read_text() == (whole / "samples.md").read_text()


def test_a_loss_that_is_not_finite_in_one_process_ends_both_and_names_its_row(tmp_path):
    codes, said = run_two(tmp_path, "compute_loss", "2", "nan")
    assert codes == [5, 5], said
    assert not any("Traceback" in one for one in said)
    status = read_json(tmp_path / "small" / "status.json")
    assert status["status"] == "failed"
    assert status["reason"].startswith("step 3: the loss is not finite")
    assert len((tmp_path / "small" / "non_finite.jsonl").read_text().splitlines()) == 2
