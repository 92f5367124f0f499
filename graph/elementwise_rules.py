"""How the tracer answers operators that keep channels: normalisation, element-wise, pooling, reductions, the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import UntraceableModel
from .answers import META, NOTHING, Args, Kwargs, alike, argument
from .places import place_of
from .record import Clash, Info, Shape, Side, Sides, rule
from .tracer import Tracer


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
      "_native_batch_norm_legit_functional", "cudnn_batch_norm", "_batch_norm_no_update",
      "_batch_norm_with_update")  # fmt: skip
def batch_norm(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    x = args[0]
    xi = t.info(x)
    parameters = [a for a in args[1:5] if isinstance(a, Tensor)]
    side: int | Side = xi.sides[1]
    line = t.along(xi, 1)
    for info in map(t.info, parameters):
        if info.shape[0] != xi.shape[1]:
            raise Clash(len(t.ops), f"{xi.shape[1]} channels arrive at a batch norm of {info.shape[0]}, at {t.where()}")
        side = t.unify(info.sides[0], side, "batch norm")
        own = t.along(info, 0)
        if own is not None and line is not None:
            t.edges.append((own, line))
    out = t.know(alike(x), Info((xi.sides[0], side, *xi.sides[2:]), xi.labels))
    t.record("batch_norm", "batch norm", [x, *parameters], [out])
    return out, *[NOTHING] * (len(func._schema.returns) - 1)


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
    return out, *[NOTHING] * (len(func._schema.returns) - 1)


@rule("*pointwise", "_prelu_kernel", "hardswish", "hardswish_", "mish_", "gelu_", "rsub", "floor_divide", "copy_",
      "_to_copy", "native_dropout", "bernoulli_", "bernoulli",
      "zero_", "fill_", "normal_", "uniform_", "rand_like", "randn_like", "empty_like", "zeros_like", "ones_like",
      "full_like", "lift_fresh", "lift_fresh_copy", "contiguous", "native_dropout_backward", "dropout",
      "masked_fill", "masked_fill_", "hardtanh_", "leaky_relu_", "elu_", "glu_jvp", "log_sigmoid_forward")  # fmt: skip
def pointwise(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    operands = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
    infos = [t.info(o) for o in operands]
    shapes = {i.shape for i in infos}
    shape = shapes.pop() if len(shapes) == 1 else tuple(torch.broadcast_shapes(*shapes))
    in_place = func._opname.endswith("_") and not func._opname.endswith("__")
    if in_place and infos[0].shape != shape:
        raise RuntimeError(f"an in-place {func._opname} of {list(infos[0].shape)} with {list(shape)}")
    sides, labels = _broadcast(t, func._opname, infos, shape)
    dtype = torch.bool if func._opname in _COMPARISONS else kwargs.get("dtype") or operands[0].dtype
    if in_place:
        out = operands[0]
    elif len(operands) == 1 and kwargs.get("memory_format") is not torch.contiguous_format:
        out = alike(operands[0], dtype)
    else:
        out = torch.empty(shape, dtype=dtype, device=META)
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


def _broadcast(t: Tracer, name: str, infos: Sequence[Info], shape: Shape) -> tuple[Sides, Sequence[Tensor]]:
    """Sides and labels of an element-wise result; aligned sides of one size are one side."""
    if len(infos) == 1:
        return infos[0].sides, infos[0].labels
    sides: list[int | Side] = []
    for d in range(-len(shape), 0):
        side: int | Side | None = None
        for info in infos:
            if len(info.shape) < -d:
                continue
            own = info.sides[d]
            if info.shape[d] == 1 and shape[d] > 1:
                if isinstance(own, Side):
                    t.sizes.freeze(own.form, f"one channel spread over {shape[d]} at {t.path}")
                continue
            if side is None:
                side = own
            elif info.shape[d] == 1 and (isinstance(own, int) or isinstance(side, int)):
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


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumsum", "sort", "topk")
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
        f"the model reads a tensor's value ({func._opname.strip('_')}) at {place_of(None)}, in module "
        f"{t.path or 'root'}: what runs would depend on the image; decide by shapes or settings instead"
    )


@rule("*unknown")
def unknown(t: Tracer, func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Run it on meta for its shapes; channels that it reads are frozen, and its name and place are kept."""
    operands = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    name = str(func).removesuffix(".default")
    where = t.where()
    try:
        result = func(*args, **kwargs)
    except NotImplementedError:  # what torch raises where an operator has no kernel for meta tensors
        raise UntraceableModel(f"operator {name} at {where} gives no shapes on the meta device") from None
    t.unknown.setdefault(name, where)
    for operand in operands:
        t.freeze_sides(t.info(operand).sides, f"unknown operator {name} at {where}")
    outs = [r for r in (result if isinstance(result, list | tuple) else [result]) if isinstance(r, Tensor)]
    for out in outs:
        t.know(out, Info(tuple(out.shape)))
    t.record(name, "unknown", operands, outs)
    return result
