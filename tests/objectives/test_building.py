"""A trainer's config is what the recipe asks for and TRL's own defaults, whatever else has its hands in it."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import trl

from finetune.errors import PlaceError
from finetune.objectives import OBJECTIVES
from finetune.objectives.building import RunArguments, build_config
from finetune.objectives.changes import find_moved_defaults, warn_of_changes
from finetune.objectives.supervised import build_arguments
from finetune.recipe.catalogue import TRAINER_CONFIGS
from finetune.recipe.schema import TrainingSettings

TYPED = TrainingSettings(learning_rate=1e-3, warmup_steps=0)


@dataclass
class _OfAnotherMind(trl.SFTConfig):
    """What a library puts in the place of TRL's config: the same settings with other defaults, and one of its own."""

    optim: str = "adamw_8bit"
    weight_decay: float = 0.001
    seed: int = 3407
    torch_empty_cache_steps: int | None = 250
    num_chunks: int = -1


# Under TRL's own name, as Unsloth has it.
_OfAnotherMind.__name__ = "SFTConfig"


@pytest.fixture
def run(tmp_path: Path) -> RunArguments:
    return RunArguments(
        name="test", device=torch.device("cpu"), compute_dtype=torch.float32, evaluates=False, seed=1,
        checkpoints_dir=tmp_path / "checkpoints",
    )  # fmt: skip


def test_defaults_that_a_library_has_moved_are_set_back_to_those_of_trl(run: RunArguments) -> None:
    by_unsloth = replace(run, backend="unsloth")
    config = build_config(_OfAnotherMind, TYPED, by_unsloth, {})
    stock = build_config(trl.SFTConfig, TYPED, by_unsloth, {})
    assert isinstance(config, _OfAnotherMind)
    assert {"optim", "weight_decay", "torch_empty_cache_steps"} <= find_moved_defaults(_OfAnotherMind).keys()
    assert _OfAnotherMind(output_dir=config.output_dir, report_to=[], use_cpu=True).optim == "adamw_8bit"
    assert (config.optim, config.weight_decay) == (stock.optim, stock.weight_decay)
    assert config.torch_empty_cache_steps is None
    assert config.num_chunks == -1, "what TRL has not got is its own to choose"
    differing = {name for name, value in stock.to_dict().items() if config.to_dict()[name] != value}
    assert not differing


def test_what_is_asked_for_stands_over_both_defaults(run: RunArguments) -> None:
    typed = TrainingSettings(optim="adafactor", weight_decay=0.3)
    config = build_config(_OfAnotherMind, typed, replace(run, backend="unsloth"), {"torch_empty_cache_steps": 7})
    assert (config.optim, config.weight_decay, config.torch_empty_cache_steps) == ("adafactor", 0.3, 7)
    assert config.seed == 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_configs_of_trl_itself_have_moved_nothing_and_are_built_without_a_word(
    run: RunArguments, caplog: pytest.LogCaptureFixture, objective: str
) -> None:
    caplog.set_level(logging.INFO, logger="finetune")
    config = OBJECTIVES[objective].build_arguments(TrainingSettings(), run)
    assert type(config).__name__ == TRAINER_CONFIGS[objective]
    assert find_moved_defaults(type(config)) == {}
    assert not [record for record in caplog.records if record.name.startswith("finetune.")]


def test_a_setting_that_a_library_has_replaced_is_told_with_both_values(
    run: RunArguments, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclass
    class Stubborn(trl.SFTConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.learning_rate = 5e-5
            self.max_grad_norm = 9.0

    Stubborn.__name__ = "SFTConfig"
    build_config(Stubborn, TYPED, run, {})
    told = [record.getMessage() for record in caplog.records if record.name == "finetune.objectives.changes"]
    assert told == ["`training.learning_rate`: asked for was 0.001, the library takes 5e-05."], (
        "the other was left to it"
    )


def test_changes_are_told_of_what_was_asked_for_alone(run: RunArguments, caplog: pytest.LogCaptureFixture) -> None:
    config = build_arguments(TYPED, run)
    asked = {"learning_rate": 1e-3, "optim": "adafactor", "eval_strategy": "no", "max_steps": None, "weight_decay": 0.7}
    warn_of_changes(asked, config)
    assert [record.getMessage() for record in caplog.records] == [
        "`training.optim`: asked for was adafactor, the library takes adamw_torch_fused.",
        "`training.weight_decay`: asked for was 0.7, the library takes 0.0.",
    ]
    caplog.clear()
    warn_of_changes({name: getattr(config, name) for name in asked}, config)
    assert not caplog.records


def test_the_loss_is_left_to_unsloth_where_its_kernels_run_the_model(run: RunArguments) -> None:
    by_unsloth = replace(run, backend="unsloth")
    assert build_arguments(TYPED, by_unsloth).loss_type == "chunked_nll", "on a CPU TRL's stays"
    own = build_arguments(TYPED, replace(by_unsloth, device=torch.device("cuda"), compute_dtype=torch.float32))
    assert own.loss_type == "nll"


def test_a_single_process_is_kept_to_one_of_two_gpus(run: RunArguments, caplog: pytest.LogCaptureFixture) -> None:
    class OnTwo(trl.SFTConfig):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    with caplog.at_level(logging.INFO, "finetune"):
        assert build_config(OnTwo, TYPED, run, {}).n_gpu == 1
    assert "This machine has 2 GPUs and this process uses one" in caplog.text


def test_unsloth_is_not_used_in_several_processes(run: RunArguments) -> None:
    class OfTwo(trl.SFTConfig):
        world_size = 2

    OfTwo.__name__ = "SFTConfig"
    with pytest.raises(PlaceError, match=r"in one process here, and 2 were started.\n.*backend: transformers"):
        build_config(OfTwo, TYPED, replace(run, backend="unsloth"), {})
    assert build_config(OfTwo, TYPED, run, {}).world_size == 2
