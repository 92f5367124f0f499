"""Convolutions in four by canonical polyadic decomposition (Lebedev et al. 2015, arXiv:1412.6553, section 3).

A kernel [filters, channels, height, width] is a sum of K terms, each the outer product of a vector along every side:
1x1 to K channels, height x 1 and 1 x width on each channel alone, 1x1 to the filters. With K as the number of filters
and each term for one of them these are the flattened convolutions of Jin et al. 2015 (arXiv:1412.5474).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from tensorly.decomposition import parafac
from torch import Tensor, nn

from ...errors import InvalidSetting
from ..compression import Compression
from ..factorise import described, factorable

SWEEPS = 100  # of alternating least squares, at most


@dataclass(frozen=True)
class CP:
    """Put four thin convolutions in the place of one.

    `speedup`: the weights of a layer are divided by at least that; or `rank` says K for every layer. Kernels of one
    position, grouped convolutions and layers that would not get smaller stay as they are; the last are in the notes.
    """

    speedup: float = 2.0
    rank: int | None = None
    epochs: int = 0  # of training afterwards
    lr: float | None = None  # None: the recipe's

    def __post_init__(self) -> None:
        if self.speedup <= 1 or (self.rank is not None and self.rank < 1) or self.epochs < 0:
            raise InvalidSetting(
                f"cp: speedup {self.speedup}, rank {self.rank}, {self.epochs} epochs; expected above 1, at least 1, and"
                " 0 or more"
            )

    def apply(self, compression: Compression) -> Compression:
        """Layer by layer, by the weights alone."""
        if self.epochs:
            compression.the_data("cp with epochs")
        layers = {
            path: layer
            for path, layer in factorable(compression.model, nn.Conv2d).items()
            if math.prod(layer.kernel_size) > 1
        }
        ranks = {path: self.rank or int(_whole(layer) / self.speedup / _unit(layer)) for path, layer in layers.items()}
        smaller = {path: rank for path, rank in ranks.items() if 0 < rank * _unit(layers[path]) < _whole(layers[path])}
        for path, rank in smaller.items():
            thin = separated(layers[path], rank, compression.recipe.seed)
            compression = compression.with_part(path, thin)
        notes = {"cp_ranks": described(smaller, {path: layer.out_channels for path, layer in layers.items()})}
        if whole := [path for path in layers if path not in smaller]:
            notes["cp_whole"] = ", ".join(whole)
        return compression.changed(notes={**compression.notes, **notes}).finetuned(self.epochs, self.lr)


def separated(layer: nn.Conv2d, rank: int, seed: int = 0) -> nn.Sequential:
    """The four convolutions; exact where the kernel is a sum of that many terms and the decomposition finds it."""
    filters, channels, rows, columns = factors(layer.weight.detach(), rank, seed)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    ph, pw = (int(side) for side in layer.padding)
    inner = nn.Conv2d(layer.in_channels, rank, 1, bias=False)
    vertical = nn.Conv2d(rank, rank, (kh, 1), (sh, 1), (ph, 0), (dh, 1), rank, bias=False)
    horizontal = nn.Conv2d(rank, rank, (1, kw), (1, sw), (0, pw), (1, dw), rank, bias=False)
    outer = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    thin = [inner, vertical, horizontal, outer]
    with torch.no_grad():
        for own, values in zip(thin, (channels.T, rows.T, columns.T, filters), strict=True):
            own.weight.copy_(values.reshape(own.weight.shape))
        if layer.bias is not None:
            outer.bias.copy_(layer.bias)  # type: ignore[union-attr]
    return nn.Sequential(*thin)


def factors(kernel: Tensor, rank: int, seed: int) -> list[Tensor]:
    """[side, rank] for every side, by alternating least squares; the size of a term is shared out evenly."""
    sizes, sides = parafac(
        kernel.double().numpy(), rank, n_iter_max=SWEEPS, init="random", normalize_factors=True, random_state=seed
    )
    return [torch.from_numpy(side * np.abs(sizes) ** (1 / len(sides))) for side in sides]


def _unit(layer: nn.Conv2d) -> int:
    return layer.in_channels + sum(layer.kernel_size) + layer.out_channels


def _whole(layer: nn.Conv2d) -> int:
    return layer.in_channels * math.prod(layer.kernel_size) * layer.out_channels
