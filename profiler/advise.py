"""Advice: where a network breaks the guidelines for fast networks or leaves vector lanes idle, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ..errors import InvalidSetting, OutsideCalibration
from ..graph.channel_graph import ChannelGraph
from ..zoo.architecture import Architecture
from .guidelines import ELEMENTWISE, GUIDELINES, Finding
from .physical import LatencyError
from .report import profile
from .savings import Cost, Subject

if TYPE_CHECKING:
    from .latency import LatencyModel

IDLE_LANES = 0.05  # vectors: share of idle lanes; below, the nearest multiple saves less than latency models err
LANES = {"snapdragon": 4, "pixel": 4, "adb": 4}  # floats of a vector by the device's name: Neon has 128 bits
CPU_LANES = {"AVX512": 16, "AVX2": 8, "NEON": 4, "SVE128": 4, "SVE256": 8, "ZVECTOR": 4, "VSX": 4, "DEFAULT": 4}


@dataclass(frozen=True)
class Advice:
    """All findings, dearest first, and what the network costs in all."""

    name: str
    device: str | None
    runtime: str | None
    error: LatencyError | None  # of the device's latency model
    total: Cost
    elementwise: Cost  # all operators that guideline 4 counts
    findings: list[Finding] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """A row per finding: guideline, layer, figure, cost_ms, cost_percent, access_percent, remedy.

        `cost_percent` is of the network's time; both are nan without a device. `attrs` holds device and totals.
        """
        rows = [
            {
                "guideline": f.guideline, "layer": f.layer, "figure": f.figure,
                "cost_ms": f.cost.ms, "cost_percent": 100 * f.cost.ms / self.total.ms,
                "access_percent": 100 * f.cost.access / self.total.access, "remedy": f.remedy,
            }
            for f in self.findings
        ]  # fmt: skip
        columns = ["guideline", "layer", "figure", "cost_ms", "cost_percent", "access_percent", "remedy"]
        frame = pd.DataFrame(rows, columns=columns)
        frame.attrs = {"name": self.name, "device": self.device, "runtime": self.runtime,
                       "total": self.total._asdict(), "elementwise": self.elementwise._asdict()}  # fmt: skip
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, None for what is not known."""
        rows = self.frame().astype(object)
        totals = {key: _known(getattr(self, key)._asdict()) for key in ("total", "elementwise")}
        error = None if self.error is None else _known(asdict(self.error))
        return {"name": self.name, "device": self.device, "runtime": self.runtime, "error": error, **totals,
                "findings": rows.where(rows.notna(), None).to_dict("records")}  # fmt: skip


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}


def vectors(subject: Subject, lanes: int) -> Iterator[Finding]:
    """Widths that leave lanes of the last vector idle, with the next multiple that fits priced in the whole network."""
    graph = subject.graph
    idle = {g: 1 - width / _multiple(width, lanes) for g, width in graph.groups.items()}
    if not (groups := [group for group, share in idle.items() if share >= IDLE_LANES]):
        return
    rows = _next_multiples(graph, groups, lanes)
    layers = _layers_of(subject, groups, rows)
    changes = _changes(subject, rows)
    for group, row, places, change in zip(groups, rows, layers, changes, strict=True):
        width, wider = graph.groups[group], int(row[list(graph.groups).index(group)])
        own = sum(subject.saved_without(place).ms for place in places)
        figure = (f"{width} channels in vectors of {lanes}: {100 * idle[group]:.0f} % of the lanes idle in "
                  f"{len(places)} layer{'s' * (len(places) != 1)}")  # fmt: skip
        remedy = f"{wider} channels: {change}" if graph.valid(row)[0] else "no near multiple fits what ties its width"
        yield Finding("vectors", group, figure, remedy, Cost(0.0, idle[group] * own))


def examine(
    graph: ChannelGraph, latency: LatencyModel | None = None, lanes: int | None = None, name: str = ""
) -> Advice:
    """All findings of a traced network; `lanes`: floats in a vector of the device, None: no check of widths."""
    subject = Subject(graph, latency)
    found = [finding for guideline in GUIDELINES for finding in guideline(subject)]
    found += vectors(subject, lanes) if lanes and latency else []
    costly = [f for f in found if not subject.share(f.cost) <= 0]  # the device folds or overlaps what costs nothing
    costly.sort(key=lambda f: np.nan_to_num(subject.share(f.cost), nan=-1.0), reverse=True)
    moved = [i for i, op in enumerate(subject.operators) if op.kind in ELEMENTWISE]
    device, runtime, error = (latency.device, latency.runtime, latency.error) if latency else (None, None, None)
    return Advice(name, device, runtime, error, subject.total, subject.saved_without(*moved), costly)


def advise(
    model: str | Architecture | nn.Module,
    device: str | None = None,
    runtime: str | None = None,
    *,
    resolution: int | None = None,
    input_shape: Sequence[int] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Where a network breaks the guidelines and what it costs there, dearest first (see `Advice.frame`).

    `model` is a zoo name, `module:factory`, Architecture or module (which needs `input_shape` or `resolution`).
    Without a device the order is by memory access. Raises UnknownDevice, OutsideCalibration, and what `profile` raises.
    """
    return advice(model, device, runtime, resolution=resolution, input_shape=input_shape, **settings).frame()


def advice(
    model: str | Architecture | nn.Module,
    device: str | None = None,
    runtime: str | None = None,
    *,
    resolution: int | None = None,
    input_shape: Sequence[int] | None = None,
    **settings: Any,
) -> Advice:
    """The same as a record."""
    if runtime is not None and device is None:
        raise InvalidSetting(f"runtime {runtime!r} belongs to a device: give device too, such as 'cpu'")
    traced = profile(model, resolution=resolution, input_shape=input_shape, **settings)
    if device is None:
        return examine(traced.graph, name=traced.name)
    from .latency import latency_model

    return examine(traced.graph, latency_model(device, runtime), vector_lanes(device), traced.name)


def vector_lanes(device: str) -> int | None:
    """Floats in a vector of a device; of this processor as PyTorch finds it; None where nobody knows or it is a GPU."""
    if device == "cpu":
        return CPU_LANES.get(torch.backends.cpu.get_cpu_capability())
    return next((lanes for prefix, lanes in LANES.items() if device.startswith(prefix)), None)


# -- widths -----------------------------------------------------------------------------------------------------------


def _multiple(width: int, lanes: int) -> int:
    return -(-width // lanes) * lanes


def _next_multiples(graph: ChannelGraph, groups: Sequence[str], lanes: int) -> npt.NDArray[np.int64]:
    """[groups, G] widths: each row widens one group to the first of four multiples that fits, or else to the first."""
    rows = np.tile(np.array(list(graph.groups.values())), (len(groups), 4, 1))
    for k, group in enumerate(groups):
        rows[k, :, list(graph.groups).index(group)] = _multiple(graph.groups[group], lanes) + lanes * np.arange(4)
    fits = graph.valid(rows.reshape(len(groups) * 4, -1)).reshape(len(groups), 4)
    chosen: npt.NDArray[np.int64] = rows[np.arange(len(groups)), fits.argmax(axis=1)]
    return chosen


def _layers_of(subject: Subject, groups: Sequence[str], rows: npt.NDArray[np.int64]) -> list[list[int]]:
    """Places of the convolutions and linear layers that make each group's channels, and nothing else."""
    made: list[list[int]] = [[] for _ in groups]
    for i, op in enumerate(subject.graph.operators(rows)):
        if not int(subject.operators[i].macs):
            continue
        channel = 1 if len(op.output) == 4 else -1
        now, then = subject.operators[i].output[channel], np.broadcast_to(op.output[channel], len(groups))
        for k, group in enumerate(groups):
            if now == subject.graph.groups[group] and then[k] != now:
                made[k].append(i)
    return made


def _changes(subject: Subject, rows: npt.NDArray[np.int64]) -> list[str]:
    """What the whole network pays for each row of widths, in words."""
    graph = subject.graph
    more = graph.price_many(rows, ("macs",))["macs"].to_numpy() / graph.price().macs - 1
    words = [f"{100 * share:+.1f} % MACs" for share in more]
    if subject.latency is None:
        return words
    try:
        ms = subject.latency.predict(graph, rows) - subject.total.ms
    except OutsideCalibration:
        return [f"{word}; its time is outside the device's calibration" for word in words]
    return [f"{word}, {value:+.2g} ms as predicted" for word, value in zip(words, ms, strict=True)]
