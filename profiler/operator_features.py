"""What a convolution's latency depends on, as numbers: for one operator, or for all candidates of a search at once.

Sizes enter as logarithms. How well channels fill the vectors of a blocked layout enters beside them, because a
convolution of 65 channels costs what one of 80 costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..graph.sized import Size, SizedOperator
from .layouts import Layouts

Floats = npt.NDArray[np.float32]

POINTWISE, SPATIAL, GROUPED, DEPTHWISE, LINEAR = "1x1 conv", "conv", "grouped conv", "depthwise conv", "linear"
KINDS = (POINTWISE, SPATIAL, GROUPED, DEPTHWISE, LINEAR)
NAMES = (
    "macs", "elements in", "elements out", "elements weight", "channels in a group", "channels out a group", "groups",
    "kernel", "stride", "pixels out", "columns out", "filled in 16", "filled out 16", "filled out 64", "filled in 8",
    "filled out 8", "uneven in", "uneven out", "small image", "blocked",
)  # fmt: skip
SMALL_IMAGE = 20480  # elements below which PyTorch takes another convolution (aten/native/Convolution.cpp, use_mkldnn)


def multiplies(operator: SizedOperator) -> bool:
    """Whether it is a convolution, a linear layer or a matrix product."""
    return not isinstance(operator.macs, int) or operator.macs > 0


def kind_of(operator: SizedOperator) -> str:
    """One of KINDS."""
    if operator.aten != "convolution":
        return LINEAR
    if operator.kind == "conv":
        return POINTWISE if operator.weight[2:] == (1, 1) else SPATIAL
    return operator.kind.removeprefix("transposed ")


def features(operator: SizedOperator, blocked: Any) -> list[Size]:
    """The numbers named in NAMES, before logarithms; each an int or [N]. `blocked`: see layouts.py."""
    channels_in, channels_out, pixels_in, pixels, columns, kernel, group_in = _sizes(operator)
    groups = channels_in / group_in
    group_out = channels_out / groups
    batch = operator.output[0]
    return [
        operator.macs, batch * channels_in * pixels_in, batch * channels_out * pixels,
        channels_out * group_in * kernel, group_in, group_out, groups, kernel, (pixels_in / pixels) ** 0.5, pixels,
        columns, _filled(channels_in, 16), _filled(channels_out, 16), _filled(channels_out, 64),
        _filled(group_in, 8), _filled(group_out, 8), _uneven(channels_in), _uneven(channels_out),
        _small(batch * channels_in * pixels_in), 1.0 + np.asarray(blocked),
    ]  # fmt: skip


def _sizes(operator: SizedOperator) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
    if operator.aten == "convolution":
        (_, channels_in, *image), (_, channels_out, *made) = operator.inputs[0], operator.output
        kernel = prod(operator.weight[2:])
        return channels_in, channels_out, prod(image), prod(made), made[-1], kernel, operator.weight[1]
    return operator.inputs[0][-1], operator.output[-1], 1, 1, 1, 1, operator.inputs[0][-1]


def _filled(channels: Any, block: int) -> Any:
    """How much of its blocks the channels fill, 0 to 1."""
    return channels / (np.ceil(channels / block) * block)


def _uneven(channels: Any) -> Any:
    """1 where vectors of eight do not divide the channels, else 2: a logarithm is taken of it."""
    eighths = np.multiply(channels, 0.125)
    return 2.0 - (eighths != np.floor(eighths))


def _small(elements: Any) -> Any:
    return 2.0 - (np.less_equal(elements, SMALL_IMAGE))


def logs(operator: SizedOperator, blocked: Any) -> list[Floats]:
    """`features` as logarithms to the base of two, each a number or [N]."""
    return [np.log2(np.asarray(value, dtype=np.float32)) for value in features(operator, blocked)]


# -- what does not multiply -------------------------------------------------------------------------------------------

WINDOWED = {"max_pool2d_with_indices", "avg_pool2d"}
COMPANY = {"activation", "batch norm", "add", "mul"}  # what a runtime may fold into the operator before
KEPT = {*COMPANY, "concatenation", "pool"}
TO_BLOCKED, TO_PLAIN, MOVES = "to blocked", "to plain", "moves"  # copies between layouts; views, copies and the rest
Term = tuple[Any, Any, Any]  # calls, elements, elements far from the core; numbers or [N]
FAR = 1 << 18  # elements beyond which an operator no longer finds its input in the cache near the core


def light_terms(operators: Sequence[SizedOperator], found: Layouts, only: int | None = None) -> dict[str, Term]:
    """What moves data, summed by kind, producer and layout, the copies between layouts among it.

    `only`: of the operator at that place, the copies of its output included.
    """
    terms: dict[str, Term] = {}
    for at in range(len(operators)) if only is None else (only,):
        operator = operators[at]
        if not multiplies(operator):
            name = f"{light_kind(operator)}: {_company(operator, operators)}"
            elements = operator.elements_in + operator.elements_out
            for layout, share in (("blocked", found.blocked[at]), ("plain", np.logical_not(found.blocked[at]))):
                _add(terms, f"{name}, {layout}", share, elements, operator.present)
        for name, copied in ((TO_BLOCKED, found.into[at]), (TO_PLAIN, found.out_of[at])):
            if np.any(copied):
                _add(terms, name, np.greater(copied, 0), 2 * copied, operator.present)
    return terms


def light_kind(operator: SizedOperator) -> str:
    """The kind by which what does not multiply is summed."""
    return operator.kind if operator.kind in KEPT else MOVES


def _company(operator: SizedOperator, operators: Sequence[SizedOperator]) -> str:
    name = operator.aten.rstrip("_")
    if operator.aten in WINDOWED and operator.inputs[0][-1] == operator.output[-1]:
        return f"{name} of stride one"  # its windows overlap most
    if operator.kind not in COMPANY or not operator.sources:
        return name
    source = operator.sources[0]
    return f"{name} after {operators[source].kind if source >= 0 else 'image'}"


def _add(terms: dict[str, Term], name: str, share: Any, elements: Any, present: Any) -> None:
    share = share if present is None else np.logical_and(share, present)
    if not np.any(share):
        return
    calls, near, far = terms.get(name, (0.0, 0.0, 0.0))
    if np.max(elements) > FAR:
        far = far + share * np.maximum(0.0, elements - FAR)
    terms[name] = calls + share * 1.0, near + share * elements, far
