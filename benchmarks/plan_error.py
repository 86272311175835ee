"""Compares the plan's activation bytes with those that real micro-batches hold, over a grid of everything they hang on.

    python -m benchmarks.plan_error [--cells 150] [--counted RESULT.json]

Each cell trains a small base of drawn weights for three steps on this CPU: one plain, one under `saved_tensors_hooks`,
each storage counted once, and one under the profiler, for the fullest moment. Cells are drawn by a seed from the
product of all columns, each value of a column about as often as the others. With `--counted` the formulas alone are
tried, against what a result counted. Writes `results/plan_error_<machine>.json` and `.md`.
"""

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from benchmarks.counting import build_values, count_step
from benchmarks.recording import write_result
from finetune.budget.activations import BatchShape
from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.budget.computing import Computing
from finetune.budget.passes import PassActivations, estimate_pass
from finetune.data.batches import IGNORE_INDEX
from finetune.recipe.schema import AdapterSettings

__all__ = ["COLUMNS", "METHODS", "MODELS", "OTHERS", "Cell", "compare", "count", "estimate"]

_SEED = 8
_NUM_CELLS = 150
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
}
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
# One cell each; most have no rule (`has_rule`) and are estimated on the high side.
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
    "model": tuple(MODELS),
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
_SHOWN = {**COLUMNS, "kernel": ("sdpa", "documents", "eager")}


_COUNTED = ("num_rows", "row_tokens", "num_trained", "kernel", "saved_bytes", "peak_bytes", "seconds")


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
        fields = {**METHODS, **OTHERS}[self.method]
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


def count(cell: Cell, *, with_peak: bool = True) -> dict[str, Any]:
    """Count what a cell's micro-batch holds, and note the sizes that the collator gave it."""
    start = time.monotonic()
    values = build_values(
        MODELS[cell.model],
        cell.adapter,
        objective=cell.objective,
        model__quantization=cell.quantization,
        model__compute_dtype=cell.dtype,
        model__attention=cell.attention,
        data__max_length=cell.tokens,
        data__packing=cell.layout == "packed",
        training__gradient_checkpointing=cell.recompute != "not asked for",
    )
    counted = count_step(values, cell.lengths, num_recomputed=cell.num_recomputed, with_peak=with_peak)
    num_rows, row_tokens = counted.batch["input_ids"].shape
    num_trained = num_rows * (row_tokens - 1)
    if cell.objective == "sft":
        num_trained = int((counted.batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    return {
        "num_rows": num_rows,
        "row_tokens": row_tokens,
        "num_trained": num_trained,
        "kernel": counted.base.attention,
        "saved_bytes": counted.saved_bytes,
        "peak_bytes": counted.peak_bytes,
        "seconds": round(time.monotonic() - start, 1),
    }


def estimate(cell: Cell, counted: Mapping[str, Any]) -> PassActivations:
    """Estimate the same from shapes; of the micro-batch its sizes alone are read, and which kernel attends."""
    architecture = build_architecture(MODELS[cell.model])
    num_rows, row_tokens = counted["num_rows"], counted["row_tokens"]
    return estimate_pass(
        architecture,
        build_adapter(architecture, AdapterSettings(**cell.adapter)),
        BatchShape(
            num_rows=num_rows,
            row_tokens=row_tokens,
            document_tokens=statistics.mean(length for row in cell.lengths for length in row),
            trained_fraction=counted["num_trained"] / (num_rows * (row_tokens - 1)),
            is_packed=cell.layout == "packed",
        ),
        Computing(
            compute_bytes=2 if cell.dtype == "bfloat16" else 4,
            attention=counted["kernel"],
            loss="chunks" if cell.objective == "sft" else "logits",
            is_lean=True,
            is_quantized=cell.quantization != "none",
            on_cpu=True,
        ),
        num_recomputed=cell.num_recomputed,
        may_recompute=cell.recompute != "not asked for",
    )


def compare(cell: Cell, counted: Mapping[str, Any]) -> dict[str, Any]:
    """Estimate a cell; errors are shares of what was counted, above 0 where the estimate is too high."""
    estimated = estimate(cell, counted)
    return {
        **{name: getattr(cell, name) for name in cell.__slots__},
        **counted,
        "estimated_saved_bytes": estimated.saved_bytes,
        "saved_error": round(estimated.saved_bytes / counted["saved_bytes"] - 1, 5),
        "estimated_peak_bytes": estimated.peak_bytes,
        "peak_error": round(estimated.peak_bytes / counted["peak_bytes"] - 1, 5),
    }


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
    for place, (model, attention) in enumerate(itertools.product(MODELS, ("documents", "eager"))):
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


def list_others() -> Iterator[Cell]:
    """One cell for each further method."""
    for method in OTHERS:
        yield Cell("llama 256 x 3, tied", method, quantization="none" if method in IN_FULL else "nf4")


# ---- the table


def render_table(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], machine: str) -> str:
    """Render the errors by the value of each column, medians and worst of their sizes."""
    lines = [
        "# plan_error",
        "",
        f"Activation bytes of `finetune.budget` against what a micro-batch held, {len(cells)} cells on {machine}.  ",
        "Saved: storages that autograd keeps when the backward pass begins. Peak: the fullest moment of both, by",
        "the allocator. Errors are shares of what was counted: their sizes' median, and the one of the largest size.",
        "",
        "| column | value | cells | saved, median | saved, worst | peak, median | peak, worst |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        _render_row("all", "", cells),
    ]
    for column, values in _SHOWN.items():
        for value in dict.fromkeys(values):
            found = [cell for cell in cells if cell[column] == value]
            if found:
                lines.append(_render_row(column, str(value), found))
    lines += [
        "",
        "Further methods in one cell each, most without a rule and then estimated on the high side:",
        "",
        "| method | saved | peak |",
        "| --- | ---: | ---: |",
        *(f"| {one['method']} | {one['saved_error']:+.1%} | {one['peak_error']:+.1%} |" for one in others),
        "",
    ]
    return "\n".join(lines)


def _render_row(column: str, value: str, cells: Sequence[Mapping[str, Any]]) -> str:
    figures = []
    for name in ("saved_error", "peak_error"):
        errors = [float(cell[name]) for cell in cells]
        figures += [f"{statistics.median(map(abs, errors)):.2%}", f"{max(errors, key=abs):+.2%}"]
    return f"| {column} | {value} | {len(cells)} | {' | '.join(figures)} |"


def summarize(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Summarize the sizes of the errors."""
    summary: dict[str, float] = {}
    for name in ("saved_error", "peak_error"):
        sizes = [abs(float(cell[name])) for cell in cells]
        summary |= {f"median_{name}": round(statistics.median(sizes), 5), f"worst_{name}": max(sizes)}
    return summary


def read_counts(path: Path) -> dict[Cell, dict[str, Any]]:
    """Read what a result counted, by cell."""
    result = json.loads(path.read_text(encoding="utf-8"))
    return {
        Cell(**{name: one[name] for name in Cell.__slots__}): {name: one[name] for name in _COUNTED}
        for one in (*result["cells"], *result["further_methods"])
    }


def main() -> None:
    """Count and estimate every cell, and write the results of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=_NUM_CELLS)
    parser.add_argument("--counted", type=Path, help="a result: estimate its cells anew instead of counting")
    given = parser.parse_args()
    datasets.disable_progress_bars()
    counts = {} if given.counted is None else read_counts(given.counted)
    cells, others = list(counts) or [*draw_cells(given.cells), *list_kernels()], [] if counts else list(list_others())
    compared = []
    for cell in cells + others:
        compared.append(compare(cell, counts.get(cell) or count(cell)))
        print(f"{compared[-1]['saved_error']:+8.2%} saved {compared[-1]['peak_error']:+8.2%} peak  {cell}", flush=True)
    ruled = [one for one in compared if one["method"] in METHODS]
    unruled = [one for one in compared if one["method"] in OTHERS]
    path = write_result("plan_error", {**summarize(ruled), "cells": ruled, "further_methods": unruled})
    machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
    path.with_suffix(".md").write_text(render_table(ruled, unruled, machine), encoding="utf-8")


if __name__ == "__main__":
    main()
