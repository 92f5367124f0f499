"""Which operators ONNX Runtime keeps in its blocked layout (NCHWc), and what it moves between the layouts.

The rules of its layout transformer for processors with vectors of sixteen floats: a convolution is blocked where its
channels allow it; what comes after stays blocked where it can; every crossing is a copy of the tensor. Sizes may be
arrays over candidates, and so may the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from ..graph.sized import SizedOperator

BLOCK, ALIGNED = 16, 4  # channels of a block; channels that a block can be filled from
STAYS = {"activation", "batch norm"}
Flag = Any  # bool, or [N] of them


@dataclass(frozen=True)
class Layouts:
    """Per operator: its output is blocked; elements copied on the way in and out of the blocked layout (0 without)."""

    blocked: list[Flag]
    into: list[Any]  # copied to blocked because somebody wants the output (of the image: the last entry) so
    out_of: list[Any]  # copied to plain


def plain(operators: Sequence[SizedOperator]) -> Layouts:
    """The layouts of a runtime that hands on plain tensors."""
    return Layouts([False] * len(operators), [0] * len(operators), [0] * len(operators))


def layouts(operators: Sequence[SizedOperator]) -> Layouts:
    """Follow the layouts through a network."""
    blocked: list[Flag] = []
    wants: list[Flag] = []  # its inputs blocked; the others read plain ones
    for operator in operators:
        before = [blocked[source] if source >= 0 else False for source in operator.sources]
        now, wanted = _layout(operator, before)
        blocked.append(now)
        wants.append(wanted)
    wanted_blocked: list[Flag] = [False] * (len(operators) + 1)
    wanted_plain: list[Flag] = [False] * (len(operators) + 1)
    for at, operator in enumerate(operators):
        for source in operator.sources:
            wanted_blocked[source] = np.logical_or(wanted_blocked[source], wants[at])
            wanted_plain[source] = np.logical_or(wanted_plain[source], np.logical_not(wants[at]))
    outputs = [operator.elements_out for operator in operators]
    into = [np.logical_and(w, np.logical_not(b)) * n for w, b, n in zip(wanted_blocked, blocked, outputs, strict=False)]
    out_of = [np.logical_and(w, b) * n for w, b, n in zip(wanted_plain, blocked, outputs, strict=False)]
    return Layouts(blocked, into, out_of)


def _layout(operator: SizedOperator, before: Sequence[Flag]) -> tuple[Flag, Flag]:
    """Whether the output is blocked, and whether the inputs are wanted blocked."""
    if operator.aten == "convolution" and len(operator.output) == 4:
        return _of_convolution(operator)
    if operator.kind in STAYS:
        return before[0], before[0]
    if operator.kind == "add":
        both = _all(before) if len(before) > 1 else False
        return both, both
    if operator.kind == "concatenation":
        even = [np.logical_and(b, np.mod(shape[1], BLOCK) == 0)
                for b, shape in zip(before, operator.inputs, strict=True)]  # fmt: skip
        every = _all(even)
        return every, every
    if operator.kind == "pool" and operator.aten != "mean" and len(operator.output) == 4:
        if operator.output[2:] == (1, 1):
            return False, False  # written as a mean
        fits = np.equal(np.mod(operator.output[1], BLOCK), 0)
        return fits, fits
    return False, False


def _all(flags: Sequence[Flag]) -> Flag:
    return reduce(np.logical_and, flags)


def _of_convolution(operator: SizedOperator) -> tuple[Flag, Flag]:
    channels_in, channels_out, group_in = operator.inputs[0][1], operator.output[1], operator.weight[1]
    if operator.kind == "depthwise conv":
        fits = np.equal(np.mod(channels_out, ALIGNED), 0)
        return fits, fits
    if operator.kind == "grouped conv":
        group_out = channels_out * group_in / channels_in
        fits = np.equal(np.mod(group_in, BLOCK), 0) & np.equal(np.mod(group_out, BLOCK), 0)
        return fits, fits
    if operator.kind != "conv":
        return False, False
    few = np.less(channels_in, BLOCK)  # reads the plain image and writes blocks
    aligned = np.equal(np.mod(channels_in, ALIGNED), 0)
    return few | aligned, ~few & aligned
