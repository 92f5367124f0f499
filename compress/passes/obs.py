"""Optimal brain surgeon (Hassibi and Stork 1993): weights go and the others move to make up for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ...errors import InvalidSetting
from ...graph.sparsity import Masks
from ..compression import Compression
from ..inverse_hessian import Derivatives, derivatives, elimination, inverse, without
from .obd import check_settings, drawn
from .prune import gone_at, in_rounds, pruned

TOGETHER = 16  # blocks, so that their inverses stay in the cache


@dataclass(frozen=True)
class OptimalBrainSurgeon:
    """Take out the weights that cost the least by the inverse Hessian, and correct those that stay.

    The Hessian is that of the mean cross-entropy over `images` training images. It is whole for layers of at most
    `block` weights and made of blocks of consecutive ones beyond; `damping` is the paper's alpha. Within a block
    weights go one by one, each time the one that then costs the least; all blocks compete. Layers that are neither
    linear nor 2-D convolutions stay whole.
    """

    sparsity: float = 0.9
    rounds: int = 1
    epochs: int = 0  # of training after each round
    lr: float | None = None  # None: the recipe's
    images: int = 256
    block: int = 256
    damping: float = 1e-6

    def __post_init__(self) -> None:
        check_settings("obs", self.sparsity, self.rounds, self.epochs, self.images)
        if self.block < 1 or not self.damping > 0:
            raise InvalidSetting(
                f"obs: blocks of {self.block} weights, damping {self.damping}; expected at least 1, and above 0"
            )

    def apply(self, compression: Compression) -> Compression:
        """Hessians are taken anew in each round."""
        return in_rounds(compression, self._operate, self.rounds, self.epochs, self.lr)

    @torch.no_grad()
    def _operate(self, compression: Compression, progress: float) -> Compression:
        data, model = compression.the_data("obs"), compression.copied()
        inputs = data.info.normalise(data.train.images[drawn(compression, self.images)])
        flat: dict[str, Tensor] = {}
        masks: Masks = {}
        blocks: list[Block] = []
        for name, own in derivatives(model, inputs).items():
            weight = model.get_parameter(name)
            flat[name] = weight.flatten().clone()  # where channels come last there is no flat view
            stays = compression.masks.get(name, torch.ones_like(weight, dtype=torch.bool)).flatten().clone()
            masks[name] = stays.view(weight.shape)
            for start in range(0, len(stays), self.block):
                stretch = slice(start, start + self.block)
                blocks.append(Block(own, start, flat[name][stretch], stays[stretch], self.damping))
        for block, gone in zip(blocks, cheapest(blocks, gone_at(self.sparsity, progress)), strict=True):
            block.stays[gone] = False
            if not block.stays.all():
                block.weight.copy_(without(block.inverse(), block.weight, ~block.stays))
        for name, corrected in flat.items():
            model.get_parameter(name).copy_(corrected.view(masks[name].shape))
        return pruned(compression.changed(model=model), masks)


@dataclass(frozen=True)
class Block:
    """Consecutive weights of a layer, and which of them stay: views of what is to be changed."""

    derivatives: Derivatives
    start: int  # in the flattened weight
    weight: Tensor
    stays: Tensor
    damping: float

    def inverse(self) -> Tensor:
        """Of its Hessian."""
        vectors = self.derivatives.of(self.start, self.start + len(self.weight))
        return inverse(vectors, len(self.derivatives.inputs), self.damping)


def cheapest(blocks: Sequence[Block], sparsity: float) -> list[Tensor]:
    """Which weights of each block go, so that round((1 - sparsity) n) of all n stay.

    A weight costs at least what those cost that have to go before it.
    """
    orders: list[Tensor] = []
    costs: list[Tensor] = []
    for _, alike in groupby(blocks, key=lambda block: len(block.weight)):
        same = list(alike)
        for i in range(0, len(same), TOGETHER):
            some = same[i : i + TOGETHER]
            order, cost = elimination(
                torch.stack([block.inverse() for block in some]), torch.stack([block.weight for block in some])
            )
            orders += order
            costs += cost.cummax(1).values
    owner = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor([len(order) for order in orders]))
    first = torch.cat(costs).sort(stable=True).indices[: len(owner) - round((1 - sparsity) * len(owner))]
    counts = torch.bincount(owner[first], minlength=len(blocks))
    return [order[:count] for order, count in zip(orders, counts.tolist(), strict=True)]
