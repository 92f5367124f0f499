"""The gRPC proxy of a database for many workers, which also looks for the dead among them.

Workers give `--storage grpc://host:port` and need neither the database's driver nor its password. Optuna's own proxy
knows no heartbeats: this one writes the workers' beats into the database, and queues the trials of silent ones again.
"""

from __future__ import annotations

import os
import socket
import threading
import warnings
from typing import Any

import click
import optuna
from optuna.storages import BaseStorage, run_grpc_proxy_server

from ..errors import InvalidRun, PocketzooError
from .remote import HEARTBEAT
from .storage import HEARTBEAT_SECONDS, Database, database, opening
from .studies import PREFIX, queue_again, quiet, take_up_lost_trials


class Relay(Database):
    """A database that hears of heartbeats through the one call of the proxy's protocol that can carry them."""

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's; a worker's beat becomes a heartbeat."""
        if key == HEARTBEAT:
            self.record_heartbeat(trial_id)
        else:
            super().set_trial_system_attr(trial_id, key, value)


def serve(url: str, host: str, port: int) -> None:
    """Serve the database until the process is stopped; raises InvalidRun when it, or the port, cannot be had."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        with opening(url):
            storage = optuna.storages.get_storage(database(url, queue_again, Relay))
        try:
            socket.create_server((host, port)).close()  # gRPC itself would share a port that is taken
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else error
            raise InvalidRun(f"cannot listen on {host}:{port}: {reason}; give another --port") from None
        server = threading.Thread(
            target=run_grpc_proxy_server, args=(storage,), kwargs={"host": host, "port": port}, daemon=True
        )
        server.start()
        while server.is_alive():
            look_after(storage)
            server.join(HEARTBEAT_SECONDS)


def look_after(storage: BaseStorage) -> None:
    """Queue the trials of dead workers again, in every study of ours."""
    try:
        for name in optuna.get_all_study_names(storage):
            if name.startswith(PREFIX):
                take_up_lost_trials(optuna.load_study(study_name=name, storage=storage))
    except optuna.exceptions.StorageInternalError as error:  # the database may come back
        reason = str(error.__cause__ or error).partition("\n")[0]
        click.echo(f"the database does not answer ({reason})", err=True)


@click.command()
@click.option("--storage", required=True, metavar="URL", help="The database, such as postgresql://user@host/name.")
@click.option("--host", default="localhost", show_default=True, help="Where to listen; 0.0.0.0 for other machines.")
@click.option("--port", default=13000, show_default=True, type=click.IntRange(1, 65535), help="Where to listen.")
def main(storage: str, host: str, port: int) -> None:
    """Serve a study's database to workers that are given --storage grpc://HOST:PORT, and notice dead workers.

    The connection is not encrypted: let only the cluster's own network reach the port.
    """
    try:
        serve(storage, host, port)
    except PocketzooError as error:
        raise click.UsageError(str(error)) from None


if __name__ == "__main__":
    main()
