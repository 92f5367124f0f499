"""Importance scores of channels, as `select` takes them."""

from __future__ import annotations

import numpy as np
from torch import nn

from .channel_graph import ChannelGraph, Scores


def l1_importance(graph: ChannelGraph, model: nn.Module) -> Scores:
    """Mean absolute weight of the filters that make each channel (Li et al. 2017, arXiv:1608.08710, section 3.1).

    Summed over all layers that write a tied channel; group -> numbers (layer -> numbers where tied by size only).
    """
    total = np.zeros(graph.n_channels)
    tensors = dict(model.named_parameters())
    for maker, (parameter, side) in graph.makers().items():
        filters = tensors[parameter].detach().float().movedim(side, 0).flatten(1).abs().mean(1)
        np.add.at(total, graph.channels_of(maker), filters.cpu().numpy())
    return graph.by_group(total)
