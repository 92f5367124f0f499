"""How the tracer answers operators that cut, join and pad: slices, splits, concatenation, stack, padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .answers import Args, Kwargs, argument, as_form, empty
from .record import Info, Side, rule
from .sizes import Linear, ratio
from .tracer import Tracer
from .view_rules import moved, varies

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
    return Side(t.sizes.reduce(side.form) * ratio(stop - start, of), (), False, *place)


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
        if not isinstance(sides[d], Side) or not varies(t, sides[d]):
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
