"""A reward model learns which answers were chosen: the loss, what is trained and saved, where it stops and goes on."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from finetune.data.batches import PairCollator
from finetune.data.tokens import TokenRows
from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.model.heads import ScoreHead
from finetune.model.tokenizer import find_pad_id, load_tokenizer
from finetune.objectives.building import RunArguments, TrainerParts
from finetune.objectives.losses import reward_loss
from finetune.objectives.pairs import compare, score_pairs
from finetune.objectives.reward import ScoreTrainer, build_arguments, build_trainer
from finetune.recipe.schema import AdapterSettings, DataSettings, ModelSettings, SourceSettings, TrainingSettings
from tests.model.saved_runs import write_base

LORA = AdapterSettings(method="lora", r=4)
GOOD = 7  # a token of the chosen answers, and of no rejected one
HEAD = "base_model.model.score.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="module")
def tokenizer(folder) -> PreTrainedTokenizerFast:
    return load_tokenizer(ModelSettings(model_name_or_path=str(folder)))


def build_pairs(count: int, seed: int = 0) -> TokenRows:
    """Pairs of random tokens, of two lengths each; a chosen answer ends with `GOOD`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(20, 120, (length,), generator=generator).tolist()

    rows = []
    for number in range(count):
        prompt = draw(3 + number % 4)
        chosen, rejected = [*prompt, *draw(2), GOOD], [*prompt, *draw(4)]
        rows.append(
            {
                "chosen_ids": chosen,
                "chosen_labels": [-100] * len(prompt) + chosen[len(prompt) :],
                "rejected_ids": rejected,
                "rejected_labels": [-100] * len(prompt) + rejected[len(prompt) :],
                "length": len(rejected),
            }
        )
    rows = Dataset.from_list(rows)
    return TokenRows(rows, rows, {}, "")


def make(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    *,
    quantization: str = "none",
    compute_dtype: str = "float32",
    adapter: AdapterSettings = LORA,
    **training: object,
) -> ScoreTrainer:
    settings = ModelSettings(
        model_name_or_path=str(folder), quantization=quantization, compute_dtype=compute_dtype, device="cpu"
    )
    base = load_base(settings, seed=1, head="score")
    typed = {"gradient_checkpointing": False, "warmup_steps": 0, "learning_rate": 1e-2, "logging_steps": 1}
    section = TrainingSettings(**(typed | training))
    run = RunArguments("test", base.device, base.compute_dtype, True, 1, tmp_path / "checkpoints")
    return build_trainer(
        TrainerParts(
            base=base,
            model=attach_adapter(base, adapter, seed=1),
            tokenizer=tokenizer,
            arguments=build_arguments(section, run),
            train=build_pairs(24),
            held_out=build_pairs(10, seed=1),
            data=DataSettings(train=SourceSettings(path="rows.jsonl")),
            training=section,
        ),
    )


def score_held_out(trainer: ScoreTrainer):
    collator = PairCollator(find_pad_id(trainer.processing_class))
    with trainer.as_in_training():
        return score_pairs(trainer.score_answers, trainer.eval_dataset, collator, 4)


def test_the_loss_is_the_formulas_and_that_of_the_held_out_pairs_a_mean_over_pairs(folder, tokenizer, tmp_path):
    scores, losses = [], []
    for batch_size in (1, 3, 10):
        trainer = make(folder, tokenizer, tmp_path, per_device_eval_batch_size=batch_size)
        losses.append(trainer.measure_held_out()["eval_loss"])
        scores.append(score_held_out(trainer))
    expected = reward_loss(scores[0].chosen_N, scores[0].rejected_N).mean().item()
    assert losses == pytest.approx([expected] * 3, abs=1e-6)
    assert scores[0].rejected_tokens_N.tolist() == [4] * 10


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_held_out_pairs_are_told_apart_after_a_few_steps_and_the_head_stays_float32(
    folder, tokenizer, tmp_path, quantization
):
    trainer = make(
        folder, tokenizer, tmp_path, quantization=quantization, compute_dtype="bfloat16", max_steps=20,
        per_device_train_batch_size=8, gradient_accumulation_steps=1,
    )  # fmt: skip
    trained = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert {name.partition(".")[0] for name in trained} == {"base_model"}
    assert [name for name in trained if "lora_" not in name] == [
        "base_model.model.score.modules_to_save.default.weight"
    ]
    trainer.train()
    figures = compare(score_held_out(trainer), per_token=trainer.scores_per_token)
    assert figures.accuracy == 1.0
    assert figures.margin > 1


def test_the_seed_draws_head_and_adapter(folder, tokenizer):
    def start(seed: int) -> dict[str, torch.Tensor]:
        settings = ModelSettings(model_name_or_path=str(folder), quantization="nf4", device="cpu")
        model = attach_adapter(load_base(settings, seed=seed, head="score"), LORA, seed=seed)
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    first, again, other = start(3), start(3), start(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = next(name for name in first if "score" in name)
    assert not torch.equal(first[name], other[name])


def test_the_adapter_holds_the_trained_head_in_float32(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, quantization="nf4", max_steps=2)
    trainer.train()
    trainer.save_weights(tmp_path / "adapter", dtype=torch.float32)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert isinstance(trainer.model, PeftModel)
    head = trainer.model.base_model.model.score.modules_to_save["default"]
    assert isinstance(head, ScoreHead)
    assert torch.equal(saved[HEAD], head.weight)
    assert saved[HEAD].dtype == torch.float32
    assert [name for name in saved if "lora_" not in name] == [HEAD]


def test_a_run_that_goes_on_from_a_checkpoint_ends_where_one_without_a_stop_does(folder, tokenizer, tmp_path):
    steps = {"max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    whole = make(folder, tokenizer, tmp_path, **steps)
    whole.train()
    resumed = make(folder, tokenizer, tmp_path, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-3"))
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], msg=name)


def test_what_a_user_watches_is_logged(folder, tokenizer, tmp_path):
    trainer = make(folder, tokenizer, tmp_path, max_steps=1)
    trainer.train()
    assert {"loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward"} <= set(
        trainer.state.log_history[0]
    )


@pytest.mark.slow
def test_centering_pulls_the_mean_score_towards_zero(folder, tokenizer, tmp_path):
    means = []
    for coefficient in (None, 1.0):
        trainer = make(
            folder, tokenizer, tmp_path, max_steps=20, per_device_train_batch_size=8, gradient_accumulation_steps=1,
            center_rewards_coefficient=coefficient,
        )  # fmt: skip
        trainer.train()
        scores = score_held_out(trainer)
        means.append(abs(torch.cat([scores.chosen_N, scores.rejected_N]).mean().item()))
    assert means[1] < means[0]


def test_the_whole_model_can_be_trained_to_score(folder, tokenizer, tmp_path):
    trainer = make(
        folder, tokenizer, tmp_path, adapter=AdapterSettings(method="full"), max_steps=20, learning_rate=3e-3,
        per_device_train_batch_size=8, gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer.train()
    assert compare(score_held_out(trainer), per_token=False).accuracy > 0.9
