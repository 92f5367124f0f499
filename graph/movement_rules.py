"""How the tracer answers operators that move data: views, slices, concatenation, padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from .layer_rules import argument, as_form, empty
from .sizes import Linear
from .tracer import Info, Side, Sides, Tracer, rule

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


def moved(
    t: Tracer, func: Any, x: Tensor, out: Tensor, sides: Sequence[int | Side], labels: list[Tensor],
    *, view: bool = True, alternatives: int = 0, extra: Sequence[Tensor] = (),
) -> Tensor:  # fmt: skip
    """Note what a movement operator made of one tensor."""
    info = t.info(x)
    t.know(out, Info(tuple(sides), labels, info.weight, info.fixed))
    t.record(func._opname, "view" if view else "copy", [x, *extra], [out], is_view=view, alternatives=alternatives)
    return out


# -- views: which side of the result carries the channels ------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "_reshape_copy", "view_copy")
def view(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x = args[0]
    out = x.reshape(args[1]) if func._opname != "view" else func(x, *args[1:])
    if out is x:
        out = x.view(x.shape)
    info = t.info(x)
    reading = t.readings.get(len(t.ops), 0)
    sides, alternatives = _viewed(t, info.sides, tuple(x.shape), tuple(out.shape), reading)
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
        varying = [sides[i] for i in old if isinstance(sides[i], Side) and _varies(t, sides[i])]
        if len(new) == 1 and len(old) == 1:
            result.append(sides[old[0]])
        elif not varying:
            result.extend(after[i] for i in new)
        elif len(varying) > 1:
            t.freeze_sides(varying, f"several varying sides merged by a view at {t.path}")
            result.extend(after[i] for i in new)
        else:
            side = varying[0]
            assert isinstance(side, Side)
            order = _carriers([after[i] for i in new])
            others = max(others, len(order) - 1)
            carrier = new[order[min(reading, len(order) - 1)]]
            constant_before = prod(before[i] for i in old if sides[i] is not side)
            constant_after = prod(after[i] for i in new if i != carrier)
            factor = Fraction(constant_before, constant_after)
            form = t.sizes.reduce(side.form) * factor
            if factor.denominator > 1:
                t.sizes.must_be_whole(form, f"divided by {factor.denominator} in a view at {t.path}")
            mixed = side.mixed or constant_after > 1
            result.extend(Side(form, side.pieces, mixed) if i == carrier else after[i] for i in new)
    return result, others


def _varies(t: Tracer, side: int | Side) -> bool:
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


# -- parts and their concatenation -------------------------------------------------------------------------------------

WHOLE_PIECES, PROPORTIONAL, OPEN = range(3)  # readings of a slice


@rule("slice", "split", "split_with_sizes", "unbind", "select", "chunk", "tensor_split", "narrow", "unsafe_split",
      "unsafe_chunk", "split_copy", "split_with_sizes_copy", "unsafe_split_with_sizes")  # fmt: skip
def parts(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    x = args[0]
    info = t.info(x)
    dim = argument(func, args, kwargs, "dim") % x.dim()
    result = func(*args, **kwargs)
    outs = list(result) if isinstance(result, list | tuple) else [result]
    name = func._opname
    rest = [s for d, s in enumerate(info.sides) if d != dim]
    pieces = [func(label, *args[1:], **kwargs) for label in info.labels]
    labels = [[p[i] if isinstance(p, list | tuple) else p for p in pieces] for i in range(len(outs))]
    side = info.sides[dim]
    if name in {"select", "unbind"}:
        t.freeze_sides([side], f"single channels taken out at {t.path}")
        sides = [rest for _ in outs]
        others = 0
    else:
        step = argument(func, args, kwargs, "step") if name == "slice" else 1
        starts = _starts(name, func, args, kwargs, x.shape[dim], outs, dim)
        spans = [(start, start + out.shape[dim]) for start, out in zip(starts, outs, strict=True)]
        readings = _readings(name, side, spans) if step == 1 else [PROPORTIONAL, OPEN]
        others = len(readings) - 1 if isinstance(side, Side) else 0
        reading = readings[min(t.readings.get(len(t.ops), 0), len(readings) - 1)]
        taken = [_part(t, side, start, stop, x.shape[dim], step, reading) for start, stop in spans]
        sides = [[*info.sides[:dim], part, *info.sides[dim + 1 :]] for part in taken]
    for out, own, label in zip(outs, sides, labels, strict=True):
        t.know(out, Info(tuple(own), label, info.weight, info.fixed))
    t.record(name, "view", [x], outs, is_view=True, alternatives=others)
    return result


def _starts(name: str, func: Any, args: Args, kwargs: Kwargs, size: int, outs: Sequence[Tensor], dim: int) -> list[int]:
    if name in {"slice", "narrow"}:
        start = argument(func, args, kwargs, "start") or 0
        return [max(0, start + size if start < 0 else start)]
    starts, at = [], 0
    for out in outs:
        starts.append(at)
        at += out.shape[dim]
    return starts


def _readings(name: str, side: int | Side, spans: Sequence[tuple[int, int]]) -> list[int]:
    """In which orders to try how a part follows its whole; equal parts are shares first."""
    if not isinstance(side, Side):
        return [PROPORTIONAL]
    cut_between = not side.mixed and all(_pieces_inside(side.pieces, *span) is not None for span in spans)
    if cut_between:
        return [PROPORTIONAL, WHOLE_PIECES, OPEN] if name in {"split", "chunk"} else [WHOLE_PIECES, PROPORTIONAL, OPEN]
    return [PROPORTIONAL, OPEN]


def _part(t: Tracer, side: int | Side, start: int, stop: int, of: int, step: int, reading: int) -> int | Side:
    """The side of a part: whole operands of a concatenation, a share, or a size that only the code knows."""
    size = len(range(start, stop, step))
    if not isinstance(side, Side) or size == of:
        return side if isinstance(side, Side) else stop - start
    place = (side.whole or side, side.start + start, side.start + stop) if step == 1 else (None, 0, 0)
    if reading == WHOLE_PIECES:
        inside = _pieces_inside(side.pieces, start, stop)
        assert inside is not None
        form = sum((f for f, _ in inside[1:]), inside[0][0])
        return Side(form, inside if len(inside) > 1 else (), False, *place)
    if reading == OPEN:
        return Side(t.slack(stop - start).form, (), False, *place)
    if len({n for _, n in side.pieces}) == 1:
        for other, _ in side.pieces[1:]:
            t.sizes.equate(side.pieces[0][0], other, f"halves of a split at {t.path}")
    return Side(t.sizes.reduce(side.form) * Fraction(stop - start, of), (), False, *place)


def _pieces_inside(
    pieces: tuple[tuple[Linear, int], ...], start: int, stop: int
) -> tuple[tuple[Linear, int], ...] | None:
    """The operands that lie exactly between two positions; None when a border cuts one."""
    at, inside = 0, []
    for form, size in pieces:
        if start <= at and at + size <= stop:
            inside.append((form, size))
        elif at < stop and start < at + size:
            return None
        at += size
    return tuple(inside) if inside and at >= stop else None


@rule("cat", "concat", "concatenate")
def concatenation(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    tensors = [x for x in args[0] if not (x.dim() == 1 and x.shape[0] == 0)]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % tensors[0].dim()
    out = _concatenated(func, args, kwargs, tensors, dim)
    infos = [t.info(x) for x in tensors]
    sides: list[int | Side] = []
    for d in range(out.dim()):
        if d == dim:
            sides.append(_joined(t, [i.sides[d] for i in infos], [x.shape[d] for x in tensors]))
            continue
        side = infos[0].sides[d]
        for info in infos[1:]:
            side = t.unify(side, info.sides[d], "concatenation")
        sides.append(side)
    t.know(out, Info(tuple(sides), _joined_labels(t, tensors, infos, dim), fixed=all(i.fixed for i in infos)))
    t.record("cat", "concatenation", tensors, [out])
    return out


def _concatenated(func: Any, args: Args, kwargs: Kwargs, tensors: Sequence[Tensor], dim: int) -> Tensor:
    """The result's shape by hand where that is plain: concatenation on meta is Python and slow."""
    first = tensors[0]
    rest = [(x.dtype, x.shape[:dim], x.shape[dim + 1 :]) for x in tensors]
    if any(r != rest[0] for r in rest):
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    return empty([*first.shape[:dim], sum(x.shape[dim] for x in tensors), *first.shape[dim + 1 :]], first)


def _joined(t: Tracer, sides: Sequence[int | Side], sizes: Sequence[int]) -> int | Side:
    """The sum of the sides; parts that tile the side they were cut from are that side again."""
    varying = [s for s in sides if isinstance(s, Side)]
    if not varying:
        return sum(sizes)
    whole = varying[0].whole
    if whole is not None and len(varying) == len(sides) and all(s.whole is whole for s in varying):
        spans = sorted((s.start, s.stop) for s in varying)
        joined = all(a[1] == b[0] for a, b in pairwise(spans))
        if joined and spans[0][0] == 0 and spans[-1][1] == t.sizes.value(whole.form):
            return Side(whole.form, whole.pieces, whole.mixed)
    pieces: list[tuple[Linear, int]] = []
    for side, size in zip(sides, sizes, strict=True):
        pieces.extend(
            side.pieces
            if isinstance(side, Side) and side.pieces and not side.whole
            else [(t.sizes.reduce(as_form(side)), size)]
        )
    form = sum((f for f, _ in pieces[1:]), pieces[0][0])
    return Side(form, tuple(pieces))


def _joined_labels(t: Tracer, tensors: Sequence[Tensor], infos: Sequence[Info], dim: int) -> list[Tensor]:
    if t.labelled is None or not any(i.labels for i in infos):
        return []
    rows = []
    for x, info in zip(tensors, infos, strict=True):
        rows.append(info.labels[0] if info.labels else torch.full((1,), -1, device="cpu").expand(x.shape))
    return [_cat_compact(rows, dim)]


def _cat_compact(rows: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate labels without spreading the sides along which all of them are constant."""
    shape = [sum(r.shape[dim] for r in rows) if d == dim else n for d, n in enumerate(rows[0].shape)]
    flat = [d for d in range(len(shape)) if d != dim and all(r.shape[d] == 1 or r.stride(d) == 0 for r in rows)]
    for d in flat:
        rows = [r.narrow(d, 0, 1) for r in rows]
    return torch.cat(list(rows), dim).expand(shape)


@rule("stack")
def stack(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    tensors = list(args[0])
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % (tensors[0].dim() + 1)
    out: Tensor = func(*args, **kwargs)
    infos = [t.info(x) for x in tensors]
    sides = list(infos[0].sides)
    for info in infos[1:]:
        sides = [t.unify(a, b, "stack") for a, b in zip(sides, info.sides, strict=True)]
    sides.insert(dim, len(tensors))
    labels = []
    if all(i.labels for i in infos):
        labels = [_cat_compact([i.labels[0].unsqueeze(dim) for i in infos], dim)]
    t.know(out, Info(tuple(sides), labels))
    t.record("stack", "concatenation", tensors, [out])
    return out


@rule("constant_pad_nd", "pad")
def constant_pad(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x, pad = args[:2]
    info = t.info(x)
    out: Tensor = func(*args, **kwargs)
    sides: list[int | Side] = list(info.sides)
    labels = info.labels
    for i in range(len(pad) // 2):
        d = x.dim() - 1 - i
        before, after = pad[2 * i], pad[2 * i + 1]
        if not isinstance(sides[d], Side) or not _varies(t, sides[d]):
            sides[d] = out.shape[d]
        elif before or after:
            amount = t.slack(before + after)
            t.sizes.must_be_whole(amount.form + Linear({}, 1), f"channels padded at {t.path}")
            sides[d] = Side(as_form(sides[d]) + amount.form)
        labels = [_padded(label, d, before, after) for label in labels]
    return moved(t, func, x, out, sides, labels, view=False)


def _padded(labels: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Labels of a padded side: none where channels were added; places in space repeat what is there."""
    if (labels.shape[dim] > 1 and labels.stride(dim) == 0) or labels.shape[dim] == 1:
        shape = [n + before + after if d == dim else n for d, n in enumerate(labels.shape)]
        return labels.narrow(dim, 0, 1).expand(shape)
    labels = labels.narrow(dim, max(0, -before), labels.shape[dim] - max(0, -before) - max(0, -after))
    ends = [torch.full((1,), -1, device="cpu").expand([n if d == dim else m for d, m in enumerate(labels.shape)])
            for n in (max(0, before), max(0, after))]  # fmt: skip
    return _cat_compact([ends[0], labels, ends[1]], dim)


# -- shuffles ---------------------------------------------------------------------------------------------------------


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
