"""Where LoRA's matrices start when they start from the base's own weights: PiSSA, OLoRA, LoftQ.

PEFT starts PiSSA and OLoRA by taking the principal part out of the base. The base then is no longer
the one that other tools will put the adapter on, and in 4 bits PiSSA is refused. Here the base stays
as it is: the start is subtracted by a second, fixed half of the adapter, B A - B0 A0, which is how
PiSSA converts itself to LoRA at the end. The result is a plain LoRA of twice the rank.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from finetune.errors import RecipeError
from finetune.model.access import find_folder

__all__ = ["apply_start", "choose_start"]

_AGAINST_THE_BASE = ("pissa", "olora")


def choose_start(fields: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Take a start that PEFT cannot make on this base out of LoRA's fields.

    Args:
        fields: the settings of `adapter`, as typed; starts that cannot be made here are refused with the recipe.

    Returns:
        The fields that PEFT gets, and the start that `apply_start` is to make, if any.
    """
    start = fields.get("init_lora_weights", True)
    if not isinstance(start, str):
        return fields, None
    if start == "loftq":
        without = {name: value for name, value in fields.items() if name != "loftq_config"}
        return without | {"init_lora_weights": True}, start
    if start.partition("_niter_")[0] in _AGAINST_THE_BASE:
        return _double_rank(fields) | {"init_lora_weights": True}, start
    return fields, None


def apply_start(model: PeftModel, start: str, commit: str | None) -> None:
    """Set every LoRA layer's matrices to their start; the model's output is unchanged by it but for LoftQ's."""
    if start == "loftq":
        _start_loftq(model, commit)
        return
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            _start_against_base(layer, start)


def _double_rank(fields: dict[str, Any]) -> dict[str, Any]:
    """Double the rank and keep the scaling: alpha / r, or alpha / sqrt(r) in rsLoRA."""
    growth = math.sqrt(2) if fields.get("use_rslora") else 2
    return fields | {
        "r": 2 * fields.get("r", 8),
        "lora_alpha": growth * fields.get("lora_alpha", 8),
        "rank_pattern": {name: 2 * rank for name, rank in (fields.get("rank_pattern") or {}).items()},
        "alpha_pattern": {name: growth * alpha for name, alpha in (fields.get("alpha_pattern") or {}).items()},
    }


@torch.no_grad()
def _start_against_base(layer: LoraLayer, start: str) -> None:
    [name] = layer.lora_A
    lora_A, lora_B = layer.lora_A[name].weight, layer.lora_B[name].weight
    rank = lora_A.shape[0] // 2
    base_weight = dequantize_module_weight(layer.get_base_layer()).float()
    start_A, start_B = _decompose(base_weight, start, rank, layer.scaling[name])
    lora_A.copy_(torch.cat([start_A, start_A]))
    lora_B.copy_(torch.cat([start_B, -start_B], dim=1))
    # The fixed half: no gradient, so no step of an optimizer moves it.
    lora_A.register_hook(lambda gradient: torch.cat([gradient[:rank], torch.zeros_like(gradient[rank:])]))
    lora_B.register_hook(lambda gradient: torch.cat([gradient[:, :rank], torch.zeros_like(gradient[:, rank:])], dim=1))


def _decompose(weight: Tensor, start: str, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Take the matrices A and B that `start` begins with out of a weight.

    PiSSA: scaling * B A is the part of the weight with the largest singular values, shared evenly
    (Meng et al. 2024, arXiv:2404.02948, equations 2-3). OLoRA: the first columns of its QR decomposition
    (Büyükakyüz 2024, arXiv:2406.01775).
    """
    if start == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    _, _, num_iterations = start.partition("_niter_")
    if num_iterations:
        u, s, v = torch.svd_lowrank(weight, q=rank, niter=int(num_iterations))
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        v = vh.T
    root = torch.sqrt(s[:rank] / scaling)
    return root[:, None] * v[:, :rank].T, u[:, :rank] * root


@torch.no_grad()
def _start_loftq(model: PeftModel, commit: str | None) -> None:
    """Set each layer to the best low-rank repair of the 4-bit rounding, from the 16-bit weights on disk.

    One step of LoftQ (Li et al. 2023, arXiv:2310.08659, algorithm 1), the base staying as it is held;
    PEFT's own function for this leaves the scaling out and runs on a GPU alone.
    """
    folder = find_folder(model.get_base_model().name_or_path, commit)
    files = _find_tensors(folder)
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        held = dequantize_module_weight(layer.get_base_layer()).float()
        true = _read_tensor(files, f"{name.removeprefix('base_model.model.')}.weight")
        [adapter] = layer.lora_A
        lora_A, lora_B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        residual = true.to(held.device, torch.float32) - held
        start_A, start_B = _decompose(residual, "svd", lora_A.shape[0], layer.scaling[adapter])
        lora_A.copy_(start_A)
        lora_B.copy_(start_B)


def _find_tensors(folder: Path) -> dict[str, Path]:
    """Find the file of each tensor of a model's folder."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    path = folder / SAFE_WEIGHTS_NAME
    with safe_open(path, framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), path)


def _read_tensor(files: dict[str, Path], name: str) -> Tensor:
    if name not in files:
        raise RecipeError(
            f"`adapter.init_lora_weights: loftq`: the base's files hold no `{name}` to compare the 4-bit one with.\n"
            "  Without them: pissa, olora, gaussian, true"
        )
    with safe_open(files[name], framework="pt") as tensors:
        return tensors.get_tensor(name)
