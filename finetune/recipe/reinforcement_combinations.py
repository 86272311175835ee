"""What rloo and grpo ask: rewards that can be computed, and whole groups of answers to each prompt."""

from collections.abc import Iterator
from typing import Any

from finetune.recipe.faults import Fault, quote
from finetune.recipe.objective_combinations import find_pattern_faults
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.row_kinds import SAMPLED
from finetune.recipe.schema import RewardSettings
from finetune.recipe.suggestions import list_names
from finetune.recipe.training_combinations import ReadWith, find_unread_settings

__all__ = ["find_reinforcement_conflicts"]

# What each reward function reads beside its weight, and an example of it.
_READS = {
    "exact_match": (),
    "regex": ("pattern",),
    "json": (),
    "length": ("min_tokens", "max_tokens"),
    "reward_model": ("path",),
}
_EXAMPLES = {
    "regex": r"pattern: 'Answer: \d+'",
    "length": "min_tokens: 5, max_tokens: 50",
    "reward_model": "path: outputs/my_reward",
}
_READ_WITH = (
    ReadWith("sapo_temperature_neg", "loss_type", ("sapo",)),
    ReadWith("sapo_temperature_pos", "loss_type", ("sapo",)),
    ReadWith("vespo_k_pos", "loss_type", ("vespo",)),
    ReadWith("vespo_lambda_pos", "loss_type", ("vespo",)),
    ReadWith("vespo_k_neg", "loss_type", ("vespo",)),
    ReadWith("vespo_lambda_neg", "loss_type", ("vespo",)),
    ReadWith("entropy_coef_min", "use_adaptive_entropy", (True,)),
    ReadWith("entropy_coef_max", "use_adaptive_entropy", (True,)),
    ReadWith("entropy_coef_delta", "use_adaptive_entropy", (True,)),
    ReadWith("entropy_target", "use_adaptive_entropy", (True,)),
)
# Settings under `training` that generation_kwargs would override without a word.
_SET_BY_NAME = {
    "max_new_tokens": "max_completion_length",
    "num_return_sequences": "num_generations",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "cache_implementation": "cache_implementation",
}


def find_reinforcement_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find what is missing, superfluous or out of step in the settings of rloo and grpo."""
    yield from _check_presence(settings)
    rewards = settings.value("rewards")
    for number, reward in enumerate(rewards if isinstance(rewards, list) else []):
        if isinstance(reward, dict) and isinstance(reward.get("function"), str) and reward["function"] in _READS:
            yield from _check_reward(settings, f"rewards.{number}", reward)
    if settings.objective in SAMPLED:
        for check in (_check_generation_batch, _check_room, _check_too_long, _check_generation_kwargs):
            yield from check(settings)
        if settings.objective == "rloo":
            yield from _check_clip_range(settings)
        else:
            yield from _check_grpo_loss(settings)


def _check_presence(settings: RecipeView) -> Iterator[Fault]:
    has_rewards = settings.value("rewards") not in ([], None)
    if settings.objective in SAMPLED and not has_rewards:
        what = f"`objective: {settings.objective}` needs `rewards`: what a generated answer is worth."
        yield settings.fault("objective", what, "E.g. rewards: [{function: exact_match}], at the top of the recipe.")
    elif settings.objective not in SAMPLED and has_rewards:
        what = f"`rewards` are for rloo and grpo; `objective: {settings.objective}` learns from its rows alone."
        yield settings.fault("rewards", what, "Take them out, or set objective: grpo.")


def _check_reward(settings: RecipeView, path: str, reward: dict[str, Any]) -> Iterator[Fault]:
    """Check one part: what its function reads is there, and nothing else is."""
    function, section = reward["function"], path.replace(".", "[") + "]"
    reads = _READS[function]
    may_read = (*reads, "pattern") if function == "exact_match" else reads
    for name in ("pattern", "min_tokens", "max_tokens", "path"):
        if name not in may_read and reward.get(name) is not None:
            takes = f"It takes {list_names(may_read)}." if may_read else "It takes none but `weight`."
            yield settings.fault(f"{path}.{name}", f"`{section}`: `function: {function}` reads no `{name}`.", takes)
    is_misspelled = not set(reward) <= set(RewardSettings.model_fields)  # told already, with the name that was meant
    if reads and all(reward.get(name) is None for name in reads) and not is_misspelled:
        what = f"`{section}`: `function: {function}` needs {' or '.join(f'`{name}`' for name in reads)}."
        yield settings.fault(f"{path}.function", what, f"E.g. {{function: {function}, {_EXAMPLES[function]}}}.")
    yield from find_pattern_faults(settings, f"{path}.pattern", has_group=function == "exact_match")
    least, most = reward.get("min_tokens"), reward.get("max_tokens")
    if function != "length" or not isinstance(least, int):
        return
    if isinstance(most, int) and least > most:
        what = f"`{section}`: `min_tokens` {least} is above `max_tokens` {most}."
        yield settings.fault(f"{path}.min_tokens", what, "No answer has both.")
    if settings.objective in SAMPLED:
        longest = settings.training_value("max_completion_length")
        if isinstance(longest, int) and least > longest:
            what = f"`{section}`: `min_tokens` {least} is above `training.max_completion_length` {longest}."
            yield settings.fault(f"{path}.min_tokens", what, "No answer becomes that long.")


def _check_generation_batch(settings: RecipeView) -> Iterator[Fault]:
    """Check that the answers generated at once are whole groups, on one device."""
    path = "training.generation_batch_size"
    rows = settings.value("training.per_device_train_batch_size")
    typed, steps = settings.value(path), settings.value("training.steps_per_generation")
    num_generations = settings.training_value("num_generations")
    if typed is not None and steps is not None:
        what = "`generation_batch_size` and `steps_per_generation` say the same thing twice."
        yield settings.fault(path, what, "Keep one of the two.")
        return
    if steps is None:
        steps = settings.value("training.gradient_accumulation_steps")
    if not all(isinstance(number, int) and number > 0 for number in (rows, steps, num_generations)):
        return
    if isinstance(typed, int) and typed % rows:
        what = f"`generation_batch_size` {typed} is no multiple of `per_device_train_batch_size` {rows}."
        yield settings.fault(path, what, "It is generated at once and trained a micro-batch at a time.")
        return
    batch = typed if isinstance(typed, int) else rows * steps
    if batch % num_generations:
        what = f"{batch} answers are generated at once, and `num_generations` {num_generations} does not divide that."
        advice = "per_device_train_batch_size times gradient_accumulation_steps has to be a multiple of it."
        named = ("num_generations", "generation_batch_size", "steps_per_generation")
        place = next((name for name in named if settings.is_typed(f"training.{name}")), "per_device_train_batch_size")
        yield settings.fault(f"training.{place}", what, advice)


def _check_too_long(settings: RecipeView) -> Iterator[Fault]:
    if settings.value("data.too_long") == "truncate":
        what = f"`objective: {settings.objective}` asks whole prompts; `too_long: truncate` would cut their ends off."
        yield settings.fault("data.too_long", what, "Choose drop or error.")


def _check_room(settings: RecipeView) -> Iterator[Fault]:
    path = "training.max_completion_length"
    answer, row = settings.training_value("max_completion_length"), settings.value("data.max_length")
    if isinstance(answer, int) and isinstance(row, int) and answer >= row:
        what = f"`max_completion_length` {answer} leaves no room for a prompt within `data.max_length` {row}."
        place = path if settings.is_typed(path) else "data.max_length"
        yield settings.fault(place, what, "`data.max_length` counts prompt and answer together.")


def _check_generation_kwargs(settings: RecipeView) -> Iterator[Fault]:
    path = "training.generation_kwargs"
    given = settings.value(path)
    if isinstance(given, str):
        what = "`training.generation_kwargs` wants a group of settings; found a text."
        yield settings.fault(path, what, "Write e.g. {no_repeat_ngram_size: 3}.")
    for name in given if isinstance(given, dict) else {}:
        if name in _SET_BY_NAME:
            what = f"`generation_kwargs`: {quote(name)} has a setting of its own."
            yield settings.fault(path, what, f"Here it is `training.{_SET_BY_NAME[name]}`.")


def _check_clip_range(settings: RecipeView) -> Iterator[Fault]:
    path = "training.reward_clip_range"
    given = settings.value(path)
    if isinstance(given, list) and (len(given) != 2 or not _is_rising(given)):
        what = "`reward_clip_range` wants two numbers, the lower one first."
        yield settings.fault(path, what, "E.g. [-5, 5].")


def _is_rising(pair: list[Any]) -> bool:
    return all(isinstance(number, int | float) for number in pair) and pair[0] < pair[1]


def _check_grpo_loss(settings: RecipeView) -> Iterator[Fault]:
    loss, level = settings.training_value("loss_type"), settings.training_value("importance_sampling_level")
    needed = {"luspo": "sequence", "vespo": "token"}
    if isinstance(loss, str) and needed.get(loss, level) != level:
        what = f"`loss_type: {loss}` needs `importance_sampling_level: {needed[loss]}`."
        yield settings.fault("training.loss_type", what, f"Set training.importance_sampling_level: {needed[loss]}.")
    yield from find_unread_settings(settings, _READ_WITH)
