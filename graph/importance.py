"""Importance scores of channels, as `select` takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from .channel_graph import ChannelGraph


def l1_importance(graph: ChannelGraph, model: nn.Module) -> dict[str, Any]:
    """Mean absolute weight of the filters that make each channel (Li et al. 2017, arXiv:1608.08710, section 3.1).

    Summed over all layers that write a tied channel; group -> numbers (layer -> numbers where tied by size only).
    """
    channels = graph._channels
    total = np.zeros(len(channels.cell))
    tensors = dict(model.named_parameters())
    for maker in graph._makers:
        parameter, side, _ = graph._makers[maker]
        filters = tensors[parameter].detach().float().movedim(side, 0).flatten(1).abs().mean(1)
        np.add.at(total, graph._channel_list(maker), filters.cpu().numpy())
    return {group: _scores(graph, layers, total) for group, layers in graph.members.items()}


def _scores(graph: ChannelGraph, layers: list[str], total: npt.NDArray[np.float64]) -> Any:
    scores = {layer: total[graph._channel_list(layer)] for layer in layers}
    return scores[layers[0]] if len(layers) == 1 else scores
