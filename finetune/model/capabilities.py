"""What each adapter method can do here and elsewhere, asked of the rules that the pipeline itself goes by.

In goes a value of `adapter.method`; out come `Capabilities`, an answer a question. The reader of recipes is asked for
precision, packing, checkpointing and Unsloth, by a recipe that has just that; the merge and the heads are asked for
by the checks that a run and an export make. What no rule of ours says, since it is another library's, stands in the
two tables below with its version; tests/model/test_capabilities.py tries every answer about PEFT out.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from finetune.errors import RecipeError
from finetune.model.adapters import check_adapter
from finetune.model.merging import check_mergeable
from finetune.model.targets import Target
from finetune.recipe.catalogue import PROMPT_METHODS
from finetune.recipe.heads import Head
from finetune.recipe.json_schema import build_adapter_schema, find_methods
from finetune.recipe.own_methods import COMBINED, OWN_METHODS, PART_METHODS, WHOLE_METHODS
from finetune.recipe.reading import build_recipe
from finetune.recipe.schema import AdapterSettings, ModelSettings

__all__ = ["QUESTIONS", "REQUIRED_FIELDS", "Answer", "Capabilities", "find_capabilities"]

Word = Literal["yes", "no", "merged"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer about a method.

    Attributes:
        word: yes, no, or merged: as a whole model, which `finetune.export --merge` makes of it.
        why: the reason of a no, the condition of a yes; empty where there is none.
    """

    word: Word
    why: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a method can do.

    Attributes:
        method: a value of `adapter.method`.
        decoder: trains on a language model, with packed or padded rows.
        encoder: trains on an encoder with a classification head, such as BERT.
        four_bit: on a base held in nf4 or fp4.
        packing: on packed rows.
        checkpointing: with gradient checkpointing.
        merging: becomes a part of the base's weights.
        switching_off: gives the base's exact logits again.
        several: lies beside others on one base (`chat --adapter`).
        modules_to_save: whole modules may be trained beside it.
        vllm: what vLLM serves.
        llama_cpp: what llama.cpp converts to GGUF.
        ollama: what Ollama takes as ADAPTER.
        unsloth: trains through `backend: unsloth`.
        plain_peft: opens with PEFT alone.
    """

    method: str
    decoder: Answer
    encoder: Answer
    four_bit: Answer
    packing: Answer
    checkpointing: Answer
    merging: Answer
    switching_off: Answer
    several: Answer
    modules_to_save: Answer
    vllm: Answer
    llama_cpp: Answer
    ollama: Answer
    unsloth: Answer
    plain_peft: Answer


QUESTIONS = tuple(field.name for field in fields(Capabilities) if field.name != "method")

# Fields without which a method's config is refused, with values for a first try.
REQUIRED_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "adalora": {"total_step": 10},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "p_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "cartridge": {"num_virtual_tokens": 4},
    "combined": {"parts": [{"method": "lora"}, {"method": "bitfit"}]},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "trainable_tokens": {"token_indices": [5, 6]},
}

_YES = Answer("yes")
_NEEDS_BIAS = "where the targeted layers have biases: not in Llama or Mistral"
_OFF_ON_DECODERS = Answer(
    "yes", "on a classifier by `several.ModelSwitch`: PEFT's own `disable_adapter` ends there in UnboundLocalError"
)

# What PEFT 0.21.2 does beyond our rules: found by trying every method, and tried again by the test.
_OF_PEFT: dict[str, dict[str, Answer]] = {
    "beft": {"merging": Answer("yes", _NEEDS_BIAS)},
    "bitfit": {"merging": Answer("yes", _NEEDS_BIAS)},
}

# Of the three other tools, from their sources as of November 2026: vLLM `vllm/lora/peft_helper.py` and its
# `--max-lora-rank`; llama.cpp `convert_lora_to_gguf.py`; Ollama `convert/convert_llama_adapter.go`.
_SERVED: dict[str, dict[str, Answer]] = {
    "lora": {
        "vllm": Answer(
            "yes",
            "up to --max-lora-rank, 16 by default; rsLoRA too; no `use_dora`, `modules_to_save`, `bias` or embeddings",
        ),
        "llama_cpp": Answer("yes", "no `use_dora`, `modules_to_save` or embeddings; one rank and alpha for all layers"),
        "ollama": Answer("yes", "on q, k, v, o, gate, up and down of Llama and Mistral"),
    }
}
_SERVERS = ("vllm", "llama_cpp", "ollama")


@cache
def find_capabilities(method: str) -> Capabilities:
    """Find out what a method can do; reads no weights.

    Args:
        method: a value of `adapter.method`.

    Raises:
        RecipeError: there is no such method.
    """
    if method not in find_methods():
        raise RecipeError(f"There is no adapter method `{method}`.\n  There are: {', '.join(find_methods())}.")
    merging = _OF_PEFT.get(method, {}).get("merging") or _ask_merging(method)
    found = {
        "decoder": _ask_head(method, "words"),
        "encoder": _first_no(_ask_reader(method, objective="classify"), _ask_head(method, "labels")),
        "four_bit": _ask_reader(method, model={"quantization": "nf4"}),
        "packing": _ask_reader(method, data={"packing": True}),
        "checkpointing": _ask_reader(method, training={"gradient_checkpointing": True}),
        "merging": merging,
        "switching_off": _of_an_adapter(method, "the base's own weights are what was trained"),
        "several": _of_an_adapter(method, "each result is a whole model"),
        "modules_to_save": _ask_schema(method, "modules_to_save"),
        "unsloth": _ask_reader(method, model={"backend": "unsloth"}),
        "plain_peft": _ask_origin(method),
    }
    found |= {server: _ask_server(method, server, merging) for server in _SERVERS}
    for question, answer in _OF_PEFT.get(method, {}).items():
        # A rule of ours that forbids it has the last word.
        if found[question].word == "yes" or question == "merging":
            found[question] = answer
    if method in PROMPT_METHODS and found["encoder"].word == "yes":
        found["switching_off"] = _OFF_ON_DECODERS
    return Capabilities(method=method, **found)


def _ask_reader(method: str, *, objective: str = "sft", **sections: Mapping[str, Any]) -> Answer:
    """Ask the reader of recipes, by a recipe of the method that has nothing else it could be refused for."""
    recipe: dict[str, Any] = {
        "name": "asked",
        "objective": objective,
        "model": {"model_name_or_path": "base", "quantization": "none", "device": "cpu"},
        "data": {"train": {"path": "rows.json"}, "packing": False},
        "training": {"gradient_checkpointing": False},
    }
    if objective == "sft":
        recipe["data"]["template"] = "alpaca"
    for section, values in sections.items():
        recipe[section] |= values
    return _ask_parts(method, lambda adapter: build_recipe(recipe | {"adapter": adapter}))


def _ask_head(method: str, head: Head) -> Answer:
    if method in WHOLE_METHODS:
        return _YES
    return _ask_parts(method, lambda adapter: check_adapter(AdapterSettings.model_validate(adapter), head=head))


def _ask_parts(method: str, ask: Callable[[dict[str, Any]], object]) -> Answer:
    """Ask by an `adapter` section; of a combination by one for each of its parts, beside one that never is refused."""
    if method != COMBINED:
        return _try(method, lambda: ask({"method": method, **REQUIRED_FIELDS.get(method, {})}))
    answers: dict[str, Answer] = {}
    for part in PART_METHODS:
        beside = "lora" if part == "bitfit" else "bitfit"
        parts = [{"method": part, **REQUIRED_FIELDS.get(part, {})}, {"method": beside}]
        answers[part] = _try(method, partial(ask, {"method": method, "parts": parts}))
    unable = [part for part, answer in answers.items() if answer.word == "no"]
    if len(unable) == len(answers):
        return answers[unable[0]]
    return Answer("yes", f"where each part can: not with {' and '.join(unable)}") if unable else _YES


def _ask_merging(method: str) -> Answer:
    """Ask the check that an export makes, by a folder that has the method's config."""
    base = ModelSettings(model_name_or_path="base")
    if method in WHOLE_METHODS:
        return Answer("no", "it is a whole model already")
    with tempfile.TemporaryDirectory() as folder:
        config: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()](**REQUIRED_FIELDS.get(method, {}))
        config.save_pretrained(folder)
        target = Target("asked", base, Path(folder), Path(folder), method)
        return _try(method, lambda: check_mergeable(target))


def _ask_schema(method: str, setting: str) -> Answer:
    if setting in build_adapter_schema(method)["properties"]:
        return _YES
    return Answer("no", "all or the last layers are trained anyway" if method in WHOLE_METHODS else "PEFT has no field")


def _ask_origin(method: str) -> Answer:
    if method in OWN_METHODS:
        return Answer("no", "a method of our own: `import finetune.model.own_methods` adds it to PEFT")
    return Answer("no", "no adapter: transformers opens it") if method in WHOLE_METHODS else _YES


def _ask_server(method: str, server: str, merging: Answer) -> Answer:
    if method in WHOLE_METHODS:
        return Answer("yes", "as the whole model it is, where the tool knows the architecture")
    served = _SERVED.get(method, {}).get(server)
    if served is not None:
        return served
    return (
        Answer("merged", merging.why)
        if merging.word == "yes"
        else Answer("no", "it takes LoRA alone, and this does not merge")
    )


def _of_an_adapter(method: str, why_not: str) -> Answer:
    return Answer("no", why_not) if method in WHOLE_METHODS else _YES


def _first_no(*answers: Answer) -> Answer:
    return next((answer for answer in answers if answer.word == "no"), _YES)


def _try(method: str, ask: Callable[[], object]) -> Answer:
    """Turn a refusal into an answer: the reason in its first line, less the names of what was asked."""
    try:
        ask()
    except RecipeError as error:
        line = str(error).splitlines()[0]
        asked = rf"`?(adapter\.)?method: {re.escape(method)}`? |, and `method` is {method}"
        around = rf"^(the recipe|asked): |{asked}|an adapter of method {method} cannot be merged: "
        said = re.sub(around, "", line).removesuffix(".")
        return Answer("no", f"it {said}" if said.startswith("and ") else said)
    return _YES
