"""What rules share: arguments by name, and empty tensors made without the meta device's slow Python paths."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .record import Side
from .sizes import Linear, constant

Args = Sequence[Any]
Kwargs = Mapping[str, Any]
META = torch.device("meta")
NOTHING = torch.empty(0, device=META)  # statistics that normalisation keeps for a backward pass


def argument(func: Any, args: Args, kwargs: Kwargs, name: str) -> Any:
    """An argument by its name in the operator's schema, default included."""
    position, default = _place(func, name)
    return args[position] if position < len(args) else kwargs.get(name, default)


@cache
def _place(func: Any, name: str) -> tuple[int, Any]:
    """Where an argument stands among the positional ones, if it may, and its default."""
    for position, entry in enumerate(func._schema.arguments):
        if entry.name == name:
            return sys.maxsize if entry.kwarg_only else position, entry.default_value
    raise KeyError(name)


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An empty meta tensor."""
    return torch.empty(shape, dtype=like.dtype, device=META)


def alike(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty meta tensor like x; `empty_like` on meta is Python and slow, so only odd strides go there."""
    if x.is_contiguous():
        return torch.empty(x.shape, dtype=dtype or x.dtype, device=META)
    return torch.empty_like(x, dtype=dtype, device="meta")


def as_form(side: int | Side) -> Linear:
    """The side's size as a form."""
    return side.form if isinstance(side, Side) else constant(side)
