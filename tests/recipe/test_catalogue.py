"""What is generated is fresh: the catalogue of library settings, the editor's schema, the page of settings."""

import re
from collections.abc import Callable
from inspect import Parameter, getsource, signature
from pathlib import Path

import pytest
from pydantic import ValidationError

from finetune.recipe.catalogue import (
    CATALOGUE_PATH,
    EMBEDDING_METHODS,
    PROMPT_METHODS,
    QUANTIZABLE_METHODS,
    UNTRAINABLE_METHODS,
    build_catalogue,
    read_catalogue,
    render_catalogue,
    to_json_schema,
)
from finetune.recipe.documents import EDITOR_SCHEMA_PATH, MANUAL_PATH, render_editor_schema, render_manual
from finetune.recipe.json_schema import LOSS_TYPES, find_methods, find_properties
from finetune.recipe.ownership import OWNED_ADAPTER_FIELDS, OWNED_TRAINER_FIELDS
from finetune.recipe.schema import TrainingSettings
from finetune.recipe.training_combinations import SCHEDULES


def test_the_catalogue_says_what_the_installed_libraries_say() -> None:
    assert render_catalogue(build_catalogue()) == CATALOGUE_PATH.read_text(), "python -m finetune.recipe.catalogue"


@pytest.mark.parametrize(
    ("path", "rendered"),
    [(EDITOR_SCHEMA_PATH, render_editor_schema), (MANUAL_PATH, render_manual)],
    ids=["recipe.schema.json", "recipe.md"],
)
def test_what_is_made_from_the_schema_is_fresh(path: Path, rendered: Callable[[], str]) -> None:
    assert path.read_text(encoding="utf-8") == rendered(), "python -m finetune.recipe.documents"


def test_every_setting_of_the_trainer_is_ours_or_passed_on_or_pointed_elsewhere() -> None:
    ours, fields = set(TrainingSettings.model_fields), set(read_catalogue().trainer)
    assert ours - fields == {"early_stopping_patience"}
    assert set(find_properties("training")) == ours | (fields - set(OWNED_TRAINER_FIELDS))
    assert set(OWNED_TRAINER_FIELDS) - fields == {"push_to_hub_token"}


def test_every_method_exists_and_its_bookkeeping_is_ours() -> None:
    methods = read_catalogue().methods
    assert len(methods) == 45
    assert set(methods) >= QUANTIZABLE_METHODS | PROMPT_METHODS | EMBEDDING_METHODS | set(UNTRAINABLE_METHODS)
    assert all(set(OWNED_ADAPTER_FIELDS) <= set(fields) for fields in methods.values())


def test_a_method_that_is_refused_stands_in_no_list_of_choices() -> None:
    assert not set(UNTRAINABLE_METHODS) & set(find_methods())
    for text in (render_manual(), render_editor_schema()):
        assert not [method for method in UNTRAINABLE_METHODS if f"| `{method}` |" in text or f'"{method}"' in text]
    assert all(f"`{method}` ({reason})" in render_manual() for method, reason in UNTRAINABLE_METHODS.items())


def test_the_schedules_take_and_need_what_transformers_says() -> None:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    theirs = {str(kind.value): signature(function).parameters for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    assert set(theirs) == set(SCHEDULES)
    given_by_the_trainer = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for name, schedule in SCHEDULES.items():
        if schedule.takes is not None:
            assert set(schedule.takes) == set(theirs[name]) - given_by_the_trainer, name
            required = {key for key in schedule.takes if theirs[name][key].default is Parameter.empty}
            assert required <= set(schedule.needs), name


def test_the_losses_are_those_that_trl_knows() -> None:
    from trl.trainer import sft_trainer

    source = getsource(sft_trainer)
    assert all(f'args.loss_type == "{name}"' in source for name in LOSS_TYPES)
    words = re.search(r"Supported values are ([^{}]*?)\.\"", source)
    assert words is not None
    assert set(re.findall(r"'(\w+)'", words[1])) == set(LOSS_TYPES)


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int, {"type": "integer"}),
        (float | None, {"type": ["number", "null"]}),
        (list[int] | str, {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
    ],
    ids=str,
)  # fmt: skip
def test_an_annotation_becomes_a_schema(annotation: object, schema: dict[str, object]) -> None:
    assert to_json_schema(annotation) == schema


def test_a_section_cannot_be_changed_after_reading() -> None:
    with pytest.raises(ValidationError):
        TrainingSettings().learning_rate = 1.0
