"""How the tracer answers operators that compute: convolution, matrix product, normalisation, element-wise, pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UntraceableModel
from .sizes import Linear, constant
from .tracer import Clash, Info, Side, Sides, Tracer, numel, place_of, rule

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


def argument(func: Any, args: Args, kwargs: Kwargs, name: str) -> Any:
    """An argument by its name in the operator's schema, default included."""
    for position, entry in enumerate(func._schema.arguments):
        if entry.name == name:
            if position < len(args) and not entry.kwarg_only:
                return args[position]
            return kwargs.get(name, entry.default_value)
    raise KeyError(name)


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """An empty meta tensor."""
    return torch.empty(tuple(shape), dtype=like.dtype, device="meta")


def alike(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty meta tensor like x; `empty_like` on meta is Python and slow, so only odd strides go there."""
    if x.is_contiguous():
        return torch.empty(x.shape, dtype=dtype or x.dtype, device="meta")
    return torch.empty_like(x, dtype=dtype, device="meta")


def as_form(side: int | Side) -> Linear:
    """The side's size as a form."""
    return side.form if isinstance(side, Side) else constant(side)


# -- convolution ---------------------------------------------------------------------------------------------------


@rule("convolution", "_convolution", "convolution_overrideable")
def convolution(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    n_dims = weight.dim() - 2
    stride, padding, dilation, output_padding = (
        _per_dim(v, n_dims) for v in (stride, padding, dilation, output_padding)
    )
    spatial = [
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1 if transposed else (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d, o in zip(
            x.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding, strict=True
        )
    ]
    if any(n < 1 for n in spatial):
        raise RuntimeError(f"a kernel of {list(weight.shape[2:])} does not fit a map of {list(x.shape[2:])}")
    xi, wi = t.info(x), t.info(weight)
    t.freeze_sides(wi.sides[2:], "kernel size")
    depthwise = _is_depthwise(t, x, weight, groups, transposed)
    if depthwise:
        groups = x.shape[1]
    reads = weight.shape[0] if transposed else weight.shape[1] * groups
    if x.shape[1] != reads:
        raise Clash(len(t.ops), f"{x.shape[1]} channels arrive where {reads} are read, at {t.where()}")
    c_out = weight.shape[1] * groups if transposed else weight.shape[0]
    out = empty([x.shape[0], c_out, *spatial], x)
    if transposed:
        side, line = _transposed_channels(t, xi, wi, groups)
    elif depthwise:
        side, line = _depthwise_channels(t, xi, wi, weight.shape[0] // groups)
    else:
        side, line = _dense_channels(t, x, xi, wi, groups, sorted(wi.weight))
    sides: Sides = (xi.sides[0], side, *spatial)
    _bias(t, bias, side, line)
    t.know(out, Info(sides, t.channels_like(line, tuple(out.shape))))
    positions = prod(x.shape[2:]) if transposed else prod(spatial)
    kernel = prod(weight.shape[2:]) * positions
    channels = (as_form(side),) if depthwise else (as_form(xi.sides[1]), as_form(side))
    macs = (Fraction(kernel * x.shape[0], 1 if depthwise else groups), channels)
    kind = "depthwise conv" if depthwise else "grouped conv" if groups > 1 else "conv"
    t.record("convolution", ("transposed " if transposed else "") + kind, [v for v in (x, weight, bias) if v is not None],
             [out], macs=macs)  # fmt: skip
    return out


def _per_dim(values: Sequence[int], n_dims: int) -> list[int]:
    return list(values) * n_dims if len(values) == 1 else list(values)


def _is_depthwise(t: Tracer, x: Tensor, weight: Tensor, groups: int, transposed: bool) -> bool:
    """One input channel a group; at other widths, what the reference found, if the group number can follow."""
    if transposed or groups == 1:
        return False
    if t.reference is None or t.values is None:
        return bool(groups == x.shape[1] and weight.shape[1] == 1)
    number = len(t.ops)
    was = number < len(t.reference.ops) and t.reference.ops[number].kind == "depthwise conv"
    if was and groups != x.shape[1]:
        name = next(iter(t.info(weight).weight), "")
        if not isinstance(t.owner_of.get(name.replace(".parametrizations.weight.original1", ".weight"),
                                         t.owner_of.get(name)), nn.modules.conv._ConvNd | nn.ModuleList):  # fmt: skip
            raise Clash(number, f"a depthwise convolution whose group number stays {groups}, at {t.where()}")
    return was


def _dense_channels(
    t: Tracer, x: Tensor, xi: Info, wi: Info, groups: int, names: list[str]
) -> tuple[int | Side, Tensor | None]:
    side = wi.sides[0]
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


def _depthwise_channels(t: Tracer, xi: Info, wi: Info, per_channel: int) -> tuple[int | Side, Tensor | None]:
    arrives, made = xi.sides[1], wi.sides[0]
    t.freeze_sides(wi.sides[1:2], "one input channel a group")
    line, source = t.along(wi, 0), t.along(xi, 1)
    if isinstance(arrives, Side):
        t.unify(made, Side(arrives.form * per_channel), "depthwise convolution")
        if line is not None and source is not None:
            t.edges.append((line, source.repeat_interleave(per_channel)))
        side: int | Side = arrives if per_channel == 1 else made
    else:
        t.freeze_sides([made], f"depthwise convolution of a fixed input at {t.path}")
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


# -- matrix products -----------------------------------------------------------------------------------------------


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


# -- normalisation -------------------------------------------------------------------------------------------------


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
      "_native_batch_norm_legit_functional", "cudnn_batch_norm", "_batch_norm_no_update",
      "_batch_norm_with_update")  # fmt: skip
def batch_norm(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    x = args[0]
    out = alike(x)
    xi = t.info(x)
    parameters = [a for a in args[1:5] if isinstance(a, Tensor)]
    side: int | Side = xi.sides[1]
    line = t.along(xi, 1)
    for parameter in parameters:
        if parameter.shape[0] != x.shape[1]:
            raise Clash(
                len(t.ops), f"{x.shape[1]} channels arrive at a batch norm of {parameter.shape[0]}, at {t.where()}"
            )
        side = t.unify(side, t.info(parameter).sides[0], "batch norm")
        own = t.along(t.info(parameter), 0)
        if own is not None and line is not None:
            t.edges.append((own, line))
    t.know(out, Info((xi.sides[0], side, *xi.sides[2:]), xi.labels))
    t.record("batch_norm", "batch norm", [x, *parameters], [out])
    extras = len(func._schema.returns) - 1
    return (out, *(torch.empty(0, device="meta") for _ in range(extras)))


@rule("native_group_norm", "native_layer_norm", "_fused_rms_norm")
def channel_norm(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    x = args[0]
    xi = t.info(x)
    group = func._opname == "native_group_norm"
    what = "group norm" if group else "layer norm"
    mixed = xi.sides[1:2] if group else xi.sides[-len(args[1]) :]
    t.freeze_sides(mixed, f"statistics over channels ({what}) at {t.path}")
    parameters = [a for a in args[1:] if isinstance(a, Tensor)]
    for parameter in parameters:
        t.freeze_sides(t.info(parameter).sides, f"statistics over channels ({what}) at {t.path}")
    out = alike(x)
    t.know(out, Info(xi.sides, xi.labels))
    t.record(func._opname, what, [x, *parameters], [out])
    extras = len(func._schema.returns) - 1
    return (out, *(torch.empty(0, device="meta") for _ in range(extras)))


# -- element-wise --------------------------------------------------------------------------------------------------


@rule("*pointwise", "_prelu_kernel", "hardswish_", "copy_", "_to_copy", "native_dropout", "bernoulli_", "bernoulli",
      "zero_", "fill_", "normal_", "uniform_", "rand_like", "randn_like", "empty_like", "zeros_like", "ones_like",
      "full_like", "lift_fresh", "lift_fresh_copy", "contiguous", "native_dropout_backward", "dropout",
      "masked_fill", "masked_fill_", "hardtanh_", "leaky_relu_", "elu_", "glu_jvp", "log_sigmoid_forward")  # fmt: skip
def pointwise(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    infos = [t.info(o) for o in operands]
    shapes = {o.shape for o in operands}
    shape = shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes)
    in_place = func._opname.endswith("_") and not func._opname.endswith("__")
    if in_place and tuple(operands[0].shape) != tuple(shape):
        raise RuntimeError(f"an in-place {func._opname} of {list(operands[0].shape)} with {list(shape)}")
    sides, labels = _broadcast(t, func._opname, operands, infos, tuple(shape))
    dtype = torch.bool if func._opname in _COMPARISONS else kwargs.get("dtype") or operands[0].dtype
    if in_place:
        out = operands[0]
    elif len(operands) == 1:
        out = alike(operands[0], dtype)
    else:
        out = torch.empty(shape, dtype=dtype, device="meta")
    weight = frozenset().union(*(i.weight for i in infos)) if all(i.weight for i in infos) else frozenset()
    fixed = all(i.fixed for i in infos) and not weight
    t.know(out, Info(sides, labels, weight, fixed))
    t.record(func._opname, _pointwise_kind(func._opname, len(operands)), operands, [out], in_place=in_place)
    returns = len(func._schema.returns)
    return out if returns == 1 else (out, *(torch.empty_like(out, dtype=torch.bool) for _ in range(returns - 1)))


_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "logical_and", "logical_or", "logical_not"}


def _pointwise_kind(name: str, operands: int) -> str:
    base = name.rstrip("_")
    if base in {"clone", "copy", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy"}:
        return "copy"
    if operands > 1 and base in {"add", "sub", "mul", "div"}:
        return base
    return "activation" if operands == 1 else "element-wise"


def _broadcast(
    t: Tracer, name: str, operands: Sequence[Tensor], infos: Sequence[Info], shape: tuple[int, ...]
) -> tuple[Sides, list[Tensor]]:
    """Sides and labels of an element-wise result; aligned sides of one size are one side."""
    sides: list[int | Side] = []
    for d in range(-len(shape), 0):
        side: int | Side | None = None
        for operand, info in zip(operands, infos, strict=True):
            if operand.dim() < -d:
                continue
            own = info.sides[d]
            if operand.shape[d] == 1 and shape[d] > 1:
                if isinstance(own, Side):
                    t.sizes.freeze(own.form, f"one channel spread over {shape[d]} at {t.path}")
                continue
            if side is None:
                side = own
            elif operand.shape[d] == 1 and (isinstance(own, int) or isinstance(side, int)):
                side = own if isinstance(own, Side) else side
            else:
                side = t.unify(side, own, f"element-wise {name}")
        sides.append(shape[d] if side is None else side)
    if t.labelled is None:
        return tuple(sides), []
    spread = [[label.expand(shape) if label.shape != shape else label for label in info.labels] for info in infos]
    for i, first in enumerate(spread):
        for second in spread[i + 1 :]:
            t.tie(first, second)
    return tuple(sides), next((labels for labels in spread if labels), [])


# -- pooling and other spatial operators ---------------------------------------------------------------------------


@rule("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool1d",
      "avg_pool3d", "_adaptive_avg_pool3d", "max_pool3d_with_indices", "upsample_nearest2d", "upsample_bilinear2d",
      "upsample_bicubic2d", "upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact2d",
      "_upsample_bilinear2d_aa", "reflection_pad2d", "replication_pad2d", "reflection_pad1d",
      "replication_pad1d")  # fmt: skip
def spatial(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    x = args[0]
    result = func(*args, **kwargs)
    out = result[0] if isinstance(result, tuple) else result
    xi = t.info(x)
    n_dims = {"1": 1, "2": 2, "3": 3}[next(c for c in func._opname if c in "123")]
    kept = xi.sides[: x.dim() - n_dims]
    line = t.along(xi, x.dim() - n_dims - 1)
    t.know(out, Info((*kept, *out.shape[-n_dims:]), t.channels_like(line, tuple(out.shape), x.dim() - n_dims - 1)))
    kind = "pool" if "pool" in func._opname else "resample" if "sample" in func._opname else "pad"
    t.record(func._opname, kind, [x], [out])
    return result


@rule("mean", "sum", "amax", "amin", "var", "std", "var_mean", "linalg_vector_norm", "norm", "prod", "any", "all",
      "max", "min", "logsumexp", "argmax", "argmin", "std_mean")  # fmt: skip
def reduction(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    x = args[0]
    xi = t.info(x)
    result = func(*args, **kwargs)
    names = [a.name for a in func._schema.arguments]
    dims = argument(func, args, kwargs, "dim") if "dim" in names else None
    keepdim = bool(argument(func, args, kwargs, "keepdim")) if "keepdim" in names else False
    reduced = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims or range(x.dim()))}
    mixed = [side for d, side in enumerate(xi.sides) if d in reduced]
    if not (xi.weight and all("parametrizations" in name for name in xi.weight)):
        t.freeze_sides(mixed, f"{func._opname} over channels at {t.path}")
    outs = list(result) if isinstance(result, tuple) else [result]
    sides = tuple(1 if d in reduced else s for d, s in enumerate(xi.sides) if keepdim or d not in reduced)
    labels = [_reduced(t, label, reduced, keepdim) for label in xi.labels]
    for out in outs:
        t.know(out, Info(sides if len(sides) == out.dim() else tuple(out.shape), labels, xi.weight))
    t.record(func._opname, "pool" if x.dim() == 4 and reduced == {2, 3} else "reduction", [x], outs)
    return result


def _reduced(t: Tracer, labels: Tensor, dims: set[int], keepdim: bool) -> Tensor:
    """Labels of what is left; channels that are reduced into one place go together."""
    for d in sorted(dims, reverse=True):
        first = labels.narrow(d, 0, 1)
        if labels.shape[d] > 1 and labels.stride(d) != 0:
            t.tie([first.expand_as(labels)], [labels])
        labels = first if keepdim else first.squeeze(d)
    return labels


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "sort", "topk")
def along_one_side(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    x = args[0]
    xi = t.info(x)
    dim = argument(func, args, kwargs, "dim")
    t.freeze_sides([xi.sides[dim]], f"{func._opname.strip('_')} over channels at {t.path}")
    result = func(*args, **kwargs)
    outs = list(result) if isinstance(result, tuple) else [result]
    for out in outs:
        t.know(out, Info(xi.sides if out.shape == x.shape else tuple(out.shape), xi.labels))
    t.record(func._opname, func._opname.strip("_"), [x], outs)
    return result


# -- weights made from weights -------------------------------------------------------------------------------------


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


# -- tensors made in forward, values read, and everything else -----------------------------------------------------


@rule("zeros", "ones", "full", "empty", "rand", "randn", "arange", "linspace", "eye", "scalar_tensor", "empty_strided",
      "new_zeros", "new_ones", "new_full", "new_empty", "randint", "randperm", "new_empty_strided")  # fmt: skip
def factory(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Tensor:
    made: Tensor = func(*args, **{**kwargs, "device": torch.device("meta")})
    if not made.numel():
        return made  # what batch norm keeps for a backward pass
    if func._opname.endswith("_strided"):
        made = made.contiguous()
    sides: Sides = tuple(t.slack(n) if n > 1 else n for n in made.shape)
    t.know(made, Info(sides))
    t.record(func._opname, "constant", [], [made])
    return made


@rule("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2",
      "allclose")  # fmt: skip
def value_read(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    raise UntraceableModel(
        f"the model reads a tensor's value ({func._opname.strip('_')}) at {place_of(None)}, in module {t.path or 'root'}: "
        "what runs would depend on the image; decide by shapes or settings instead"
    )


@rule("*unknown")
def unknown(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Run it on meta for its shapes; channels that it reads are frozen, and its name and place are kept."""
    operands = [a for entry in (*args, *kwargs.values()) for a in (entry if isinstance(entry, list | tuple) else [entry])
                if isinstance(a, Tensor)]  # fmt: skip
    name = str(func).removesuffix(".default")
    where = t.where()
    try:
        result = func(*args, **kwargs)
    except NotImplementedError:
        raise UntraceableModel(f"operator {name} at {where} gives no shapes on the meta device") from None
    t.unknown.setdefault(name, where)
    for operand in operands:
        t.freeze_sides(t.info(operand).sides, f"unknown operator {name} at {where}")
    outs = [r for r in (result if isinstance(result, list | tuple) else [result]) if isinstance(r, Tensor)]
    for out in outs:
        t.know(out, Info(tuple(out.shape)))
    t.record(name, "unknown", operands, outs)
    return result
