"""Reinforcement learning: answers that the policy gives itself, made likelier the more they are rewarded.

On TRL's GRPOTrainer and RLOOTrainer. The prompts come as tokens of the run's one template, so nothing
but answers is made inside the trainer; what they are rewarded with is `objectives.rewards`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import RepeatSampler

from finetune.data.prompt_tokens import build_prompt_rows
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows
from finetune.errors import DataError, RecipeError
from finetune.objectives.building import RunArguments, TrainerParts, build, build_config
from finetune.objectives.rewards import Reward, ToScore, mix
from finetune.objectives.trainer import StepMixin
from finetune.recipe.backend_limits import OTHERWISE
from finetune.recipe.catalogue import read_catalogue
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["GroupTrainer", "LeaveOneOutTrainer", "build_arguments", "build_rows", "build_trainer"]

Config = TypeVar("Config", GRPOConfig, RLOOConfig)

log = logging.getLogger("finetune.objectives.reinforcement")

# At the start policy and reference are one; 16-bit products and dropout move them apart by less, a wrong one by tens.
_MOST_NATS_APART = 2.0
_LOGS_WITHOUT_A_DIFFERENCE = 5
# The settings of sampling, which greedy answers are without.
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p")


class PromptOrder(RepeatSampler):
    """TRL's order of prompts, each as often as answers to it are sampled, fixed by the seed and the epoch alone.

    TRL's own goes on drawing where the epoch before ended, which a resumed run has not seen.
    """

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the data loader calls it."""
        self.generator.manual_seed(self.seed + epoch)


class WatchRewards(TrainerCallback):
    """Warns, once, where all answers to every prompt get the same reward: there is nothing to learn from them."""

    def __init__(self) -> None:
        self._times = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Count the logs without a difference among the answers; one with it ends the watch."""
        share = (logs or {}).get("frac_reward_zero_std")
        if share is None or self._times < 0:
            return
        self._times = self._times + 1 if share == 1 else -1
        if self._times == _LOGS_WITHOUT_A_DIFFERENCE:
            log.warning(
                "step %d: all answers to each prompt have got the same reward so far, %.3f, and nothing is learned.\n"
                "  Choose rewards that some answers get already, more answers to a prompt (training.num_generations),\n"
                "  or a higher training.temperature.",
                state.global_step, logs["reward"] if logs else 0.0,
            )  # fmt: skip


class SampledStep(StepMixin):
    """What both trainers need alike: prompts that are ready, rewards of ours, and a run that can be taken up again.

    Goes in front of one of TRL's trainers, `rewards` beside what that takes.
    """

    generation_config: GenerationConfig
    generation_kwargs: dict[str, Any]

    def __init__(
        self, *, model: Any, args: Any, rewards: Sequence[Reward], stop_ids: Sequence[int], **kwargs: Any
    ) -> None:
        self.rewards = rewards
        self.stop_ids = frozenset(stop_ids)
        self._is_start_checked = False
        args.reward_weights = [reward.weight for reward in rewards]
        # Whatever the model declares as an end ends an answer; TRL reads it once, here.
        model.generation_config.eos_token_id = sorted(self.stop_ids)
        functions = [self._to_function(reward) for reward in rewards]
        with _without_copy(model):
            super().__init__(model=model, args=args, reward_funcs=functions, **kwargs)

    def _to_function(self, reward: Reward) -> Callable[..., list[float]]:
        """Make of a part of the reward what TRL calls, and logs by its name."""

        def score(*, prompts: Any, completion_ids: Any, reference: Any, **_: Any) -> list[float]:
            rows = zip(prompts, completion_ids, reference, strict=True)
            return reward.score([self._to_score(*row) for row in rows])

        score.__name__ = reward.name
        return score

    def _to_score(self, prompt_ids: list[int], answer_ids: list[int], reference: str | None) -> ToScore:
        end = next((place for place, token in enumerate(answer_ids) if token in self.stop_ids), len(answer_ids))
        text = self.processing_class.decode(
            answer_ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return ToScore(prompt_ids, answer_ids, text, end, reference)

    # ---- the step

    def _get_train_sampler(self, dataset: Dataset | None = None) -> PromptOrder:
        return PromptOrder(
            self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            seed=self.args.seed,
        )

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate(self, prompts: list[list[int]]) -> Any:
        """Sample answers; their tokens are counted when they are trained, in `compute_loss`."""
        tokens_seen = self.state.num_input_tokens_seen
        output = super()._generate(prompts)
        self.state.num_input_tokens_seen = tokens_seen
        self.figures["train" if self.model.training else "eval"].pop("num_tokens", None)
        return output

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; the first of a run checks that policy and reference begin as one.

        Raises:
            RecipeError: they do not.
        """
        num_real_tokens = int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        # A copy, since the same answers are trained on again where `num_iterations` says so.
        loss = super().compute_loss(model, {**inputs, "num_real_tokens": num_real_tokens}, *args, **kwargs)
        if self.beta != 0 and not self._is_start_checked and self.state.global_step == 0:
            # Of all processes, so that none goes on alone.
            tokens, answers = self.sum_over_processes(
                float(inputs["completion_mask"].sum()), float(len(inputs["completion_mask"]))
            )
            _check_start(self.figures["train"]["kl"][0] * tokens / answers)
        self._is_start_checked = True
        return loss

    def find_why_whole(self, batch: Any) -> str | None:
        """Say why a batch of prompts cannot be cut; pairs that are scored can."""
        return None if isinstance(batch, Mapping) else "answers are sampled and compared by the group"

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; a figure of nothing (all answers of a batch cut off and masked, say) is left out."""
        for figures in self.figures.values():
            for name in [name for name, values in figures.items() if all(map(math.isnan, values))]:
                del figures[name]
        super().log(logs, *args, **kwargs)

    # ---- held-out prompts

    def measure_held_out(self) -> dict[str, float]:
        """Answer the held-out prompts greedily.

        Returns:
            `eval_reward`, the mean weighted sum, and of each part its mean before the weight.
        """
        answers = self._answer_share()
        totals, parts = mix(self.rewards, answers)
        sums = [sum(values) for values in (totals, *parts.values())]
        *sums, num_rows = self.sum_over_processes(*sums, float(len(answers)))
        names = ["eval_reward", *(f"eval_rewards/{reward.name}" for reward in self.rewards)]
        return {name: total / num_rows for name, total in zip(names, sums, strict=True)}

    def _answer_share(self) -> list[ToScore]:
        """Answer this process's share of the held-out prompts; those of like length share a batch."""
        order = torch.argsort(torch.tensor(self.eval_dataset["length"][:]), descending=True, stable=True)
        places = torch.arange(self.args.process_index, len(order), self.args.world_size)
        # TRL gathers figures of every batch, so all processes answer as many, the last one perhaps for nothing.
        num_each = -(-len(order) // self.args.world_size)
        rows = self.eval_dataset.select([*order[places].tolist(), *order[: num_each - len(places)].tolist()])
        answers: list[ToScore] = []
        with self.as_in_training(), self._greedily():
            for batch in rows.iter(self.args.per_device_eval_batch_size):
                completion_ids = self._generate(batch["prompt"])[1]
                found = zip(batch["prompt"], completion_ids, batch["reference"], strict=True)
                answers += [self._to_score(*row) for row in found]
        self.forget_figures()
        return answers[: len(places)]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as before and after the run: TRL's own loop would sample, and so change what is trained on next."""
        figures = self.measure_held_out()
        self.model.eval()  # as Trainer's loop leaves it: the log tells from it what is logged
        return EvalLoopOutput(None, None, figures, len(self.eval_dataset))

    @contextmanager
    def _greedily(self) -> Iterator[None]:
        sampling = self.generation_config, self.generation_kwargs
        self.generation_kwargs = {
            name: value for name, value in self.generation_kwargs.items() if name not in _SAMPLING
        } | {"do_sample": False}
        self.generation_config = GenerationConfig(**self.generation_kwargs, disable_compile=True)
        try:
            yield
        finally:
            self.generation_config, self.generation_kwargs = sampling

    # ---- taken up again

    def _save_rng_state(self, output_dir: str) -> None:
        """Save; where answers are sampled for several steps at once, those not yet trained on too."""
        super()._save_rng_state(output_dir)
        if self._step % (self.args.steps_per_generation * self.num_iterations):
            tensors = {
                f"{place}.{name}": value.clone(memory_format=torch.contiguous_format)  # safetensors takes no views
                for place, batch in enumerate(self._buffered_inputs)
                for name, value in batch.items()
                if isinstance(value, Tensor)
            }
            save_file(tensors, self._answers_path(output_dir), {"micro_step": str(self._step)})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None or not self._answers_path(checkpoint).exists():
            return
        batches: list[dict[str, Tensor]] = [{} for _ in range(self.args.steps_per_generation)]
        with safe_open(self._answers_path(checkpoint), "pt", device=str(self.args.device)) as file:
            self._step = int(file.metadata()["micro_step"])
            for key in file.keys():  # noqa: SIM118 - it cannot be iterated over
                place, name = key.split(".", 1)
                batches[int(place)][name] = file.get_tensor(key)
        self._buffered_inputs = batches

    def _answers_path(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"answers_{self.args.process_index}.safetensors"


class GroupTrainer(SampledStep, GRPOTrainer):
    """TRL's GRPOTrainer: an answer's advantage is its reward against the mean of its group's."""


class LeaveOneOutTrainer(SampledStep, RLOOTrainer):
    """TRL's RLOOTrainer: an answer's advantage is its reward against the mean of the others'."""


def _check_start(apart_nats: float) -> None:
    if abs(apart_nats) > _MOST_NATS_APART:
        raise RecipeError(
            f"step 1: policy and reference already differ, by {apart_nats:.1f} nats an answer.\n"
            "  The adapter's start changes the model's answers, and the reference is the base without it.\n"
            "  Choose a start that does not: adapter.init_lora_weights=true     Or no reference: training.beta=0"
        )


@contextmanager
def _without_copy(model: torch.nn.Module) -> Iterator[None]:
    """Keep TRL (1.14) from putting a copy of the adapter beside it while it is built.

    The reference is there already: a frozen adapter (`model.continuing.add_reference`), or the base with the
    adapter off. TRL's copy is made from the adapter's config, whose start (PiSSA's, OLoRA's) would change the base.
    """
    if not isinstance(model, PeftModel):
        yield
        return
    own = model.get_parameter
    # TRL copies each weight to the reference's of the same name: onto itself.
    vars(model).update(
        add_adapter=lambda name, config: None,
        get_parameter=lambda name: own(name.replace(".ref.", ".default.")),
    )
    try:
        yield
    finally:
        del vars(model)["add_adapter"], vars(model)["get_parameter"]


def build_rows(
    objective: str, loaded: LoadedExamples, renderer: Renderer, data: DataSettings, training: TrainingSettings
) -> TokenRows:
    """Render conversations into prompts; one that leaves no room for its answer is dropped.

    Args:
        objective: whose trainer's default the longest answer has where `training` does not say.
        loaded: the conversations.
        renderer: of the run's one template.
        data: read for `max_length` and `too_long`.
        training: read for `max_completion_length`.

    Raises:
        RecipeError: no prompt could leave that room.
    """
    room = read_catalogue().find_trainer_value(objective, training.fields, "max_completion_length")
    if room >= data.max_length:
        raise RecipeError(
            f"`data.max_length` is {data.max_length} tokens, prompt and answer together, and an answer alone may have "
            f"{room}.\n  Lower training.max_completion_length, or raise data.max_length."
        )
    return build_prompt_rows(
        loaded, renderer, max_length=data.max_length - room, too_long="error" if data.too_long == "error" else "drop"
    )


def build_arguments(config_class: type[Config], training: TrainingSettings, run: RunArguments) -> Config:
    """Build the trainer's own config.

    Raises:
        RecipeError: the library refuses a setting, or Unsloth has rewritten the trainer.
    """
    if run.backend == "unsloth" and run.device.type == "cuda":
        raise RecipeError(
            "`backend: unsloth`: on a GPU Unsloth trains grpo with a rewritten trainer, which masks answers by the "
            f"padding token and not by where they end.\n  {OTHERWISE}"
        )
    # Held-out prompts are answered once, greedily.
    return build_config(config_class, training, run, {"num_generations_eval": 1}, best=("eval_reward", True))


def build_trainer(
    trainer_class: type[GroupTrainer] | type[LeaveOneOutTrainer],
    parts: TrainerParts,
    *,
    rewards: Sequence[Reward],
    stop_ids: Sequence[int],
) -> GroupTrainer | LeaveOneOutTrainer:
    """Build the trainer of one run: `rewards` for its answers, which `stop_ids` end.

    Raises:
        DataError: a reward compares with the row's own answer, and a row has none.
        RecipeError: all weights are trained, and held against what they were.
    """
    if parts.arguments.beta != 0 and not isinstance(parts.model, PeftModel):
        raise RecipeError(
            "`adapter.method: full` has no frozen copy to be held against.\n"
            "  Set training.beta=0, or train an adapter: adapter.method=lora"
        )
    for reward in rewards:
        _check_references(reward, [parts.train] if parts.held_out is None else [parts.train, parts.held_out])
    parts = replace(parts, callbacks=[WatchRewards(), *parts.callbacks])
    return build(partial(trainer_class, rewards=rewards, stop_ids=stop_ids), None, parts)


def _check_references(reward: Reward, sides: Sequence[TokenRows]) -> None:
    for rows in sides:
        missing = rows.report["rows_without_answer"]
        if reward.needs_reference and missing:
            raise DataError(
                f"`rewards`: {reward.name} compares with the row's own answer, and {missing} rows have none.\n"
                f"  Take rows that end with an answer, or another function."
            )
