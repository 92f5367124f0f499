"""Linear layers in two factors by singular values (Denton et al. 2014, arXiv:1404.0736, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ..compression import Compression
from ..factorise import described, factorable, ranks_within

ENERGY = 0.9  # of a bare `svd`
STEPS = 10  # of the search for the size that the accuracy bears


@dataclass(frozen=True)
class SVD:
    """Put two linear layers without a nonlinearity in the place of one, the best of their rank (Eckart and Young).

    The ranks follow from one of three: `energy`, the least share of each layer's squared singular values that stays;
    `size`, the share of all these layers' parameters that is left, where the layers' ranks are chosen so that the
    product of their energies is large; `tolerance`, the accuracy on the validation images that may be lost before
    training, for which the least size is searched. A layer that two factors would not make smaller stays as it is and
    is named in the notes.
    """

    energy: float | None = None  # None: 0.9, where nothing else is given
    size: float | None = None
    tolerance: float | None = None
    epochs: int = 0  # of training afterwards
    lr: float | None = None  # None: the recipe's

    def __post_init__(self) -> None:
        given = [value for value in (self.energy, self.size, self.tolerance) if value is not None]
        if len(given) > 1:
            raise InvalidSetting("svd: ranks follow from one of energy, size and tolerance; give one")
        if not all(0 < value <= 1 for value in (self.energy or ENERGY, self.size or 1)) or 0 in (
            self.energy,
            self.size,
        ):
            raise InvalidSetting(f"svd: energy {self.energy}, size {self.size}; expected a share above 0")
        if (self.tolerance is not None and self.tolerance < 0) or self.epochs < 0:
            raise InvalidSetting(f"svd: tolerance {self.tolerance}, {self.epochs} epochs; expected 0 or more")

    def apply(self, compression: Compression) -> Compression:
        """Decompose once, then choose the ranks."""
        if self.epochs:
            compression.the_data("svd with epochs")
        parts = {path: Factors.of(layer) for path, layer in factorable(compression.model, nn.Linear).items()}
        if self.size is not None:
            ranks = _within(parts, self.size)
        elif self.tolerance is not None:
            ranks = self._bearable(compression, parts, self.tolerance)
        else:
            ranks = _holding(parts, self.energy or ENERGY)
        return _factorised(compression, parts, ranks).finetuned(self.epochs, self.lr)

    def _bearable(self, compression: Compression, parts: Mapping[str, Factors], tolerance: float) -> dict[str, int]:
        """The smallest size that bisection finds to be accurate enough."""
        compression.the_data("svd with tolerance")
        accurate = (compression.accuracy() or 0.0) - tolerance
        low, high = sum(part.unit for part in parts.values()) / sum(part.whole for part in parts.values()), 1.0
        found = _within(parts, high)
        for _ in range(STEPS if low < high else 0):
            middle = (low + high) / 2
            tried = _within(parts, middle)
            if (_factorised(compression, parts, tried).accuracy() or 0.0) >= accurate:
                found, high = tried, middle
            else:
                low = middle
        return found


class Factors(NamedTuple):
    """A linear layer's matrix as U diag(s) V, s falling, and its bias."""

    u: Tensor  # [outputs, k] float64
    s: Tensor  # [k]
    v: Tensor  # [k, inputs]
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear) -> Factors:
        """Decompose a layer."""
        u, s, v = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
        return cls(u, s, v, layer.bias)

    @property
    def unit(self) -> int:
        """Weights that a rank takes."""
        return len(self.u) + self.v.shape[1]

    @property
    def whole(self) -> int:
        """Weights of the layer as it is."""
        return len(self.u) * self.v.shape[1]

    def layers(self, rank: int) -> nn.Sequential:
        """The best approximation of that rank; the singular values are shared out evenly."""
        share = self.s[:rank].sqrt()
        inner = nn.Linear(self.v.shape[1], rank, bias=False)
        outer = nn.Linear(rank, len(self.u), bias=self.bias is not None)
        with torch.no_grad():
            inner.weight.copy_(share[:, None] * self.v[:rank])
            outer.weight.copy_(self.u[:, :rank] * share)
            if self.bias is not None:
                outer.bias.copy_(self.bias)
        return nn.Sequential(inner, outer)


def _holding(parts: Mapping[str, Factors], energy: float) -> dict[str, int]:
    """The least ranks that keep the share of each layer's squared singular values."""
    found = {}
    for path, part in parts.items():
        kept = part.s.square().cumsum(0)
        found[path] = min(len(kept), 1 + int((kept < energy * kept[-1]).sum()))
    return found


def _within(parts: Mapping[str, Factors], size: float) -> dict[str, int]:
    spectra = {path: np.asarray(part.s.square()) for path, part in parts.items()}
    whole = {path: float(part.whole) for path, part in parts.items()}
    return ranks_within(spectra, {path: part.unit for path, part in parts.items()}, whole, size * sum(whole.values()))


def _factorised(compression: Compression, parts: Mapping[str, Factors], ranks: Mapping[str, int]) -> Compression:
    smaller = {path: rank for path, rank in ranks.items() if rank * parts[path].unit < parts[path].whole}
    for path, rank in smaller.items():
        compression = compression.with_part(path, parts[path].layers(rank))
    notes = {"svd_ranks": described(smaller, {path: len(part.s) for path, part in parts.items()})}
    if whole := [path for path in parts if path not in smaller]:
        notes["svd_whole"] = ", ".join(whole)
    return compression.changed(notes={**compression.notes, **notes})
