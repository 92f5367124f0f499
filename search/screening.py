"""Screening: of several networks that a study's sampler proposes, a trial gets the one that a cheap evaluator prefers.

The candidates are no trials of their own: a trial draws them inside its sampler. So the study holds trained networks
only, which is what TPE learns from, and claims, heartbeats and resumption work as without screening; a screening that a
killed process lost is drawn again with its trial.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from .evaluators import Evaluator
from .space import Candidate, Space
from .studies import ARCHITECTURE, KEY

SCREENED = "screened"  # trial attribute: the candidates that were drawn for it, best first


class Proposal:
    """What a space asks of a trial, answered by a sampler without anything being recorded in the study."""

    def __init__(self, sampler: BaseSampler, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler, self._study, self._trial = sampler, study, trial
        together = sampler.infer_relative_search_space(study, trial)
        self._together = sampler.sample_relative(study, trial, together)
        self.params: dict[str, Any] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """As optuna.Trial's."""
        return float(self._suggest(name, FloatDistribution(low, high, log=log)))

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """As optuna.Trial's."""
        return str(self._suggest(name, CategoricalDistribution(choices)))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._together:
            self.params[name] = self._together[name]
        elif isinstance(distribution, CategoricalDistribution) and distribution.single():
            self.params[name] = distribution.choices[0]
        else:
            self.params[name] = self._sampler.sample_independent(self._study, self._trial, name, distribution)
        return self.params[name]


@dataclass(frozen=True)
class Screened:
    """A candidate with the number that the evaluator gave it."""

    candidate: Candidate
    params: dict[str, Any]
    score: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        architecture = self.candidate.architecture
        costs = {name: getattr(self.candidate, name) for name in ("macs", "params", "share")}
        network = {KEY: architecture.key, ARCHITECTURE: json.loads(architecture.to_json())}
        return {"score": self.score, **costs, "seconds": round(self.seconds, 3), **network}


class ScreeningSampler(BaseSampler):
    """Gives a trial the parameters of the best of `draws` candidates; queued trials keep their own."""

    def __init__(self, sampler: BaseSampler, space: Space, evaluator: Evaluator, draws: int) -> None:
        self._sampler, self._space, self._evaluator, self._draws = sampler, space, evaluator, draws
        self._number = -1  # of the trial last screened for
        self._screened: list[Screened] = []

    def screened(self, number: int) -> list[dict[str, Any]]:
        """The candidates of a trial, the one it got first; none for a queued trial."""
        return [each.to_dict() for each in self._screened] if number == self._number else []

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the sampler that proposes."""
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Empty: parameters are asked for one by one, once the trial's objective runs, under its heartbeat."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The winner's parameter; the first call for a trial draws and judges its candidates."""
        if "fixed_params" in trial.system_attrs:  # a queued trial that leaves this one open
            return self._sampler.sample_independent(study, trial, param_name, param_distribution)
        if trial.number != self._number:
            self._screened = self._screen(study, trial)
            self._number = trial.number
        return self._screened[0].params[param_name]

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler that proposes."""
        self._sampler.after_trial(study, trial, state, values)

    def _screen(self, study: optuna.Study, trial: FrozenTrial) -> list[Screened]:
        """All candidates, best first, behind them those that another trial has had."""
        had = {other.user_attrs.get(KEY) for other in study.get_trials(deepcopy=False)}
        drawn = [self._draw(study, trial) for _ in range(self._draws)]
        return sorted(drawn, key=lambda each: (each.candidate.architecture.key in had, -each.score))

    def _draw(self, study: optuna.Study, trial: FrozenTrial) -> Screened:
        started = time.perf_counter()
        proposal = Proposal(self._sampler, study, trial)
        candidate = self._space.suggest(proposal)  # type: ignore[arg-type]
        score = self._evaluator.score(candidate)
        return Screened(candidate, proposal.params, score, time.perf_counter() - started)
