"""What the losses of dpo and kto ask of the other settings. TRL refuses the same, or passes it over."""

from collections.abc import Iterator

from finetune.recipe.faults import Fault
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.suggestions import list_names
from finetune.recipe.trainer_choices import DPO_LOSSES
from finetune.recipe.training_combinations import ReadWith, find_unread_settings

__all__ = ["LOSSES_WITH_DIVERGENCES", "find_preference_conflicts"]

# Built on the difference of the two rewards alone, in which the divergence's unknown term cancels out.
LOSSES_WITH_DIVERGENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
_SORTING_LOSSES = ("aot", "aot_unpaired")

_READ_WITH = (
    ReadWith("label_smoothing", "loss_type", ("robust", "exo_pair")),
    ReadWith("discopop_tau", "loss_type", ("discopop",)),
    ReadWith("f_alpha_divergence_coef", "f_divergence_type", ("alpha_divergence",)),
)


def find_preference_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find settings that the chosen loss of dpo or kto excludes, or does not read."""
    if settings.objective == "dpo":
        losses = _find_losses(settings)
        yield from _check_weights(settings, losses)
        yield from _check_losses(settings, losses)
        yield from find_unread_settings(settings, _READ_WITH)
    elif settings.objective == "kto":
        yield from _check_kto(settings)
    if settings.objective != "dpo" and settings.value("data.share_prompts") not in (None, "auto"):
        what = f"`share_prompts` is read by `objective: dpo` alone; this one is {settings.objective}."
        yield settings.fault("data.share_prompts", what, "Take the line out.")
    if settings.objective in ("dpo", "kto") and settings.value("training.precompute_ref_log_probs") is not True:
        path = "training.precompute_ref_batch_size"
        if settings.value(path) is not None:
            what = "`precompute_ref_batch_size` is read with `precompute_ref_log_probs: true` alone."
            yield settings.fault(path, what, "Take the line out, or set training.precompute_ref_log_probs: true.")


def _find_losses(settings: RecipeView) -> list[str]:
    """The losses of dpo that there are, of a list or of a single name."""
    typed = settings.training_value("loss_type")
    return [loss for loss in (typed if isinstance(typed, list) else [typed]) if loss in DPO_LOSSES]


def _check_weights(settings: RecipeView, losses: list[str]) -> Iterator[Fault]:
    path = "training.loss_weights"
    weights = settings.value(path)
    if isinstance(weights, list) and losses and len(weights) != len(losses):
        what = f"`loss_weights` needs a weight for each loss; found {len(weights)} for {len(losses)}."
        yield settings.fault(path, what, f"The losses: {list_names(losses)}.")


def _check_losses(settings: RecipeView, losses: list[str]) -> Iterator[Fault]:
    smoothing = settings.training_value("label_smoothing")
    divergence = settings.training_value("f_divergence_type")
    without_divergence = [loss for loss in losses if loss not in LOSSES_WITH_DIVERGENCES]
    sorting = [loss for loss in losses if loss in _SORTING_LOSSES]
    if "exo_pair" in losses and smoothing == 0:
        what = "`loss_type: exo_pair` needs a `label_smoothing` above 0."
        yield settings.fault("training.loss_type", what, "Its authors take training.label_smoothing: 1e-3.")
    if "robust" in losses and isinstance(smoothing, int | float) and smoothing >= 0.5:
        what = f"`label_smoothing` is {smoothing}; as the share of flipped pairs in `robust` it must be below 0.5."
        yield settings.fault("training.label_smoothing", what, "Its authors take 0.1.")
    if divergence != "reverse_kl" and without_divergence:
        what = f"`f_divergence_type: {divergence}` cannot be had with `loss_type: {without_divergence[0]}`."
        advice = f"Losses that take one: {list_names(LOSSES_WITH_DIVERGENCES)}."
        yield settings.fault("training.f_divergence_type", what, advice)
    if settings.value("training.use_weighting") is True and sorting:
        what = f"`use_weighting` weighs each pair, and `loss_type: {sorting[0]}` sorts the answers apart."
        yield settings.fault("training.use_weighting", what, "Take one of the two out.")
    if settings.value("training.use_weighting") is True and settings.value("training.use_liger_kernel") is True:
        what = "`use_weighting` and `use_liger_kernel` exclude each other: the kernel's chunks do not keep the weights."
        yield settings.fault("training.use_weighting", what, "Keep one of the two.")


def _check_kto(settings: RecipeView) -> Iterator[Fault]:
    path = "training.per_device_train_batch_size"
    if settings.value(path) == 1 and settings.training_value("loss_type") == "kto":
        what = "`loss_type: kto` compares the rows of a micro-batch, so one row a micro-batch is too few."
        yield settings.fault(path, what, "Set it to 2 or more, or training.loss_type: apo_zero_unpaired.")
