"""The trials of one study, until there are enough of them: alone or beside other processes, before or after a kill."""

from __future__ import annotations

import sys
import time

import optuna
from optuna.storages import RDBStorage
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import InvalidRun
from ..training.loop import DivergedTraining
from .objective import Objective
from .plan import Plan
from .studies import SeededSampler, is_of_this_machine, open_study, quiet, running, spent, take_up_lost_trials

POLL_SECONDS = 0.5  # between looks at what the other processes do


def study_of(plan: Plan, default_storage: str) -> optuna.Study:
    """The plan's study, begun with the uniform-width network as its first trial; raises InvalidRun."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=(plan.short_recipe.epochs + 1) // 2)
    storage = default_storage if plan.storage is None else plan.storage
    with quiet():
        return open_study(plan.study_name, storage, plan.sampler or SeededSampler(plan.seed), plan.pruner or pruner)


def explore(plan: Plan, study: optuna.Study, objective: Objective) -> bool:
    """Run trials until the plan's number is spent or its time is over; False when Ctrl-C ended it.

    Trials that other live processes are running count, and are waited for at the end. Raises InvalidRun when the
    storage can no longer be written.
    """
    began = time.monotonic()
    with quiet(), _bar(plan) as bar:
        try:
            task = bar.add_task("search", total=plan.trials, completed=_done(study), best=_best(study))
            if not study.get_trials(deepcopy=False):
                study.enqueue_trial(objective.space.default_parameters)
            while _work_is_left(plan, study):
                if plan.timeout is not None and time.monotonic() - began > plan.timeout:
                    break
                _try_one(study, objective)
                bar.update(task, completed=_done(study), best=_best(study))
        except KeyboardInterrupt:
            return False
        except Exception as error:
            if (reason := _storage_failure(error)) is None:
                raise
            raise InvalidRun(
                f"the study can no longer be kept ({reason}); finished trials are: see to the storage, and run again"
            ) from None
    return True


def _try_one(study: optuna.Study, objective: Objective) -> None:
    """Run one trial; drop it where others took this process for dead and have queued the trial again."""
    dropped = False

    def attempt(trial: optuna.Trial) -> float:
        nonlocal dropped
        try:
            return objective(trial)
        except optuna.exceptions.UpdateFinishedTrialError:
            dropped = True
            raise

    try:
        study.optimize(attempt, n_trials=1, catch=(DivergedTraining,))
    except ValueError:  # Optuna's word for a trial that has ended elsewhere
        if not dropped:
            raise


def _storage_failure(error: BaseException) -> str | None:
    """Why the storage failed, if that is what the error comes from; None for another error."""
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return _first_line(error.__cause__ or error)
    if "grpc" in sys.modules and isinstance(error, sys.modules["grpc"].RpcError):
        return _first_line(error.details())
    # Optuna trips over an assertion, or a name without a value, where it cannot store a trial's end.
    tripped = isinstance(error, AssertionError | UnboundLocalError)
    return _storage_failure(error.__context__) if tripped and error.__context__ else None


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]


def _work_is_left(plan: Plan, study: optuna.Study) -> bool:
    """Whether this process may begin another trial; waits for the last trials of other processes."""
    heartbeats = plan.storage is None or isinstance(plan.storage, str | RDBStorage)
    while True:
        take_up_lost_trials(study)
        under_way = running(study)
        done = _done(study)
        if done + len(under_way) < plan.trials:
            return True
        # Without heartbeats nobody can tell whether another machine still lives.
        if done >= plan.trials or not any(heartbeats or is_of_this_machine(trial) for trial in under_way):
            return False
        time.sleep(POLL_SECONDS)


def _done(study: optuna.Study) -> int:
    return len(spent(study.get_trials(deepcopy=False)))


def _best(study: optuna.Study) -> str:
    values = [trial.value for trial in spent(study.get_trials(deepcopy=False)) if trial.value is not None]
    return f"best {max(values):.2%}" if values else ""


def _bar(plan: Plan) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not plan.progress)
