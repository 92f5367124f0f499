"""How the tracer answers operators that rearrange one tensor: views, permutations, shuffles, repeats."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor

from .answers import Args, Kwargs
from .record import Info, Side, Sides, rule
from .sizes import ratio
from .tracer import Tracer


def moved(
    t: Tracer, func: Any, x: Tensor, out: Tensor, sides: Sequence[int | Side], labels: Sequence[Tensor],
    *, view: bool = True, alternatives: int = 0, extra: Sequence[Tensor] = (),
) -> Tensor:  # fmt: skip
    """Note what a movement operator made of one tensor."""
    info = t.info(x)
    t.know(out, Info(tuple(sides), labels, info.weight, info.fixed))
    t.record(func._opname, "view" if view else "copy", [x, *extra], [out], is_view=view, alternatives=alternatives)
    return out


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "_reshape_copy", "view_copy")
def view(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x = args[0]
    out = x.reshape(args[1]) if func._opname != "view" else x.view(args[1])
    if out is x:
        out = x.view(x.shape)
    info = t.info(x)
    reading = t.readings.get(len(t.ops), 0)
    sides, alternatives = _viewed(t, info.sides, info.shape, tuple(out.shape), reading)
    labels = [_constant_sides_flat(label.reshape(out.shape)) for label in info.labels]
    return moved(t, func, x, out, sides, labels, alternatives=alternatives)


def _constant_sides_flat(labels: Tensor) -> Tensor:
    """The labels with stride 0 along every side on which they do not change, which a copying reshape forgets."""
    for d, n in enumerate(labels.shape):
        if n > 1 and labels.stride(d) != 0:
            first = labels.narrow(d, 0, 1)
            if torch.equal(first.expand_as(labels), labels):
                labels = first.expand_as(labels)
    return labels


def _viewed(
    t: Tracer, sides: Sides, before: tuple[int, ...], after: tuple[int, ...], reading: int
) -> tuple[list[int | Side], int]:
    """Sides after a view, run of merged or split sides by run; how many other readings there are."""
    result: list[int | Side] = []
    others = 0
    for old, new in _runs(before, after):
        varying = [sides[i] for i in old if isinstance(sides[i], Side) and varies(t, sides[i])]
        if len(new) == 1 and len(old) == 1:
            result.append(sides[old[0]])
        elif not varying:
            result.extend(after[i] for i in new)
        elif len(varying) > 1 or not new:
            t.freeze_sides(varying, f"varying sides merged or dropped by a view at {t.path}")
            result.extend(after[i] for i in new)
        else:
            side = varying[0]
            assert isinstance(side, Side)
            order = _carriers([after[i] for i in new])
            others = max(others, len(order) - 1)
            carrier = new[order[min(reading, len(order) - 1)]]
            constant_before = prod(before[i] for i in old if sides[i] is not side)
            constant_after = prod(after[i] for i in new if i != carrier)
            factor = ratio(constant_before, constant_after)
            form = t.sizes.reduce(side.form) * factor
            if factor.denominator > 1:
                t.sizes.must_be_whole(form, f"divided by {factor.denominator} in a view at {t.path}")
            mixed = side.mixed or constant_after > 1
            result.extend(Side(form, side.pieces, mixed) if i == carrier else after[i] for i in new)
    return result, others


def varies(t: Tracer, side: int | Side) -> bool:
    return isinstance(side, Side) and bool(t.sizes.reduce(side.form).terms)


def _carriers(sizes: Sequence[int]) -> list[int]:
    """Positions that may carry the channels, likeliest first: the largest, of equals the last; sides of 1 never."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], -i))
    return [i for i in order if sizes[i] > 1] or order[:1]


def _runs(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of sides before and after a view that hold the same number of elements."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        a = b = 1
        if i < len(before) and (j >= len(after) or before[i] == after[j] or before[i] != 1):
            old.append(i)
            a, i = a * before[i], i + 1
        if j < len(after) and (not old or a == after[j] or after[j] != 1 or i >= len(before)):
            new.append(j)
            b, j = b * after[j], j + 1
        while a != b:
            if a < b:
                old.append(i)
                a, i = a * before[i], i + 1
            else:
                new.append(j)
                b, j = b * after[j], j + 1
        runs.append((old, new))
    return runs


@rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "transpose_copy", "permute_copy", "t_copy")
def permutation(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x = args[0]
    out = func(*args, **kwargs)
    info = t.info(x)
    if func._opname.startswith("permute"):
        order = [d % x.dim() for d in args[1]]
    else:
        a, b = (d % x.dim() for d in args[1:3]) if len(args) > 2 else (0, x.dim() - 1)
        order = list(range(x.dim()))
        order[a], order[b] = order[b], order[a]
    return moved(t, func, x, out, [info.sides[d] for d in order], [label.permute(order) for label in info.labels])


@rule("unsqueeze", "squeeze", "expand", "alias", "detach", "view_as_real", "expand_copy", "unsqueeze_copy",
      "squeeze_copy", "slice_copy_", "_conj")  # fmt: skip
def reshaping(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x = args[0]
    out = func(*args, **kwargs)
    info = t.info(x)
    name = func._opname.removesuffix("_copy")
    sides: list[int | Side]
    if name == "unsqueeze":
        sides = list(info.sides)
        sides.insert(args[1] % out.dim(), 1)
    elif name == "squeeze":
        dims = args[1] if len(args) > 1 else range(x.dim())
        gone = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims) if x.shape[d] == 1}
        t.freeze_sides([info.sides[d] for d in gone], f"a side of one squeezed away at {t.path}")
        sides = [s for d, s in enumerate(info.sides) if d not in gone]
    elif name == "expand":
        padded: list[int | Side] = [*([1] * (out.dim() - x.dim())), *info.sides]
        shape = [1] * (out.dim() - x.dim()) + list(x.shape)
        sides = [s if n == m else m for s, n, m in zip(padded, shape, out.shape, strict=True)]
    else:
        sides = list(info.sides)
    labels = [func(label, *args[1:], **kwargs) for label in info.labels]
    return moved(t, func, x, out, sides, labels)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffle(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x, r = args
    info = t.info(x)
    out: Tensor = func(*args, **kwargs)
    side = info.sides[1]
    factor = {"pixel_shuffle": Fraction(1, r * r), "pixel_unshuffle": Fraction(r * r)}.get(func._opname, Fraction(1))
    if isinstance(side, Side):
        if func._opname.endswith("channel_shuffle"):
            t.sizes.must_be_whole(side.form * Fraction(1, r), f"shuffled in {r} groups at {t.path}")
        elif factor < 1:
            t.sizes.must_be_whole(side.form * factor, f"pixel shuffle by {r} at {t.path}")
        side = Side(side.form * factor, side.pieces, mixed=True)
    else:
        side = out.shape[1]
    sides: Sides = (info.sides[0], side, *out.shape[2:])
    labels = [_constant_sides_flat(func(label.contiguous(), r)) for label in info.labels]
    return moved(t, func, x, out, sides, labels, view=False)


@rule("roll", "flip")
def rearrangement(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x = args[0]
    info = t.info(x)
    dims = args[2] if func._opname == "roll" and len(args) > 2 else args[1] if func._opname == "flip" else []
    t.freeze_sides([info.sides[d] for d in dims], f"channels moved by {func._opname} at {t.path}")
    out: Tensor = func(*args, **kwargs)
    return moved(t, func, x, out, info.sides, list(info.labels), view=False)


@rule("repeat")
def repeat(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x, times = args[:2]
    info = t.info(x)
    out: Tensor = func(*args, **kwargs)
    padded: list[int | Side] = [*([1] * (out.dim() - x.dim())), *info.sides]
    varying = [s for s, n in zip(padded, times, strict=True) if n != 1 and isinstance(s, Side)]
    t.freeze_sides(varying, f"channels repeated at {t.path}")
    sides = [s if n == 1 else m for s, n, m in zip(padded, times, out.shape, strict=True)]
    labels = [] if varying else [label.expand(out.shape) if label.shape != out.shape and _spread(label, times)
                                 else label.repeat(times) for label in info.labels]  # fmt: skip
    return moved(t, func, x, out, sides, labels, view=False)


def _spread(label: Tensor, times: Sequence[int]) -> bool:
    return len(times) == label.dim() and all(n == 1 or label.shape[d] == 1 for d, n in enumerate(times))
