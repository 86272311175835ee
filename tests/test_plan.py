"""The verb: one object for programs, a table for people, and an answer before torch could have been imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.plan import main

ROOT = Path(__file__).parents[1]
RECIPE = str(ROOT / "recipes" / "mistral_alpaca.yaml")
CONTRACT = {
    "device", "fits", "peak_memory_bytes", "parts", "steps", "seconds", "trainable_parameters", "adapter_bytes",
    "rows_from",
}  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main([RECIPE, *arguments])
    return int(left.value.code or 0)


def test_json_is_one_object_with_the_keys_of_the_contract(capsys):
    assert run("--device", "a100-40gb", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan.keys() >= CONTRACT
    assert plan["device"] == "a100-40gb"
    assert plan["trainable_parameters"] == 41_943_040
    assert sum(plan["parts"].values()) == plan["peak_memory_bytes"]


def test_people_get_the_verdict_the_parts_the_devices_and_what_is_assumed(capsys):
    assert run("--device", "t4", "--price", "2") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mistral_alpaca fits: it needs about ")
    for said in ("weights", "fragmentation", "a100-80gb", "`data.assumed` of the recipe", "Assumed, not counted:"):
        assert said in printed


def test_a_price_of_one_s_own_is_that_of_every_figure(capsys):
    assert run("--device", "h100", "--price", "2", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["cost"] == pytest.approx(plan["seconds"] / 3600 * 2, rel=1e-2)
    assert {plan["price_per_hour"], *(one["price_per_hour"] for one in plan["devices"])} == {2.0}
    assert not any("yours: --price" in one for one in plan["assumptions"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tflops", "inf"), "--tflops"),
        (("--price", "inf"), "--price"),
        (("--price", "nan"), "--price"),
        (("--device", "t4", "--tflops", "1"), "--tflops is a CPU's speed"),
    ],
)
def test_a_figure_that_cannot_be_or_is_not_read_is_a_usage_error(capsys, arguments, said):
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err


def test_what_does_not_fit_has_neither_time_nor_price_and_no_line_ends_in_blanks(capsys):
    assert run("--device", "t4", "training.per_device_train_batch_size=16") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "time        none: it does not fit" in lines
    assert "price       none: it does not fit" in lines
    assert any(line.startswith("steps       82 of 619 documents") for line in lines)
    assert not any(line.endswith(" ") for line in lines)


def test_a_price_and_a_speed_of_one_s_own_are_reckoned_with(capsys):
    assert run("--device", "cpu", "--tflops", "0.5", "--price", "1.5", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["seconds"] == pytest.approx(plan["flops"] / 0.5e12, rel=1e-3)
    assert plan["cost"] == pytest.approx(plan["seconds"] / 3600 * 1.5, rel=1e-3)
    assert any("as given by --tflops" in one for one in plan["assumptions"])


def test_a_device_that_is_not_there_is_told_in_a_line_and_its_exit_code(capsys):
    assert run("--device", "tpu") == 4
    assert capsys.readouterr().err.startswith("--device tpu: no such device is in the table.")


def test_a_plan_is_made_without_the_stack():
    program = (
        "import sys; from finetune.plan import main\n"
        f"try: main([{RECIPE!r}, '--json'])\n"
        "except SystemExit as left: assert not left.code\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["base_from"]
    assert not set(done.stderr.split()) & {"torch", "transformers", "datasets", "huggingface_hub", "numpy", "peft"}
