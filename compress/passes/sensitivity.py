"""Accuracy when one layer alone is pruned, by how much of it goes (Han et al. 2015, arXiv:1506.02626, figure 6)."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch

from ...graph.sparsity import magnitudes, prunable
from ..compression import Compression
from ..granularity import check_granularity, label, masks_for

SCANNED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
NOTE = "sensitivity"


@dataclass(frozen=True)
class Sensitivity:
    """Prune each layer by itself, without training, and write down the accuracies; the model stays as it is."""

    granularity: str = "fine"

    def __post_init__(self) -> None:
        check_granularity("sensitivity", self.granularity)

    def apply(self, compression: Compression) -> Compression:
        """The table goes into the notes."""
        return compression.changed(notes={**compression.notes, NOTE: scan(compression, self.granularity)})


@torch.no_grad()
def scan(compression: Compression, granularity: str = "fine", most: float = SCANNED[-1]) -> pd.DataFrame:
    """A row per layer and sparsity, 0 to `most`: layer, sparsity, accuracy on the validation images. Needs data."""
    compression.the_data("a sensitivity scan")
    model = compression.copied()
    steps = [*(share for share in SCANNED if share < most), most]
    whole = compression.accuracy()
    rows = []
    for name, weight in prunable(model).items():
        rows.append((label(name), 0.0, whole))
        dense, scores = weight.clone(), {name: magnitudes(model)[name]}
        for share in steps:
            weight.copy_(dense * masks_for(model, scores, {name: share}, granularity)[name])
            rows.append((label(name), share, compression.accuracy(model)))
        weight.copy_(dense)
    return pd.DataFrame(rows, columns=["layer", "sparsity", "accuracy"])


def tolerated(table: pd.DataFrame, tolerance: float) -> dict[str, float]:
    """Layer -> the most that may go of it before the accuracy first falls more than `tolerance` below the whole's."""
    found = {}
    for layer, own in table.groupby("layer", sort=False):
        enough = own["accuracy"] >= own["accuracy"].iloc[0] - tolerance
        found[str(layer)] = float(own["sparsity"][enough.cummin()].max())
    return found
