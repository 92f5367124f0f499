"""What a network would save without some of its operators, or with others in their place.

What an operator costs depends on what stands beside it: runtimes fold it into its neighbour, and copy tensors where
neighbours want other layouts. So a saving is the prediction of the network minus that of the network as it would be,
and not a line of the prediction's sum, in which a copy may stand with the operator before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import OutsideCalibration
from ..graph.channel_graph import ChannelGraph
from ..graph.sized import SizedOperator

if TYPE_CHECKING:
    from .latency import LatencyModel

Changes = Mapping[int, SizedOperator | None]  # place -> what stands there instead; None: nothing


class Cost(NamedTuple):
    """Memory access in elements, and milliseconds; nan where no device was chosen or its model does not reach."""

    access: float
    ms: float


class Subject:
    """The network under examination: its operators, what they cost together, and what changes of them save."""

    def __init__(self, graph: ChannelGraph, latency: LatencyModel | None) -> None:
        self.graph, self.latency = graph, latency
        self.operators = graph.operators()
        self.access = np.array([accessed(op) for op in self.operators], dtype=float)

    @cached_property
    def total(self) -> Cost:
        """The whole network; raises OutsideCalibration."""
        ms = math.nan if self.latency is None else float(self.latency.predict(self.graph)[0])
        return Cost(float(self.access.sum()), ms)

    def saved(self, changes: Changes) -> Cost:
        """What is saved where operators change; negative where they would cost more."""
        access = sum(self.access[i] - (accessed(op) if op else 0) for i, op in changes.items())
        return Cost(float(access), self.total.ms - self._ms(changed(self.operators, changes)))

    def saved_without(self, *places: int) -> Cost:
        """What is saved where operators go, a copy together with the views around it."""
        return self.saved(dict.fromkeys([*places, *views_around(self.operators, places)]))

    def less_macs(self, cost: Cost, macs: int) -> Cost:
        """A cost without what as many MACs cost in this network's dense convolutions."""
        if not macs:
            return cost
        share = macs / max(1, sum(int(op.macs) for op in self.operators if op.kind == "conv"))
        return Cost(cost.access - share * self._dense.access, cost.ms - share * self._dense.ms)

    def share(self, cost: Cost) -> float:
        """Of the network's time, nan where that is not known; of its memory access where no device was chosen."""
        return cost.access / self.total.access if self.latency is None else cost.ms / self.total.ms

    @cached_property
    def lines(self) -> npt.NDArray[np.float64]:
        """Milliseconds of each operator in the prediction's sum; quick, but see the top of this file."""
        if self.latency is None:
            return np.full(len(self.operators), math.nan)
        return self.latency.by_operator(self.graph)

    @cached_property
    def _dense(self) -> Cost:
        """The dense convolutions in a row, with nothing between them for which a runtime would copy."""
        dense = changed(self.operators, {i: None for i, op in enumerate(self.operators) if op.kind != "conv"})
        ms = math.nan if self.latency is None else float(self.latency.by_operator(_Changed(self.graph, dense)).sum())
        return Cost(float(sum(map(accessed, dense))), ms)

    def _ms(self, operators: Sequence[SizedOperator]) -> float:
        """The prediction for other operators; nan where the device's model does not reach."""
        if self.latency is None:
            return math.nan
        try:
            return float(self.latency.predict(_Changed(self.graph, operators))[0])
        except OutsideCalibration:  # the network itself is inside; of its change the access is known all the same
            return math.nan


class _Changed(ChannelGraph):
    """A graph with other operators, as a latency model reads it."""

    def __init__(self, graph: ChannelGraph, operators: Sequence[SizedOperator]) -> None:
        vars(self).update(vars(graph))
        self._operators = list(operators)

    def operators(self, widths: npt.ArrayLike | None = None) -> list[SizedOperator]:
        """The operators as they were given; their sizes do not follow widths."""
        assert widths is None
        return self._operators


def accessed(op: SizedOperator) -> int:
    """Elements that an operator reads and writes; a view moves nothing."""
    return 0 if op.kind == "view" else int(op.elements_in + op.elements_out + op.elements_weight)


def changed(operators: Sequence[SizedOperator], changes: Changes) -> list[SizedOperator]:
    """The list with operators replaced or gone.

    What read the output of one that is gone reads its largest input instead, the latest made where several are: x of a
    gate times x, the branch of a branch plus its shortcut. All others keep their sizes.
    """
    left: list[SizedOperator] = []
    place = {-1: -1}
    for i, own in enumerate(operators):
        op = changes.get(i, own)
        if op is None:
            largest = max(own.sources, key=lambda s: (operators[s].elements_out if s >= 0 else 0, s), default=-1)
            place[i] = place[largest]
            continue
        place[i] = len(left)
        left.append(replace(op, sources=tuple(place[source] for source in own.sources)))
    return left


def views_around(operators: Sequence[SizedOperator], places: Collection[int]) -> list[int]:
    """The views that lead to the copies among these places and to nothing else, or come from them: of a shuffle, say.

    A view moves nothing by itself, but where a runtime cannot make it in its own layout, it copies for it.
    """
    readers: list[set[int]] = [set() for _ in operators]
    for i, op in enumerate(operators):
        for source in op.sources:
            if source >= 0:
                readers[source].add(i)
    copies = {i for i in places if operators[i].kind == "copy"}
    views = [i for i, op in enumerate(operators) if op.kind == "view"]
    before, after = set(copies), set(copies)
    for i in reversed(views):
        before |= {i} if readers[i] and readers[i] <= before else set()
    for i in views:
        after |= {i} if operators[i].sources and after.issuperset(operators[i].sources) else set()
    return sorted((before | after) - copies)


def resized(op: SizedOperator, c_in: int, c_out: int, groups: int) -> SizedOperator:
    """A convolution with other channels and groups."""
    (batch, _, *image), (_, _, *made) = op.inputs[0], op.output
    kind = "conv" if groups == 1 else "depthwise conv" if groups == c_in else "grouped conv"
    weight = (c_out, c_in // groups, *op.weight[2:])
    macs = int(batch) * prod(map(int, made)) * int(prod(weight))
    return replace(
        op, kind=kind, inputs=((batch, c_in, *image),), output=(batch, c_out, *made), weight=weight, macs=macs
    )
