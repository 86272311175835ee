"""Several adapters of one base made into one, by PEFT's weighted sums of LoRA and IA3.

In go targets on the same base and what to do with them; out comes an ordinary adapter folder that any tool opens.
No weight of the base is read: its layers are built with their shapes alone, every weight one zero seen as often as
the shape asks. The memory is that of the adapters, and for the ways ending in `svd` one layer's change in full.

With dW_i = s_i B_i A_i for LoRA number i (s_i its scaling, alpha / r) and weight w_i, PEFT 0.21 makes

    cat         sum_i w_i dW_i, exactly: the matrices side by side, ranks added
    svd         the best approximation of that sum at the rank asked for
    linear      (sum_i sqrt|w_i s_i| B_i) (sum_i sign(w_i) sqrt|w_i s_i| A_i): the sum and all cross terms beside it
    NAME        the way NAME on the A and on the B matrices apart, each weighed so
    NAME_svd    the way NAME on the dW_i, then as svd

So a weight below 0 takes an adapter's change away in cat and svd alone: in linear its cross terms come in, what prunes
takes a share of it, and TIES elects a place's sign before it weighs.

TIES: Yadav et al. 2023 (arXiv:2306.01708); DARE: Yu et al. 2023 (arXiv:2311.03099).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft import set_peft_model_state_dict as put_tensors
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    set_seed,
)

from finetune.errors import PlaceError
from finetune.model.base import load_config
from finetune.model.composable import Manner, check_composable
from finetune.model.loading import check_adapter_file, load_saved_tokenizer
from finetune.model.targets import ADAPTER_WEIGHTS, Target
from finetune.recipe.places import is_local
from finetune.recipe.schema import ModelSettings

__all__ = ["compose_adapters"]

_RESULT = "composed"  # the new adapter beside the others in the model


def compose_adapters(targets: Sequence[Target], manner: Manner, folder: Path) -> int:
    """Make adapters into one, in a folder of its own with the tokenizer and template of the first.

    Args:
        targets: two or more, on the same base.
        manner: how.
        folder: absent or empty; it appears when all of it is there.

    Returns:
        The rank of the result; 0 for IA3, which has none.

    Raises:
        RecipeError: they do not go together so.
        PlaceError: the folder is in use, or an adapter's tensors are not finite or not those of its config.
    """
    check_composable(targets, manner)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PlaceError(f"{folder} is not empty.\n  Name a new folder: --to {folder}_2")
    model = _load_side_by_side(targets)
    names = [_name(number) for number in range(len(targets))]
    if manner.how == "linear" and targets[0].method == "ia3":
        model.base_model.add_weighted_adapter(names, list(manner.weights), _RESULT)
    else:
        set_seed(manner.seed)
        model.base_model.add_weighted_adapter(
            names,
            list(manner.weights),
            _RESULT,
            combination_type=manner.how,
            svd_rank=manner.rank,
            svd_full_matrices=False,
            density=manner.density,
            majority_sign_method=manner.majority_sign,
        )
        _fill_up_ranks(model)
    config = model.peft_config[_RESULT]
    config.base_model_name_or_path = _name_base(targets[0].base, folder)
    config.inference_mode = True
    part = folder.absolute().with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        model.save_pretrained(part, selected_adapters=[_RESULT], save_embedding_layers=False)
        _write_beside(targets, manner, part / _RESULT, name=folder.name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        (part / _RESULT).replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return config.r if isinstance(config, LoraConfig) else 0


def _load_side_by_side(targets: Sequence[Target]) -> PeftModel:
    """Load every adapter, by its number, onto the shapes of the base."""
    model: PeftModel | None = None
    for number, target in enumerate(targets):
        assert target.adapter_dir is not None
        check_adapter_file(target.adapter_dir)
        config = PeftConfig.from_pretrained(str(target.adapter_dir))
        assert isinstance(config, LoraConfig | IA3Config)
        if isinstance(config, LoraConfig):
            config.init_lora_weights = True  # its tensors come from the file
        name = _name(number)
        if model is None:
            model = get_peft_model(_build_shapes(target.base, str(config.task_type)), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        tensors = load_file(target.adapter_dir / ADAPTER_WEIGHTS)
        wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        odd = sorted(wanted.keys() ^ tensors.keys())
        odd += [key for key in wanted.keys() & tensors.keys() if wanted[key].shape != tensors[key].shape]
        if odd:
            raise PlaceError(
                f"{target.adapter_dir}: {odd[0]} is not as its adapter_config.json and the base say.\n"
                "  Fetch or copy the whole folder again."
            )
        put_tensors(model, tensors, adapter_name=name)
    assert model is not None
    for config in model.peft_config.values():
        if isinstance(config, LoraConfig):
            # The scalings are in the layers by now. That of the result follows from the first config, and PEFT 0.21
            # takes it for 1, which with rsLoRA it would not be.
            config.use_rslora = False
    return model


def _fill_up_ranks(model: PeftModel) -> None:
    """Fill a layer's matrices up with zeros to the rank that the config says, which changes no product.

    The decomposition has no more directions than the layer's smaller side, and PEFT 0.21 leaves it at that many.
    """
    rank = model.peft_config[_RESULT].r
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        if _RESULT in layer.lora_A:
            A, B = layer.lora_A[_RESULT].weight, layer.lora_B[_RESULT].weight
        elif _RESULT in layer.lora_embedding_A:
            A, B = layer.lora_embedding_A[_RESULT], layer.lora_embedding_B[_RESULT]
        else:
            continue
        A.data = functional.pad(A.data, (0, 0, 0, rank - A.shape[0]))
        B.data = functional.pad(B.data, (0, rank - B.shape[1]))


def _name(number: int) -> str:
    # Not the bare number: PEFT would take the 1 of `layers.1` for an adapter's name.
    return f"part_{number}"


def _build_shapes(settings: ModelSettings, task_type: str) -> PreTrainedModel:
    """Build the base without its weights: each one a single zero, seen as often as the shape asks."""
    config = load_config(settings)
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and task_type.endswith("CAUSAL_LM")
    with torch.device("meta"):
        model: PreTrainedModel = (AutoModelForCausalLM if is_causal else AutoModelForMaskedLM).from_config(config)
    for module in list(model.modules()):
        for name, held in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.zeros(()).expand(held.shape), requires_grad=False))
    return model


def _name_base(base: ModelSettings, folder: Path) -> str:
    """Name the base so that whoever opens the new folder finds it: a relative path only from where it leads there."""
    assert base.model_name_or_path is not None
    name = base.model_name_or_path
    if not is_local(name) or any((parent / name / "config.json").is_file() for parent in folder.absolute().parents):
        return name
    return str(Path(name).expanduser().absolute())


def _write_beside(targets: Sequence[Target], manner: Manner, folder: Path, *, name: str) -> None:
    """Write what makes an adapter's folder complete: the tokenizer with its template, and a card."""
    first = targets[0]
    load_saved_tokenizer(first).save_pretrained(folder)
    if first.saved_dir is not None and (first.saved_dir / "generation_config.json").is_file():
        shutil.copy(first.saved_dir / "generation_config.json", folder)
    base = str(first.base.model_name_or_path)
    method = str(first.method)
    data = ModelCardData(
        base_model=None if is_local(base) else base,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[method, "merge"],
    )
    made = {
        "base model": base,
        "held as in training": first.base.quantization,
        "method": method,
        "how": manner.how,
        **({"density": manner.density} if manner.density is not None else {}),
        **({"majority sign": manner.majority_sign} if "ties" in manner.how else {}),
        **({"seed": manner.seed} if manner.how.startswith("dare") else {}),
        "template": f"that of {first.name}",
    }
    lines = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n",
        f"One adapter made of {len(targets)} by python -m finetune.compose.\n",
        "| adapter | weight |\n|---|---|",
        *(f"| {target.name} | {weight:g} |" for target, weight in zip(targets, manner.weights, strict=True)),
        "\n| | |\n|---|---|",
        *(f"| {what} | {value} |" for what, value in made.items()),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
