"""The model card of a result: README.md beside the weights, for people and for the Hub."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

import finetune
from finetune.recipe.heads import Head
from finetune.recipe.own_methods import OWN_METHODS, WHOLE_METHODS
from finetune.recipe.places import names_file

__all__ = ["build_card"]

_TASKS: Mapping[Head, str] = {
    "words": "text-generation",
    "masked": "fill-mask",
    "labels": "text-classification",
    "score": "text-classification",
}


def build_card(
    *,
    name: str,
    base: str | None,
    quantization: str,
    backend: str,
    method: str,
    fields: Mapping[str, object],
    init_from: str | None,
    ends_with: Head,
    labels: Sequence[str] | None,
    data_paths: Sequence[str],
    template: str | None,
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
        ends_with: the words it goes on with, those it restores, labels for a text, or the score of a reward model.
        labels: of a classifier, in the order of its outputs; None: it gives a number, or is none.
        data_paths: of the training rows, as typed.
        template: name of the prompt template, which stands in `chat_template.jinja`; None: there is none.
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
        pipeline_tag=_TASKS[ends_with],
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
        **({"template": template} if template is not None else {}),
        **({"labels": ", ".join(labels)} if labels is not None else {}),
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
        _to_use(is_adapter, ends_with, num_labels=len(labels or ()) or 1, is_own_method=method in OWN_METHODS),
        *(["The chat template beside the weights is the one it was trained with."] if template is not None else []),
    ]
    return "\n\n".join(parts) + "\n"


def _is_hub_name(path: str) -> bool:
    """Whether a name has the Hub's form, `owner/name`, and nothing here goes by it."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path, re.ASCII) or names_file(path) or path.endswith(".jinja"):
        return False
    return not Path(path).exists() and not Path(path).parent.is_dir()


def _to_table(rows: Mapping[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _to_figure(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _to_use(is_adapter: bool, ends_with: Head, *, num_labels: int = 1, is_own_method: bool = False) -> str:
    """The lines that open it elsewhere.

    The class of a classifier or a reward model is named, for a pipeline would draw an adapter's head anew.
    """
    if ends_with == "masked" and is_adapter:
        return _to_masked_use(is_own_method)
    library, auto = ("peft", "AutoPeftModelFor") if is_adapter else ("transformers", "AutoModelFor")
    kind = {"words": "CausalLM", "masked": "MaskedLM"}.get(ends_with, "SequenceClassification")
    classifies = kind == "SequenceClassification"
    arguments = f", num_labels={num_labels}" if classifies and is_adapter else ""
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
            *(["model.config.pad_token_id = tokenizer.pad_token_id"] if classifies else []),
            "```",
        ]
    )


def _to_masked_use(is_own_method: bool) -> str:
    """The lines that open an adapter of an encoder: PEFT has no automatic class for it."""
    return "\n".join(
        [
            "```python",
            *(["import finetune.model.own_methods"] if is_own_method else []),
            "from peft import PeftConfig, PeftModel",
            "from transformers import AutoModelForMaskedLM, AutoTokenizer",
            "",
            'folder = "path/to/this/folder"',
            "base = AutoModelForMaskedLM.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path)",
            "model = PeftModel.from_pretrained(base, folder)",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "```",
        ]
    )
