"""The model card of a result: README.md beside the weights, for people and for the Hub."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

import finetune
from finetune.recipe.own_methods import OWN_METHODS, WHOLE_METHODS

__all__ = ["build_card"]

_DATA_ENDINGS = {".json", ".jsonl", ".csv", ".parquet", ".gz", ".jinja", ".model"}


def build_card(
    *,
    name: str,
    base: str | None,
    quantization: str,
    backend: str,
    method: str,
    fields: Mapping[str, object],
    init_from: str | None,
    is_reward_model: bool,
    data_paths: Sequence[str],
    template: str,
    max_length: int,
    seed: int,
    commit: str | None,
    results: Mapping[str, str | float | None],
    rows: int,
    fingerprint: str,
) -> str:
    """Build the card's text: what it was made from, how, how good it is and how to use it.

    Args:
        name: of the run.
        base: model it was made from, a folder or a name on the Hub; None: random weights.
        quantization: how the base was held.
        backend: library that ran the model.
        method: of the adapter; `full`: the whole model was trained.
        fields: the adapter's further settings.
        init_from: the run or adapter it was trained on from; None: it began fresh.
        is_reward_model: it scores answers instead of giving any.
        data_paths: of the training rows, as typed.
        template: name of the prompt template, which stands in `chat_template.jinja`.
        max_length: tokens of a row at most.
        seed: of the run.
        commit: of the base on the Hub, or None for a local folder.
        results: what was measured, by its name in words; None is left out.
        rows: trained on.
        fingerprint: of the rows' content.
    """
    is_adapter = method not in WHOLE_METHODS
    data = ModelCardData(
        # Folders of the machine it was trained on mean nothing elsewhere.
        base_model=base if base is not None and _is_hub_name(base) else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-classification" if is_reward_model else "text-generation",
        datasets=[path for path in data_paths if _is_hub_name(path)] or None,
        tags=[method, *(["qlora"] if is_adapter and quantization in ("nf4", "fp4") else [])],
    )
    made = {
        "base model": f"{base or 'random weights'}{f' at commit `{commit}`' if commit else ''}",
        "held as": quantization,
        "run by": backend,
        "method": method,
        **fields,
        **({"trained on from": init_from} if init_from is not None else {}),
        "data": ", ".join(data_paths),
        "rows": f"{rows:,}, fingerprint `{fingerprint[:16]}`",
        "template": template,
        "tokens of a row at most": max_length,
        "seed": seed,
    }
    measured = {what: _to_figure(value) for what, value in results.items() if value is not None}
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"{'An adapter' if is_adapter else 'A model'} made by finetune {finetune.__version__}.",
        _to_table(made),
        *(["## Results", _to_table(measured)] if measured else []),
        "## Use",
        _to_use(is_adapter, is_reward_model, is_own_method=method in OWN_METHODS),
        "The chat template beside the weights is the one it was trained with.",
    ]
    return "\n\n".join(parts) + "\n"


def _is_hub_name(path: str) -> bool:
    """Whether a name has the Hub's form, `owner/name`, and nothing here goes by it."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path, re.ASCII) or Path(path).suffix in _DATA_ENDINGS:
        return False
    return not Path(path).exists() and not Path(path).parent.is_dir()


def _to_table(rows: Mapping[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _to_figure(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _to_use(is_adapter: bool, is_reward_model: bool, *, is_own_method: bool = False) -> str:
    """The lines that open it elsewhere. A reward model's class is named, for a pipeline would draw its head anew."""
    library, auto = ("peft", "AutoPeftModelFor") if is_adapter else ("transformers", "AutoModelFor")
    kind, arguments = ("SequenceClassification", ", num_labels=1") if is_reward_model else ("CausalLM", "")
    return "\n".join(
        [
            *(["PEFT alone does not know this method; the first line adds it.\n"] if is_own_method else []),
            "```python",
            *(["import finetune.model.own_methods"] if is_own_method else []),
            f"from {library} import {auto}{kind}",
            "from transformers import AutoTokenizer",
            "",
            'folder = "path/to/this/folder"',
            f"model = {auto}{kind}.from_pretrained(folder{arguments})",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            *(["model.config.pad_token_id = tokenizer.pad_token_id"] if is_reward_model else []),
            "```",
        ]
    )
