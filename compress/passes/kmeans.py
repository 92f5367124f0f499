"""Weight sharing by k-means (Han et al. 2016, Deep Compression, arXiv:1510.00149, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans as Clustering

from ...graph.sparsity import prunable
from ..compression import Codebook, Compression


@dataclass(frozen=True)
class KMeans:
    """Let the weights of each layer share 2^bits values, and train these."""

    bits: int = 5
    init: str = "linear"
    epochs: int = 0

    def apply(self, compression: Compression) -> Compression:
        """Pruned weights stay out of it."""
        model = compression.copied()
        codebooks = {}
        for name, weight in prunable(model).items():
            values = weight.detach().flatten().numpy()
            stands = np.flatnonzero(values)
            k = min(2**self.bits, len(np.unique(values[stands])))
            if k == 0:
                continue
            start = np.linspace(values[stands].min(), values[stands].max(), k).reshape(-1, 1)
            found = Clustering(k, init=start, n_init=1).fit(values[stands].reshape(-1, 1))
            assigned = np.full(len(values), -1)
            assigned[stands] = found.labels_
            levels = torch.from_numpy(found.cluster_centers_.astype(np.float32).ravel())
            codebooks[name] = Codebook(levels, torch.from_numpy(assigned).view(weight.shape))
            weight.data.copy_(codebooks[name].weight())
        return compression.changed(model=model, codebooks=codebooks).finetuned(self.epochs)
