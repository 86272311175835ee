"""QLoRA fine-tuning: one recipe, from rows to an adapter you can talk to. `python -m finetune` lists the verbs."""

__version__ = "0.1.0"

__all__ = ["__version__"]
