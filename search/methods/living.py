"""Living channels: the widths that they come to, what those cost, and the nearest widths that meet a budget."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
from torch import nn

from ...graph.channel_graph import ChannelGraph, Widths
from ..budget import Budget
from ..latency import model_of, priced
from ..projection import Limits, project

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Membership:
    """Which channels are of which group, in the order of `graph.groups`; the layers of a group tied by size share it.

    A channel may be of several: where a shortcut pads with zeros, the first channels of a wide stage are those of the
    narrow one before.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        names = list(graph.groups)
        layers = [(i, graph.channels_of(layer)) for i, name in enumerate(names) for layer in graph.members[name]]
        self.channel = np.concatenate([channels for _, channels in layers])
        self.group = np.repeat([i for i, _ in layers], [len(channels) for _, channels in layers])
        self.n_channels = graph.n_channels
        self._layers = np.array([len(graph.members[name]) for name in names], dtype=np.int64)
        self._step = np.array([graph.steps[name] for name in names], dtype=np.int64)
        default = np.array([graph.groups[name] for name in names], dtype=np.int64)
        self._most = default // self._step * self._step
        self._least = np.where([name in graph.removable for name in names], 0, self._step)
        self._branches = [[names.index(name) for name in branch] for branch in graph.branches]

    def widths(self, alive: Bools) -> Ints:
        """[channels] -> the widths [G] that hold what is alive.

        In whole steps and at least one, except that a residual branch one of whose groups is dead is gone: 0.
        """
        counts = np.bincount(self.group[alive[self.channel]], minlength=len(self._layers))
        return self.holding(counts)

    def holding(self, counts: Ints) -> Ints:
        """[..., G] living channels of all layers of each group -> widths."""
        steps = -(-counts // (self._layers * self._step))
        widths = np.clip(steps * self._step, self._least, self._most)
        for branch in self._branches:
            gone = (widths[..., branch] == 0).any(axis=-1, keepdims=True)
            widths[..., branch] = np.where(gone, 0, widths[..., branch])
        return np.asarray(widths)

    def charged(self, slopes: Floats) -> Floats:
        """A price a channel of each group [G] -> what each channel costs, [channels]: in all groups that it is of."""
        each = (slopes / self._layers)[self.group]
        return np.asarray(np.bincount(self.channel, each, minlength=self.n_channels))


def share_of(limits: Limits, widths: Ints) -> Floats:
    """[N, G] -> the largest cost / limit of each; unlike `Limits.share`, also of widths that break a constraint."""
    return np.asarray((limits.costs(widths) / limits.limits).max(axis=1))


def projected(graph: ChannelGraph, model: nn.Module, living: Ints, budget: Budget, cap: float) -> Widths:
    """The widths nearest to these proportions that meet the budget; a branch of width 0 stays removed.

    No group grows beyond `cap` times its width in the graph. Raises BudgetTooSmall.
    """
    widths = dict(zip(graph.groups, living.tolist(), strict=True))
    gone = {name: 0 for name, width in widths.items() if width == 0}
    if gone:
        structure = graph.resize(copy.deepcopy(model).to("meta"), gone)
        rest = graph.of(structure)
    else:
        rest = graph
    timed = priced(rest, model_of(budget))
    ratios = [widths[name] / default for name, default in rest.groups.items()]
    found = project(timed, ratios, budget, cap).widths[0].tolist()
    return {**widths, **dict(zip(rest.groups, found, strict=True))}
