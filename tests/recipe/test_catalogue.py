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
    TRAINER_CONFIGS,
    UNTRAINABLE_METHODS,
    build_catalogue,
    read_catalogue,
    render_catalogue,
    to_json_schema,
)
from finetune.recipe.documents import EDITOR_SCHEMA_PATH, MANUAL_PATH, render_editor_schema, render_manual
from finetune.recipe.heads import HEAD_OF_OBJECTIVE
from finetune.recipe.json_schema import build_editor_schema, build_training_schema, find_methods
from finetune.recipe.objective_defaults import DEFAULTS_BY_OBJECTIVE
from finetune.recipe.own_methods import OWN_METHODS
from finetune.recipe.ownership import (
    OWNED_ADAPTER_FIELDS,
    OWNED_BY_OBJECTIVE,
    OWNED_TRAINER_FIELDS,
    find_owned_fields,
)
from finetune.recipe.preference_combinations import LOSSES_WITH_DIVERGENCES
from finetune.recipe.row_kinds import FORMAT_KINDS, KIND_OF_OBJECTIVE, READ_FROM
from finetune.recipe.schema import Recipe, SourceSettings, TrainingSettings
from finetune.recipe.trainer_choices import CLOSED_LISTS
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


def test_a_setting_that_takes_a_text_of_one_line_is_told_so_in_words() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| `", render_manual(), re.MULTILINE)
    takes = dict(rows)
    assert takes["model_name_or_path"] == "text or null"
    assert takes["labels"] == "list of text or null"
    assert not [name for name, told in rows if "[^" in told]


@pytest.mark.parametrize("objective", TRAINER_CONFIGS)
def test_every_setting_of_a_trainer_is_ours_or_passed_on_or_pointed_elsewhere(objective: str) -> None:
    ours, fields = set(TrainingSettings.model_fields), set(read_catalogue().find_trainer_fields(objective))
    owned = set(find_owned_fields(objective))
    assert ours - fields == {"early_stopping_patience", "max_skipped_steps", "memory", "non_finite", "rehearsal"}
    assert set(build_training_schema(objective)["properties"]) == ours | (fields - owned)
    assert set(OWNED_BY_OBJECTIVE.get(objective, ())) <= fields


def test_every_field_that_we_decide_is_one_of_some_trainer() -> None:
    fields = {name for objective in TRAINER_CONFIGS for name in read_catalogue().find_trainer_fields(objective)}
    assert set(OWNED_TRAINER_FIELDS) - fields == {"push_to_hub_token"}
    assert set(DEFAULTS_BY_OBJECTIVE) <= set(TRAINER_CONFIGS)


def test_every_objective_has_a_config_rows_that_it_reads_and_a_head() -> None:
    objectives = set(Recipe.model_json_schema()["properties"]["objective"]["enum"])
    assert set(TRAINER_CONFIGS) == set(KIND_OF_OBJECTIVE) == set(HEAD_OF_OBJECTIVE) == objectives
    assert set(TRAINER_CONFIGS.values()) == set(read_catalogue().configs)


def test_no_field_of_a_trainer_stands_in_the_catalogue_twice() -> None:
    catalogue = read_catalogue()
    for fields in catalogue.configs.values():
        assert not set(fields) & set(catalogue.trainer)


def test_the_formats_that_an_objective_reads_are_those_of_the_data() -> None:
    from finetune.data.formats import FORMATS, KINDS

    assert list(FORMAT_KINDS) == list(FORMATS)
    assert set(READ_FROM) == set(KINDS) == set(KIND_OF_OBJECTIVE.values())
    choices = SourceSettings.model_json_schema()["properties"]["format"]["enum"]
    assert set(choices) == {"auto", *FORMAT_KINDS}


def test_the_editor_takes_and_refuses_settings_by_the_objective() -> None:
    jsonschema = pytest.importorskip("jsonschema")  # comes with the extra `notebook`
    validator = jsonschema.Draft7Validator(build_editor_schema())

    def is_taken(objective: str, **training: object) -> bool:
        recipe = {
            "name": "small",
            "objective": objective,
            "model": {"model_name_or_path": "org/base"},
            "data": {"train": {"path": "rows.jsonl"}},
            "training": training,
        }
        return bool(validator.is_valid(recipe))

    assert is_taken("sft", loss_type="nll", weight_decay=0.1)
    assert is_taken("dpo", loss_type=["sigmoid", "sft"], beta=0.2, weight_decay=0.1)
    assert is_taken("grpo", num_generations=4)
    assert not is_taken("sft", beta=0.2)
    assert not is_taken("dpo", loss_type="nll")
    assert not is_taken("dpo", num_generations=4)
    assert not is_taken("grpo", num_generations=1)
    assert not is_taken("dpo", bta=0.2)


def test_every_method_exists_and_its_bookkeeping_is_ours() -> None:
    methods = read_catalogue().methods
    assert len(methods) == 45
    named = QUANTIZABLE_METHODS | PROMPT_METHODS | EMBEDDING_METHODS | set(UNTRAINABLE_METHODS)
    assert set(methods) | set(OWN_METHODS) >= named
    assert not set(methods) & set(OWN_METHODS)
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

    source, losses = getsource(sft_trainer), set(CLOSED_LISTS["SFTConfig"]["loss_type"]) - {None}
    assert all(f'args.loss_type == "{name}"' in source for name in losses)
    words = re.search(r"Supported values are ([^{}]*?)\.\"", source)
    assert words is not None
    assert set(re.findall(r"'(\w+)'", words[1])) == losses


def test_the_losses_and_divergences_of_preferences_are_those_that_trl_knows() -> None:
    from trl.trainer import dpo_trainer

    source = getsource(dpo_trainer)
    assert find_compared(source, "loss_type") == set(CLOSED_LISTS["DPOConfig"]["loss_type"])
    assert find_compared(source, "f_divergence_type") == set(CLOSED_LISTS["DPOConfig"]["f_divergence_type"])
    words = re.search(r"f_divergence_loss_types = {(.*?)}", source)
    assert words is not None
    assert set(re.findall(r'"(\w+)"', words[1])) == set(LOSSES_WITH_DIVERGENCES)


def test_the_choices_of_reinforcement_are_those_that_trl_knows() -> None:
    from trl import GRPOConfig
    from trl.trainer import grpo_trainer

    source, told = getsource(grpo_trainer), getsource(GRPOConfig)
    for field, choices in CLOSED_LISTS["GRPOConfig"].items():
        assert find_compared(source, field) <= set(choices)
        meaning = told.split(f"        {field} (`str`")[1]
        assert all(f'"{choice}"' in meaning for choice in choices), field


def find_compared(source: str, name: str) -> set[str]:
    """Names that a trainer compares a field with."""
    compared = re.findall(rf'\b{name} == "(\w+)"', source)
    listed = re.findall(rf'\b{name} in \[((?:"\w+"(?:, )?)+)\]', source)
    return {*compared, *(choice for choices in listed for choice in re.findall(r'"(\w+)"', choices))}


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


def test_the_settings_of_our_own_methods_are_those_of_their_configs() -> None:
    from finetune.model.own_methods import OWN_METHODS as CONFIGS
    from finetune.recipe.catalogue import describe_fields

    assert OWN_METHODS.keys() == CONFIGS.keys() <= QUANTIZABLE_METHODS
    for method, fields in OWN_METHODS.items():
        described = describe_fields(CONFIGS[method])
        assert fields.keys() == described.keys() - set(OWNED_ADAPTER_FIELDS)
        for name, schema in fields.items():
            assert schema["default"] == described[name]["default"]
            assert schema.get("enum") == described[name].get("enum")
