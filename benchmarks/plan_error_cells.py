"""The grid of `plan_error`: models, methods and the other columns, and which points of it are counted.

Out come `Cell`s: some drawn by a seed from the product of all columns, others listed because few draws would hit them.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "COLUMNS",
    "DRAWN",
    "EXPERTS",
    "METHODS",
    "MODELS",
    "OTHERS",
    "TRAINED_MODULES",
    "WIDE",
    "Cell",
    "draw_cells",
    "list_kernels",
    "list_others",
    "list_trained_modules",
    "list_wide",
]

_SEED = 8
_COMMON = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_MISTRAL = {**_COMMON, "model_type": "mistral", "sliding_window": None}
MODELS: Mapping[str, dict[str, Any]] = {
    "mistral 128 x 2": {
        **_MISTRAL,
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "mistral 256 x 4": {
        **_MISTRAL,
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 896,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "llama 256 x 3, tied": {
        **_COMMON,
        "model_type": "llama",
        "tie_word_embeddings": True,
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "mistral 512 x 2": {
        **_MISTRAL,
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "qwen3 192 x 3, tied": {
        **_COMMON,
        "model_type": "qwen3",
        "tie_word_embeddings": True,
        "vocab_size": 4096,
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    # One layer of the width of Mistral-7B's: beside its weights and its head the tokens are few.
    "mistral 4096 x 1": {
        **_MISTRAL,
        "vocab_size": 4096,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "mixtral 128 x 2": {
        **_COMMON,
        "model_type": "mixtral",
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
WIDE, EXPERTS = "mistral 4096 x 1", "mixtral 128 x 2"
DRAWN = tuple(name for name in MODELS if name not in (WIDE, EXPERTS))
_LORA = {"method": "lora", "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
METHODS: Mapping[str, dict[str, Any]] = {
    "lora": _LORA,
    "lora, attention alone": {**_LORA, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "lora, dropout 0.1": {**_LORA, "lora_dropout": 0.1},
    "dora": {**_LORA, "use_dora": True},
    "ia3": {"method": "ia3"},
    "full": {"method": "full"},
    "p_tuning": {"method": "p_tuning", "num_virtual_tokens": 8},
}
# Modules of the base trained whole beside an adapter.
TRAINED_MODULES: Mapping[str, dict[str, Any]] = {
    "lora, trained head": {**_LORA, "modules_to_save": ["lm_head"]},
    "lora, trained embeddings": {**_LORA, "modules_to_save": ["embed_tokens"]},
    "lora, trained head and embeddings": {**_LORA, "modules_to_save": ["lm_head", "embed_tokens"]},
}
# One cell each; most have no rule (`has_rule`) and are estimated by LoRA's.
OTHERS: Mapping[str, dict[str, Any]] = {
    "adalora": {"method": "adalora", "total_step": 100},
    "loha": {"method": "loha"},
    "lokr": {"method": "lokr"},
    "vera": {"method": "vera"},
    "oft": {"method": "oft"},
    "hra": {"method": "hra"},
    "miss": {"method": "miss"},
    "fourierft": {"method": "fourierft"},
    "ln_tuning": {"method": "ln_tuning"},
    "bitfit": {"method": "bitfit"},
    "bottleneck": {"method": "bottleneck"},
    "prefix_tuning": {"method": "prefix_tuning", "num_virtual_tokens": 8},
}
# Those that do not train quantized weights here.
IN_FULL = frozenset({"loha", "lokr", "hra", "miss", "fourierft", "bitfit"})
COLUMNS: Mapping[str, Sequence[Any]] = {
    "model": DRAWN,
    "method": tuple(METHODS),
    "r": (4, 16, 64),
    "rows": (1, 2, 4),
    "tokens": (64, 128, 256, 512, 1024),
    "layout": ("one document a row", "padded", "packed"),
    "recompute": ("not asked for", "all layers", "half of them", "none"),
    "dtype": ("bfloat16", "float32"),
    "quantization": ("nf4", "none"),
    "objective": ("sft", "sft", "sft", "dpo"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid; the attributes are the columns."""

    model: str
    method: str
    r: int = 16
    rows: int = 2
    tokens: int = 128
    layout: str = "one document a row"
    recompute: str = "not asked for"
    dtype: str = "bfloat16"
    quantization: str = "nf4"
    objective: str = "sft"
    attention: str = "auto"

    @property
    def is_possible(self) -> bool:
        """Whether the pipeline trains so."""
        if self.method == "full" and self.quantization != "none":
            return False
        if self.method == "p_tuning" and (self.layout == "packed" or self.objective == "dpo"):
            return False
        if self.objective == "dpo" and (self.layout == "packed" or self.method == "lora, dropout 0.1"):
            return False
        # Seconds on a CPU: so many tokens at once, and of all logits a quarter.
        return self.rows * self.tokens <= (1024 if self.objective == "sft" else 256)

    @property
    def adapter(self) -> dict[str, Any]:
        """The recipe's section."""
        fields = {**METHODS, **TRAINED_MODULES, **OTHERS}[self.method]
        return {**fields, "r": self.r} if fields["method"] == "lora" else dict(fields)

    @property
    def num_recomputed(self) -> int:
        """Layers that are recomputed."""
        num_layers = int(MODELS[self.model]["num_hidden_layers"])
        return {"all layers": num_layers, "half of them": num_layers // 2}.get(self.recompute, 0)

    @property
    def lengths(self) -> list[list[int]]:
        """Of the documents of each row."""
        if self.layout == "packed":
            return [_cut(self.tokens, 3 + row) for row in range(self.rows)]
        if self.layout == "padded":
            return [[self.tokens - row * self.tokens // 8] for row in range(self.rows)]
        return [[self.tokens]] * self.rows


def _cut(tokens: int, num_documents: int) -> list[int]:
    """Cut a row into documents of unlike lengths."""
    lengths = [tokens // num_documents + (-1) ** place * (tokens // 16) for place in range(num_documents - 1)]
    return [*lengths, tokens - sum(lengths)]


def draw_cells(number: int) -> Iterator[Cell]:
    """Draw cells of which each value of a column has as many as the others, as far as they are possible."""
    generator = random.Random(_SEED)
    decks: dict[str, Iterator[Any]] = {name: _deal(values, generator) for name, values in COLUMNS.items()}
    seen: set[Cell] = set()
    while len(seen) < number:
        cell = Cell(**{name: next(deck) for name, deck in decks.items()})
        if cell.is_possible and cell not in seen:
            seen.add(cell)
            yield cell


def _deal(values: Sequence[Any], generator: random.Random) -> Iterator[Any]:
    while True:
        yield from generator.sample(list(values), len(values))


def list_kernels() -> Iterator[Cell]:
    """Packed cells under the other ways to attend."""
    for place, (model, attention) in enumerate(itertools.product(DRAWN, ("documents", "eager"))):
        yield Cell(
            model,
            "lora",
            rows=1 + place % 3,
            tokens=256,
            layout="packed",
            recompute=COLUMNS["recompute"][place % 4],
            dtype=("bfloat16", "float32")[place // 2 % 2],
            quantization=("nf4", "none")[place // 3 % 2],
            attention=attention,
        )


def list_trained_modules() -> Iterator[Cell]:
    """Head and embeddings trained beside an adapter, by the loss of a few tokens at a time and by all logits."""
    for place, (method, recompute) in enumerate(
        itertools.product(TRAINED_MODULES, ("not asked for", "all layers", "none"))
    ):
        yield Cell(
            DRAWN[place % 4 if place % 4 != 2 else 3],  # of the tied ones head and embeddings are one
            method,
            recompute=recompute,
            dtype=("bfloat16", "float32")[place % 2],
            quantization=("nf4", "none")[place // 2 % 2],
        )
    yield Cell(DRAWN[0], "lora, trained head", rows=1, objective="dpo")


def list_wide() -> Iterator[Cell]:
    """A layer of real width, ten seconds each: short rows, so that weights are most of what is held."""
    for method, recompute, quantization in (
        ("lora", "not asked for", "nf4"),
        ("lora", "all layers", "none"),
        ("lora, trained head", "all layers", "none"),
        ("ia3", "not asked for", "none"),
    ):
        yield Cell(WIDE, method, rows=1, tokens=64, recompute=recompute, quantization=quantization)


def list_others() -> Iterator[Cell]:
    """One cell for each further method, and for experts."""
    yield Cell(EXPERTS, "lora")
    for method in OTHERS:
        yield Cell("llama 256 x 3, tied", method, quantization="none" if method in IN_FULL else "nf4")
