"""Low rank plus sparse (Yu et al. 2017, On Compressing Deep Models by Low Rank and Sparse Decomposition, CVPR).

A layer's matrix W [m, n] becomes U V + S: a matrix of rank r in two factors and one with few entries, such that the
layer's responses Y = W X are kept: least |Y - (U V + S) X|^2 + lambda |W - U V - S|^2 for the inputs X. With the Gram
matrix A = X X^T + lambda I this is the squared length of the rows of W - U V - S in the metric A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...packing.edits import Sum
from ..compression import Compression
from ..factorise import by_layer, described, factorable, input_gram, some_images

LAMBDA = 0.01  # of the mean square of the inputs: what their span leaves open is kept near W
POWER = 2  # updates of U and V for one of S (K of algorithm 1)
ROUNDS = 100  # of algorithm 1, at most
TOLERANCE = 1e-4  # a round that lowers the objective by less, relatively, is the last


@dataclass(frozen=True)
class GreBdec:
    """Put the sum of a factorised and a sparse layer in the place of linear layers and convolutions.

    `rank` is a share of the smaller side of a layer's matrix, or a mapping from layers to theirs, where layers that it
    does not name stay as they are; `density` is a share of its entries. The responses on `images` training images are
    what is approximated. A layer that would not get smaller stays as it is and is named in the notes.
    """

    rank: float | Mapping[str, float] = 0.1
    density: float = 0.05
    images: int = 1000
    epochs: int = 0  # of training afterwards
    lr: float | None = None  # None: the recipe's

    def __post_init__(self) -> None:
        shares = self.rank.values() if isinstance(self.rank, Mapping) else [self.rank]
        if not all(0 < share <= 1 for share in (*shares, self.density)) or self.images < 1 or self.epochs < 0:
            raise InvalidSetting(
                f"grebdec: rank {self.rank}, density {self.density}, {self.images} images, {self.epochs} epochs;"
                " expected shares above 0, at least 1 image, and 0 epochs or more"
            )

    def apply(self, compression: Compression) -> Compression:
        """Every layer by the inputs that it has in the original network."""
        seed, original = compression.recipe.seed, compression.model
        images = some_images(compression.the_data("grebdec"), self.images, seed)
        ranks, full, whole = {}, {}, []
        layers: dict[str, nn.Linear | nn.Conv2d] = factorable(original, nn.Linear, nn.Conv2d)
        for path, share in by_layer(layers, self.rank).items():
            layer = layers[path]
            matrix = layer.weight.detach().flatten(1)
            rank, count = max(1, round(share * min(matrix.shape))), max(1, round(self.density * matrix.numel()))
            if rank * sum(matrix.shape) + count >= matrix.numel():
                whole.append(path)
                continue
            ranks[path], full[path] = rank, min(matrix.shape)
            found = decomposed(matrix.double(), input_gram(original, path, images), rank, count, seed)
            compression = compression.with_part(path, summed(layer, found))
            sparse = f"{path}.parts.1.weight"
            mask = compression.model.get_parameter(sparse).detach() != 0
            compression = compression.changed(masks={**compression.masks, sparse: mask})
        notes = {"grebdec_ranks": described(ranks, full), **({"grebdec_whole": ", ".join(whole)} if whole else {})}
        return compression.changed(notes={**compression.notes, **notes}).finetuned(self.epochs, self.lr)


class LowRankPlusSparse(NamedTuple):
    """U [m, r], V [r, n], S [m, n]."""

    u: Tensor
    v: Tensor
    s: Tensor


def decomposed(weight: Tensor, gram: Tensor, rank: int, count: int, seed: int = 0) -> LowRankPlusSparse:
    """Algorithm 1: U and V in turns, then S, then some more rank where the gradient is largest.

    The paper takes the new directions from U^T dL/d(UV), which is zero once V is the best for its U; here they are from
    the gradient itself.
    """
    keep = LAMBDA * float(gram.trace()) / len(gram) or 1.0  # where no input ever comes, only W itself counts
    gram = gram + keep * torch.eye(len(gram), dtype=gram.dtype)
    steepest = float(torch.linalg.eigvalsh(gram)[-1])
    step = max(1, rank // 5)
    v = torch.randn(min(step, rank), weight.shape[1], dtype=weight.dtype, generator=torch.Generator().manual_seed(seed))
    s, before = torch.zeros_like(weight), float("inf")
    for _ in range(ROUNDS):
        for _ in range(POWER):
            u, v = bilateral(weight - s, gram, v)
        left = weight - u @ v - s
        slope = left @ gram
        now = float((slope * left).sum())
        s = largest(s + slope / steepest, count)
        if len(v) < rank:
            slope = (weight - u @ v - s) @ gram
            v = torch.cat([v, torch.linalg.svd(slope, full_matrices=False).Vh[: min(step, rank - len(v))]])
        elif before - now <= TOLERANCE * before:
            break
        before = now
    return LowRankPlusSparse(*bilateral(weight - s, gram, v), s)


def bilateral(target: Tensor, gram: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The U that is best for V, made orthonormal (which V makes up for), and the V that is best for it (eq. 7)."""
    u = torch.linalg.qr(target @ (gram @ v.T)).Q
    return u, u.T @ target


def largest(matrix: Tensor, count: int) -> Tensor:
    """The matrix with only so many of its entries, the largest."""
    kept = matrix.abs().flatten().topk(count).indices
    return torch.zeros_like(matrix).flatten().index_copy(0, kept, matrix.flatten()[kept]).view_as(matrix)


def summed(layer: nn.Linear | nn.Conv2d, found: LowRankPlusSparse) -> Sum:
    """U V as two layers, S as a layer like the old one, added up; U's layer has the bias."""
    rank, has_bias = len(found.v), layer.bias is not None
    inner: nn.Linear | nn.Conv2d
    outer: nn.Linear | nn.Conv2d
    sparse: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Conv2d):
        sides = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        inner = nn.Conv2d(layer.in_channels, rank, *sides, bias=False)  # type: ignore[arg-type]
        outer = nn.Conv2d(rank, layer.out_channels, 1, bias=has_bias)
        sparse = nn.Conv2d(layer.in_channels, layer.out_channels, *sides, bias=False)  # type: ignore[arg-type]
    else:
        inner = nn.Linear(layer.in_features, rank, bias=False)
        outer = nn.Linear(rank, layer.out_features, bias=has_bias)
        sparse = nn.Linear(layer.in_features, layer.out_features, bias=False)
    with torch.no_grad():
        for own, values in ((inner, found.v), (outer, found.u), (sparse, found.s)):
            own.weight.copy_(values.reshape(own.weight.shape))
        if layer.bias is not None and outer.bias is not None:
            outer.bias.copy_(layer.bias)
    return Sum([nn.Sequential(inner, outer), sparse])
