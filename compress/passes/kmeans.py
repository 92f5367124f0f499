"""Weight sharing by k-means (Han et al. 2016, Deep Compression, arXiv:1510.00149, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans as Clustering
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...graph.sparsity import prunable
from ..compression import Compression
from ..granularity import by_weight, layer_of
from ..tied import Codebook

INITS = ("linear", "density", "random")
MOST_BITS = 12  # more levels than that are no table any more

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class KMeans:
    """Let the weights of each layer that are not zero share 2^bits values, and train these.

    `bits`: of all layers, or a mapping from layers to theirs; layers that it does not name stay as they are.
    `conv_bits`: of convolutions, where they differ (the paper has 5 bits and 8 for convolutions).
    `init`: where the centroids start (section 3.2): linear spaces them evenly from the smallest weight to the largest,
    density evenly in the distribution of the weights, random takes weights (Forgy). Large weights matter more and are
    few, which is why linear does best in the paper (section 6.2). Weights that codebooks give already are left alone.
    """

    bits: int | Mapping[str, int] = 5
    conv_bits: int | None = None
    init: str = "linear"
    epochs: int = 0  # of training the shared values, and all that is not shared
    lr: float | None = None  # None: the recipe's; `compress.tied` says how far a shared value moves

    def __post_init__(self) -> None:
        given = [*(self.bits.values() if isinstance(self.bits, Mapping) else [self.bits]), self.conv_bits]
        if wrong := [bits for bits in given if bits is not None and not 1 <= bits <= MOST_BITS]:
            raise InvalidSetting(f"kmeans: {wrong[0]} bits; expected 1 to {MOST_BITS}")
        if isinstance(self.bits, Mapping) and self.conv_bits is not None:
            raise InvalidSetting("kmeans: bits names the layers' bits already; leave out conv_bits")
        if self.init not in INITS:
            raise InvalidSetting(f"kmeans: init is {self.init!r}; expected one of {', '.join(INITS)}")
        if self.epochs < 0:
            raise InvalidSetting(f"kmeans: {self.epochs} epochs; expected 0 or more")

    def apply(self, compression: Compression) -> Compression:
        """Pruned weights stay out of it."""
        if self.epochs:
            compression.the_data("kmeans with epochs")
        model = compression.copied()
        weights, taken = prunable(model), compression.shared()
        draw = np.random.default_rng(compression.recipe.seed)
        codebooks = dict(compression.codebooks)
        for name, bits in by_weight(model, self.bits).items():
            if self.conv_bits is not None and isinstance(layer_of(model, name), nn.modules.conv._ConvNd):
                bits = self.conv_bits
            if name not in taken and weights[name].any():
                codebooks[name] = clustered(weights[name].detach(), 2 ** int(bits), self.init, draw)
                weights[name].data.copy_(codebooks[name].weight())
        return compression.changed(model=model, codebooks=codebooks).finetuned(self.epochs, self.lr)


def clustered(weight: Tensor, count: int, init: str, draw: np.random.Generator) -> Codebook:
    """At most so many levels of the weights that are not zero, nearest to them by squares; levels nobody takes go."""
    flat = weight.flatten().numpy()
    stands = np.flatnonzero(flat)
    start = centroids(flat[stands], count, init, draw)
    found = Clustering(len(start), init=start.reshape(-1, 1), n_init=1).fit(flat[stands].reshape(-1, 1))
    taken, labels = np.unique(found.labels_, return_inverse=True)
    assigned = np.full(len(flat), -1)
    assigned[stands] = labels
    levels = torch.from_numpy(found.cluster_centers_[taken].astype(np.float32).ravel())
    return Codebook(levels, torch.from_numpy(assigned).view(weight.shape))


def centroids(values: Values, count: int, init: str, draw: np.random.Generator) -> Values:
    """Where the centroids start, in rising order: as many, or one for each different value if these are fewer."""
    different = np.unique(values)
    if len(different) <= count:
        return different
    if init == "linear":
        return np.linspace(different[0], different[-1], count)
    if init == "density":  # the middles of as many equal shares of the weights
        return np.unique(np.quantile(values, (np.arange(count) + 0.5) / count))
    return np.sort(draw.choice(different, count, replace=False))
