"""What vLLM, llama.cpp and Ollama accept of a LoRA adapter, as one function over a folder.

From their sources: vLLM 0.1x `lora/peft_helper.py` and `lora/lora_model.py` (rank, no DoRA, no modules_to_save,
known modules alone); llama.cpp `convert_lora_to_gguf.py` (adapter_model.safetensors, every tensor a `lora_A` or
`lora_B` below `base_model.model.`); Ollama `convert/convert_llama_adapter.go` (the seven linear layers of Llama and
Mistral).
"""

import json
import re
from pathlib import Path

from safetensors import safe_open

# vLLM's default of --max-lora-rank is 16; it serves these with the flag set.
VLLM_RANKS = {1, 8, 16, 32, 64, 128, 256, 320, 512}
MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
KEY = re.compile(
    r"base_model\.model\.model\.layers\.\d+\.(?:self_attn|mlp)\.(?P<module>\w+)\.lora_(?P<half>[AB])\.weight"
)
DTYPES = {"F32", "F16", "BF16"}
FORBIDDEN_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def check_adapter_contract(folder: Path, *, ranks: set[int] = VLLM_RANKS) -> None:
    """Hold an adapter folder to what others accept; an AssertionError names what they would refuse."""
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names, f"PEFT's two files are missing: {names}"
    assert not {name for name in names if Path(name).suffix in FORBIDDEN_SUFFIXES}, f"a pickle lies there: {names}"
    assert {"tokenizer.json", "tokenizer_config.json"} <= names, "a server finds no tokenizer"

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["r"] in ranks, f"vLLM serves ranks {sorted(ranks)}, not {config['r']}"
    assert config["lora_alpha"] > 0
    assert config["bias"] == "none", "vLLM refuses trained biases"
    assert config["use_dora"] is False, "vLLM and llama.cpp refuse DoRA"
    assert not config["modules_to_save"], "vLLM and llama.cpp refuse modules_to_save"
    assert not config.get("rank_pattern") and not config.get("alpha_pattern"), "llama.cpp reads one rank and alpha"
    assert not config.get("trainable_token_indices") and not config.get("target_parameters")
    assert config["base_model_name_or_path"], "no tool could find the base"
    assert isinstance(config["target_modules"], list), "Ollama and vLLM want names, not a pattern"
    assert set(config["target_modules"]) <= MODULES, f"unknown to Ollama: {set(config['target_modules']) - MODULES}"

    halves: dict[str, dict[str, list[int]]] = {}
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            matched = KEY.fullmatch(key)
            assert matched, f"a name that llama.cpp's converter does not know: {key}"
            assert matched["module"] in MODULES
            piece = tensors.get_slice(key)
            assert piece.get_dtype() in DTYPES, f"{key} is {piece.get_dtype()}"
            halves.setdefault(key.partition(".lora_")[0], {})[matched["half"]] = piece.get_shape()
    assert halves, "the adapter is empty"
    for module, shapes in halves.items():
        assert set(shapes) == {"A", "B"}, f"{module} has one half only"
        assert shapes["A"][0] == shapes["B"][1] == config["r"], f"{module}: {shapes} is not of rank {config['r']}"
