"""The speed benchmark's arithmetic and bookkeeping: what is compared is alike, and nothing is mixed or lost."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed_grid import (
    CPU_SHAPES,
    CUDA_SHAPES,
    Contender,
    Line,
    build_lines,
    find_missing,
)
from benchmarks.speed_measuring import Place, build_ours_command, read_figures
from benchmarks.speed_ours import IDEAS
from benchmarks.speed_peak import estimate_flops_per_token
from benchmarks.speed_profile import sum_kinds
from benchmarks.speed_profiled import (
    ATTENTION,
    ATTENTION_BACKWARD,
    DEQUANTIZATION,
    ELEMENTWISE,
    ELSEWHERE,
    KINDS,
    LOSS,
    OPTIMIZER,
    PRODUCTS,
    find_kind,
)
from benchmarks.speed_rows import RowSet, to_prompt, write_rows
from benchmarks.speed_sizes import StepSizes, choose_micro_batch, choose_packed_sizes, choose_sizes_alone
from benchmarks.speed_store import Store, find_store_path
from benchmarks.speed_table import render_page, sum_up
from finetune.data.packing import choose_rows
from finetune.recipe.reading import read_recipe

ROOT = Path(__file__).parents[2]
MISTRAL_7B = {"model_type": "mistral", "vocab_size": 32000}
LINES = [*build_lines(CPU_SHAPES, "cpu"), *build_lines(CUDA_SHAPES, "cuda")]
ABOUT = {"machine": "a test", "packages": {}, "tree": "t", "commit": "c", "matmul_flops_per_second": None}
RIVAL = Contender("trl", "TRL", "trl", target=2.5)


def count_words(texts):
    return [len(text.split()) for text in texts]


def build_rows(num_rows=40, tokens=400):
    sizes = StepSizes(10, 1, packed_tokens=512, packed_rows=2, tokens_per_batch=8192)
    return RowSet(Path("train.json"), Path("held_out.json"), "a test", num_rows, tokens, sizes, 20.0, 0.5)


def build_record(line, contender, number, rate):
    return {
        "line": line.name, "contender": contender, "round": number, "tokens_per_second": rate, "seconds_per_step": 1.0,
        "peak_memory_bytes": 2**20, "rows_per_step": 10.0, "steps": 4, "steps_timed": 2, "tokens_counted_share": 1.0,
        "process_seconds": 9.0, "held_out_loss": 2.0 + 0.1 * (contender == "trl"),
    }  # fmt: skip


# ---- the rows


@pytest.mark.parametrize(
    ("num_rows", "num_steps", "expected"),
    # 231 rows in 26 steps: 9 each, the last one takes 6. 51 in 5: 11, where 10 would make a sixth step of one row.
    # 999 in 27 are 37 each, and 4 micro-batches of 9 come nearest.
    [(231, 26, (9, 1)), (51, 5, (11, 1)), (20, 20, (1, 1)), (1080, 27, (8, 5)), (999, 27, (9, 4)), (3, 5, (1, 1))],
)
def test_rows_that_lie_alone_last_for_as_many_steps_as_the_others(num_rows, num_steps, expected):
    assert choose_micro_batch(num_rows, num_steps) == expected


def test_padded_packed_and_budgeted_steps_hold_as_many_rows():
    num_rows, sizes = choose_packed_sizes([50] * 60, max_tokens=50, packed_tokens=100, packed_rows=2, num_steps=6)
    assert num_rows == 24
    assert sizes == StepSizes(4, 1, packed_tokens=100, packed_rows=2, tokens_per_batch=200)


def test_a_budget_is_no_larger_than_what_the_packed_rows_really_hold():
    # Only one row of 60 goes into 100 tokens: steps of two packed rows hold 120, and so does the budget.
    num_rows, sizes = choose_packed_sizes([60] * 30, max_tokens=60, packed_tokens=100, packed_rows=2, num_steps=6)
    assert (num_rows, sizes.tokens_per_batch, sizes.micro_batch_rows) == (12, 120, 2)


def test_a_budget_makes_no_more_steps_than_packed_rows_do_in_whichever_order_a_run_draws():
    # As unlike as short rows are. Longest first the rows would fit into fewer tokens than in a drawn order.
    tokens = np.random.default_rng(7).integers(20, 513, 400)
    num_rows, sizes = choose_packed_sizes(
        tokens.tolist(), max_tokens=512, packed_tokens=1024, packed_rows=2, num_steps=26
    )
    taken = tokens[:num_rows]
    orders = [np.random.default_rng(1000 + seed).permutation(num_rows) for seed in range(50)]
    steps = [len(choose_rows(taken, sizes.tokens_per_batch, order=order)[1]) for order in orders]
    assert steps.count(26) >= 48
    assert max(steps) <= 27


def test_pairs_come_alone_as_many_a_step_as_come_nearest_to_its_tokens():
    assert choose_sizes_alone([600, 800], tokens_per_step=2048, num_steps=4) == (12, StepSizes(3, 1))


def test_the_rows_last_for_the_steps_packed_and_none_is_too_long(tmp_path):
    rows = write_rows(
        tmp_path, data_dir=tmp_path, objective="sft", full_tokens=None, max_tokens=30, tokens_per_step=100,
        packed_tokens=50, num_steps=7, num_held_out=5, count=count_words,
    )  # fmt: skip
    train, held_out = (json.loads(path.read_text()) for path in (rows.train, rows.held_out))
    lengths = count_words([to_prompt(row["instruction"], row["input"]) + row["output"] for row in train])
    assert (len(train), len(held_out)) == (rows.num_rows, 5)
    assert max(lengths) <= 30
    assert rows.tokens == sum(lengths)
    # Seven steps of two packed rows of 50.
    assert len(choose_rows(np.array(lengths), 50)[1]) == 14
    assert rows.sizes.tokens_per_batch <= 100
    assert -(-rows.num_rows // (rows.sizes.micro_batch_rows * rows.sizes.accumulation)) == 7
    assert rows.source == "the tiny world's rows"
    assert not [row for row in held_out if row in train]


def test_full_rows_are_longer_than_they_are_cut_to(tmp_path):
    rows = write_rows(
        tmp_path, data_dir=tmp_path, objective="sft", full_tokens=50, max_tokens=50, tokens_per_step=100,
        packed_tokens=25, num_steps=3, num_held_out=1, count=count_words,
    )  # fmt: skip
    train = json.loads(rows.train.read_text())
    assert (len(train), rows.tokens) == (6, 300)
    assert rows.sizes == StepSizes(2, 1, packed_tokens=50, packed_rows=2, tokens_per_batch=100)
    assert min(count_words([row["output"] for row in train])) > 50


# ---- a measurement


def test_the_warm_up_and_the_last_step_are_not_timed():
    seconds = [100.0, 200.0, 300.0, 301.0, 303.0, 900.0]
    lines = [{"step": n + 1, "seconds": at, "tokens": 50 * (n + 1), "loss": 2.0} for n, at in enumerate(seconds)]
    figures = read_figures(lines, build_rows(num_rows=60, tokens=300), warmup_steps=3)
    # Steps 4 and 5: 100 tokens in 3 seconds.
    assert figures["steps_timed"] == 2
    assert figures["tokens_per_second"] == pytest.approx(100 / 3, abs=0.1)
    assert figures["rows_per_step"] == 10


def test_tokens_are_those_of_the_rows_however_a_tool_counts():
    lines = [{"step": n, "seconds": float(n), "tokens": 10 * n, "loss": 2.0} for n in range(1, 7)]
    figures = read_figures(lines, build_rows(tokens=600), warmup_steps=3)
    assert figures["tokens_per_second"] == 100.0
    assert figures["tokens_counted_share"] == 0.1


def test_every_contender_of_ours_is_a_recipe_that_the_reader_takes(tmp_path):
    rows, place = build_rows(), Place("cpu", None, None, 0.0)
    read = 0
    for line in LINES:
        for contender in line.contenders:
            if contender.kind != "ours" or find_missing(contender):
                continue
            command = build_ours_command(line, contender, rows, ROOT / "data" / "tiny_base", place, tmp_path, seed=1)
            recipe_path, *overrides = command[command.index(line.objective) + 1 :]
            assert read_recipe(ROOT / recipe_path, overrides).objective == line.objective
            read += 1
    assert read > 10


@pytest.mark.parametrize("idea", IDEAS)
def test_an_idea_that_is_switched_off_is_a_function_of_the_package(idea):
    module, function, _ = IDEAS[idea]
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


# ---- the grid and the store


@pytest.mark.parametrize(
    "need", ["data.no_such_field", "model.attention=no_such_kernel", "finetune.model.no_such_part"]
)
def test_what_a_checkout_lacks_is_named(need):
    assert find_missing(Contender("one", "one", "ours", needs=("training.learning_rate", need))) == need


def test_the_three_targets_are_held_against_trl_on_three_bases():
    targets = [line for line in build_lines(CPU_SHAPES, "cpu") if line.group == "targets"]
    assert [line.shape.name for line in targets] == ["stories260K", "tiny_base", "mistral_125m"]
    for line in targets:
        assert [one.target for one in line.contenders if one.target] == [2.5, 1.8, 1.5]


def test_full_rows_of_both_lengths_are_measured_on_a_cpu_as_on_a_gpu():
    full = {
        device: {line.full_tokens for line in build_lines(shapes, device) if line.group == "full"}
        for device, shapes in (("cpu", CPU_SHAPES), ("cuda", CUDA_SHAPES))
    }
    assert full == {"cpu": {2048, 8192}, "cuda": {2048, 8192}}


def test_a_store_goes_on_and_the_later_measurement_stands(tmp_path):
    store = Store(tmp_path / "one.jsonl")
    store.add("line", "ours", 0, {"tokens_per_second": 1.0})
    store.add("line", "ours", 0, {"tokens_per_second": 2.0})
    with store.path.open("a") as file:
        file.write('{"line": "line", "contender": "trl", "rou')  # a kill
    assert [record["tokens_per_second"] for record in Store(store.path).read()] == [2.0]
    assert store.find("line", "trl", 0) is None


def test_another_machine_other_code_and_other_steps_have_stores_of_their_own(tmp_path):
    asked = [("a", "tree", None), ("b", "tree", None), ("a", "other", None), ("a", "tree", 4)]
    assert len({find_store_path(tmp_path, *one) for one in asked}) == len(asked)


# ---- the page


def test_the_operations_of_a_token_are_those_of_the_survey():
    # PERFORMANCE's table for Mistral-7B, nothing recomputed, all tokens trained: 28.9 and 30.6 GFLOP.
    for seen, expected in ((256, 28.9e9), (2048, 30.6e9)):
        assert estimate_flops_per_token(MISTRAL_7B, seen, 1.0) == pytest.approx(expected, rel=0.01)


def test_ratios_are_those_of_the_same_round_and_a_target_is_met_by_their_median():
    ours = Contender("ours", "ours", "ours")
    theirs = [RIVAL, Contender("kept", "TRL kept", "trl", target=1.5)]
    line = Line("targets", "sft", None, CPU_SHAPES[0], (ours, *theirs))
    speeds = {"ours": (300, 400, 100), "trl": (100, 100, 50), "kept": (300, 400, 100)}
    records = [
        build_record(line, name, number, rate) for name, rates in speeds.items() for number, rate in enumerate(rates)
    ]
    summed = sum_up(line, records, build_rows().to_json(), MISTRAL_7B, peak=None)
    page = render_page([summed], ABOUT)
    assert summed["contenders"][1]["ours_over_it"] == {"median": 3.0, "min": 2.0, "max": 4.0, "rounds": 3}
    assert "3.00x (2.00-4.00) met" in page
    assert "1.00x (1.00-1.00) not met" in page
    assert "-0.1000 ± 0.0000" in page


@pytest.mark.parametrize("num_rounds", [1, 2])
def test_whether_a_target_is_met_is_not_said_before_three_rounds(num_rounds):
    line = Line("targets", "sft", None, CPU_SHAPES[0], (Contender("ours", "ours", "ours"), RIVAL))
    records = [build_record(line, "ours", number, 300) for number in range(3)]
    records += [build_record(line, "trl", number, 100) for number in range(num_rounds)]
    page = render_page([sum_up(line, records, build_rows().to_json(), MISTRAL_7B, peak=None)], ABOUT)
    assert f"| 3.00x (3.00-3.00), {num_rounds} of 3 rounds |" in page
    assert " met" not in page


def render_with(figures_of_ours, steps_of_trl=4):
    """The page of one round, with further figures of ours and of TRL's steps."""
    line = Line("targets", "sft", None, CPU_SHAPES[0], (Contender("ours", "ours", "ours"), RIVAL))
    ours = {**build_record(line, "ours", 0, 300), **figures_of_ours}
    theirs = {**build_record(line, "trl", 0, 100), "steps": steps_of_trl}
    return render_page([sum_up(line, [ours, theirs], build_rows().to_json(), MISTRAL_7B, peak=None)], ABOUT)


def test_the_plan_is_held_against_what_was_measured_each_figure_against_its_like():
    predicted = {"peak_memory_bytes": 2**19, "tokens_per_second": 330.0}
    spending = {"num_layers": 2, "predicted_step_bytes": 90, "measured_step_bytes": 100}
    page = render_with({"predicted": predicted, "memory_spending": spending})
    assert "| planned / measured: peak | activations | speed | held-out loss |" in page
    assert "| 1 MiB | – | 0.500 | 0.900 | 1.100 | 2.0000 |" in page  # ours
    assert "| 1 MiB | – | – | – | – | 2.1000 |" in page  # TRL has no plan


def test_a_speed_that_was_not_planned_and_a_step_that_was_not_measured_have_no_error():
    predicted = {"peak_memory_bytes": 2**19, "tokens_per_second": None}
    page = render_with({"predicted": predicted, "memory_spending": {"num_layers": 2}})
    assert "| 1 MiB | – | 0.500 | – | – | 2.0000 |" in page


def test_the_page_says_where_the_steps_of_a_line_differ():
    said = "Rows a step were not equal, the same rows in other numbers of steps: ours took 4 steps, TRL 5."
    assert said in render_with({}, steps_of_trl=5)
    assert "not equal" not in render_with({})


def test_a_contender_that_failed_says_why_and_has_no_figures():
    line = Line("full", "sft", 2048, CPU_SHAPES[0], (Contender("trl", "TRL", "trl"),))
    records = [{"line": line.name, "contender": "trl", "round": 0, "failed": "CUDA out of memory"}]
    summed = sum_up(line, records, build_rows().to_json(), MISTRAL_7B, peak=None)
    assert "| TRL | CUDA out of memory |" in render_page([summed], ABOUT)


# ---- the profile


@pytest.mark.parametrize(
    ("names", "shapes", "expected"),
    [
        (("aten::mm", "aten::linear"), ([100, 64], [64, 172]), PRODUCTS),
        (("aten::addmm_", "_BaseLast"), ([100, 64], [100, 16], [16, 64]), PRODUCTS),
        (("bitsandbytes::dequantize_4bit",), ([50], [10]), DEQUANTIZATION),
        (("aten::copy_", "bitsandbytes::dequantize_4bit"), ([50], [50]), DEQUANTIZATION),
        (("aten::mm", "aten::linear"), ([100, 64], [64, 4096]), LOSS),
        (("aten::mm", "_SummedLoss"), ([100, 4096], [4096, 64]), LOSS),
        # The same products where the rows, not the words, are 4,096.
        (("aten::mm", "aten::linear"), ([4096, 64], [64, 172]), PRODUCTS),
        (("aten::exp",), ([100, 4096],), LOSS),
        (("aten::sub", "NllLossBackward0"), ([100],), LOSS),
        (("aten::_scaled_dot_product_flash_attention_for_cpu",), ([1, 4, 100, 16],), ATTENTION),
        # Computed again within the backward pass it is a forward one still.
        (("aten::bmm", "aten::scaled_dot_product_attention", "CheckpointFunctionBackward"), ([4, 9, 9],), ATTENTION),
        (("aten::_x", "ScaledDotProductFlashAttentionForCpuBackward0"), ([1, 4, 100, 16],), ATTENTION_BACKWARD),
        (("aten::mul", "aten::silu_backward"), ([100, 172],), ELEMENTWISE),
        (("aten::copy_", "aten::to"), ([100, 64],), ELEMENTWISE),
        (("aten::mul_", "aten::_foreach_mul_"), ([64, 16],), OPTIMIZER),
        (("aten::lerp_", "Optimizer.step#AdamW.step"), ([64, 16],), OPTIMIZER),
        (("autograd::engine::evaluate_function: MmBackward0",), (), ELSEWHERE),
    ],
)
def test_an_operation_belongs_to_what_it_runs_in(names, shapes, expected):
    assert find_kind(names, shapes, vocab_size=4096) == expected


def test_what_no_operation_took_of_a_step_is_the_rest():
    operations = [
        {"kind": PRODUCTS, "name": "aten::mm", "calls": 4, "seconds": 0.6},
        {"kind": PRODUCTS, "name": "aten::addmm", "calls": 4, "seconds": 0.2},
        {"kind": ELSEWHERE, "name": "MmBackward0", "calls": 4, "seconds": 0.1},
    ]
    sums = sum_kinds({"seconds": 2.0, "steps": 2, "operations": operations})
    assert sums == dict.fromkeys(KINDS, 0.0) | {PRODUCTS: 0.4, ELSEWHERE: 0.6}


@pytest.mark.slow
def test_a_profiled_step_is_made_of_products_attention_loss_and_more(tmp_path):
    result = tmp_path / "profile.json"
    arguments = [
        "sft", "benchmarks/recipes/speed_sft.yaml", "name=run", f"output_dir={tmp_path}", "data.train.limit=20",
        "data.packing=false",
        "training.per_device_train_batch_size=4",
    ]  # fmt: skip
    part = [sys.executable, "-m", "benchmarks.speed_profiled", str(result), "2", "2", "4096", "benchmarks.speed_ours"]
    subprocess.run([*part, *arguments], cwd=ROOT, check=True)
    found = json.loads(result.read_text())
    sums = sum_kinds(found)
    assert found["steps"] == 2
    assert sum(sums.values()) == pytest.approx(found["seconds"] / 2, rel=0.01)
    for kind in (PRODUCTS, ATTENTION, ATTENTION_BACKWARD, LOSS, ELEMENTWISE, OPTIMIZER, ELSEWHERE):
        assert sums[kind] > 0
