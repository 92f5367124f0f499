"""ShuffleNet v2's four guidelines (arXiv:1807.11164, section 2) as checks of a traced network.

Memory access is counted as the paper does: every operator reads its inputs and weights and writes its output, nothing
fused. On a device, costs are milliseconds of its latency model; alternatives are traced and priced by the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ..errors import OutsideCalibration
from ..graph.channel_graph import ChannelGraph, trace
from ..graph.sized import SizedOperator

if TYPE_CHECKING:
    from .latency import LatencyModel

EXCESS = 0.10  # G1, G2: memory access over the least. Table 1: widths 1:2 cost 6 % more and 4 % of the speed on ARM,
#                1:6 cost 43 % and 9 %; Table 2: two groups cost 41 % and 12 %.
FRAGMENT_MACS = 25e6  # G3: a convolution's MACs. Table 3 on ARM: two branches lose 17 % at 6 M MACs a convolution,
#                       10 % at 26 M, 4 % at 103 M.
OPERATOR_SHARE = (
    0.01  # G4: of the network. Section 2's figure 2 sums many small ones; below this, one is not worth work
)

ELEMENTWISE = ("activation", "add", "mul", "batch norm", "copy", "concatenation", "depthwise conv")
REMOVE = {
    "activation": "leave it out where no convolution of the block needs it",
    "add": "join by concatenation that feeds half of the channels past the block, or drop the shortcut",
    "mul": "fewer channels where the gate is applied, or no squeeze-excite in this block",
    "batch norm": "fold it into the convolution before it",
    "copy": "fewer shuffles or pads: on fewer channels, or merged with the concatenation beside it",
    "concatenation": "merge it with the shuffle and the split that follow",
    "depthwise conv": "run it where the block is narrow",
}


class Cost(NamedTuple):
    """Memory access in elements, and milliseconds; nan where no device was chosen or its model does not reach."""

    access: float
    ms: float

    def less(self, other: Cost) -> Cost:
        """What remains beyond another."""
        return Cost(self.access - other.access, self.ms - other.ms)


@dataclass(frozen=True)
class Finding:
    """One place where the network breaks a guideline; costs are what removing it would save, as estimated."""

    guideline: str  # "G1 balance", "G2 groups", "G3 fragments", "G4 element-wise", "vectors"
    layer: str
    figure: str
    remedy: str
    cost: Cost


class Subject:
    """The network under examination: its operators with what each costs, and prices of alternatives."""

    def __init__(self, graph: ChannelGraph, latency: LatencyModel | None) -> None:
        self.graph, self.latency = graph, latency
        self.operators = graph.operators()
        self.access = np.array([accessed(op) for op in self.operators], dtype=float)
        self.ms = np.full(len(self.access), math.nan) if latency is None else latency.by_operator(graph)

    @cached_property
    def total(self) -> Cost:
        """The whole network."""
        ms = math.nan if self.latency is None else float(self.latency.predict(self.graph)[0])
        return Cost(float(self.access.sum()), ms)

    def cost(self, places: Sequence[int]) -> Cost:
        """Of some operators together."""
        return Cost(float(self.access[places].sum()), float(self.ms[places].sum()))

    def beyond_its_macs(self, place: int) -> Cost:
        """What an operator costs beyond what its MACs would in this network's dense convolutions."""
        dense = [i for i, op in enumerate(self.operators) if op.kind == "conv"]
        share = int(self.operators[place].macs) / max(1, _macs([self.operators[i] for i in dense]))
        own, other = self.cost([place]), self.cost(dense)
        return Cost(own.access - share * other.access, own.ms - share * other.ms)

    def alone(self, c_in: int, c_out: int, groups: int, like: SizedOperator) -> Cost:
        """A convolution of other widths in the place of `like`, priced by itself."""
        (batch, _, height, width), kernel = like.inputs[0], like.weight[2]
        stride = -(-int(height) // int(like.output[2]))
        with torch.device("meta"):
            conv = nn.Conv2d(c_in, c_out, int(kernel), stride, int(kernel) // 2, groups=groups, bias=False)
        graph = trace(conv, (int(batch), c_in, int(height), int(width)))
        access = sum(accessed(op) for op in graph.operators())
        try:
            ms = math.nan if self.latency is None else float(self.latency.by_operator(graph).sum())
        except OutsideCalibration:  # the network itself is inside; of the alternative the access is known all the same
            ms = math.nan
        return Cost(access, ms)

    def together(self, operators: Sequence[SizedOperator], wider: float) -> Cost:
        """Convolutions, each making `wider` times its channels, and other operators as they are."""
        costs = [
            self._widened(op, wider) if _is_conv(op) else self.cost([self.operators.index(op)]) for op in operators
        ]
        return Cost(sum(cost.access for cost in costs), sum(cost.ms for cost in costs))

    def _widened(self, op: SizedOperator, wider: float) -> Cost:
        c_in, c_out, groups = _widths(op)
        if op.kind == "depthwise conv":
            c_in = groups = round(wider * c_in)
        return self.alone(c_in, max(1, round(wider * c_out / groups)) * groups, groups, op)

    def share(self, cost: Cost) -> float:
        """Of the network's time, nan where that is not known; of its memory access where no device was chosen."""
        return cost.access / self.total.access if self.latency is None else cost.ms / self.total.ms


def accessed(op: SizedOperator) -> int:
    """Elements that an operator reads and writes; a view moves nothing."""
    return 0 if op.kind == "view" else int(op.elements_in + op.elements_out + op.elements_weight)


def least_access(pixels: int, c_in: int, c_out: int, groups: int = 1) -> float:
    """G1's bound of a 1x1 convolution's access, 2 sqrt(hwB) + B / hw without groups: reached where c_in = c_out."""
    return 2 * pixels * math.sqrt(c_in * c_out) + c_in * c_out / groups


def pointwise_access(pixels: int, c_in: int, c_out: int, groups: int = 1) -> int:
    """Memory access of a 1x1 convolution: hw (c_in + c_out) + c_in c_out / g."""
    return pixels * (c_in + c_out) + c_in * c_out // groups


# -- the guidelines ---------------------------------------------------------------------------------------------------


def balance(subject: Subject) -> Iterator[Finding]:
    """G1: 1x1 convolutions of stride 1 whose widths differ, against equal widths at the same MACs."""
    for op in subject.operators:
        if not _is_conv(op) or op.weight[2:] != (1, 1) or op.inputs[0][2:] != op.output[2:]:
            continue
        c_in, c_out, groups = _widths(op)
        pixels = int(op.output[0] * op.output[2] * op.output[3])
        now, least = pointwise_access(pixels, c_in, c_out, groups), least_access(pixels, c_in, c_out, groups)
        if now < (1 + EXCESS) * least:
            continue
        equal = max(1, round(math.sqrt(c_in * c_out) / groups)) * groups
        before, after = subject.alone(c_in, c_out, groups, op), subject.alone(equal, equal, groups, op)
        figure = f"{c_in}:{c_out}, memory access {now / least:.2f}x of the least at {_millions(op.macs)} MACs"
        yield Finding("G1 balance", op.name, figure, _instead(f"{equal}:{equal}", before, after), before.less(after))


def grouping(subject: Subject) -> Iterator[Finding]:
    """G2: grouped convolutions, against ungrouped ones of the same MACs: both widths divided by the root of g."""
    for op in subject.operators:
        if not _is_conv(op) or op.kind != "grouped conv":
            continue
        c_in, c_out, groups = _widths(op)
        narrow_in, narrow_out = (max(1, round(c / math.sqrt(groups))) for c in (c_in, c_out))
        before, after = subject.alone(c_in, c_out, groups, op), subject.alone(narrow_in, narrow_out, 1, op)
        if before.access < (1 + EXCESS) * after.access:
            continue
        figure = f"{groups} groups, memory access {before.access / after.access:.2f}x of ungrouped at the same MACs"
        remedy = _instead(f"ungrouped {narrow_in}:{narrow_out}", before, after)
        yield Finding("G2 groups", op.name, figure, remedy, before.less(after))


def fragments(subject: Subject) -> Iterator[Finding]:
    """G3: branches side by side, each of small convolutions, against the largest alone, widened to all their MACs."""
    operators = subject.operators
    for inside, join in parallel_parts(operators):
        branches = [own for b in inside if (own := [operators[i] for i in b if _computes(operators[i])])]
        kernels = [op for branch in branches for op in branch]
        convolutions = [op for op in kernels if int(op.macs)]
        macs = _macs(kernels)
        if len(branches) < 2 or not convolutions or macs >= FRAGMENT_MACS * len(convolutions):
            continue
        largest = max(branches, key=_macs)
        before = subject.together(kernels, 1.0)
        after = subject.together([op for op in largest if int(op.macs)], macs / _macs(largest))
        figure = (f"{len(branches)} branches, {len(kernels)} convolutions and pools, {_millions(macs)} MACs: "
                  f"{1e6 * len(kernels) / macs:.2g} kernels a million")  # fmt: skip
        remedy = _instead(f"its largest branch alone, {macs / _macs(largest):.2g}x as wide,", before, after)
        yield Finding("G3 fragments", _common([op.name for op in (*kernels, operators[join])]), figure, remedy,
                      before.less(after))  # fmt: skip


def elementwise(subject: Subject) -> Iterator[Finding]:
    """G4: operators that move more than they compute, beyond what their MACs cost in dense convolutions."""
    for i, op in enumerate(subject.operators):
        if op.kind not in ELEMENTWISE:
            continue
        own, total = subject.cost([i]), subject.total
        if own.access < OPERATOR_SHARE * total.access and not own.ms >= OPERATOR_SHARE * total.ms:
            continue
        figure = f"{op.kind} on {_shape(op)}: {100 * own.access / total.access:.1f} % of the memory access"
        if not math.isnan(own.ms):
            figure += f", {100 * own.ms / total.ms:.1f} % of the time"
        yield Finding("G4 element-wise", op.name, figure, REMOVE[op.kind], subject.beyond_its_macs(i))


GUIDELINES: tuple[Callable[[Subject], Iterator[Finding]], ...] = (balance, grouping, fragments, elementwise)


# -- structure --------------------------------------------------------------------------------------------------------


def parallel_parts(operators: Sequence[SizedOperator]) -> Iterator[tuple[list[list[int]], int]]:
    """Where data flows in several branches: the branches as places in the list, and the place that joins them.

    A part lies between two operators that all data passes through; its branches share no operator.
    """
    last = list(range(len(operators)))  # furthest reader
    for i, op in enumerate(operators):
        for source in op.sources:
            if source >= 0:
                last[source] = max(last[source], i)
    before, reach = -1, 0
    for i in range(len(operators)):
        if reach <= i:
            inside = set(range(before + 1, i)) - _joining(operators, i, before)
            if len(branches := _components(operators, inside)) > 1:
                yield branches, i
            before = i
        reach = max(reach, last[i])


def _joining(operators: Sequence[SizedOperator], join: int, before: int) -> set[int]:
    """The sums and concatenations whose result goes straight into the join: several branches are added two by two."""
    found: set[int] = set()
    waiting = [join]
    while waiting:
        for source in operators[waiting.pop()].sources:
            if source > before and operators[source].kind in ("add", "concatenation"):
                found.add(source)
                waiting.append(source)
    return found


def _components(operators: Sequence[SizedOperator], places: Collection[int]) -> list[list[int]]:
    """Groups of operators that data connects within these places."""
    home: dict[int, list[int]] = {}
    for i in sorted(places):
        merged = [i]
        for source in {id(home[s]): home[s] for s in operators[i].sources if s in home}.values():
            merged = source + merged
        home |= dict.fromkeys(merged, merged)
    return list({id(members): members for members in home.values()}.values())


def _is_conv(op: SizedOperator) -> bool:
    return op.kind in ("conv", "grouped conv", "depthwise conv") and len(op.weight) == 4


def _macs(operators: Sequence[SizedOperator]) -> int:
    return sum(int(op.macs) for op in operators)


def _computes(op: SizedOperator) -> bool:
    return op.kind == "pool" or int(op.macs) > 0


def _widths(op: SizedOperator) -> tuple[int, int, int]:
    """Channels read, channels made, groups."""
    c_in = int(op.inputs[0][1])
    return c_in, int(op.output[1]), c_in // int(op.weight[1])


def _common(names: Sequence[str]) -> str:
    """The module that holds all of these."""
    parts = [name.split(".") for name in names]
    same = [column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1]
    return ".".join(same[: len(min(parts, key=len))]) or names[-1]


# -- words ------------------------------------------------------------------------------------------------------------


def _instead(what: str, before: Cost, after: Cost) -> str:
    return f"{what} at the same MACs: {100 * (1 - after.access / before.access):.0f} % less memory access"


def _millions(macs: Any) -> str:
    return f"{int(macs) / 1e6:.3g} M"


def _shape(op: SizedOperator) -> str:
    return "x".join(map(str, op.output))
