"""Which batch-norm scales belong to which channel: what MorphNet and network slimming learn by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InvalidSetting
from ...graph.channel_graph import ChannelGraph
from ...graph.importance import l1_importance

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scales:
    """The scales (gamma) of all batch norms over searchable channels, as one list.

    A channel may have several: of every branch that is added into it, before and after a depthwise convolution, or of
    every batch norm that reads a concatenation. It has none where its layer has no batch norm (the squeeze of
    squeeze-excite, a hidden linear layer); `place` says where such a channel stands among those of its layer.
    """

    names: tuple[str, ...]  # of the parameters
    lengths: tuple[int, ...]
    channel: Ints  # [scales] the channel that each one scales
    place: Floats  # [channels] 0 (least L1 norm) to 1 in its layer; NaN where the channel has scales, or no group

    def of(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters themselves."""
        return [model.get_parameter(name) for name in self.names]

    def magnitudes(self, model: nn.Module) -> Tensor:
        """|gamma|, [scales]."""
        return torch.cat([scale.float() for scale in self.of(model)]).abs()

    def largest(self, model: nn.Module) -> Floats:
        """The largest |gamma| of each channel, [channels]; 0 where there is none.

        A channel can go only when all its scales are small: MorphNet's grouping (arXiv:1711.06798, section 3.3), and
        a global threshold on the scales of a tied channel comes to the same.
        """
        largest = np.zeros(len(self.place))
        np.maximum.at(largest, self.channel, self.magnitudes(model).detach().cpu().numpy())
        return largest

    def completed(self, per_channel: Floats) -> Floats:
        """The same numbers, with values for channels that have no scale: spread like those of all that have.

        Whatever the threshold, a layer without batch norm then keeps the share that the whole network keeps.
        """
        without = np.flatnonzero(~np.isnan(self.place))
        result = per_channel.copy()
        result[without] = np.quantile(per_channel[np.unique(self.channel)], self.place[without])
        return result


def scales_of(graph: ChannelGraph, model: nn.Module, method: str) -> Scales:
    """The scales of a model of the graph's structure; InvalidSetting names the first layer of one that has none."""
    found = scaled_channels(graph, method)
    channel = np.concatenate(list(found.values()))
    return Scales(tuple(found), tuple(len(own) for own in found.values()), channel, _places(graph, model, channel))


def scaled_channels(graph: ChannelGraph, method: str) -> dict[str, Ints]:
    """Every batch-norm scale of the graph's network -> the channels that it scales; raises InvalidSetting as above."""
    found = {}
    for path, module in graph.model.named_modules():
        if isinstance(module, _BatchNorm) and module.affine:
            channels = graph.channels(f"{path}.weight", 0)
            if channels is not None:
                found[f"{path}.weight"] = channels
    if not found:
        raise InvalidSetting(
            f"{method} learns batch-norm scales, and {next(iter(graph.groups))} has none, nor has any other layer;"
            " take method=sss or l1"
        )
    return found


def _places(graph: ChannelGraph, model: nn.Module, scaled: Ints) -> Floats:
    places = np.full(graph.n_channels, np.nan)
    scores = l1_importance(graph, model)
    for group, layers in graph.members.items():
        for layer in layers:
            own = scores[group] if len(layers) == 1 else scores[group][layer]
            rank = np.argsort(np.argsort(own, kind="stable"), kind="stable")
            places[graph.channels_of(layer)] = (rank + 0.5) / len(rank)
    places[scaled] = np.nan
    return places
