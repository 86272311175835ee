"""Successive halving: short runs of every choice, the best share of each method goes on to longer ones.

In go points and what their short runs scored, out come the points that are worth a run in full. An Optuna study per
method keeps the trials, their values and the decisions in `probes.journal` of the comparison's folder, which Optuna's
own tools open. The rule is that of Jamieson & Talwalkar 2016 (arXiv:1502.07943): all candidates of a rung are measured
before any is dropped. A race whose points, score or budget have changed is decided anew; what was measured is read from
the run folders. Optuna's SuccessiveHalvingPruner is the asynchronous form (arXiv:1810.05934): it promotes whoever comes
first and its choice depends on the order of the runs, so the decision here is a pruner of our own on Optuna's
interface.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from finetune.comparison.cells import Point
from finetune.comparison.scores import is_lower_better
from finetune.recipe.comparison import Budget

__all__ = ["Halving", "KeepTheBest"]

_POINT = "point"  # a trial's attribute: the point's name
_TERMS = "terms"  # a study's attribute: what its decisions rest on beside the scores themselves
_ROUNDING = 1e-9  # 0.28 of 25 is 7, and 0.28 * 25 is above it in binary


class KeepTheBest(optuna.pruners.BasePruner):
    """Drops all but the best share of the trials that are still in the race.

    The order is by the longest short run a trial has had, then by its value, then by age: a trial that the budget
    left unmeasured on this rung stands behind all that were measured.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep

    def prune(self, study: "optuna.study.Study", trial: FrozenTrial) -> bool:
        """Whether a trial is dropped, now that its rivals have been measured."""
        racing = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        worse = -1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1.0

        def to_place(one: FrozenTrial) -> tuple[float, float, int]:
            step = one.last_step
            return (
                (math.inf, 0.0, one.number)
                if step is None
                else (-step, worse * one.intermediate_values[step], one.number)
            )

        kept = sorted(racing, key=to_place)[: max(1, math.ceil(self._keep * len(racing) - _ROUNDING))]
        return trial.number not in {one.number for one in kept}


class Halving:
    """The race of one method's points, run again where it was decided on other terms.

    Attributes:
        points: those that are still in it, in their order.

    Args:
        journal: file of the trials.
        method: whose race it is.
        points: its choices, all of them.
        budget: share that is kept, rungs and time.
        score: figure of summary.json that is compared.
    """

    def __init__(self, journal: Path, method: str, points: Sequence[Point], *, budget: Budget, score: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = [point.name for point in points]
        terms = {**asdict(budget), "probe_steps": list(budget.probe_steps), "score": score, "points": names}
        storage = JournalStorage(JournalFileBackend(str(journal)))
        known = {study.study_name for study in optuna.get_all_study_summaries(storage)}
        if method in known and not _is_of(optuna.load_study(study_name=method, storage=storage), terms):
            optuna.delete_study(study_name=method, storage=storage)
        self._study = optuna.create_study(
            study_name=method,
            storage=storage,
            load_if_exists=True,
            direction="minimize" if is_lower_better(score) else "maximize",
            pruner=KeepTheBest(budget.keep),
        )
        if not self._study.trials:
            self._enqueue(points)
            self._study.set_user_attr(_TERMS, terms)
        self._trials = {
            trial.user_attrs[_POINT]: Trial(self._study, trial._trial_id) for trial in self._study.get_trials()
        }
        self.points = list(points)

    def has_decided(self, steps: int) -> bool:
        """Whether the rung of so many steps was closed, in this session or in an earlier one."""
        return _name_rung(steps) in self._study.user_attrs

    def decide(self, steps: int, values: Mapping[str, float]) -> list[Point]:
        """Close a rung: of the points still in the race the best share stays.

        Args:
            steps: of the rung's short runs.
            values: the score of every point that was measured, by name.

        Returns:
            The points that go on. A rung that was decided in an earlier session stays as it was decided.
        """
        decided = _name_rung(steps)
        if decided not in self._study.user_attrs:
            racing = [point.name for point in self.points]
            for name in racing:
                if name in values and steps not in self._find(name).intermediate_values:
                    self._trials[name].report(values[name], steps)
            kept = [name for name in racing if not self._trials[name].should_prune()]
            # Told to the study first: a kill while trials are being closed leaves the decision whole.
            self._study.set_user_attr(decided, kept)
        kept = self._study.user_attrs[decided]
        for name, trial in self._trials.items():
            if name not in kept and self._find(name).state == TrialState.RUNNING:
                self._study.tell(trial, state=TrialState.PRUNED)
        self.points = [point for point in self.points if point.name in kept]
        return self.points

    def finish(self) -> None:
        """Close the race: who is left is complete, with the value of its last rung."""
        for point in self.points:
            trial = self._find(point.name)
            if trial.state == TrialState.RUNNING and trial.last_step is not None:
                self._study.tell(self._trials[point.name], trial.intermediate_values[trial.last_step])

    def _find(self, name: str) -> FrozenTrial:
        number = self._trials[name].number
        return self._study.get_trials(deepcopy=False)[number]

    def _enqueue(self, points: Sequence[Point]) -> None:
        """Ask for a trial of every point, in their order."""
        choices = {key: [_to_choice(point.chosen[key]) for point in points] for key in points[0].chosen}
        distributions: dict[str, Any] = {
            key: CategoricalDistribution(list(dict.fromkeys(values))) for key, values in choices.items()
        }
        for point in points:
            self._study.enqueue_trial({key: _to_choice(value) for key, value in point.chosen.items()})
            self._study.ask(distributions).set_user_attr(_POINT, point.name)


def _is_of(study: "optuna.study.Study", terms: Mapping[str, Any]) -> bool:
    """Whether a study is of these terms, and no kill cut its beginning short."""
    return study.user_attrs.get(_TERMS) == terms


def _name_rung(steps: int) -> str:
    return f"after {steps} steps"


def _to_choice(value: Any) -> str | int | float | bool | None:
    """A value as Optuna stores one: a list or a group as JSON."""
    return value if isinstance(value, str | int | float | bool) or value is None else json.dumps(value)
