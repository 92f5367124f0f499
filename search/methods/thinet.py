"""ThiNet: channels go whose absence the next layer's output notices least (Luo et al. 2017, arXiv:1707.06342)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ...graph.channel_graph import ChannelGraph
from ...graph.masks import Reader
from ...training.evaluate import device_of
from ..nearest import uniform_widths
from .activations import (
    Sampled,
    Sampler,
    batches,
    contributions,
    drawn,
    read_by,
    reading_layers,
    set_weight,
    some_outputs,
    weight_of,
)  # fmt: skip
from .method import Proposal, Task

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ThiNet(Sampled):
    """Channels that the next layer's output can do without go first; those that stay are scaled to make up for them.

    The paper compresses each layer alike, so widths are uniform shares. From `images` of the training split, at
    `locations` random places of each layer's output (10 in section 3.2.1), drawn with `seed`, come the sums that an
    output is made of (equation 3); algorithm 1 removes, one by one, the channel that leaves the smallest squared sum
    of the removed ones (equation 6), and least squares scale the channels that stay (equation 7).

    Where several layers read a channel, their errors are added, each as a share of its outputs' squares, and each
    layer scales the channels for itself. All layers are looked at in the network as it was trained: the paper trains
    after each, here training comes after all.
    """

    def propose(self, task: Task) -> Proposal:
        """Uniform widths, channels by the greedy algorithm, weights scaled by least squares."""
        graph, readers = task.graph, reading_layers(task.graph, task.model)
        widths = uniform_widths(graph, task.budget)
        grams = self._grams(task, readers)
        ranks = np.zeros(graph.n_channels)
        for _, own in selectable(graph):
            ranks[own[removal_order(shared_gram(own, readers, grams))]] = np.arange(len(own))
        scores = graph.by_group(ranks)
        kept = ~graph.dropped(graph.select(scores, widths, strict=False))
        model = copy.deepcopy(task.model)
        rows = [self._scale(path, model.get_submodule(path), readers[path], grams[path], kept) for path in readers]
        return Proposal(widths, scores, model, pd.DataFrame(rows))

    def _grams(self, task: Task, readers: dict[str, Reader]) -> dict[str, Floats]:
        """For every layer the inner products [C, C], over samples, of what its channels add to its output."""
        sampler = Sampler(task.model, readers, self.locations, self.seed)
        grams = {path: np.zeros(2 * read_by(reader).shape) for path, reader in readers.items()}
        split = drawn(task.data.train, self.images, self.seed)
        for number, (images, _) in enumerate(batches(split, task.data.info, device_of(task.model))):
            for path, samples in sampler.read(images, number).items():
                module = task.model.get_submodule(path)
                added = contributions(samples, weight_of(module), readers[path], some_outputs(module, number))
                added = added.flatten(0, 1)
                grams[path] += (added.T @ added).double().cpu().numpy()
        return grams

    def _scale(self, path: str, module: nn.Module, reader: Reader, gram: Floats, kept: Bools) -> dict[str, float | str]:
        """Scale the kept channels where a layer reads them; its output's error, as a share, before and after."""
        stay = kept[read_by(reader)]
        factor = np.zeros(len(stay))
        factor[stay], *_ = np.linalg.lstsq(gram[np.ix_(stay, stay)], gram[stay].sum(1))
        scale_reads(module, reader, factor)
        total = gram.sum() or 1.0
        missing = (1.0 - stay, 1.0 - factor)
        errors = [float(part @ gram @ part / total) for part in missing]
        return {"layer": path, "error": errors[0], "scaled_error": errors[1]}


def selectable(graph: ChannelGraph) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Group and channels of each layer whose channels are chosen one by one."""
    return [(group, np.unique(graph.channels_of(layer))) for group, layers in graph.members.items() for layer in layers]


def shared_gram(own: npt.NDArray[np.int64], readers: Mapping[str, Reader], grams: Mapping[str, Floats]) -> Floats:
    """The inner products of these channels, added over the layers that read them, each as a share of its outputs."""
    total = np.zeros((len(own), len(own)))
    for path, reader in readers.items():
        _, mine, theirs = np.intersect1d(own, read_by(reader), return_indices=True)
        total[np.ix_(mine, mine)] += grams[path][np.ix_(theirs, theirs)] / (grams[path].sum() or 1.0)
    return total


def removal_order(gram: Floats) -> npt.NDArray[np.int64]:
    """Luo et al., algorithm 1, down to the last channel: at each step the one that leaves equation 6 smallest.

    `gram` holds the inner products of the channels' contributions; the squared sum over removed ones is what it sums
    to over them.
    """
    left = np.ones(len(gram), dtype=bool)
    with_removed = np.zeros(len(gram))
    order = np.empty(len(gram), dtype=np.int64)
    for step in range(len(gram)):
        order[step] = np.argmin(np.where(left, 2 * with_removed + gram.diagonal(), np.inf))
        left[order[step]] = False
        with_removed += gram[order[step]]
    return order


@torch.no_grad()
def scale_reads(module: nn.Module, reader: Reader, factor: Floats) -> None:
    """Multiply a layer's weights in place by a factor for each channel of `read_by`."""
    weight = weight_of(module)
    by_place = torch.from_numpy(factor[np.searchsorted(read_by(reader), reader.channels)]).to(weight)
    rows = by_place.view(reader.groups, -1).repeat_interleave(len(weight) // reader.groups, 0)
    set_weight(module, weight * rows[:, :, None])
