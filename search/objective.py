"""One trial: a network within the budget, trained briefly or judged untrained, unless another trial has had it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..training.loop import DivergedTraining, fit
from ..training.recipe import Recipe
from .evaluators import DataAt, Evaluator
from .inherit import Parent, begin
from .latency import COLUMN
from .screening import SCREENED, ScreeningSampler
from .space import Candidate, Space
from .studies import ARCHITECTURE, ERROR, WORKER, claim, enqueue_again, worker

EXPECTED = "expected"  # trial attribute: what proxies, and a parent, say of the network as its training begins


@dataclass(frozen=True)
class Objective:
    """Validation accuracy after a short training, or what an evaluator says without one: what Optuna maximises."""

    space: Space
    data_at: DataAt
    recipe: Recipe
    parent: Parent | None = None
    evaluator: Evaluator | None = None  # None: train
    expect: Callable[[Candidate], Mapping[str, float]] | None = None  # recorded of networks that are trained

    def __call__(self, trial: optuna.Trial) -> float:
        """Raises TrialPruned for a network that lags behind, DivergedTraining for a loss that is no number.

        A trial that Ctrl-C stops is queued again.
        """
        started = time.perf_counter()
        trial.set_user_attr(WORKER, worker())
        candidate = self.space.suggest(trial)
        _record(trial, candidate)
        try:
            if (twin := claim(trial, candidate.architecture.key)) is not None:
                return _outcome(twin)
            return self._train(trial, candidate) if self.evaluator is None else self.evaluator.score(candidate)
        except DivergedTraining as error:
            trial.set_user_attr(ERROR, str(error))
            raise
        except KeyboardInterrupt:
            enqueue_again(trial.study, trial.number, trial.params)
            raise
        finally:
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 3))

    def _train(self, trial: optuna.Trial, candidate: Candidate) -> float:
        def report(epoch: int, accuracy: float) -> None:
            trial.report(accuracy, epoch)
            trial.set_user_attr("epochs", epoch)
            if epoch < self.recipe.epochs and trial.should_prune():
                raise optuna.TrialPruned(f"{accuracy:.2%} after {epoch} epochs")

        architecture = candidate.architecture
        model = begin(architecture, self.recipe.seed, self.parent)
        accuracy = fit(model, self.data_at(architecture.resolution), self.recipe, on_epoch=report).val_accuracy
        if self.expect is not None:
            scores = self.expect(candidate)
            trial.set_user_attr(EXPECTED, {name: score for name, score in scores.items() if math.isfinite(score)})
        return accuracy


def _record(trial: optuna.Trial, candidate: Candidate) -> None:
    trial.set_user_attr(ARCHITECTURE, json.loads(candidate.architecture.to_json()))
    for name in ("params", "macs", "share", "reason"):
        trial.set_user_attr(name, getattr(candidate, name))
    if candidate.latency_ms is not None:
        trial.set_user_attr(COLUMN, candidate.latency_ms)
    if isinstance(trial.study.sampler, ScreeningSampler):
        trial.set_user_attr(SCREENED, trial.study.sampler.screened(trial.number))


def _outcome(twin: FrozenTrial) -> float:
    if twin.state == TrialState.FAIL:
        raise DivergedTraining(str(twin.user_attrs[ERROR]))
    if twin.value is None or twin.state != TrialState.COMPLETE:
        raise optuna.TrialPruned(f"the network of trial {twin.number}")
    return twin.value
