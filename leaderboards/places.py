"""Places: where and how a latency holds, and what was measured there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..profiler.measurement import Measurement
from .figure import Figure
from .networks import key_of
from .records import Records


@dataclass(frozen=True, order=True)
class Place:
    """Where and how a latency holds; `device` is the processor's name, or a published device's."""

    device: str
    runtime: str
    threads: int = 1
    batch: int = 1
    dtype: str = "fp32"

    @property
    def label(self) -> str:
        """What a heading says: device and runtime, and what is not one thread, one image, 32 bits."""
        parts = [self.device, self.runtime]
        parts += [f"{self.threads} threads"] if self.threads != 1 else []
        parts += [f"batch {self.batch}"] if self.batch != 1 else []
        parts += [self.dtype] if self.dtype != "fp32" else []
        return ", ".join(parts)


Latencies = Mapping[str, Figure | str]  # a network's key -> milliseconds a batch, or why there is no figure


def key_measured(measurement: Measurement) -> str:
    """The key of the network that was measured."""
    return key_of(measurement.architecture) if measurement.architecture else measurement.model


def measured(records: Records) -> dict[Place, dict[str, Figure]]:
    """The latest measurement of every network at every place."""
    found: dict[Place, dict[str, Figure]] = {}
    for m in sorted(records.measurements, key=lambda m: str(m.stamp.get("date", ""))):
        place = Place(str(m.stamp.get("processor") or m.device), m.runtime, m.threads, m.input_shape[0], m.dtype)
        found.setdefault(place, {})[key_measured(m)] = Figure(m.median_ms, "measured", _how(m))
    return dict(sorted(found.items()))


def _how(m: Measurement) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in m.versions.items()) or m.runtime
    half = 100 * (m.high_ms - m.low_ms) / 2 / m.median_ms
    return (
        f"on {m.stamp.get('processor') or m.device}, {m.runtime} ({versions}), {m.threads} thread"
        f"{'s' if m.threads != 1 else ''}, {str(m.stamp.get('date', 'no date'))[:10]}, {m.rounds} rounds,"
        f" within {half:.1f} %" + "".join(f"; {warning}" for warning in m.warnings)
    )
