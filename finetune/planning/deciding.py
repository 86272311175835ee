"""What idle memory will be spent on, decided before a run as the run itself decides it.

In go a recipe's settings, a `Setup` and a device; out comes the `Spending`. What layers may keep, and what that costs
and saves, is `budget.layer_options`'; `objectives.idle_memory` asks the same of a model that is loaded.
"""

from dataclasses import replace
from typing import Any

from finetune.budget.devices import Device
from finetune.budget.layer_options import Recomputing, estimate_options, find_rates, has_parts
from finetune.budget.memory import Setup, estimate_memory
from finetune.budget.spending import Keeps, Option, Spending, find_spendable, spend
from finetune.recipe.schema import Recipe

__all__ = ["build_plain", "decide", "find_options"]


def build_plain(recipe: Recipe, setup: Setup) -> Spending:
    """Build the decision that spends nothing: what is recomputed when nobody decides about it.

    Args:
        recipe: read for `training.gradient_checkpointing_kwargs`.
        setup: of the run.
    """
    num_layers = setup.architecture.num_layers
    # transformers recomputes the first of each so many layers (5.17).
    num_recomputed = -(-num_layers // _find_stride(recipe)) if setup.may_recompute else 0
    return Spending(num_layers=num_layers, num_kept=num_layers - num_recomputed)


def decide(recipe: Recipe, setup: Setup, device: Device) -> Spending:
    """Decide what idle memory is spent on: layers that recompute less, then copies of weights.

    Args:
        recipe: read for `training` and the backend.
        setup: of the run on the device.
        device: to run on.
    """
    plain = build_plain(recipe, setup)
    if recipe.training.memory != "auto" or recipe.model.backend != "transformers":
        return plain
    coming_bytes = estimate_memory(setup, plain).peak_bytes
    spendable_bytes = find_spendable(device.memory_bytes, device.memory_bytes, coming_bytes)
    options: dict[Keeps, Option] = {}
    if setup.may_recompute and _find_stride(recipe) == 1:  # whoever typed another one has chosen the layers
        options = find_options(recipe, setup, device)
    spending = spend(spendable_bytes, plain.num_layers, options, _list_copies(setup))
    return spending if options else replace(spending, num_kept=plain.num_kept)


def find_options(recipe: Recipe, setup: Setup, device: Device) -> dict[Keeps, Option]:
    """Find what a layer may keep on a device, and what that costs and saves.

    Args:
        recipe: read for `training.gradient_checkpointing_kwargs`.
        setup: of the run on the device.
        device: to run on.
    """
    is_reentrant = bool(_find_kwargs(recipe).get("use_reentrant"))
    return estimate_options(
        setup.architecture,
        setup.adapter,
        setup.batch,
        setup.computing,
        find_rates(device, on_cpu=device.is_cpu),
        Recomputing(by_parts=has_parts(setup.architecture) and not is_reentrant, is_reentrant=is_reentrant),
    )


def _list_copies(setup: Setup) -> list[int]:
    """List the bytes of a copy of each 4-bit weight, in the order in which they are taken."""
    if setup.holding.quantization not in ("nf4", "fp4"):
        return []
    each = [one.num_weights * setup.holding.compute_bytes for one in setup.architecture.linears]
    return each * setup.architecture.num_layers


def _find_stride(recipe: Recipe) -> int:
    """Of so many layers the first is recomputed."""
    return max(int(_find_kwargs(recipe).get("every_n_layers") or 1), 1)


def _find_kwargs(recipe: Recipe) -> dict[str, Any]:
    kwargs = recipe.training.fields.get("gradient_checkpointing_kwargs")
    return dict(kwargs) if isinstance(kwargs, dict) else {}
