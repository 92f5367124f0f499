"""Optimal brain damage (LeCun et al. 1990): the weights go whose loss would cost the least, by a diagonal Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InvalidSetting
from ..compression import Compression
from ..granularity import masks_for
from ..hessian import diagonal
from .prune import gone_at, in_rounds, pruned

BATCH = 256  # images


@dataclass(frozen=True)
class OptimalBrainDamage:
    """Set the weights with the smallest saliencies h_kk w_k^2 / 2 (eq. 5) to zero and train what is left.

    h_kk is the second derivative of the mean cross-entropy over `images` training images, one sweep backwards for each
    batch (`compress.hessian`). `full` keeps the activations' second derivatives (eq. 9), which may make saliencies
    negative; otherwise they are the Levenberg-Marquardt ones (eq. 11), the same where activations are ReLUs. The
    weights of all convolutions and linear layers compete; others, such as recurrent ones, are refused.
    """

    sparsity: float = 0.9
    rounds: int = 1
    epochs: int = 0  # of training after each round
    lr: float | None = None  # None: the recipe's
    images: int = 1000
    full: bool = False

    def __post_init__(self) -> None:
        check_settings("obd", self.sparsity, self.rounds, self.epochs, self.images)

    def apply(self, compression: Compression) -> Compression:
        """Saliencies are taken anew in each round."""

        def step(compression: Compression, progress: float) -> Compression:
            gone = gone_at(self.sparsity, progress)
            return pruned(compression, masks_for(compression.model, self.saliencies(compression), gone))

        return in_rounds(compression, step, self.rounds, self.epochs, self.lr)

    def saliencies(self, compression: Compression) -> dict[str, Tensor]:
        """Weight -> what it would cost to lose each entry, in nats a image; of those that are gone already, nothing."""
        data, model = compression.the_data("obd"), compression.copied()
        chosen = drawn(compression, self.images)
        total: dict[str, Tensor] = {}
        for batch in chosen.split(BATCH):
            inputs = data.info.normalise(data.train.images[batch])
            loss = partial(F.cross_entropy, target=data.train.labels[batch], reduction="sum")
            found = diagonal(model, inputs, loss, full=self.full)
            total = {name: own + total.get(name, 0.0) for name, own in found.items()}
        saliencies = {}
        for name, curvature in total.items():
            weight = model.get_parameter(name).detach()
            saliencies[name] = curvature * weight.square() / (2 * len(chosen))
            if name in compression.masks:
                saliencies[name][~compression.masks[name]] = -torch.inf
        return saliencies


def drawn(compression: Compression, images: int) -> Tensor:
    """Which training images a Hessian is taken over: as many, or all there are, from the recipe's seed."""
    generator = torch.Generator().manual_seed(compression.recipe.seed)
    return torch.randperm(len(compression.the_data("a Hessian").train), generator=generator)[:images]


def check_settings(name: str, sparsity: float, rounds: int, epochs: int, images: int) -> None:
    """Raises InvalidSetting."""
    if not 0 <= sparsity < 1:
        raise InvalidSetting(f"{name}: sparsity is {sparsity}; expected a share from 0 to below 1")
    if rounds < 1 or epochs < 0 or images < 1:
        raise InvalidSetting(
            f"{name}: {rounds} rounds with {epochs} epochs each, {images} images; expected at least 1, 0 and 1"
        )
