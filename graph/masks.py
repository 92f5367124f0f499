"""The masked original: full size, but nothing reads the channels that are not kept."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from .cells import Channels
from .tracer import Tracer

Dropped = npt.NDArray[np.bool_]  # channel -> whether nothing may read it


@torch.no_grad()
def masked(model: nn.Module, channels: Channels, dropped: Dropped) -> nn.Module:
    """A copy of the model whose convolutions and linear layers have zeros where they would read a dropped channel."""
    result = copy.deepcopy(model)
    for name, side in reading_sides(channels.tracer).items():
        keep = _kept_entries(channels, dropped, name, side)
        if keep is None:
            continue
        path, _, attribute = name.rpartition(".")
        module = result.get_submodule(
            path.removesuffix(".parametrizations.weight").removesuffix("parametrizations.weight")
        )
        attribute = "weight" if parametrize.is_parametrized(module) else attribute
        weight = getattr(module, attribute).detach()
        mask = torch.from_numpy(keep).to(weight.device, weight.dtype)
        shape = [1] * weight.dim()
        for d, n in zip(range(side, side - mask.dim(), -1), reversed(mask.shape), strict=False):
            shape[d] = n
        new = weight * mask.view(shape)
        if parametrize.is_parametrized(module):
            setattr(module, attribute, new)
        else:
            getattr(module, attribute).copy_(new)
    return result


def reading_sides(tracer: Tracer) -> dict[str, int]:
    """For every weight of a convolution or linear layer, the side along which it reads its input."""
    sides = {}
    for op in tracer.ops:
        if op.kind in ("conv", "grouped conv", "linear", "transposed conv"):
            reads = 0 if op.kind == "transposed conv" else 1
            for name in op.weights:
                if tracer.parameters[name].dim() >= 2 and not name.endswith("original0"):
                    sides[name] = reads
    return sides


@dataclass(frozen=True)
class Reader:
    """What a weight reads: the channel at each position of its layer's whole input, in `groups` equal parts."""

    channels: npt.NDArray[np.int64]
    groups: int
    side: int  # of the weight, along which a group's part of the input lies


def readers(channels: Channels) -> dict[str, Reader]:
    """Every weight of a convolution or linear layer that reads channels which can vary; depthwise ones mix none."""
    found = {}
    for name, side in reading_sides(channels.tracer).items():
        if name in channels.tracer.grouped:
            groups, line, _ = channels.tracer.grouped[name]
            found[name] = Reader(channels.of_label[line.numpy()], groups, side)
        elif (along := channels.along(name, side)) is not None:
            found[name] = Reader(along, 1, side)
    return found


def _kept_entries(channels: Channels, dropped: Dropped, name: str, side: int) -> npt.NDArray[np.float32] | None:
    """1 where the weight reads a kept channel, 0 elsewhere: along its side, or per row for a grouped weight."""
    if name in channels.tracer.grouped:
        groups, line, _ = channels.tracer.grouped[name]
        rows = channels.tracer.parameters[name].shape[0]
        per_group = (~dropped[channels.of_label[line.numpy()]]).reshape(groups, -1)
        return np.repeat(per_group, rows // groups, axis=0).astype(np.float32)
    along = channels.along(name, side)
    return None if along is None else (~dropped[along]).astype(np.float32)
