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
    there = [np.logical_not(b) for b in blocked]
    into = [_copied(w, p, n) for w, p, n in zip(wanted_blocked, there, outputs, strict=False)]
    out_of = [_copied(w, b, n) for w, b, n in zip(wanted_plain, blocked, outputs, strict=False)]
    return Layouts(blocked, into, out_of)


def _copied(wanted: Flag, otherwise: Flag, elements: Any) -> Any:
    """Elements copied: all where somebody wants what is in the other layout."""
    crossing = np.logical_and(wanted, otherwise)
    return crossing * elements if np.any(crossing) else 0


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
        even = [np.logical_and(b, _divides(BLOCK, shape[1]))
                for b, shape in zip(before, operator.inputs, strict=True)]  # fmt: skip
        every = _all(even)
        return every, every
    if operator.kind == "pool" and operator.aten != "mean" and len(operator.output) == 4:
        if operator.output[2:] == (1, 1):
            return False, False  # written as a mean
        fits = _divides(BLOCK, operator.output[1])
        return fits, fits
    return False, False


def _all(flags: Sequence[Flag]) -> Flag:
    return reduce(np.logical_and, flags)


def _divides(block: int, channels: Any) -> Flag:
    """Whether whole blocks, a power of two of channels, hold them; np.mod takes far longer."""
    blocks = np.multiply(channels, 1 / block)
    return np.equal(blocks, np.floor(blocks))


def _of_convolution(operator: SizedOperator) -> tuple[Flag, Flag]:
    channels_in, channels_out, group_in = operator.inputs[0][1], operator.output[1], operator.weight[1]
    if operator.kind == "depthwise conv":
        fits = _divides(ALIGNED, channels_out)
        return fits, fits
    if operator.kind == "grouped conv":
        group_out = channels_out * group_in / channels_in
        fits = _divides(BLOCK, group_in) & _divides(BLOCK, group_out)
        return fits, fits
    if operator.kind != "conv":
        return False, False
    few = np.less(channels_in, BLOCK)  # reads the plain image and writes blocks
    aligned = _divides(ALIGNED, channels_in)
    return few | aligned, ~few & aligned
