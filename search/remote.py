"""A storage behind a gRPC proxy, with the heartbeat that Optuna's own client lacks."""

from __future__ import annotations

import contextlib

import grpc
from optuna.storages import GrpcStorageProxy
from optuna.storages._heartbeat import BaseHeartbeat

HEARTBEAT = "pocketzoo:heartbeat"  # trial system attribute that the proxy writes down as the trial's heartbeat


class RemoteStorage(GrpcStorageProxy, BaseHeartbeat):
    """Optuna's client, whose trials beat. Who has stopped is seen beside the proxy, by the database's clock."""

    def __init__(self, host: str, port: int, interval_seconds: int) -> None:
        super().__init__(host=host, port=port)
        self._interval_seconds = interval_seconds

    def record_heartbeat(self, trial_id: int) -> None:
        """Tell the proxy that this trial's process lives; where it does not answer, the next beat tells it."""
        with contextlib.suppress(grpc.RpcError):
            self.set_trial_system_attr(trial_id, HEARTBEAT, True)

    def get_heartbeat_interval(self) -> int:
        """In seconds."""
        return self._interval_seconds

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        return []

    def get_heartbeat_stale_trial_callback(self) -> None:
        """None: the proxy queues lost trials again."""
