"""N:M sparsity: of every M consecutive inputs N weights stay, as sparse tensor cores ask for (2:4).

Mishra et al. 2021 (arXiv:2104.08378), section 3; magnitudes decide, and training goes on with the pattern held.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...graph.sparsity import Masks, magnitudes
from ..compression import Compression
from ..granularity import as_weight, in_blocks, label, layer_of
from .prune import pruned


@dataclass(frozen=True)
class NM:
    """Keep the n largest weights of every m input channels in a row, at each place of the kernel.

    Layers whose input channels are no multiple of m stay whole; the notes name them.
    """

    n: int = 2
    m: int = 4
    epochs: int = 0
    lr: float | None = None  # None: the recipe's

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m or self.epochs < 0:
            raise InvalidSetting(
                f"nm: {self.n}:{self.m} with {self.epochs} epochs; expected such as nm(2, 4), n below m"
            )

    def apply(self, compression: Compression) -> Compression:
        """Every layer by itself."""
        model, scores = compression.model, magnitudes(compression.model)
        fits = {name: in_blocks(layer_of(model, name), own).shape[2] % self.m == 0 for name, own in scores.items()}
        masks: Masks = {name: self.mask(layer_of(model, name), scores[name]) for name, fit in fits.items() if fit}
        whole = ", ".join(label(name) for name, fit in fits.items() if not fit)
        notes = {**compression.notes, **({"nm_whole": whole} if whole else {})}
        return pruned(compression.changed(notes=notes), masks).finetuned(self.epochs, self.lr)

    def mask(self, layer: nn.Module, scores: Tensor) -> Tensor:
        """Of a layer's weight; of equals the first stay."""
        inputs = in_blocks(layer, scores).movedim(2, -1).unflatten(-1, (-1, self.m))  # [..., blocks, m]
        order = inputs.sort(dim=-1, descending=True, stable=True).indices
        kept = torch.zeros_like(inputs, dtype=torch.bool).scatter_(-1, order[..., : self.n], True)
        return as_weight(layer, kept.flatten(-2).movedim(-1, 2), scores.shape)
