"""What a latency budget came to: the winner's prediction, and its measurement where the device is at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..profiler.calibrated import CalibratedModel
from ..profiler.measurement import Measurement
from ..training.result import Result
from ..zoo.architecture import Architecture
from .space import Space

RECORD = "latency"  # in a result's provenance of the search


@dataclass(frozen=True)
class Latency:
    """One network's latency as predicted, and as measured: None on a device that is only published."""

    device: str
    runtime: str
    limit_ms: float
    predicted_ms: float
    error: Mapping[str, Any]  # the fields of the model's LatencyError
    measurement: Measurement | None = None

    @classmethod
    def of(cls, result: Result) -> Latency | None:
        """What the result of a search says about it; None where the budget had no latency."""
        if (record := result.provenance["search"].get(RECORD)) is None:
            return None
        measured = [Measurement.from_dict(measurement) for measurement in result.measurements]
        return cls(**record, measurement=measured[0] if measured else None)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        measured = None if self.measurement is None else self.measurement.median_ms
        record = {name: value for name, value in asdict(self).items() if name != "measurement"}
        return {**record, "measured_ms": measured}

    def __str__(self) -> str:
        limit = f"the limit was {self.limit_ms:.4g} ms"
        mean = f"mean error {self.error['mape_percent']:.1f} %, {self.error['judged_on']}"
        said = f"latency: predicted {self.predicted_ms:.4g} ms ({mean})"
        if (m := self.measurement) is None:
            return f"{said}; {self.device} ({self.runtime}) is not here, nothing was measured; {limit}"
        place = f"{self.device}, {self.runtime}: {m.stamp.get('accelerator', m.stamp['processor'])}"
        beyond = ", which the measured one exceeds" if m.median_ms > self.limit_ms else ""
        return f"{said}, measured {m.median_ms:.4g} ms on {place}; {limit}{beyond}"


def predicted(space: Space, architecture: Architecture) -> dict[str, Any]:
    """The record of a prediction and its model's error; empty where the budget has no latency."""
    if (model := space.latency) is None:
        return {}
    limit_ms, ms = space.budget.limits["latency_ms"], float(model.predict(architecture.graph())[0])
    record = Latency(model.device, model.runtime, limit_ms, ms, asdict(model.error)).to_dict()
    return {RECORD: {name: value for name, value in record.items() if name != "measured_ms"}}


def measured(space: Space, architectures: Sequence[Architecture]) -> dict[str, Measurement]:
    """Measurements by the networks' keys, in common rounds, as the device's calibration was made.

    Empty where the budget has no latency, or one of a device that is only published. Raises DeviceFailed.
    """
    if not isinstance(model := space.latency, CalibratedModel):
        return {}
    from ..profiler.measure import measure  # which loads the exporter's and the runtimes' packages

    networks = {architecture.key: architecture for architecture in architectures}
    found = measure(networks, device=model.device, runtime=model.runtime, threads=model.threads)
    return dict(zip(networks, found, strict=True))
