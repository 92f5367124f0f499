"""Latencies of networks on one device: published, measured by somebody, or predicted, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UnknownDevice, suggestion
from ..profiler.runner import processor
from .figure import Figure
from .networks import Network
from .phones import phones, predicted, traced
from .places import Latencies, Place, measured
from .records import Records

if TYPE_CHECKING:
    from ..profiler.latency import LatencyModel

LOCAL = ("cpu", "cuda")  # names that mean another machine wherever they are written
PREFERRED = "onnxruntime"  # of several runtimes that a device was measured with


@dataclass(frozen=True)
class OnDevice:
    """What is known of networks' latencies on one device with one runtime; `device` is its name as it was given."""

    device: str
    place: Place
    known: Latencies  # published and measured ones, and what was predicted beforehand

    def of(self, network: Network) -> Figure | str:
        """Milliseconds of a network, or why there is no figure."""
        if network.key in self.known:
            return self.known[network.key]
        if not network.is_zoos:
            return f"was not measured on {self.place.label}, and only the zoo's own networks are predicted"
        model = _model(self.device, self.place.runtime)
        if model is None:
            return f"was not measured on {self.place.label}, and nothing predicts it there"
        return predicted(model, traced(network))


def on_device(device: str, runtime: str | None, records: Records) -> OnDevice:
    """Latencies on `cpu` or `cuda` of this machine, a processor by its name, or a published device.

    One image, one thread, 32 bits. Raises UnknownDevice.
    """
    shipped = {place: known for place, known in phones().items() if place.device == device}
    there = shipped or _measured_on(device, records)
    fitting = {place: known for place, known in there.items() if runtime in (None, place.runtime)}
    if fitting:
        place = min(fitting, key=lambda p: (p.runtime != PREFERRED, -len(fitting[p]), p))
        return OnDevice(device, place, fitting[place])
    model = None if shipped else _model(device, runtime)
    if model is None:
        raise UnknownDevice(_unknown(device, runtime, records))
    return OnDevice(device, Place(device, model.runtime), {})


def _measured_on(device: str, records: Records) -> dict[Place, dict[str, Figure]]:
    """One-image, one-thread, 32-bit measurements of a device; `cpu` and `cuda` are those of this machine only."""
    here = processor()
    mine = [
        m for m in records.measurements
        if device == m.stamp.get("processor")
        or (device == m.device and (device not in LOCAL or m.stamp.get("processor") == here))
    ]  # fmt: skip
    found = measured(Records(tuple(mine)))
    return {p: known for p, known in found.items() if (p.threads, p.batch, p.dtype) == (1, 1, "fp32")}


def _model(device: str, runtime: str | None) -> LatencyModel | None:
    from ..profiler.latency import latency_model

    try:
        return latency_model(device, runtime)
    except UnknownDevice:
        return None


def _unknown(device: str, runtime: str | None, records: Records) -> str:
    places = [*phones(), *measured(records)]
    devices = sorted({place.device for place in places})
    of_it = sorted({place.runtime for place in places if place.device == device})
    if runtime and of_it:
        return f"latencies on {device} are known with {', '.join(of_it)} only, not with {runtime!r}"
    return (
        f"nothing is known of latencies on {device!r}{suggestion(device, devices)} (known are"
        f" {', '.join(devices) or 'none'}); pocketzoo calibrate --device {device} makes it known"
    )
