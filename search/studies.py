"""Optuna studies that outlive their processes: opening one, and taking up the trials that a killed process left."""

from __future__ import annotations

import os
import socket
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from .storage import GRACE_SECONDS, connected, opening

PREFIX = "pocketzoo-"  # of the names of our studies; a database may hold others'
CLAIM_SECONDS = 0.1  # between looks at a rival that has not decided yet
TOKEN = uuid.uuid4().hex[:8]  # of this process: its number may have been another's before a restart
WORKER = "worker"  # trial attribute: machine and process that run it
ERROR = "error"  # trial attribute: why the network could not be trained
TRAINS = "trains"  # trial attribute: set when it claims its network, before training it
DUPLICATE_OF = "duplicate_of"  # trial attribute: the trial that trained the same network
ARCHITECTURE, KEY = "architecture", "key"  # trial attributes: the network as JSON, and its hash


def open_study(
    name: str, storage: str | BaseStorage, sampler: BaseSampler, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The study of that name, made if need be; raises InvalidRun when the storage cannot be opened."""
    with opening(storage), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(
            study_name=name,
            storage=connected(storage, queue_again) if isinstance(storage, str) else storage,
            sampler=sampler,
            pruner=pruner,
            direction="maximize",
            load_if_exists=True,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's own log off within: failed trials are recorded, not printed with their tracebacks."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


class SeededSampler(BaseSampler):
    """TPE drawn from (seed, trial number): the same whether a search was killed, and different in every process."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tpe = self._fresh(0)

    def _fresh(self, number: int) -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Structures differ in their channel groups: `group` models those that go together.
            return TPESampler(seed=(self._seed * 1_000_003 + number) % 2**32, multivariate=True, group=True)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin this trial's own random sequence."""
        self._tpe = self._fresh(trial.number)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        """As TPE."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, optuna.distributions.BaseDistribution],
    ) -> dict[str, object]:
        """As TPE."""
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> object:
        """As TPE."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As TPE."""
        self._tpe.after_trial(study, trial, state, values)


def worker() -> str:
    """This process, as its trials name it."""
    return f"{_machine()}:{os.getpid()}:{TOKEN}"


def _machine() -> str:
    """Host name, and on Linux the namespace of process numbers: containers may share the one and not the other."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.stat().st_ino}" if namespace.exists() else socket.gethostname()


def spent(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count: finished, or failed for a reason of their own; not those that a process lost on the way."""
    return [
        trial
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)
    ]


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that some process is running now."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def claim(trial: optuna.Trial, key: str) -> FrozenTrial | None:
    """The other trial that trains the network of this key, or has; None when it is claimed for this trial.

    The trial says its key before it looks at the others, so of two that look at the same instant one sees the other:
    the later number yields at once, and the earlier waits for that. A rival that does not decide is taken for dead.
    """
    trial.set_user_attr(KEY, key)
    deadline = time.monotonic() + GRACE_SECONDS
    while (rivals := _rivals(trial, key)) and time.monotonic() < deadline:
        for rival in rivals:
            if rival.number < trial.number or TRAINS in rival.user_attrs:
                trial.set_user_attr(DUPLICATE_OF, rival.number)
                return rival
        time.sleep(CLAIM_SECONDS)
        take_up_lost_trials(trial.study)
    trial.set_user_attr(TRAINS, True)
    return None


def _rivals(trial: optuna.Trial, key: str) -> list[FrozenTrial]:
    """Trials of the same network, but for those that yielded and those that a process lost."""
    return [
        other
        for other in trial.study.get_trials(deepcopy=False)
        if other.number != trial.number
        and other.user_attrs.get(KEY) == key
        and DUPLICATE_OF not in other.user_attrs
        and (other.state != TrialState.FAIL or ERROR in other.user_attrs)
    ]


def take_up_lost_trials(study: optuna.Study) -> None:
    """Fail the running trials whose process is gone and queue their parameters again; live processes keep theirs.

    A process of this machine is looked up; one of another machine is gone when its heartbeat has stopped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    for trial in running(study):
        if _is_lost(trial):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # another process has just taken it up
            enqueue_again(study, trial.number, trial.params)


def enqueue_again(study: optuna.Study, number: int, params: Mapping[str, object]) -> None:
    """Queue the parameters of a lost trial."""
    if params:
        study.enqueue_trial(dict(params), user_attrs={"retry_of": number})


def queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the parameters of a trial whose worker has fallen silent."""
    enqueue_again(study, trial.number, trial.params)


def is_of_this_machine(trial: FrozenTrial) -> bool:
    """Whether a process of this machine runs, or ran, the trial."""
    return str(trial.user_attrs.get(WORKER, "")).rpartition(":")[0].rpartition(":")[0] == _machine()


def _is_lost(trial: FrozenTrial) -> bool:
    name = trial.user_attrs.get(WORKER)
    if name is None:  # killed between the trial's start and its first word, or just starting
        started = trial.datetime_start
        return started is not None and (datetime.now() - started).total_seconds() > GRACE_SECONDS
    if not is_of_this_machine(trial):
        return False
    _, process, token = name.rsplit(":", 2)
    return token != TOKEN if int(process) == os.getpid() else not _is_alive(int(process))


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 would end it; the heartbeat decides
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
