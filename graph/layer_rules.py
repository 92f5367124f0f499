"""How the tracer answers operators with weights: convolution, matrix product, attention, weight norm."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .answers import Args, Kwargs, argument, as_form, empty
from .record import Clash, Info, Product, Side, Sides, numel, rule
from .sizes import ratio
from .tracer import Tracer


@rule("convolution", "_convolution", "convolution_overrideable")
def convolution(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    xi, wi = t.info(x), t.info(weight)
    (batch, c_in, *before), kernel = xi.shape, wi.shape[2:]
    settings = [_per_dim(v, len(kernel)) for v in (stride, padding, dilation, output_padding)]
    spatial = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1 if transposed else (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d, o in zip(before, kernel, *settings, strict=True)
    ]
    if min(spatial) < 1:
        raise RuntimeError(f"a kernel of {list(kernel)} does not fit a map of {before}")
    t.freeze_sides(wi.sides[2:], "kernel size")
    depthwise = groups > 1 and not transposed and _is_depthwise(t, xi, wi, groups)
    by_group = depthwise or (not transposed and t.path in t.whole_groups)
    if by_group:
        groups = c_in // wi.shape[1]
    reads = wi.shape[0] if transposed else wi.shape[1] * groups
    if c_in != reads:
        raise Clash(len(t.ops), f"{c_in} channels arrive where {reads} are read, at {t.where()}")
    if transposed:
        side, line = _transposed_channels(t, xi, wi, groups)
    elif by_group:
        side, line = _channels_by_group(t, xi, wi, groups)
    else:
        side, line = _dense_channels(t, xi, wi, groups)
    _bias(t, bias, side, line)
    shape = (batch, wi.shape[1] * groups if transposed else wi.shape[0], *spatial)
    out = t.know(empty(shape, x), Info((xi.sides[0], side, *spatial), t.channels_like(line, shape)))
    work = prod(kernel) * prod(before if transposed else spatial) * batch
    if by_group:
        macs: Product = work * wi.shape[1], (as_form(side),)
    else:
        macs = ratio(work, groups), (as_form(xi.sides[1]), as_form(side))
    kind = "depthwise conv" if depthwise else "grouped conv" if groups > 1 else "conv"
    read = [v for v in (x, weight, bias) if v is not None]
    t.record("convolution", f"transposed {kind}" if transposed else kind, read, [out], macs=macs)
    return out


def _per_dim(values: Sequence[int], n_dims: int) -> Sequence[int]:
    return list(values) * n_dims if len(values) == 1 else values


def _is_depthwise(t: Tracer, xi: Info, wi: Info, groups: int) -> bool:
    """One input channel a group; at other widths, what the reference found, if the group number can follow."""
    if t.reference is None:
        return groups == xi.shape[1] and wi.shape[1] == 1
    number = len(t.ops)
    was = number < len(t.reference.ops) and t.reference.ops[number].kind == "depthwise conv"
    if was and groups != xi.shape[1]:
        name = next(iter(wi.weight), "")
        if not isinstance(t.owner_of.get(name.replace(".parametrizations.weight.original1", ".weight"),
                                         t.owner_of.get(name)), nn.modules.conv._ConvNd | nn.ModuleList):  # fmt: skip
            raise Clash(number, f"a depthwise convolution whose group number stays {groups}, at {t.where()}")
    return was


def _dense_channels(t: Tracer, xi: Info, wi: Info, groups: int) -> tuple[int | Side, Tensor | None]:
    side = wi.sides[0]
    names = sorted(wi.weight)
    made = t.path or (names[0] if names else "convolution")
    if isinstance(side, Side):
        t.sizes.make_width(side.form, _maker(names, made))
    reads = wi.sides[1]
    arrives = xi.sides[1]
    if groups == 1:
        t.unify(reads, arrives, "read by a convolution")
    else:
        why = f"convolution in {groups} groups at {t.path}"
        if isinstance(reads, Side):
            t.unify(Side(reads.form * groups), arrives, why)
        for divided in (arrives, side):
            if isinstance(divided, Side):
                t.sizes.must_be_whole(divided.form * Fraction(1, groups), why)
    line = t.along(wi, 0)
    source = t.along(xi, 1)
    if t.labelled is not None:
        _tie_read(t, wi, source, groups, names, line)
    return side, line


def _tie_read(t: Tracer, wi: Info, source: Tensor | None, groups: int, names: list[str], line: Tensor | None) -> None:
    """The weight's input side goes with what it reads; a grouped weight is gathered group by group instead."""
    number = len(t.ops)
    read = t.along(wi, 1)
    if groups == 1:
        if source is not None:
            if read is not None:
                t.edges.append((read, source))
            t.mark(number, -1, source)
        return
    for group in range(groups):
        if source is not None:
            t.mark(number, -2 - group, source.chunk(groups)[group])
        if line is not None:
            t.mark(number, groups + group, line.chunk(groups)[group])
    if source is not None:
        for name in names:
            t.grouped[name] = (groups, source, number)


def _channels_by_group(t: Tracer, xi: Info, wi: Info, groups: int) -> tuple[int | Side, Tensor | None]:
    """As many groups as there are channels for: all that a group reads and writes is one channel. Depthwise is that."""
    arrives, made = xi.sides[1], wi.sides[0]
    reads, writes = wi.shape[1], wi.shape[0] // groups
    kind = "depthwise convolution" if reads == 1 else f"convolution in groups of {reads}"
    t.freeze_sides(wi.sides[1:2], f"{reads} input channel{'s' * (reads > 1)} a group")
    line, source = t.along(wi, 0), t.along(xi, 1)
    if isinstance(arrives, Side):
        t.unify(made, Side(arrives.form * ratio(writes, reads)), kind)
        if reads > 1:
            t.sizes.must_be_whole(arrives.form * Fraction(1, reads), f"{kind} at {t.path}")
        if line is not None and source is not None:
            first = source[::reads]
            t.edges.append((line, first.repeat_interleave(writes)))
            if reads > 1:
                t.edges.append((source, first.repeat_interleave(reads)))
        side: int | Side = arrives if reads == writes else made
    else:
        t.freeze_sides([made], f"{kind} of a fixed input at {t.path}")
        side = made
    return side, line


def _transposed_channels(t: Tracer, xi: Info, wi: Info, groups: int) -> tuple[int | Side, Tensor | None]:
    if groups > 1:
        t.freeze_sides([*wi.sides[:2], xi.sides[1]], f"transposed convolution in {groups} groups at {t.path}")
        made = wi.sides[1]
        return groups * _value(t, made), None
    t.unify(wi.sides[0], xi.sides[1], "read by a transposed convolution")
    side = wi.sides[1]
    if isinstance(side, Side):
        t.sizes.make_width(side.form, _maker(sorted(wi.weight), t.path))
    line, read, source = t.along(wi, 1), t.along(wi, 0), t.along(xi, 1)
    if read is not None and source is not None:
        t.edges.append((read, source))
        t.mark(len(t.ops), -1, source)
    return side, line


def _value(t: Tracer, side: int | Side) -> int:
    return t.sizes.value(side.form) if isinstance(side, Side) else side


def _maker(names: list[str], path: str) -> str:
    """The layer that makes channels: the module that owns the weight, else the parameter itself."""
    if not names:
        return path
    name = names[0].replace(".parametrizations.weight.original0", "").replace(".parametrizations.weight.original1", "")
    return name.removesuffix(".weight").removesuffix(".weight_g").removesuffix(".weight_v")


def _bias(t: Tracer, bias: Tensor | None, side: int | Side, line: Tensor | None) -> None:
    if bias is not None:
        info = t.info(bias)
        t.unify(info.sides[-1], side, "bias")
        own = t.along(info, bias.dim() - 1)
        if own is not None and line is not None:
            t.edges.append((own, line))


@rule("mm", "addmm", "bmm", "baddbmm")
def matrix_product(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    bias, a, b = args if "add" in func._opname else (None, *args)
    ai, bi = t.info(a), t.info(b)
    if a.shape[-1] != b.shape[-2]:
        raise Clash(len(t.ops), f"{a.shape[-1]} features arrive where {b.shape[-2]} are read, at {t.where()}")
    out = empty([*a.shape[:-1], b.shape[-1]], a)
    sides: Sides = (*ai.sides[:-1], bi.sides[-1])
    line = None
    linear = bool(bi.weight) and not ai.weight
    if linear:
        t.unify(bi.sides[-2], ai.sides[-1], "read by a linear layer")
        if isinstance(sides[-1], Side):
            t.sizes.make_width(sides[-1].form, _maker(sorted(bi.weight), t.path))
        line, read, source = t.along(bi, b.dim() - 1), t.along(bi, b.dim() - 2), t.along(ai, a.dim() - 1)
        if source is not None:
            t.mark(len(t.ops), -1, source)
            if read is not None:
                t.edges.append((read, source))
    else:
        t.freeze_sides([*ai.sides, *bi.sides], f"matrix product of two activations at {t.path}")
        sides = tuple(out.shape)
    if bias is not None:
        _bias(t, bias, sides[-1], line)
    t.know(out, Info(sides, t.channels_like(line, tuple(out.shape), out.dim() - 1)))
    macs = numel([*ai.sides, sides[-1]])
    t.record("mm", "linear" if linear else "matrix product", [v for v in (a, b, bias) if v is not None], [out],
             macs=macs)  # fmt: skip
    return out


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention",
      "_scaled_dot_product_flash_attention", "_scaled_dot_product_fused_attention_overrideable",
      "_scaled_dot_product_cudnn_attention")  # fmt: skip
def attention(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    query, key, value = args[:3]
    result = func(*args, **kwargs)
    out = result[0]
    for operand in (query, key, value):
        t.freeze_sides(t.info(operand).sides, f"attention at {t.path}")
    t.know(out, Info(tuple(out.shape)))
    batch, length, others = prod(query.shape[:2]), query.shape[2], key.shape[2]
    t.record("attention", "attention", [query, key, value], [out],
             macs=(batch * length * others * (query.shape[3] + value.shape[3]), ()))  # fmt: skip
    return result


@rule("_weight_norm_interface")
def weight_norm(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    v, g = args[:2]
    vi, gi = t.info(v), t.info(g)
    dim = argument(func, args, kwargs, "dim")
    t.unify(gi.sides[dim], vi.sides[dim], "weight norm")
    a, b = t.along(vi, dim), t.along(gi, dim)
    if a is not None and b is not None:
        t.edges.append((a, b))
    if not all("parametrizations" in name for name in vi.weight):
        t.freeze_sides([s for d, s in enumerate(vi.sides) if d != dim], f"weight norm of the old kind at {t.path}")
    out = torch.empty_like(v)
    t.know(out, Info(vi.sides, vi.labels, vi.weight | gi.weight))
    t.record("weight_norm", "weight norm", [v, g], [out])
    return out, torch.empty_like(g)
