"""Cardinality: the grouped convolutions of a network that may have fewer groups instead of narrower ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import InvalidWidths
from .channel_graph import ChannelGraph, trace


def separable_groups(model: nn.Module, input_shape: Sequence[int]) -> frozenset[str]:
    """The grouped convolutions whose groups may go one by one, for `trace(..., whole_groups=...)`.

    Where something else ties them together or counts them (a shuffle, another grouping), none of them can go alone.
    """
    layers = frozenset(path for path, module in model.named_modules() if _is_grouped(module))
    while layers:
        graph = trace(model, input_shape, whole_groups=layers)
        group_of = {path: _group_of(graph, path) for path in layers}
        tied = {path for path, group in group_of.items() if group is None}
        if not tied and not _may_lose_one(graph, {group for group in group_of.values() if group}):
            tied = {path for path, group in group_of.items() if group and not _may_lose_one(graph, {group})}
        if not tied:
            break
        layers -= tied
    return layers


def _is_grouped(module: nn.Module) -> bool:
    """In several groups of several channels, with a weight of its own (not computed from others)."""
    return (
        isinstance(module, _ConvNd)
        and not module.transposed
        and 1 < module.groups < module.in_channels
        and module._parameters.get("weight") is not None
    )


def _group_of(graph: ChannelGraph, path: str) -> str | None:
    """The graph's group that a convolution's groups are the channels of; None where they are no channels each."""
    written = graph.channels(f"{path}.weight", 0)
    if written is None or len(np.unique(written)) != graph.model.get_submodule(path).groups:
        return None
    return next(
        group for group, layers in graph.members.items() for own in layers if written[0] in graph.channels_of(own)
    )


def _may_lose_one(graph: ChannelGraph, groups: Collection[str]) -> bool:
    """Whether the network can do with one step less of each."""
    try:
        graph.select({}, {group: graph.groups[group] - graph.steps[group] for group in groups})
    except InvalidWidths:
        return False
    return True
