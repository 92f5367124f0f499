"""One trial: a network within the budget, trained briefly, unless another trial has trained the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from ..training.data import DataSet
from ..training.loop import DivergedTraining, fit
from ..training.recipe import Recipe
from ..zoo.architecture import Architecture
from .inherit import Parent
from .latency import COLUMN
from .space import Candidate, Space
from .studies import ARCHITECTURE, DUPLICATE_OF, ERROR, KEY, TRAINS, WORKER, enqueue_again, worker

DataAt = Callable[[int], DataSet]  # resolution -> the data at it


@dataclass(frozen=True)
class Objective:
    """Validation accuracy after a short training: what Optuna maximises."""

    space: Space
    data_at: DataAt
    recipe: Recipe
    parent: Parent | None = None

    def __call__(self, trial: optuna.Trial) -> float:
        """Raises TrialPruned for a network that lags behind, DivergedTraining for a loss that is no number.

        A trial that Ctrl-C stops is queued again.
        """
        started = time.perf_counter()
        trial.set_user_attr(WORKER, worker())
        candidate = self.space.suggest(trial)
        _record(trial, candidate)
        try:
            if (twin := _twin(trial, candidate.architecture.key)) is not None:
                trial.set_user_attr(DUPLICATE_OF, twin.number)
                return _outcome(twin)
            trial.set_user_attr(TRAINS, True)
            return self._train(trial, candidate.architecture)
        except DivergedTraining as error:
            trial.set_user_attr(ERROR, str(error))
            raise
        except KeyboardInterrupt:
            enqueue_again(trial.study, trial.number, trial.params)
            raise
        finally:
            trial.set_user_attr("seconds", round(time.perf_counter() - started, 3))

    def _train(self, trial: optuna.Trial, architecture: Architecture) -> float:
        def report(epoch: int, accuracy: float) -> None:
            trial.report(accuracy, epoch)
            trial.set_user_attr("epochs", epoch)
            if epoch < self.recipe.epochs and trial.should_prune():
                raise optuna.TrialPruned(f"{accuracy:.2%} after {epoch} epochs")

        model = begin(architecture, self.recipe.seed, self.parent)
        return fit(model, self.data_at(architecture.resolution), self.recipe, on_epoch=report).val_accuracy


def begin(architecture: Architecture, seed: int, parent: Parent | None) -> nn.Module:
    """The network as its training begins: fresh weights from the seed, over them what a parent hands down."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = architecture.build()
        if parent is not None:
            parent.hand_down(model, architecture)
    return model


def _record(trial: optuna.Trial, candidate: Candidate) -> None:
    trial.set_user_attr(ARCHITECTURE, json.loads(candidate.architecture.to_json()))
    trial.set_user_attr(KEY, candidate.architecture.key)
    for name in ("params", "macs", "share", "reason"):
        trial.set_user_attr(name, getattr(candidate, name))
    if candidate.latency_ms is not None:
        trial.set_user_attr(COLUMN, candidate.latency_ms)


def _twin(trial: optuna.Trial, key: str) -> FrozenTrial | None:
    """The trial that has trained the same network, or is about to: an earlier one, or one that has said so."""
    for other in trial.study.get_trials(deepcopy=False):
        same = other.number != trial.number and other.user_attrs.get(KEY) == key
        first = other.number < trial.number or TRAINS in other.user_attrs
        lost = other.state == TrialState.FAIL and ERROR not in other.user_attrs
        if same and first and not lost and DUPLICATE_OF not in other.user_attrs:
            return other
    return None


def _outcome(twin: FrozenTrial) -> float:
    if twin.state == TrialState.FAIL:
        raise DivergedTraining(str(twin.user_attrs[ERROR]))
    if twin.value is None or twin.state != TrialState.COMPLETE:
        raise optuna.TrialPruned(f"the network of trial {twin.number}")
    return twin.value
