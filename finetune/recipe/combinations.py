"""Settings checked together: what cannot be had at once, and what needs another setting beside it.

In goes the tree of a recipe, with the schema's defaults behind it, so that these faults are found
along with those of single settings; out come faults at the line of the setting to change.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from finetune.recipe.catalogue import EMBEDDING_METHODS, PROMPT_METHODS, QUANTIZABLE_METHODS
from finetune.recipe.faults import Fault, quote, to_line_number
from finetune.recipe.json_schema import FULL, find_methods
from finetune.recipe.schema import (
    AdapterSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Recipe,
    Section,
    TrainingSettings,
)
from finetune.recipe.suggestions import list_names
from finetune.recipe.yaml_lines import Node, to_plain

__all__ = ["find_conflicts", "find_node"]


class _Settings:
    """What a recipe says, typed or by default."""

    def __init__(self, tree: Node, defaults_filled: bool) -> None:
        self._tree = tree
        self._defaults_filled = defaults_filled

    def value(self, path: str) -> Any:
        """The value of `section.key`, the default where it is not typed."""
        node = find_node(self._tree, path)
        return _defaults().get(path) if node is None else to_plain(node)

    def is_typed(self, path: str) -> bool:
        """Whether somebody typed this setting; a default in a resolved recipe was filled in."""
        is_default = self._defaults_filled and self.value(path) == _defaults().get(path)
        return find_node(self._tree, path) is not None and not is_default

    def fault(self, path: str, what: str, *advice: str) -> Fault:
        """A fault at the nearest typed setting: this one, else its section, else the file."""
        node = find_node(self._tree, path) or find_node(self._tree, path.split(".")[0]) or self._tree
        return Fault(node.key_place, what, advice, to_line_number(node.key_place))


def find_node(tree: Node, path: str) -> Node | None:
    """The value at `section.key`, None where the recipe does not hold it."""
    node: Node | None = tree
    for key in path.split("."):
        node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
    return node


@cache
def _defaults() -> dict[str, Any]:
    sections: dict[str, type[Section]] = {
        "model": ModelSettings,
        "adapter": AdapterSettings,
        "data": DataSettings,
        "evaluation": EvaluationSettings,
        "training": TrainingSettings,
    }
    defaults = {name: field.default for name, field in Recipe.model_fields.items() if name not in sections}
    for section, settings in sections.items():
        defaults |= {f"{section}.{name}": field.default for name, field in settings.model_fields.items()}
    return defaults


def find_conflicts(tree: Node, *, defaults_filled: bool = False) -> list[Fault]:
    """Find settings that exclude each other, or that need another one.

    Args:
        tree: the recipe.
        defaults_filled: a resolved recipe, whose defaults nobody typed.
    """
    settings = _Settings(tree, defaults_filled)
    checks = (
        _check_weights,
        _check_remote_code,
        _check_quantization,
        _check_prompt_methods,
        _check_stopping,
        _check_text,
    )
    return [fault for check in checks for fault in check(settings)]


def _check_weights(settings: _Settings) -> Iterator[Fault]:
    has_name = settings.value("model.model_name_or_path") is not None
    if not isinstance(settings.value("model"), dict):
        return
    if settings.value("model.weights") != "random":
        if not has_name:
            advice = "A Hub name such as mistralai/Mistral-7B-v0.1, or a local folder."
            yield settings.fault("model.model_name_or_path", "`model.model_name_or_path` is missing.", advice)
        if settings.value("model.config") is not None:
            what = "`model.config` is read with `weights: random` alone; pretrained weights bring their own."
            yield settings.fault("model.config", what, "Take the line out, or set weights: random.")
    elif not has_name and settings.value("model.config") is None:
        what = "`weights: random` needs a shape to fill."
        yield settings.fault(
            "model.weights", what, "Set model.config, or model.model_name_or_path to take its config.json."
        )


def _check_remote_code(settings: _Settings) -> Iterator[Fault]:
    revision = settings.value("model.revision")
    if settings.value("model.trust_remote_code") is True and not re.fullmatch(r"[0-9a-f]{40}", str(revision)):
        what = f"`trust_remote_code` needs `revision` pinned to a commit; found {quote(str(revision))}."
        advice = "It runs the repository's own Python, so pin the 40-digit commit you have read."
        yield settings.fault("model.trust_remote_code", what, advice)


def _check_quantization(settings: _Settings) -> Iterator[Fault]:
    method, quantization = settings.value("adapter.method"), settings.value("model.quantization")
    if quantization not in ("nf4", "fp4", "int8") or method not in find_methods():
        return
    if method == FULL:
        what = f"`method: full` trains every weight, and those of a base in {quantization} cannot be trained."
        yield settings.fault("adapter.method", what, "Set model.quantization: none, or adapter.method: lora.")
    elif method not in QUANTIZABLE_METHODS | PROMPT_METHODS | EMBEDDING_METHODS:
        what = f"`method: {method}` cannot sit on a base in {quantization}: PEFT has no layers of it for one."
        able = f"Set model.quantization: none, or take one that can: {list_names(sorted(QUANTIZABLE_METHODS))}."
        yield settings.fault("adapter.method", what, able)


def _check_prompt_methods(settings: _Settings) -> Iterator[Fault]:
    method = settings.value("adapter.method")
    if method in find_methods() and method in PROMPT_METHODS and settings.value("data.packing") is True:
        path = "data.packing" if settings.is_typed("data.packing") else "adapter.method"
        what = f"`method: {method}` cannot be trained on packed rows: their documents would read each other."
        yield settings.fault(path, what, "Set data.packing: false.")
    if method == "prefix_tuning" and settings.value("training.gradient_checkpointing") is True:
        path = "training.gradient_checkpointing"
        what = "`method: prefix_tuning` and gradient checkpointing exclude each other in PEFT."
        yield settings.fault(path if settings.is_typed(path) else "adapter.method", what, f"Set {path}: false.")


def _check_stopping(settings: _Settings) -> Iterator[Fault]:
    if settings.value("training.early_stopping_patience") is None:
        return
    needed = [path for path in ("data.eval", "training.eval_steps") if settings.value(path) is None]
    if needed:
        missing = " and ".join(f"`{path}`" for path in needed)
        what = f"`early_stopping_patience` counts evaluations, which need {missing}."
        advice = "E.g. data.eval={fraction: 0.02} training.eval_steps=0.1; or take the line out."
        yield settings.fault("training.early_stopping_patience", what, advice)


def _check_text(settings: _Settings) -> Iterator[Fault]:
    """Check that plain text and conversations are not mixed up."""
    objective = settings.value("objective")
    if objective == "pretrain":
        if settings.value("data.train_on") != "everything" and settings.is_typed("data.train_on"):
            what = "`objective: pretrain` trains on every token of a text."
            yield settings.fault("data.train_on", what, "Take the line out; for answers alone it is objective: sft.")
        if settings.is_typed("data.template"):
            what = "`objective: pretrain` reads plain text, which no template is put around."
            yield settings.fault("data.template", what, "Take the line out; for conversations it is objective: sft.")
    elif objective == "sft" and settings.value("data.too_long") == "split":
        what = "`too_long: split` would tear a conversation; it is for `objective: pretrain`."
        yield settings.fault("data.too_long", what, "Choose drop, truncate or error.")
    for path, source_format in _typed_formats(settings):
        if objective == "pretrain" and source_format not in ("auto", "text"):
            what = f"`objective: pretrain` reads plain text; `format: {source_format}` holds conversations."
            yield settings.fault(path, what, "Set format: text, or objective: sft.")
        if objective == "sft" and source_format == "text":
            what = "`format: text` has no answers to train on; `objective: sft` needs conversations."
            yield settings.fault(path, what, "Set objective: pretrain, or another format.")


def _typed_formats(settings: _Settings) -> Iterator[tuple[str, Any]]:
    for path in ("data.train", "data.eval"):
        sources = settings.value(path)
        for source in sources if isinstance(sources, list) else [sources]:
            if isinstance(source, dict) and isinstance(source.get("format"), str):
                yield (f"{path}.format" if sources is source else path), source["format"]
