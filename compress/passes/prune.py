"""Magnitude pruning (Han et al. 2015, arXiv:1506.02626)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InvalidSetting
from ...graph.sparsity import apply_masks, largest, largest_per_layer, magnitudes
from ..compression import Compression

SCHEDULES = ("oneshot", "iterative")


@dataclass(frozen=True)
class Prune:
    """Set the smallest weights to zero and train what is left, at once or in several rounds."""

    sparsity: float = 0.9  # share of the prunable weights that goes
    schedule: str = "oneshot"
    scope: str = "global"
    rounds: int = 5  # of the iterative schedule
    epochs: int = 0  # of training after each round

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InvalidSetting(f"prune: sparsity is {self.sparsity}; expected a share from 0 to below 1")

    def apply(self, compression: Compression) -> Compression:
        """Each round keeps the same share of what the round before left."""
        rounds = self.rounds if self.schedule == "iterative" else 1
        for number in range(1, rounds + 1):
            sparsity = 1 - (1 - self.sparsity) ** (number / rounds)
            model = compression.copied()
            masks = (largest if self.scope == "global" else largest_per_layer)(magnitudes(model), sparsity)
            apply_masks(model, masks)
            compression = compression.changed(model=model, masks=masks).finetuned(self.epochs)
        return compression
