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
from filelock import FileLock
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError

from ..errors import InvalidRun
from ..training.result import without_password

HEARTBEAT_SECONDS, GRACE_SECONDS = 20, 120
LOCK_SECONDS = 60  # how long SQLite waits for another process's write
ATTEMPTS, ATTEMPT_SECONDS = 10, 0.5  # to open a storage whose tables another process is making
TOKEN = uuid.uuid4().hex[:8]  # of this process: its number may have been another's before a restart
WORKER = "worker"  # trial attribute: host and process that run it
ERROR = "error"  # trial attribute: why the network could not be trained
TRAINS = "trains"  # trial attribute: set when its own training begins
DUPLICATE_OF = "duplicate_of"  # trial attribute: the trial that trained the same network
ARCHITECTURE, KEY = "architecture", "key"  # trial attributes: the network as JSON, and its hash


def open_study(
    name: str, storage: str | BaseStorage, sampler: BaseSampler, pruner: optuna.pruners.BasePruner
) -> optuna.Study:
    """The study of that name, made if need be; raises InvalidRun when the storage cannot be opened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            with _alone(storage):
                opened = _rdb(storage) if isinstance(storage, str) else storage
            return optuna.create_study(
                study_name=name,
                storage=opened,
                sampler=sampler,
                pruner=pruner,
                direction="maximize",
                load_if_exists=True,
            )
    except Exception as error:  # SQLAlchemy's and each database driver's own
        reason = str(error).strip().partition("\n")[0]
        raise InvalidRun(
            f"the storage {without_password(str(storage))} cannot be opened ({reason}); "
            "expected an Optuna URL such as sqlite:///study.db"
        ) from None


@contextmanager
def _alone(storage: str | BaseStorage) -> Iterator[None]:
    """One process at a time makes the tables of an SQLite file: two at once fail over each other's."""
    file = Path(make_url(storage).database or "") if isinstance(storage, str) else Path()
    if not str(storage).startswith("sqlite") or not file.name or not file.parent.is_dir():
        yield
        return
    with FileLock(file.with_name(f".{file.name}.lock")):
        yield


def _rdb(url: str) -> RDBStorage:
    """Two processes that make a server's tables at once fail over each other's: the next attempt finds them made."""
    for _ in range(ATTEMPTS - 1):
        try:
            return _connected(url)
        except (IntegrityError, ProgrammingError):
            time.sleep(ATTEMPT_SECONDS)
    return _connected(url)


def _connected(url: str) -> RDBStorage:
    return RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else None,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=lambda study, trial: enqueue_again(study, trial.number, trial.params),
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
    return f"{socket.gethostname()}:{os.getpid()}:{TOKEN}"


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


def is_of_this_machine(trial: FrozenTrial) -> bool:
    """Whether a process of this machine runs, or ran, the trial."""
    return str(trial.user_attrs.get(WORKER, "")).rpartition(":")[0].rpartition(":")[0] == socket.gethostname()


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
