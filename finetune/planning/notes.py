"""What a plan says of itself: figures that are estimates where others are counted, and what it leaves out.

In go the shapes and the schedule; out come sentences for people and for the plan's object.
"""

from finetune.budget.activations import has_rule
from finetune.budget.adapter import STAND_IN_RANK
from finetune.budget.devices import Device
from finetune.budget.duration import LEAST_HOST_TOKENS
from finetune.budget.memory import Setup
from finetune.budget.optimizer_states import is_counted
from finetune.planning.schedule import Schedule, find_setting
from finetune.recipe.row_kinds import SAMPLED
from finetune.recipe.schema import Recipe

__all__ = ["FEWEST_LABELS", "is_in_float32", "list_estimates", "list_not_planned"]

FEWEST_LABELS = 2  # taken where the rows alone tell how many a classifier has


def list_estimates(recipe: Recipe, setup: Setup, *, labels_are_known: bool, unknown_gpu: str | None) -> list[str]:
    """List what is otherwise counted, and is an estimate here.

    Args:
        recipe: of the run.
        setup: of the run on its device.
        labels_are_known: whether a classifier's labels are.
        unknown_gpu: this machine's, where it is not in the table and another device was taken; None: it is not so.
    """
    shape, found = setup.adapter, []
    if unknown_gpu is not None:
        found.append(
            f"this machine's {unknown_gpu} is not in the table: planned for the smallest of the table that fits; "
            "--device names another one"
        )
    if not shape.is_exact and not setup.architecture.num_other_parameters:
        found.append(
            f"the numbers of `{shape.method}` with these settings are not counted here: taken as LoRA's with "
            f"r={max(STAND_IN_RANK, shape.r)}"
        )
    if not is_counted(setup.optimizer):
        found.append(f"the states of `{setup.optimizer}`: taken as Adam's, the most that one keeps")
    if not labels_are_known:
        found.append(f"the labels, which the rows will tell: taken as {FEWEST_LABELS}")
    found += _list_of_activations(setup)
    if setup.architecture.num_other_parameters:
        found.append("the base's tower for images: its numbers by its sizes, no adapter on its layers, no images")
    if find_setting(recipe, "torch_compile"):
        found.append("memory and speed of a model compiled as a whole: counted as if it were not")
    return found


def _list_of_activations(setup: Setup) -> list[str]:
    """What of the activations no rule counts; a test and `benchmarks/plan_error.py` say how far off it is."""
    if setup.architecture.is_encoder:
        return ["activations of an encoder: counted by a decoder's rules"]
    if setup.architecture.experts is not None:
        found = ["activations of a mixture of experts: taken as if each expert were as busy as the others"]
        if setup.computing.is_quantized:
            found.append("weights of the experts: in the compute dtype, for bitsandbytes quantizes linear layers alone")
        return found
    if not has_rule(setup.architecture, setup.adapter):
        return [f"activations of `{setup.adapter.method}` with these settings: by LoRA's rules, most often too high"]
    return []


def list_not_planned(recipe: Recipe, setup: Setup, schedule: Schedule, device: Device) -> list[str]:
    """List what of the run its plan leaves out.

    Args:
        recipe: of the run.
        setup: of the run on its device.
        schedule: its micro-batches.
        device: that it runs on.
    """
    if recipe.objective in SAMPLED:
        return [
            "sampling the answers, which takes most of the time: neither its seconds nor the keys and values it holds",
            "scoring them by a reward model",
        ]
    found = ["evaluations, checkpoints and the start: training steps alone are timed"]
    if recipe.objective == "dpo" and recipe.data.share_prompts != "never":
        found.append(
            "prompts that both answers of a pair share, which the run may compute once: planned with each answer, so "
            "memory and time are an upper bound"
        )
    if is_in_float32(setup, device):
        found.append("the speed of float32: the table knows 16-bit products alone")
    elif not device.is_cpu and schedule.tokens_per_batch < LEAST_HOST_TOKENS:
        found.append(
            f"the host, which may not keep up with micro-batches of {schedule.tokens_per_batch:,.0f} tokens: hours are "
            "a lower bound"
        )
    return found


def is_in_float32(setup: Setup, device: Device) -> bool:
    """Whether a GPU multiplies in float32, at a speed that the table does not know."""
    return not device.is_cpu and setup.holding.compute_bytes == 4
