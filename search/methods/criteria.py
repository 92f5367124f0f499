"""Criteria side by side: what each says of a channel from one pass over images; one threshold meets the budget.

They are those that Mittal et al. 2018 (arXiv:1801.10447, Table 1) compare, with the Taylor criterion. The papers score
the output of one filter after its activation; on a general graph a channel is scored on what the layers that read it
see of it (search/activations.py). As Molchanov et al. 2017 (arXiv:1611.06440, section 2.2) do with all criteria, the
scores of each layer are divided by their Euclidean norm, so that one threshold may compare layers; those of a channel
group are one layer's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import InvalidSetting
from ...graph.channel_graph import ChannelGraph, Scores
from ..threshold import widths_by_score
from .activations import drawn, image_means, loss_changes, reading_layers
from .method import Proposal, Task

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Criterion(ABC):
    """Channels that score lowest go first.

    `images` of the training split are looked at, drawn with `seed`. Raises InvalidSetting.
    """

    images: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InvalidSetting(f"images is {self.images}; expected a positive number")

    def check(self, graph: ChannelGraph) -> None:
        """Raises UntraceableModel for a network that reads channels by functional calls."""
        reading_layers(graph, graph.model)

    @abstractmethod
    def channel_scores(self, task: Task) -> Floats:
        """One number a channel, [n_channels], larger for those worth keeping."""

    def propose(self, task: Task) -> Proposal:
        """Score the channels, make layers comparable and let one threshold meet the budget."""
        scores = per_layer(task.graph.by_group(self.channel_scores(task)))
        return Proposal(widths_by_score(task.graph, scores, task.budget), scores, task.model)

    def _means(self, task: Task, measure: Callable[[Tensor], Tensor]) -> Tensor:
        split = drawn(task.data.train, self.images, self.seed)
        return image_means(task.graph, task.model, split, task.data.info, measure)


@dataclass(frozen=True)
class Taylor(Criterion):
    """How much the loss would change, to first order, without the channel (Molchanov et al. 2017).

    arXiv:1611.06440, equation 8: |activation times gradient|, summed over the channel's map, and averaged over images
    after the absolute value; over all maps where several layers read a channel. The paper divides by the size of the
    map, which the norm of the layer takes out again. Batch norm is as in evaluation.
    """

    def channel_scores(self, task: Task) -> Floats:
        """Mean absolute change of an image's loss."""
        split = drawn(task.data.train, self.images, self.seed)
        changes = loss_changes(task.graph, task.model, split, task.data.info)
        return np.asarray(changes.double().abs().mean(0))


@dataclass(frozen=True)
class MeanActivation(Criterion):
    """The mean activation of the channel (Molchanov et al. 2017, section 2.2).

    Of its absolute value, which is the same after a ReLU; what a linear bottleneck makes would cancel itself.
    """

    def channel_scores(self, task: Task) -> Floats:
        """Mean over images and places."""
        return np.asarray(self._means(task, torch.abs).double().mean(0))


@dataclass(frozen=True)
class APoZ(Criterion):
    """The share of the channel's activations that are not zero: one minus APoZ (Hu et al. 2016).

    arXiv:1607.03250, equation 1, over all images and places. Channels without a rectifier have no zeros.
    """

    def channel_scores(self, task: Task) -> Floats:
        """One minus the average percentage of zeros."""
        return np.asarray(self._means(task, lambda x: (x != 0).float()).double().mean(0))


@dataclass(frozen=True)
class Entropy(Criterion):
    """How much the channel's pooled activation tells images apart: its entropy (Luo and Wu 2017).

    arXiv:1706.05791, section 3.2: global average pooling gives a number for each image, a histogram of `bins` between
    the least and the largest of them gives probabilities p, and the score is -sum(p log p).
    """

    bins: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2:
            raise InvalidSetting(f"bins is {self.bins}; expected two or more")

    def channel_scores(self, task: Task) -> Floats:
        """Entropies in nats."""
        return entropies(self._means(task, lambda x: x), self.bins)


@dataclass(frozen=True)
class ScaledEntropy(Entropy):
    """The entropy times the mean activation of the channel (Mittal et al. 2018, arXiv:1801.10447).

    A histogram between its own least and largest value does not see how large a channel is; the mean does.
    """

    def channel_scores(self, task: Task) -> Floats:
        """Entropies in nats times the mean absolute pooled activation."""
        pooled = self._means(task, lambda x: x)
        return np.asarray(entropies(pooled, self.bins) * pooled.double().abs().mean(0).numpy())


@dataclass(frozen=True)
class Random:
    """Any channel may go: what every criterion has to beat (Mittal et al. 2018).

    Scores are uniform from 0 to 1, the same for all layers, and drawn with `seed`.
    """

    seed: int = 0

    def propose(self, task: Task) -> Proposal:
        """Draw the scores and let one threshold meet the budget."""
        scores = task.graph.by_group(np.random.default_rng(self.seed).random(task.graph.n_channels))
        return Proposal(widths_by_score(task.graph, scores, task.budget), scores, task.model)


def entropies(pooled: Tensor, bins: int) -> Floats:
    """[images, channels] -> [channels], entropy in nats of each channel's histogram over its own range."""
    values = pooled.double()
    low, high = values.amin(0), values.amax(0)
    span = torch.where(high > low, high - low, 1.0)
    at = ((values - low) / span * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(bins, values.shape[1], dtype=torch.float64).scatter_add_(0, at, torch.ones_like(values))
    return np.asarray(torch.special.entr(counts / len(values)).sum(0))


def per_layer(scores: Scores) -> Scores:
    """Every layer's scores divided by their Euclidean norm; a layer of zeros stays so."""

    def scaled(own: Floats) -> Floats:
        return np.asarray(own / (np.linalg.norm(own) or 1.0))

    return {
        group: {layer: scaled(part) for layer, part in own.items()} if isinstance(own, Mapping) else scaled(own)
        for group, own in scores.items()
    }
