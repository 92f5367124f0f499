"""Sparse momentum: few weights throughout a training (Dettmers and Zettlemoyer 2019, arXiv:1907.04840)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...graph.sparsity import Masks, apply_masks, largest_per_layer, prunable, top
from .method import Proposal, Task
from .surviving import DERIVED, check_sparsity, epochs_of, fresh, sparsity_of, surviving

SUFFIX = "_mask"  # of the buffer that holds a weight's mask, so that a training's checkpoint has it
NEARLY_DENSE = 0.2  # sparsity below which a layer that grows gives up no more than it lacks
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SparseMomentum:
    """A fresh network trains with few weights, which move after each epoch to where the momentum is largest.

    `sparsity`: share of all weights that are away at any time, 0: what the budget asks for. `rate`: share p of each
    layer's weights that move after the first epoch (the paper's Figure 1 has 50 %), decaying by a cosine to 0 at the
    end. The copy's weights are drawn anew from the recipe's seed by each layer's `reset_parameters`, and it trains by
    the recipe; that training's weights go on.
    """

    sparsity: float = DERIVED
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_sparsity("sparse_momentum", self.sparsity)
        if not 0 < self.rate < 1:
            raise InvalidSetting(f"sparse_momentum: rate is {self.rate!r}; expected a share between 0 and 1")

    def propose(self, task: Task) -> Proposal:
        """Train sparsely from scratch, and project what survives."""
        if task.recipe.momentum == 0:
            raise InvalidSetting("sparse_momentum needs momentum: the recipe's is 0")
        network = fresh(task.model, task.recipe.seed)
        draw = torch.Generator().manual_seed(task.recipe.seed)
        random = {name: torch.rand(weight.shape, generator=draw) for name, weight in prunable(network).items()}
        masks = largest_per_layer(random, sparsity_of(task, self.sparsity))
        apply_masks(network, masks)
        _attach(network, masks)

        def after_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
            masks = _attached(model)
            apply_masks(model, masks)
            if step % (steps // task.recipe.epochs) == 0 and step < steps:
                weights = prunable(model)
                momenta = {name: _momentum(optimizer, weight) for name, weight in weights.items()}
                rate = self.rate * (1 + math.cos(math.pi * step / steps)) / 2
                for name, mask in redistributed(weights, momenta, masks, rate).items():
                    masks[name].copy_(mask)
                apply_masks(model, masks)

        history = task.train(network, "sparse", task.recipe, after_step=after_step)
        return surviving(task, network, _detached(network), epochs_of(history))


def redistributed(weights: Mapping[str, Tensor], momenta: Mapping[str, Tensor], masks: Masks, rate: float) -> Masks:
    """One cycle of the paper's Algorithm 1: prune each layer's smallest weights, grow as many of largest momentum.

    A layer's share of what grows is its mean momentum over that of all layers; what it has no room for, and what
    rounding leaves, goes on to the others by their shares, so that the total stays what it was. The algorithm leaves
    `getPruneRate` open: as in the authors' code, a layer with less than 20 % zeros and more than an equal share of the
    momentum loses at most its share of zeros.
    """
    names = list(masks)
    nonzero = np.array([int(masks[name].sum()) for name in names])
    size = np.array([masks[name].numel() for name in names])
    share = _contributions([momenta[name][masks[name]] for name in names])
    zeros = 1 - nonzero / size
    full = (zeros < NEARLY_DENSE) & (share > 1 / len(names))
    removed = np.floor(np.where(full, np.minimum(zeros, rate), rate) * nonzero).astype(np.int64)
    grown = _shared_out(int(removed.sum()), share, size - nonzero + removed)
    after = {}
    for name, kept, more in zip(names, (nonzero - removed).tolist(), grown.tolist(), strict=True):
        mask = _best(weights[name], masks[name], kept)
        after[name] = mask | _best(momenta[name], ~mask, more)
    return after


def _contributions(momenta: list[Tensor]) -> Floats:
    """Each layer's mean absolute momentum over the sum of all layers' (a); equal where nothing moves."""
    means = np.array([float(own.abs().mean()) if len(own) else 0.0 for own in momenta])
    return means / means.sum() if means.sum() > 0 else np.full(len(means), 1 / len(means))


def _best(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest absolute values among those masked."""
    return top({"": torch.where(among, values.detach().abs(), -1.0)}, count)[""]


def _shared_out(total: int, share: Floats, room: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Whole numbers that add up to the total, in proportion to the shares as far as there is room."""
    given = np.zeros(len(room), dtype=np.int64)
    while left := total - int(given.sum()):
        open_ = room > given
        weight = np.where(open_, share, 0.0) if (share[open_] > 0).any() else open_.astype(float)
        quota = left * weight / weight.sum()
        more = np.minimum(np.floor(quota).astype(np.int64), room - given)
        if not more.any():
            more[np.argsort(-quota, kind="stable")[: min(left, int((quota > 0).sum()))]] = 1
        given += more
    return given


def _momentum(optimizer: torch.optim.Optimizer, weight: Tensor) -> Tensor:
    """Zero for a weight that no gradient has reached."""
    momentum: Tensor | None = optimizer.state[weight].get("momentum_buffer")
    return torch.zeros_like(weight) if momentum is None else momentum


def _attach(model: nn.Module, masks: Masks) -> None:
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        model.get_submodule(path).register_buffer(attribute + SUFFIX, mask)


def _attached(model: nn.Module) -> Masks:
    return {name: model.get_buffer(name + SUFFIX) for name in prunable(model)}


def _detached(model: nn.Module) -> Masks:
    masks = _attached(model)
    for name in masks:
        path, _, attribute = name.rpartition(".")
        delattr(model.get_submodule(path), attribute + SUFFIX)
    return masks
