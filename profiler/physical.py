"""What an operator costs on a machine of which only a few constants are known: compute, memory traffic, a fixed part.

Every operator belongs to a class (a row of a device's table), and a class has

    ms = overhead + (groups - 1) * per group + combine(MACs / rate, bytes / bandwidth + bytes beyond the cache / slower)

where a constant that is absent leaves its term out, and a class without constants is free: what the runtime folds
into the operator before. `combine` is "sum" (compute waits for memory), "max" (the roofline: they overlap) or "norm"
(the root of the sum of squares, in between).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from ..errors import OutsideCalibration
from ..graph.channel_graph import ChannelGraph
from ..graph.sized import Size, SizedOperator

Array = npt.NDArray[np.float64]
BYTES = 4  # of a float
CHUNK = 16384  # candidates at a time: their columns stay in the cache
RELU = ("relu", "hardtanh")  # clamps, which runtimes fold into the operator before
COMBINE: dict[str, Callable[[Array, Array], Array]] = {"sum": np.add, "max": np.maximum, "norm": np.hypot}


@dataclass(frozen=True)
class LatencyError:
    """How far a latency model was off on networks that it was not fitted to."""

    mape_percent: float  # mean of |predicted - measured| / measured
    within_10_percent: float  # share of the networks, 0 to 100
    spearman: float  # nan where there are fewer than three networks
    judged_on: str
    source: str


@dataclass(frozen=True)
class OperatorClass:
    """The constants of one class of operators; None: the term does not exist."""

    gmacs_per_s: float | None = None
    gb_per_s: float | None = None
    overhead_us: float = 0.0
    group_us: float = 0.0  # for every group of a grouped convolution after the first
    cache_mb: float | None = None
    beyond_gb_per_s: float | None = None  # what does not fit in the cache pays this too


@dataclass(frozen=True)
class Work:
    """What operators do: numbers, or arrays of one shape."""

    macs: Size | Array
    bytes: Size | Array  # activations read and written once, and the weights
    groups: Size | Array = 1


@dataclass(frozen=True)
class PhysicalModel:
    """Prices the operators of a graph by the constants of their classes."""

    device: str
    combine: str  # "sum", "max", "norm"
    classes: Mapping[str, OperatorClass]
    operators: Mapping[str, str]  # label of an operator (see `label`) -> its class
    run_us: float = 0.0  # once a run, whatever the network

    def predict(self, graph: ChannelGraph, widths: npt.ArrayLike | None = None) -> Array:
        """Milliseconds [N] of [N, G] width vectors, [1] of the graph as it is; raises OutsideCalibration."""
        if widths is None:
            return np.array([self.run_us / 1e3 + self.by_operator(graph).sum()])
        vectors = np.atleast_2d(np.asarray(widths))
        total = np.full(len(vectors), self.run_us / 1e3)
        for start in range(0, len(vectors), CHUNK):
            part = slice(start, start + CHUNK)
            for op in graph.operators(vectors[part]):
                total[part] += self.operator_ms(op)
        return total

    def by_operator(self, graph: ChannelGraph) -> Array:
        """Milliseconds of each of `graph.operators()`; raises OutsideCalibration."""
        return np.array([float(self.operator_ms(op)) for op in graph.operators()])

    def operator_ms(self, op: SizedOperator) -> Array | float:
        """Milliseconds of one operator for every candidate; nothing where its branch is removed."""
        constants = self.classes[self._class_of(op)]
        if constants == FREE:
            return 0.0
        ms = milliseconds(work(op), constants, self.combine)
        return ms if op.present is None else np.where(op.present, ms, 0.0)

    def _class_of(self, op: SizedOperator) -> str:
        name = label(op)
        if name not in self.operators:
            raise OutsideCalibration(
                f"{self.device} has no figures for operator {name!r} ({op.aten}, at {op.name or 'the top'}): its data "
                f"covers {', '.join(self.operators)}; measure on the device itself, or choose another"
            )
        return self.operators[name]


FREE = OperatorClass()


def label(op: SizedOperator) -> str:
    """The operator as the devices' tables name it: its kind, told apart where the cost is of another nature."""
    if op.kind == "conv" and op.weight[2:] == (1, 1):
        return "1x1 conv"
    if op.kind == "conv" and _slides_3x3(op):
        return "3x3 conv"
    if op.kind == "activation" and op.aten.startswith(RELU):
        return "relu"
    if op.kind == "copy" and op.aten != "clone":
        return "pad"
    return op.kind


def _slides_3x3(op: SizedOperator) -> bool:
    """Whether this is a dense 3x3 convolution of stride 1, which fast algorithms (Winograd's) serve."""
    if op.weight[2:] != (3, 3):
        return False
    before, after = (cast("tuple[int, ...]", sides[2:]) for sides in (op.inputs[0], op.output))
    return all(out >= side - 2 for side, out in zip(before, after, strict=True))


def work(op: SizedOperator) -> Work:
    """What one operator does, at every candidate."""
    groups = op.inputs[0][1] // op.weight[1] if op.kind == "grouped conv" else 1
    elements = op.elements_in + op.elements_out + op.elements_weight
    return Work(op.macs, BYTES * elements, groups)


def milliseconds(work: Work, constants: OperatorClass, combine: str) -> Array:
    """The time of operators of one class."""
    c = constants
    compute = work.macs * (1e-6 / c.gmacs_per_s) if c.gmacs_per_s else 0.0
    memory = work.bytes * (1e-6 / c.gb_per_s) if c.gb_per_s else 0.0
    if c.cache_mb is not None and c.beyond_gb_per_s:
        memory = memory + np.maximum(work.bytes - 1e6 * c.cache_mb, 0.0) * (1e-6 / c.beyond_gb_per_s)
    ms = COMBINE[combine](np.asarray(compute), np.asarray(memory)) + c.overhead_us / 1e3
    return ms + (np.asarray(work.groups) - 1) * (c.group_us / 1e3) if c.group_us else ms


def total_ms(works: Mapping[str, Work], classes: Mapping[str, OperatorClass], combine: str, run_us: float) -> float:
    """A whole network from `workload`: what a fit evaluates many times."""
    return run_us / 1e3 + sum(float(milliseconds(w, classes[name], combine).sum()) for name, w in works.items())


def workload(operators: Sequence[SizedOperator], classes: Mapping[str, str]) -> dict[str, Work]:
    """The operators of a network, class by class, as arrays; `classes`: label -> class."""
    return {name: _stacked(members) for name, members in _by_class(operators, classes)}


def _by_class(operators: Sequence[SizedOperator], classes: Mapping[str, str]) -> Iterator[tuple[str, list[Work]]]:
    for name in dict.fromkeys(classes.values()):
        if members := [work(op) for op in operators if classes[label(op)] == name]:
            yield name, members


def _stacked(works: Sequence[Work]) -> Work:
    def column(name: str) -> Array:
        return np.array([getattr(w, name) for w in works], dtype=np.float64)

    return Work(column("macs"), column("bytes"), column("groups"))
