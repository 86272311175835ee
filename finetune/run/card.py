"""The model card of a result: README.md beside the weights, for people and for the Hub."""

from huggingface_hub import ModelCardData

import finetune
from finetune.recipe.schema import Recipe

__all__ = ["build_card"]


def build_card(recipe: Recipe, *, template: str, commit: str | None) -> str:
    """Build the card's text: what it was made from, how, and how to use it.

    Args:
        recipe: of the run.
        template: name of the prompt template, which stands in `chat_template.jinja`.
        commit: of the base model on the Hub, or None for a local folder.
    """
    base = recipe.model.model_name_or_path
    sources = recipe.data.train if isinstance(recipe.data.train, list) else [recipe.data.train]
    is_adapter = recipe.adapter.method != "full"
    data = ModelCardData(
        # Folders of the machine it was trained on mean nothing elsewhere.
        base_model=base if base and _is_hub_name(base) else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        datasets=[source.path for source in sources if _is_hub_name(source.path)] or None,
        tags=[
            recipe.objective,
            recipe.adapter.method,
            *(["qlora"] if recipe.model.quantization in ("nf4", "fp4") else []),
        ],
    )
    rows = [
        ("base model", f"{base or 'random weights'}{f' at commit `{commit}`' if commit else ''}"),
        ("held as", recipe.model.quantization),
        ("method", recipe.adapter.method),
        *((name, str(value)) for name, value in recipe.adapter.fields.items()),
        ("data", ", ".join(source.path for source in sources)),
        ("template", template),
        ("tokens of a row at most", str(recipe.data.max_length)),
        ("seed", str(recipe.seed)),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {recipe.name}\n\n"
        f"{'An adapter' if is_adapter else 'A model'} made by finetune {finetune.__version__}.\n\n"
        f"| | |\n|---|---|\n{table}\n\n## Use\n\n{_ADAPTER_USE if is_adapter else _MODEL_USE}"
    )


def _is_hub_name(path: str) -> bool:
    """Whether a name has the Hub's form, `owner/name`, and no file's ending."""
    owner, slash, name = path.partition("/")
    return bool(slash and owner and owner not in (".", "..", "~") and "/" not in name and "." not in name[-8:])


_ADAPTER_USE = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```

The chat template beside the weights is the one it was trained with.
"""
_MODEL_USE = _ADAPTER_USE.replace(
    "from peft import AutoPeftModelForCausalLM\nfrom transformers import",
    "from transformers import AutoModelForCausalLM,",
).replace("AutoPeftModelForCausalLM.", "AutoModelForCausalLM.")
