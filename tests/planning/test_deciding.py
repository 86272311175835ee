"""A plan decides on idle memory as its run does: by the same options, out of the same bytes."""

from dataclasses import replace
from typing import Any

import pytest

from finetune.budget.architecture import build_architecture
from finetune.budget.computing import find_loss
from finetune.budget.devices import build_cpu, find_device
from finetune.budget.layer_options import Recomputing
from finetune.budget.memory import estimate_memory
from finetune.budget.spending import find_spendable, spend
from finetune.model.base import load_base
from finetune.objectives import OBJECTIVES
from finetune.objectives.step_memory import build_shapes, estimate_step
from finetune.planning.adapter import find_adapter
from finetune.planning.deciding import build_plain, decide, find_options
from finetune.planning.on_device import plan_on
from finetune.planning.rows import find_rows
from finetune.planning.subject import Subject, build_setup
from finetune.recipe.reading import build_recipe

SHAPE = {
    "model_type": "qwen2", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
CPU_BYTES = 4 * 2**30
REENTRANT = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}


def build_subject(**sections: dict[str, Any]) -> Subject:
    values: dict[str, Any] = {
        "name": "decided",
        "model": {"weights": "random", "config": SHAPE, "tokenizer_name_or_path": "none", "device": "cpu"},
        "data": {"train": {"path": "rows.json"}, "max_length": 128, "assumed": {"rows": 99, "tokens_per_row": 40}},
        "adapter": {"r": 8},
        "training": {"per_device_train_batch_size": 2},
    }
    recipe = build_recipe(
        {name: value | sections.get(name, {}) if isinstance(value, dict) else value for name, value in values.items()}
    )
    architecture = build_architecture(SHAPE)
    return Subject(recipe, architecture, find_adapter(recipe, architecture, None), find_rows(recipe), 1)


CELLS = [
    {},
    {"model": {"quantization": "none"}},
    {"adapter": {"r": 8, "bias": "all"}},
    {"adapter": {"r": 8, "lora_dropout": 0.1}},
    {"training": REENTRANT},
    {"data": {"packing": False}},
    {"data": {"packing": True}, "model": {"attention": "sdpa"}},
]


@pytest.mark.parametrize("sections", CELLS, ids=str)
def test_a_plan_and_its_run_make_the_same_decision(sections):
    subject = build_subject(**sections)
    recipe = subject.recipe
    device = build_cpu(CPU_BYTES, has_bfloat16=True, flops_per_second=None, source=None)
    setup = build_setup(subject, device)
    base = load_base(recipe.model, max_length=recipe.data.max_length)
    shapes = build_shapes(base, recipe.adapter, may_be_lean=True, loss=find_loss(recipe.objective, None))
    assert shapes is not None
    is_reentrant = "gradient_checkpointing_kwargs" in recipe.training.fields
    step = estimate_step(shapes, setup.batch, Recomputing(not is_reentrant, is_reentrant=is_reentrant))
    assert shapes.computing == setup.computing
    assert step.options == find_options(recipe, setup, device)

    plain = estimate_memory(setup, build_plain(recipe, setup))
    held_bytes = plain.weights + plain.adapter + plain.fragmentation + setup.batch.num_tokens * 24  # before a step
    coming_bytes = plain.gradients + plain.optimizer + step.step_bytes
    assert held_bytes + coming_bytes == plain.peak_bytes
    copies = [one.num_weights * 2 for one in subject.architecture.linears] * 6
    copies = copies if recipe.model.quantization == "nf4" else []
    decided = set()
    for share in (0.0, 0.3, 0.6, 0.9, 3.0):
        spare_bytes = int(share * 6 * step.options["all"].num_bytes)
        total_bytes = int((plain.peak_bytes + spare_bytes) / 0.95) + 1
        small = build_cpu(total_bytes, has_bfloat16=True, flops_per_second=None, source=None)
        spendable_bytes = find_spendable(total_bytes - held_bytes, total_bytes, coming_bytes)
        by_run = spend(spendable_bytes, 6, step.options, copies)
        assert decide(recipe, setup, small) == by_run
        decided.add(by_run.num_kept)
    assert {0, 6} < decided


LOSSES = {
    "sft": "chunks", "pretrain": "chunks", "mlm": "logits", "dpo": "logits", "kto": "logits", "orpo": "logits",
    "reward": "head", "rloo": "logits", "grpo": "logits", "classify": "head",
}  # fmt: skip


def test_a_plan_knows_of_every_objective_how_its_loss_reads_the_logits():
    device = build_cpu(CPU_BYTES, has_bfloat16=True, flops_per_second=None, source=None)
    assert LOSSES.keys() == OBJECTIVES.keys()
    subject = build_subject()
    for objective, loss in LOSSES.items():
        recipe = subject.recipe.model_copy(update={"objective": objective})
        assert build_setup(replace(subject, recipe=recipe), device).computing.loss == loss, objective


@pytest.mark.parametrize(("loss_type", "loss"), [("chunked_nll", "chunks"), ("nll", "logits"), ("dft", "logits")])
def test_a_plan_of_supervised_training_reads_its_loss_type(loss_type, loss):
    device = build_cpu(CPU_BYTES, has_bfloat16=True, flops_per_second=None, source=None)
    subject = build_subject(training={"loss_type": loss_type})
    assert build_setup(subject, device).computing.loss == loss


def test_the_processes_of_a_launch_share_a_cpu_s_memory_and_speed_and_not_a_gpu_s():
    alone, together = (replace(build_subject(), num_processes=number) for number in (1, 2))
    device = build_cpu(CPU_BYTES, has_bfloat16=True, flops_per_second=8e9, source="a run")
    label = "a process's share of this CPU (1 of 2)"
    half = replace(device, label=label, memory_bytes=CPU_BYTES // 2, flops_per_second=4e9)
    assert [plan_on(one, device).device for one in (alone, together)] == [device, half]
    # As many rows are as much work for the CPU, whoever of its processes does it.
    seconds = [plan_on(one, device).seconds for one in (alone, together)]
    assert seconds[0] is not None
    assert seconds[1] == pytest.approx(seconds[0])
    unknown = replace(device, flops_per_second=None)
    assert plan_on(together, unknown).seconds is None
    # A process and its libraries are 0.7 GiB: one fits, the second has no room.
    small = replace(device, memory_bytes=int(1.2 * 2**30))
    assert [plan_on(one, small).verdict for one in (alone, together)] == ["fits", "does not fit"]
    assert plan_on(together, find_device("t4")).device == find_device("t4")


def test_parts_are_planned_only_where_the_run_recomputes_them_by_themselves():
    device = build_cpu(CPU_BYTES, has_bfloat16=True, flops_per_second=None, source=None)
    kinds = {}
    for name, training in {"usual": {}, "reentrant": REENTRANT}.items():
        subject = build_subject(training=training)
        kinds[name] = set(find_options(subject.recipe, build_setup(subject, device), device))
    assert kinds == {"usual": {"all", "mlp", "attention"}, "reentrant": {"all"}}


def test_layers_that_somebody_has_chosen_are_planned_as_chosen():
    device = build_cpu(64 * 2**30, has_bfloat16=True, flops_per_second=None, source=None)
    subject = build_subject(training={"gradient_checkpointing_kwargs": {"every_n_layers": 4}})
    spending = decide(subject.recipe, build_setup(subject, device), device)
    assert (spending.num_recomputed, spending.num_kept) == (2, 4)  # the first of 0 to 3, and of 4 and 5
    assert spending.num_resident == 6 * 7  # copies are the run's own decision all the same


def test_a_model_compiled_as_a_whole_is_planned_without_the_lean_path():
    device = build_cpu(CPU_BYTES, has_bfloat16=True, flops_per_second=None, source=None)
    is_lean = {
        compiles: build_setup(build_subject(training={"torch_compile": compiles}), device).computing.is_lean
        for compiles in (True, False)
    }
    assert is_lean == {True: False, False: True}
