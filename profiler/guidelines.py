"""ShuffleNet v2's four guidelines (arXiv:1807.11164, section 2) as checks of a traced network.

Memory access is counted as the paper does: every operator reads its inputs and weights and writes its output, nothing
fused. On a device, costs are milliseconds that its latency model predicts less for the network without the finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..graph.sized import SizedOperator, Sizes
from .savings import Cost, Subject, accessed, resized

EXCESS = 0.10  # G1, G2: memory access over the least. Table 1: widths 1:2 cost 6 % more and 4 % of the speed on ARM,
#                1:6 cost 43 % and 9 %; Table 2: two groups cost 41 % and 12 %.
FRAGMENT_MACS = 25e6  # G3: a convolution's MACs. Table 3 on ARM: two branches lose 17 % at 6 M MACs a convolution,
#                       10 % at 26 M, 4 % at 103 M.
OPERATOR_SHARE = 0.01  # G4: of the network. Figure 2 sums many small ones; below this, one is not worth work
ALIGNED = 4  # channels that an alternative is a multiple of: the narrowest vectors; ONNX Runtime copies around odd ones

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


@dataclass(frozen=True)
class Finding:
    """One place where the network breaks a guideline; costs are what removing it would save, as estimated."""

    guideline: str  # "G1 balance", "G2 groups", "G3 fragments", "G4 element-wise", "vectors"
    layer: str
    figure: str
    remedy: str
    cost: Cost


def least_access(pixels: int, c_in: int, c_out: int, groups: int = 1) -> float:
    """G1's bound of a 1x1 convolution's access, 2 sqrt(hwB) + B / hw without groups: reached where c_in = c_out."""
    return 2 * pixels * math.sqrt(c_in * c_out) + c_in * c_out / groups


def pointwise_access(pixels: int, c_in: int, c_out: int, groups: int = 1) -> int:
    """Memory access of a 1x1 convolution: hw (c_in + c_out) + c_in c_out / g."""
    return pixels * (c_in + c_out) + c_in * c_out // groups


# -- the guidelines ---------------------------------------------------------------------------------------------------


def balance(subject: Subject) -> Iterator[Finding]:
    """G1: 1x1 convolutions of stride 1 whose widths differ, against equal widths at the same MACs."""
    for i, op in enumerate(subject.operators):
        if not _is_conv(op) or op.weight[2:] != (1, 1) or op.inputs[0][2:] != op.output[2:]:
            continue
        c_in, c_out, groups = _widths(op)
        pixels = int(op.output[0] * op.output[2] * op.output[3])
        now, least = pointwise_access(pixels, c_in, c_out, groups), least_access(pixels, c_in, c_out, groups)
        if now < (1 + EXCESS) * least:
            continue
        equal = _aligned(math.sqrt(c_in * c_out), groups)
        balanced = resized(op, equal, equal, groups)
        figure = f"{c_in}:{c_out}, memory access {now / least:.2f}x of the least at {_millions(op.macs)} MACs"
        remedy = _instead(f"{equal}:{equal}", accessed(op), accessed(balanced))
        yield Finding("G1 balance", op.name, figure, remedy, subject.saved({i: balanced}))


def grouping(subject: Subject) -> Iterator[Finding]:
    """G2: grouped convolutions, against ungrouped ones of the same MACs: both widths divided by the root of g."""
    for i, op in enumerate(subject.operators):
        if not _is_conv(op) or op.kind != "grouped conv":
            continue
        c_in, c_out, groups = _widths(op)
        narrow_in, narrow_out = (_aligned(c / math.sqrt(groups)) for c in (c_in, c_out))
        ungrouped = resized(op, narrow_in, narrow_out, 1)
        before, after = accessed(op), accessed(ungrouped)
        if before < (1 + EXCESS) * after:
            continue
        figure = f"{groups} groups, memory access {before / after:.2f}x of ungrouped at the same MACs"
        remedy = _instead(f"ungrouped {narrow_in}:{narrow_out}", before, after)
        yield Finding("G2 groups", op.name, figure, remedy, subject.saved({i: ungrouped}))


def fragments(subject: Subject) -> Iterator[Finding]:
    """G3: branches side by side, each of small convolutions, against the largest alone, widened to all their MACs."""
    operators = subject.operators
    for inside, join in parallel_parts(operators):
        branches = [branch for branch in inside if any(_computes(operators[i]) for i in branch)]
        kernels = [op for branch in branches for i in branch if _computes(op := operators[i])]
        convolutions = [op for op in kernels if int(op.macs)]
        macs = _macs(kernels)
        if len(branches) < 2 or not convolutions or macs >= FRAGMENT_MACS * len(convolutions):
            continue
        largest = max(branches, key=lambda branch: _macs([operators[i] for i in branch]))
        wider = macs / _macs([operators[i] for i in largest])
        changes = {
            i: _widened(operators[i], wider) if branch is largest else None for branch in branches for i in branch
        }
        saved = subject.saved(changes)
        figure = (f"{len(branches)} branches, {len(kernels)} convolutions and pools, {_millions(macs)} MACs: "
                  f"{1e6 * len(kernels) / macs:.2g} kernels a million")  # fmt: skip
        before = sum(accessed(operators[i]) for i in changes)
        remedy = _instead(f"its largest branch alone, {wider:.2g}x as wide,", before, before - saved.access)
        yield Finding("G3 fragments", _common([op.name for op in (*kernels, operators[join])]), figure, remedy, saved)


def elementwise(subject: Subject) -> Iterator[Finding]:
    """G4: operators that move more than they compute, beyond what their MACs cost in dense convolutions."""
    for i, op in enumerate(subject.operators):
        if op.kind not in ELEMENTWISE:
            continue
        total = subject.total
        if not (subject.access[i] >= OPERATOR_SHARE * total.access or subject.lines[i] >= OPERATOR_SHARE * total.ms):
            continue
        own = subject.saved_without(i)
        figure = f"{op.kind} on {_shape(op)}: {100 * own.access / total.access:.1f} % of the memory access"
        if not math.isnan(own.ms):
            figure += f", {100 * own.ms / total.ms:.1f} % of the time"
        yield Finding("G4 element-wise", op.name, figure, REMOVE[op.kind], subject.less_macs(own, int(op.macs)))


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


def _aligned(width: float, groups: int = 1) -> int:
    """The least multiple of groups and of `ALIGNED` that is no less."""
    step = math.lcm(groups, ALIGNED)
    return math.ceil(width / step - 1e-9) * step


def _widened(op: SizedOperator, wider: float) -> SizedOperator:
    """The operator with more channels; a convolution makes more of as many as before, for MACs that grow as much."""
    if _is_conv(op):
        c_in, c_out, groups = _widths(op)
        if op.kind == "depthwise conv":
            per_channel, c_in = c_out // c_in, _aligned(wider * c_in)
            return resized(op, c_in, c_in * per_channel, c_in)
        return resized(op, c_in, _aligned(wider * c_out, groups), groups)

    def more(shape: Sizes) -> Sizes:
        return (shape[0], _aligned(wider * int(shape[1])), *shape[2:]) if len(shape) == 4 else shape

    return replace(op, inputs=tuple(map(more, op.inputs)), output=more(op.output))


def _common(names: Sequence[str]) -> str:
    """The module that holds all of these."""
    parts = [name.split(".") for name in names]
    same = [column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1]
    return ".".join(same[: len(min(parts, key=len))]) or names[-1]


# -- words ------------------------------------------------------------------------------------------------------------


def _instead(what: str, before: float, after: float) -> str:
    """`before`, `after`: elements read and written."""
    return f"{what} at no fewer MACs: {100 * (1 - after / before):.0f} % less memory access"


def _millions(macs: Any) -> str:
    return f"{int(macs) / 1e6:.3g} M"


def _shape(op: SizedOperator) -> str:
    return "x".join(map(str, op.output))
