"""The policy is asked in the run's template, rewarded as the recipe says, and taken up where it stopped."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerFast, TrainerState
from trl import GRPOConfig, RLOOConfig

from finetune.data.examples import Message
from finetune.data.rendering import Renderer
from finetune.data.sources import load_examples
from finetune.data.templates import load_template
from finetune.data.tokens import TokenRows
from finetune.errors import DataError, RecipeError
from finetune.model.adapters import REFERENCE, attach_adapter
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives import OBJECTIVES, RowParts
from finetune.objectives.building import RunArguments, TrainerParts
from finetune.objectives.reinforcement import (
    GroupTrainer,
    LeaveOneOutTrainer,
    WatchRewards,
    build_arguments,
    build_rows,
    build_trainer,
)
from finetune.objectives.rewards import Reward, ToScore, build_rewards
from finetune.recipe.schema import (
    AdapterSettings,
    DataSettings,
    ModelSettings,
    RewardSettings,
    SourceSettings,
    TrainingSettings,
)
from tests.model.tiny_models import load_tiny, write_tiny_model

BOTH = pytest.mark.parametrize(
    "trainer_class", [GroupTrainer, pytest.param(LeaveOneOutTrainer, marks=pytest.mark.slow)]
)
LORA = AdapterSettings(method="lora", r=4)
STOP_IDS = [2, *range(100, 128)]  # so many that answers of a model that knows nothing end early
ROWS = DataSettings(train=SourceSettings(path="rows.jsonl"), max_length=64, packing=False)
# Four answers to each of two prompts a step.
QUIET = {
    "gradient_checkpointing": False,
    "warmup_steps": 0,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_generations": 4,
    "max_completion_length": 6,
    "max_steps": 4,
    "save_steps": 100,
    "beta": 0.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(shared_data) -> PreTrainedTokenizerFast:
    return load_tokenizer(ModelSettings(model_name_or_path=str(shared_data / "models" / "stories260K")))


def prompts(count: int, seed: int = 0) -> TokenRows:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (count,), generator=generator).tolist()
    ids = [torch.randint(3, 100, (length,), generator=generator).tolist() for length in lengths]
    columns = {"prompt": ids, "reference": ["a"] * count, "length": lengths}
    rows = Dataset.from_dict(columns)
    return TokenRows(rows, rows, {"rows_without_answer": 0}, "")


def share_below_50(answers: Sequence[ToScore]) -> list[float]:
    """A reward that every answer gets another part of, so that each step has something to learn."""
    return [sum(token < 50 for token in one.answer_ids) / len(one.answer_ids) for one in answers]


LOW_TOKENS = Reward("low", 1.0, needs_reference=False, score=share_below_50)


def make(
    trainer_class: type,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    *,
    train: TokenRows | None = None,
    held_out: TokenRows | None = None,
    rewards: Sequence[Reward] = (LOW_TOKENS,),
    adapter: AdapterSettings = LORA,
    model: PeftModel | None = None,
    **training: object,
) -> GroupTrainer | LeaveOneOutTrainer:
    base = load_tiny(folder)
    settings = TrainingSettings(**{**QUIET, **training})
    run = RunArguments(
        name="test", device=base.device, compute_dtype=base.compute_dtype, evaluates=held_out is not None, seed=1,
        checkpoints_dir=tmp_path / "checkpoints",
    )  # fmt: skip
    config_class = GRPOConfig if trainer_class is GroupTrainer else RLOOConfig
    return build_trainer(
        trainer_class,
        TrainerParts(
            base=base,
            model=model or attach_adapter(base, adapter, seed=1),
            tokenizer=tokenizer,
            arguments=build_arguments(config_class, settings, run),
            train=train or prompts(12),
            held_out=held_out,
            data=ROWS,
            training=settings,
        ),
        rewards=list(rewards),
        stop_ids=STOP_IDS,
    )


def figures_of(trainer: GroupTrainer | LeaveOneOutTrainer) -> dict[int, list[tuple[str, float | None]]]:
    """Loss, gradient and tokens of every step, reward and length where answers were sampled, to the last digit."""
    names = ("loss", "reward", "grad_norm", "completions/mean_length", "num_real_tokens")
    return {
        line["step"]: [(name, line.get(name)) for name in names] for line in trainer.state.log_history if "loss" in line
    }


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters() if parameter.requires_grad])


# ---- prompts


def test_a_prompt_is_the_templates_and_the_answer_of_the_row_stands_beside_it(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "hello"}]
    long = [{"role": "user", "content": "Say hello " * 40}]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (turns, [*turns, *long], turns)))
    renderer = Renderer(load_template("vicuna", tokenizer), tokenizer)
    loaded = load_examples(SourceSettings(path=str(path)), kind="prompt", seed=1, on_bad_rows="error")

    data = ROWS.model_copy(update={"max_length": 150})
    rows = build_rows("grpo", loaded, renderer, data, TrainingSettings(max_completion_length=10))
    assert rows.dataset["prompt"][0] == renderer.render_prompt([Message("user", "Say hello")])
    assert rows.dataset["reference"][:] == ["hello", "hello"]
    assert (rows.report["rows_read"], rows.report["census"]["rows"], rows.report["census"]["dropped"]) == (
        3,
        2,
        {"too_long": 1},
    )
    assert rows.report["census"]["max_length"] == 140, "the room of the answer is taken off"
    assert rows.report["census"]["first_places"] == {"too_long": [f"{path}:2"]}
    assert (rows.report["census"]["trained_tokens"], rows.report["rows_without_answer"]) == (0, 0)


@pytest.mark.parametrize(("objective", "config"), [("grpo", GRPOConfig), ("rloo", RLOOConfig)])
def test_without_the_setting_a_prompt_leaves_room_for_the_longest_answer_that_the_trainer_samples(
    objective, config, tokenizer, tmp_path
):
    path = tmp_path / "rows.jsonl"
    texts = ("hello", "hello " * 60)
    path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in texts))
    loaded = load_examples(SourceSettings(path=str(path)), kind="prompt", seed=1, on_bad_rows="error")
    (longest,) = (field.default for field in fields(config) if field.name == "max_completion_length")

    renderer = Renderer(load_template("vicuna", tokenizer), tokenizer)
    data = ROWS.model_copy(update={"max_length": 750})
    parts = RowParts(data=data, training=TrainingSettings(), tokenizer=tokenizer, renderer=renderer)
    rows = OBJECTIVES[objective].build_rows(loaded, parts)
    assert rows.report["census"]["max_length"] == 750 - longest
    assert (rows.report["census"]["rows"], rows.report["census"]["dropped"]) == (1, {"too_long": 1})


def test_an_answer_that_leaves_no_room_for_a_prompt_is_a_fault_of_the_recipe(tokenizer):
    with pytest.raises(RecipeError, match="an answer alone may have 64"):
        build_rows("grpo", None, None, ROWS, TrainingSettings(max_completion_length=64))


@BOTH
def test_the_policy_reads_the_very_tokens_of_the_rows_and_ends_at_any_stop_token(
    trainer_class, folder, tokenizer, tmp_path
):
    rows = prompts(4, seed=2)
    seen: list[ToScore] = []
    spy = Reward("spy", 1.0, False, lambda answers: seen.extend(answers) or [0.0 for _ in answers])
    trainer = make(trainer_class, folder, tokenizer, tmp_path, train=rows, rewards=[spy])
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer._prepare_inputs(batch)

    padded = zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
    read = [ids[mask.bool()].tolist() for ids, mask in padded]
    assert sorted(read) == sorted(row["prompt"] for row in batch)
    assert {tuple(one.prompt_ids) for one in seen} <= {tuple(ids) for ids in rows.dataset["prompt"]}
    for one in seen:
        ended = [token in STOP_IDS for token in one.answer_ids]
        assert not any(ended[:-1]), "nothing is kept behind the token that ends an answer"
        assert one.num_tokens == len(one.answer_ids) - ended[-1]
        assert one.answer == tokenizer.decode(one.answer_ids[: one.num_tokens], skip_special_tokens=True)
    assert any(one.num_tokens < 5 for one in seen), "no answer ended early, so the claim was not tried"


# ---- rewards


@BOTH
def test_the_reward_that_is_logged_is_the_weighted_sum_of_its_parts(trainer_class, folder, tokenizer, tmp_path):
    settings = [
        RewardSettings(function="length", max_tokens=3),
        RewardSettings(function="regex", pattern="[aeiou]", weight=-0.5),
    ]
    trainer = make(trainer_class, folder, tokenizer, tmp_path, rewards=build_rewards(settings, {}), max_steps=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert len(lines) == 2
    for line in lines:
        parts = line["rewards/length/mean"] - 0.5 * line["rewards/regex/mean"]
        assert line["reward"] == pytest.approx(parts, abs=1e-6)
    assert any(0 < line["rewards/length/mean"] < 1 for line in lines)


@BOTH
def test_what_is_rewarded_becomes_likelier(trainer_class, folder, tokenizer, tmp_path):
    trainer = make(
        trainer_class, folder, tokenizer, tmp_path, held_out=prompts(16, seed=5), max_steps=20, learning_rate=3e-2,
        per_device_train_batch_size=32, num_generations=8, max_completion_length=4,
    )  # fmt: skip
    before = trainer.measure_held_out()
    trainer.train()
    after = trainer.measure_held_out()
    assert after["eval_reward"] > before["eval_reward"] + 0.4
    assert after["eval_reward"] == after["eval_rewards/low"]


def test_prompts_are_never_cut_as_their_answers_are_compared_by_the_group_and_scored_pairs_are(
    folder, tokenizer, tmp_path
):
    trainer = make(GroupTrainer, folder, tokenizer, tmp_path)
    sampled = trainer.data_collator(list(trainer.train_dataset))
    assert trainer.find_why_whole(sampled) == "answers are sampled and compared by the group"
    assert trainer.find_why_whole({"input_ids": torch.zeros(4, 3)}) is None


def test_an_answer_to_compare_with_has_to_be_there(folder, tokenizer, tmp_path):
    rows = prompts(4)
    rows.report["rows_without_answer"] = 3
    rewards = build_rewards([RewardSettings(function="exact_match")], {})
    with pytest.raises(DataError, match="exact_match compares with the row's own answer, and 3 rows have none"):
        make(GroupTrainer, folder, tokenizer, tmp_path, train=rows, rewards=rewards)


# ---- evaluation


@BOTH
def test_evaluation_is_greedy_and_changes_nothing_of_what_is_trained(trainer_class, folder, tokenizer, tmp_path):
    held_out = prompts(5, seed=7)
    plain = make(trainer_class, folder, tokenizer, tmp_path / "plain")
    plain.train()
    watched = make(trainer_class, folder, tokenizer, tmp_path / "watched", held_out=held_out, eval_steps=1)
    at_start = watched.measure_held_out()
    assert watched.measure_held_out() == at_start
    watched.train()
    evaluated = {line["step"]: line["eval_reward"] for line in watched.state.log_history if "eval_reward" in line}
    assert figures_of(watched) == figures_of(plain)
    assert list(evaluated) == [1, 2, 3, 4]
    assert evaluated[4] == watched.measure_held_out()["eval_reward"]
    assert watched.state.best_metric == max(evaluated.values())


@BOTH
def test_tokens_of_prompts_and_answers_are_counted_once_a_time_they_are_trained(
    trainer_class, folder, tokenizer, tmp_path
):
    counted = []
    for iterations in (1, 2):
        seen: list[ToScore] = []
        spy = Reward("spy", 1.0, False, lambda answers, seen=seen: seen.extend(answers) or share_below_50(answers))
        trainer = make(
            trainer_class, folder, tokenizer, tmp_path / str(iterations), rewards=[spy], num_iterations=iterations
        )
        trainer.train()
        tokens = sum(len(one.prompt_ids) + len(one.answer_ids) for one in seen)
        counted.append((len(seen), trainer.state.num_input_tokens_seen / tokens))
    assert counted == [(4 * 8, 1.0), (2 * 8, 2.0)]


# ---- the reference


@BOTH
def test_the_reference_of_a_fresh_adapter_is_the_base_and_no_copy_is_made(trainer_class, folder, tokenizer, tmp_path):
    trainer = make(trainer_class, folder, tokenizer, tmp_path, beta=0.1)
    assert list(trainer.model.peft_config) == ["default"]
    assert not {"add_adapter", "get_parameter"} & vars(trainer.model).keys()
    trainer.train()
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert abs(kl[-1]) > 1e-4


@BOTH
def test_the_reference_of_a_trained_adapter_is_its_frozen_copy(trainer_class, folder, tokenizer, tmp_path):
    first = make(trainer_class, folder, tokenizer, tmp_path / "first")
    first.train()
    model = first.model
    model.load_adapter(_save(model, tmp_path / "adapter"), adapter_name=REFERENCE, is_trainable=False)
    model.set_adapter("default")
    frozen = [parameter.clone() for name, parameter in model.named_parameters() if f".{REFERENCE}." in name]

    second = make(trainer_class, folder, tokenizer, tmp_path / "second", model=model, beta=0.1)
    second.train()
    kl = [line["kl"] for line in second.state.log_history if "kl" in line]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert abs(kl[-1]) > 1e-4
    now = [parameter for name, parameter in model.named_parameters() if f".{REFERENCE}." in name]
    assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True))


def _save(model: PeftModel, path: Path) -> str:
    model.save_pretrained(path, save_embedding_layers=False)
    return str(path)


@BOTH
def test_a_start_that_changes_the_base_is_no_reference(trainer_class, folder, tokenizer, tmp_path):
    trainer = make(trainer_class, folder, tokenizer, tmp_path, beta=0.1)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    with pytest.raises(RecipeError, match="policy and reference already differ"):
        trainer.train()


def test_training_all_weights_has_no_reference(folder, tokenizer, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.beta=0"):
        make(GroupTrainer, folder, tokenizer, tmp_path, adapter=AdapterSettings(method="full"), beta=0.1)


# ---- taken up again


# Both trainers sample through the same code: the second one is stopped where the most has to be remembered.
@pytest.mark.parametrize(
    ("trainer_class", "settings", "stopped_at"),
    [
        pytest.param(GroupTrainer, {"max_steps": 5}, 3, id="each step samples its own answers"),
        pytest.param(LeaveOneOutTrainer, {"max_steps": 9}, 7, id="in the second epoch"),
        pytest.param(
            GroupTrainer, {"max_steps": 6, "steps_per_generation": 4}, 2, id="among answers sampled for four steps"
        ),
        pytest.param(GroupTrainer, {"max_steps": 6, "num_iterations": 3}, 4, id="among answers trained on three times"),
        *(
            pytest.param(
                trainer_class,
                {"max_steps": 5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
                3,
                id=f"accumulated-{trainer_class.__name__}",
            )
            for trainer_class in (GroupTrainer, LeaveOneOutTrainer)
        ),
    ],
)
def test_a_run_taken_up_again_samples_and_trains_what_it_would_have(
    trainer_class, settings, stopped_at, folder, tokenizer, tmp_path
):
    whole = make(trainer_class, folder, tokenizer, tmp_path, save_steps=1, save_total_limit=20, **settings)
    whole.train()
    expected = figures_of(whole)
    assert len({dict(figures)["loss"] for figures in expected.values()}) > 2

    again = make(trainer_class, folder, tokenizer, tmp_path, save_steps=100, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / f"checkpoint-{stopped_at}"))
    assert figures_of(again) == expected
    assert torch.equal(weights_of(again.model), weights_of(whole.model))


def test_rewards_without_a_difference_are_told_once_and_one_difference_ends_the_watch(caplog):
    def show(*shares: float) -> int:
        caplog.clear()
        watch = WatchRewards()
        for share in shares:
            logs = {"frac_reward_zero_std": share, "reward": 0.0}
            watch.on_log(None, TrainerState(global_step=9), None, logs=logs)
        return caplog.text.count("nothing is learned")

    assert show(*[1.0] * 8) == 1
    assert show(*[1.0] * 4) == 0
    assert show(1.0, 0.5, *[1.0] * 8) == 0
