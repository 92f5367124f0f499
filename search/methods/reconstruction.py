"""Regression-based feature reconstruction: LASSO chooses channels, least squares fits the next layer's weights.

He et al. 2017, "Channel pruning for accelerating very deep neural networks", arXiv:1707.06168.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path_gram
from torch import Tensor

from ...training.evaluate import device_of
from ..nearest import uniform_widths
from .activations import (
    Sampled,
    Sampler,
    batches,
    contributions,
    drawn,
    outputs_of,
    read_by,
    reading_layers,
    set_weight,
    some_outputs,
    weight_of,
)  # fmt: skip
from .method import Proposal, Task
from .thinet import selectable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RIDGE = 1e-6  # of the mean square of what is read: solves where channels repeat one another


@dataclass(frozen=True)
class Reconstruction(Sampled):
    """Channels are chosen by LASSO, and the layers that read them re-fitted to give the outputs of the whole network.

    Equation 1 of the paper, layer by layer in the order in which they run, on what the network pruned so far makes of
    `images` of the training split at `locations` random places of the layer's output (10 in section 4), drawn with
    `seed`, against the outputs of the network as it was: (i) the weights fixed, the penalty lambda grows until as
    many channels' coefficients as the width allows are left (along the exact path of solutions); (ii) the channels
    fixed, least squares fit the weights.

    The paper sets the layers' ratios by hand; here widths are uniform shares. A channel that several layers read is
    chosen when the first of them is reached, over all of them, each layer's error as a share of its outputs' squares;
    each layer is fitted when it is reached.
    """

    def propose(self, task: Task) -> Proposal:
        """Uniform widths, channels by LASSO, weights by least squares."""
        graph, widths = task.graph, uniform_widths(task.graph, task.budget)
        pair = _Pair(task, self)
        scores = np.zeros(graph.n_channels)
        kept = np.ones(graph.n_channels, dtype=bool)
        waiting, rows = selectable(graph), []
        for path, reader in pair.readers.items():
            reached = [(group, own) for group, own in waiting if np.isin(own, reader.channels).any()]
            for group, own in reached:
                scores[own] = lasso_scores(*pair.regression(own, kept), widths[group])
                chosen = ~graph.dropped(graph.select(graph.by_group(scores), widths, strict=False))
                scores[own] = kept[own] = chosen[own]
            waiting = [(group, own) for group, own in waiting if not np.isin(own, reader.channels).any()]
            rows.append({"layer": path, **pair.fit(path, kept)})
        return Proposal(widths, graph.by_group(scores), pair.pruned, pd.DataFrame(rows))


class _Pair:
    """The network as it was beside the one that is being pruned, and what both make of the same samples."""

    def __init__(self, task: Task, settings: Reconstruction) -> None:
        self.original, self.pruned = task.model, copy.deepcopy(task.model)
        self.readers = reading_layers(task.graph, task.model)
        self._split, self._info = drawn(task.data.train, settings.images, settings.seed), task.data.info
        self._locations, self._seed = settings.locations, settings.seed

    def _samples(self, paths: list[str]) -> Iterator[tuple[int, str, Tensor, Tensor]]:
        """Batch, layer, what it reads in the pruned network, and what it gave (without bias) in the original."""
        before, now = (Sampler(net, paths, self._locations, self._seed) for net in (self.original, self.pruned))
        for number, (images, _) in enumerate(batches(self._split, self._info, device_of(self.original))):
            originals = before.read(images, number)
            for path, samples in now.read(images, number).items():
                weight = weight_of(self.original.get_submodule(path))
                yield number, path, samples, outputs_of(originals[path], weight, self.readers[path].groups)

    def regression(self, own: Ints, kept: Bools) -> tuple[Floats, Floats]:
        """Inner products of what these channels add to the outputs that read them: [C, C], and [C] with the outputs.

        What other kept channels add is taken from the outputs first.
        """
        paths = [path for path, reader in self.readers.items() if np.isin(own, reader.channels).any()]
        grams = {path: np.zeros((len(own), len(own))) for path in paths}
        products = {path: np.zeros(len(own)) for path in paths}
        squares = dict.fromkeys(paths, 0.0)
        for number, path, samples, outputs in self._samples(paths):
            reader, module = self.readers[path], self.pruned.get_submodule(path)
            read, looked_at = read_by(reader), some_outputs(module, number)
            added = contributions(samples, weight_of(module), reader, looked_at).flatten(0, 1).double().cpu().numpy()
            wanted = outputs[:, looked_at].flatten().double().cpu().numpy()
            squares[path] += float(wanted @ wanted)
            wanted -= added[:, kept[read] & ~np.isin(read, own)].sum(1)
            _, mine, theirs = np.intersect1d(own, read, return_indices=True)
            grams[path][np.ix_(mine, mine)] += added[:, theirs].T @ added[:, theirs]
            products[path][mine] += added[:, theirs].T @ wanted
        share = {path: square or 1.0 for path, square in squares.items()}
        gram = sum((grams[path] / share[path] for path in paths), np.zeros((len(own), len(own))))
        return gram, sum((products[path] / share[path] for path in paths), np.zeros(len(own)))

    def fit(self, path: str, kept: Bools) -> dict[str, float]:
        """Fit the layer's weights to the kept channels; its outputs' error, as a share, before and after."""
        reader, module = self.readers[path], self.pruned.get_submodule(path)
        pairs = [(samples, outputs) for _, _, samples, outputs in self._samples([path])]
        stays = torch.from_numpy(kept[reader.channels]).chunk(reader.groups)
        weight = weight_of(module).clone()
        inputs = torch.cat([samples for samples, _ in pairs]).chunk(reader.groups, 1)
        wanted = torch.cat([outputs for _, outputs in pairs]).double().chunk(reader.groups, 1)
        before = after = 0.0
        for stay, rows, x, y in zip(stays, weight.chunk(reader.groups), inputs, wanted, strict=True):
            read = x[:, stay].flatten(1).double()
            missing = y - read @ rows[:, stay].flatten(1).double().T
            change = least_squares(read, missing)
            rows[:, stay] += change.T.reshape(len(rows), -1, rows.shape[2]).to(rows)
            rows[:, ~stay] = 0
            before += float(missing.square().sum())
            after += float((missing - read @ change).square().sum())
        set_weight(module, weight)
        total = sum(float(y.square().sum()) for y in wanted) or 1.0
        return {"error": before / total, "fitted_error": after / total}


def lasso_scores(gram: Floats, products: Floats, count: int) -> Floats:
    """Scores [C] by which the `count` channels that the LASSO leaves come first.

    Along the exact path of min |y - sum(b z)|^2 / 2 + lambda |b|_1 (`gram` = z'z, `products` = z'y): lambda grows until
    at most `count` coefficients are left. Those score 1 and more, by their size; others by the lambda, as a share of
    the largest, at which they left.
    """
    scale = gram.diagonal().mean() or 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of channels that repeat others: they do not enter
        lambdas, _, path = lars_path_gram(
            products / scale, gram / scale, n_samples=1, max_iter=count + count // 4 + 1, method="lasso"
        )
    alive = path != 0  # [C, knots], lambda falling from knot to knot
    chosen = np.flatnonzero(alive.sum(0) <= count)[-1]
    size = np.abs(path[:, chosen])
    entered = np.where(alive.any(1), lambdas[np.maximum(alive.argmax(1) - 1, 0)], 0.0) / (lambdas[0] or 1.0)
    return np.asarray(np.where(size > 0, 1 + size / (size.max() or 1.0), entered * (1 - 1e-6)))


def least_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """[F, O] that takes [N, F] to [N, O] with the least squared error, and of those the smallest.

    A ridge of 1e-6 of the mean square of the inputs keeps it defined where they repeat one another.
    """
    n, f = inputs.shape
    ridge = RIDGE * inputs.square().sum() / max(1, f) + 1e-30
    if n < f:  # the same solution, by the smaller system
        small: Tensor = torch.linalg.solve(inputs @ inputs.T + ridge * torch.eye(n).to(inputs), outputs)
        return inputs.T @ small
    solved: Tensor = torch.linalg.solve(inputs.T @ inputs + ridge * torch.eye(f).to(inputs), inputs.T @ outputs)
    return solved
