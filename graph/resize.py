"""A module of other widths: every parameter cut, kept or freshly drawn, every leaf module told its new sizes."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .cells import Channels, Indices, positions
from .record import Shape

Index = list[Indices | None]  # for each side of a parameter: source positions (-1: fresh), None: unchanged


def indices(original: Channels, target: Channels, source: Indices) -> dict[str, Index]:
    """Where each entry of every parameter comes from."""
    found: dict[str, Index] = {}
    for name, tensor in target.tracer.parameters.items():
        index: Index = []
        for side in range(tensor.dim()):
            before, after = original.along(name, side), target.along(name, side)
            index.append(None if before is None or after is None else positions(before, after, source))
        found[name] = index
    return found


def grouped_reads(original: Channels, target: Channels, source: Indices, rows: Indices | None, name: str) -> Indices:
    """[O, I] source positions along the input side of a grouped weight, whose groups read different channels."""
    groups, line, _ = original.tracer.grouped[name]
    before = original.of_label[line.numpy()]
    after = target.of_label[target.tracer.grouped[name][1].numpy()]
    at = positions(before, after, source)  # of the layer's whole input
    per_before, per_after = len(before) // groups, len(after) // groups
    n_rows = target.tracer.parameters[name].shape[0]
    rows = np.arange(n_rows) if rows is None else rows
    group_after = np.arange(n_rows) // (n_rows // groups)
    group_before = rows // (original.tracer.parameters[name].shape[0] // groups)
    reads = at.reshape(groups, per_after)[group_after]
    inside = (reads >= 0) & (reads // per_before == group_before[:, None]) & (rows >= 0)[:, None]
    return np.where(inside, reads % per_before, -1)


def gather(old: Tensor, shape: Shape, index: Index, reads: Indices | None = None) -> Tensor:
    """The tensor of the new shape: entries from their sources, fresh ones drawn like the old ones."""
    if old.is_meta:
        return torch.empty(shape, dtype=old.dtype, device="meta")
    taken, known = old, torch.ones((), dtype=torch.bool, device="cpu")
    for side, source in enumerate(index):
        if source is None or (side == 1 and reads is not None):
            continue
        where = torch.from_numpy(source).to(old.device)
        taken = taken.index_select(side, where.clamp(min=0))
        known = known & (where >= 0).view([-1 if d == side else 1 for d in range(old.dim())]).cpu()
    if reads is not None:
        where = torch.from_numpy(reads).to(old.device)
        spread = where.clamp(min=0).view(*where.shape, *[1] * (old.dim() - 2)).expand(*where.shape, *old.shape[2:])
        taken = taken.gather(1, spread)
        known = known & (where >= 0).view(*where.shape, *[1] * (old.dim() - 2)).cpu()
    if bool(known.all()):
        return taken.clone()
    return torch.where(known.to(old.device).expand(shape), taken, fresh(old, shape))


def fresh(old: Tensor, shape: Shape) -> Tensor:
    """New values like the old ones: constants stay, others keep mean and deviation, the latter scaled by fan-in."""
    values = old.float()
    if not old.is_floating_point() or old.numel() == 0 or bool((values == values.flatten()[0]).all()):
        filler = old.flatten()[0] if old.numel() else torch.zeros((), dtype=old.dtype)
        return filler.expand(shape).clone()
    fan_in = [max(1, t[0].numel()) if t.dim() > 1 else 1 for t in (old, torch.empty(shape, device="meta"))]
    deviation = float(values.std()) * (fan_in[0] / fan_in[1]) ** 0.5
    drawn = torch.randn(shape, device=old.device) * deviation + float(values.mean())
    result: Tensor = drawn.to(old.dtype)
    return result


def rebuild(
    model: nn.Module, shapes: Mapping[str, Shape], index: Mapping[str, Index], reads: Mapping[str, Indices],
    whole_groups: Collection[str] = (),
) -> nn.Module:  # fmt: skip
    """A copy of the model with parameters and buffers of these shapes; whose groups are whole has as many as fit."""
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    memo: dict[int, object] = {}
    for name, tensor in tensors.items():
        if id(tensor) in memo or name not in shapes:
            continue
        if (
            tuple(tensor.shape) == shapes[name]
            and not any(_moves(i) for i in index.get(name, []))
            and name not in reads
        ):
            continue
        new = gather(tensor.detach(), shapes[name], index.get(name, []), reads.get(name))
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter else new
    resized = copy.deepcopy(model, memo)
    for path, module in resized.named_modules():
        _tell(module, path in whole_groups)
    _keep_effective_weights(model, resized, index, reads)
    return resized


def _moves(source: Indices | None) -> bool:
    return source is not None and not np.array_equal(source, np.arange(len(source)))


def _tell(module: nn.Module, has_whole_groups: bool) -> None:
    """Set a leaf module's size attributes by the shapes of its parameters."""
    if isinstance(module, nn.modules.conv._ConvNd):
        shape = module.weight.shape
        depthwise = module.groups == module.in_channels and module.groups > 1 and not module.transposed
        by_group = has_whole_groups or (depthwise and shape[1] == 1)
        if module.transposed:
            module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
        elif by_group:
            module.groups = shape[0] // (module.out_channels // module.groups)
            module.in_channels, module.out_channels = shape[1] * module.groups, shape[0]
        else:
            module.in_channels, module.out_channels = shape[1] * module.groups, shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = module.weight if module.weight is not None else module.running_mean
        if sized is not None:
            module.num_features = sized.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def _keep_effective_weights(
    model: nn.Module, resized: nn.Module, index: Mapping[str, Index], reads: Mapping[str, Indices]
) -> None:
    """Set parametrised weights so that what they compute, not what they store, is what was cut."""
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for attribute in list(module.parametrizations):
            effective = getattr(module, attribute).detach()
            new = getattr(resized.get_submodule(path), attribute)
            stem = f"{path}.parametrizations.{attribute}." if path else f"parametrizations.{attribute}."
            same = [n for n, i in index.items() if n.startswith(stem) and len(i) == effective.dim()
                    and dict(model.named_parameters())[n].shape == effective.shape]  # fmt: skip
            changed = same and (tuple(new.shape) != tuple(effective.shape) or any(_moves(i) for i in index[same[-1]]))
            if changed and not effective.is_meta:
                cut = gather(effective, tuple(new.shape), index[same[-1]], reads.get(same[-1]))
                setattr(resized.get_submodule(path), attribute, cut)
