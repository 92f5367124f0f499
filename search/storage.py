"""Where a study is kept: a database whose workers' heartbeats are watched, or the proxy of one."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import URL, make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError

from ..errors import InvalidRun, MissingExtra, PocketzooError
from ..training.result import without_password

HEARTBEAT_SECONDS, GRACE_SECONDS = 20, 120  # a worker that is silent for longer than the second is taken for dead
LOCK_SECONDS = 60  # how long SQLite waits for another process's write
ATTEMPTS, ATTEMPT_SECONDS = 10, 0.5  # to open a database whose tables another process is making
PROXY_SECONDS = 60  # how long a worker waits for a proxy that is still starting

OnLost = Callable[[optuna.Study, FrozenTrial], None]


class Database(RDBStorage):
    """Optuna's, whose workers go on beating after a moment in which it did not answer."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Write that this trial's process lives; what cannot be written is left to the next beat."""
        with contextlib.suppress(optuna.exceptions.StorageInternalError):
            super().record_heartbeat(trial_id)


@contextlib.contextmanager
def opening(storage: str | BaseStorage) -> Iterator[None]:
    """Raises InvalidRun, without the password, for whatever a storage, a driver or a server says within."""
    try:
        yield
    except PocketzooError:
        raise
    except Exception as error:  # SQLAlchemy's, gRPC's and each database driver's own
        reason = str(error).strip().partition("\n")[0]
        raise InvalidRun(
            f"the storage {without_password(str(storage))} cannot be opened ({reason}); expected an Optuna URL such as "
            "sqlite:///study.db or postgresql://user@host/name, or grpc://host:port of our proxy"
        ) from None


def connected(url: str, on_lost: OnLost) -> BaseStorage:
    """The storage of a URL; `grpc://host:port` is the proxy of a database.

    `on_lost` is called for each trial whose worker has fallen silent. Raises MissingExtra, and the driver's own errors.
    """
    place = make_url(url)
    if place.drivername == "grpc":
        return _behind_proxy(place)
    with _alone(place):
        return database(url, on_lost)


def database(url: str, on_lost: OnLost, kind: type[Database] = Database) -> Database:
    """The database of a URL.

    Two processes that make a server's tables at once fail over each other's: the next attempt finds them made.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return _opened(url, on_lost, kind)
        except (IntegrityError, ProgrammingError):
            time.sleep(ATTEMPT_SECONDS)
    return _opened(url, on_lost, kind)


def _opened(url: str, on_lost: OnLost, kind: type[Database]) -> Database:
    place = make_url(url)
    if place.drivername == "postgresql" and importlib.util.find_spec("psycopg") is None:
        url = url.replace("postgresql:", "postgresql+psycopg2:", 1)  # SQLAlchemy's choice differs between its versions
    sqlite = place.get_backend_name() == "sqlite"
    return kind(
        url,
        # Between two words of a long training a firewall may have closed the connection: ask before each use.
        engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}} if sqlite else {"pool_pre_ping": True},
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=on_lost,
    )


def _behind_proxy(place: URL) -> BaseStorage:
    if importlib.util.find_spec("grpc") is None:
        raise MissingExtra("a grpc:// storage needs grpcio: pip install 'pocketzoo[grpc]'")
    from .remote import RemoteStorage

    if place.host is None or place.port is None:
        raise ValueError("no host and port in it")
    storage = RemoteStorage(place.host, place.port, HEARTBEAT_SECONDS)
    storage.wait_server_ready(PROXY_SECONDS)
    return storage


def _alone(place: URL) -> contextlib.AbstractContextManager[object]:
    """One process at a time makes the tables of an SQLite file: two at once fail over each other's."""
    file = Path(place.database or "")
    if place.get_backend_name() != "sqlite" or not file.name or not file.parent.is_dir():
        return contextlib.nullcontext()
    return FileLock(file.with_name(f".{file.name}.lock"))
