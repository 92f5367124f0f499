"""Low-rank convolutions from their responses (Zhang et al. 2016, arXiv:1505.06798).

The d responses of a layer lie near a subspace of d' dimensions, y ~ M y + b with M of rank d' (eq. 3): with M = P Q^T
the layer becomes d' of its own filters, Q^T W, and a 1x1 convolution P.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import InvalidSetting
from ...graph.channel_graph import trace
from ...training.evaluate import device_of, evaluating
from ..compression import Compression
from ..factorise import Spectrum, call_order, described, factorable, ranks_within, responses, some_images

PENALTIES = (0.01, 1.0)  # of the nonlinear case, one after the other (section 2.2.2)
ROUNDS = 25  # with each
IN_PLACE = (torch.ops.aten.relu_.default,)
RELU = (torch.ops.aten.relu.default, *IN_PLACE)
RELATIVE = 1e-9  # smaller eigenvalues of the responses' covariance are noise


@dataclass(frozen=True)
class LowRank:
    """Put fewer filters and a 1x1 convolution in the place of each convolution, layer after layer.

    `speedup` of these convolutions together, in MACs. `select`: the ranks of all layers are chosen together by the
    energy of their responses (section 2.4), otherwise each layer gets that speedup. `asymmetric`: a layer is fitted to
    what it would give in the original network from what it gets in the approximated one (section 2.3). `nonlinear`:
    where a ReLU reads the layer, what it lets through is fitted (section 2.2); normalisation in between is not looked
    through, so fold it first. A layer that would not get cheaper stays as it is and is named in the notes.
    """

    speedup: float = 2.0
    select: bool = True
    asymmetric: bool = True
    nonlinear: bool = True
    images: int = 1000  # training images that responses are taken from
    epochs: int = 0  # of training afterwards
    lr: float | None = None  # None: the recipe's

    def __post_init__(self) -> None:
        if self.speedup <= 1 or self.images < 1 or self.epochs < 0:
            raise InvalidSetting(
                f"lowrank: speedup {self.speedup}, {self.images} images, {self.epochs} epochs; expected above 1, at"
                " least 1, and 0 or more"
            )

    def apply(self, compression: Compression) -> Compression:
        """From the first layer that the network calls to the last."""
        data, seed, original = compression.the_data("lowrank"), compression.recipe.seed, compression.model
        images = some_images(data, self.images, seed)
        layers = factorable(original, nn.Conv2d)
        order = call_order(original, list(layers), images[:1])
        wanted = {path: responses(original, path, images, seed) for path in order}
        costs = Costs.of(compression, {path: layers[path] for path in order})
        ranks = costs.chosen(wanted, self.speedup) if self.select else costs.uniform(self.speedup)
        smaller = {path: rank for path, rank in ranks.items() if 0 < rank * costs.unit[path] < costs.whole[path]}
        for path, rank in smaller.items():
            given = responses(compression.model, path, images, seed) if self.asymmetric else wanted[path]
            if self.nonlinear and feeds_relu(original, path, images[:1]):
                fit = fitted_to_relu(wanted[path], given, rank)
            else:
                fit = fitted(wanted[path], given, rank)
            compression = compression.with_part(path, factored(layers[path], *fit))
        notes = {"lowrank_ranks": described(smaller, {path: layers[path].out_channels for path in order})}
        if whole := [path for path in order if path not in smaller]:
            notes["lowrank_whole"] = ", ".join(whole)
        return compression.changed(notes={**compression.notes, **notes}).finetuned(self.epochs, self.lr)


@dataclass(frozen=True)
class Costs:
    """MACs for an image: of each layer as it is, and of each of its ranks, k k c + d for every position."""

    whole: Mapping[str, float]
    unit: Mapping[str, float]

    @classmethod
    def of(cls, compression: Compression, layers: Mapping[str, nn.Conv2d]) -> Costs:
        """Priced at the size of the network's inputs."""
        table = trace(compression.model, compression.input_shape).layers()
        macs = table[table["op"] == "conv"].groupby("name")["macs"].sum()
        whole = {path: float(macs[path]) for path in layers}
        unit = {
            path: whole[path] / layer.weight.numel() * (layer.weight[0].numel() + layer.out_channels)
            for path, layer in layers.items()
        }
        return cls(whole, unit)

    def uniform(self, speedup: float) -> dict[str, int]:
        """The largest ranks that make each layer that much faster."""
        return {path: int(self.whole[path] / speedup / self.unit[path]) for path in self.whole}

    def chosen(self, wanted: Mapping[str, Tensor], speedup: float) -> dict[str, int]:
        """Ranks that make all of them together that much faster, by the energies of their responses."""
        spectra = {path: energies(y) for path, y in wanted.items()}
        return ranks_within(spectra, self.unit, self.whole, sum(self.whole.values()) / speedup)


def energies(responses: Tensor) -> Spectrum:
    """Eigenvalues of the responses' covariance, the largest first; noise below zero is zero."""
    centred = responses - responses.mean(0)
    values: Spectrum = torch.linalg.eigvalsh(centred.T @ centred / len(centred)).clamp(min=0).flip(0).numpy()
    return values


def fitted(wanted: Tensor, given: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """P, Q^T and b with the least sum of |y - (P Q^T y' + b)|^2 over [N, d] responses y wanted and y' given.

    Where they are the same it is their principal components (eq. 5), otherwise regression of reduced rank, which is
    what the generalised SVD of section 2.3 gives: all of the regression, projected onto the principal components of
    its predictions.
    """
    return _Regression(given).of_rank(wanted, rank)


def fitted_to_relu(wanted: Tensor, given: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `fitted` for the least sum of |r(y) - r(P Q^T y' + b)|^2, r the ReLU, by alternation (section 2.2.2).

    Auxiliary responses z stand between: M and b are fitted to them, and they to what the ReLU lets through (eq. 9 and
    10). The best of all rounds is given back, of which the first is the linear fit.
    """
    regression, target = _Regression(given), wanted.relu()

    def error(fit: tuple[Tensor, Tensor, Tensor]) -> float:
        return float((target - (given @ fit[1].T @ fit[0].T + fit[2]).relu()).square().sum())

    best = found = regression.of_rank(wanted, rank)
    least = error(best)
    for penalty in PENALTIES:
        for _ in range(ROUNDS):
            p, q, b = found
            found = regression.of_rank(auxiliary(target, given @ q.T @ p.T + b, penalty), rank)
            if (now := error(found)) < least:
                best, least = found, now
    return best


def auxiliary(target: Tensor, predicted: Tensor, penalty: float) -> Tensor:
    """z with the least (t - r(z))^2 + penalty (z - y')^2, t = r(y), entry by entry: the better of z <= 0 and z >= 0."""
    below = predicted.clamp(max=0)
    above = ((penalty * predicted + target) / (penalty + 1)).clamp(min=0)
    cost_below = target.square() + penalty * (below - predicted).square()
    cost_above = (target - above).square() + penalty * (above - predicted).square()
    return torch.where(cost_below < cost_above, below, above)


class _Regression:
    """Least squares on the same responses for one target after another."""

    def __init__(self, given: Tensor) -> None:
        self.mean = given.mean(0)
        self.centred = given - self.mean
        self.gram = self.centred.T @ self.centred
        self.inverse = torch.linalg.pinv(self.gram, rtol=RELATIVE, hermitian=True)

    def of_rank(self, target: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """P [d, rank], Q^T [rank, d] and b [d]."""
        whole = (target - target.mean(0)).T @ self.centred @ self.inverse
        _, vectors = torch.linalg.eigh(whole @ self.gram @ whole.T)
        p = vectors[:, -rank:].flip(1)
        q = p.T @ whole
        return p, q, target.mean(0) - p @ (q @ self.mean)


def factored(layer: nn.Conv2d, p: Tensor, q: Tensor, b: Tensor) -> nn.Sequential:
    """The filters Q^T W, and the 1x1 convolution P that also makes up for the layer's bias (section 2.1)."""
    rank = len(q)
    few = nn.Conv2d(
        layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False  # type: ignore[arg-type]
    )  # fmt: skip
    pointwise = nn.Conv2d(rank, layer.out_channels, 1)
    own = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()
    with torch.no_grad():
        few.weight.copy_((q @ layer.weight.double().flatten(1)).view_as(few.weight))
        pointwise.weight.copy_(p.view_as(pointwise.weight))
        pointwise.bias.copy_(b + p @ (q @ own.double()))  # type: ignore[union-attr]
    return nn.Sequential(few, pointwise)


def feeds_relu(model: nn.Module, path: str, image: Tensor) -> bool:
    """Whether all that reads a layer's output is a ReLU, in eval mode."""
    readers = _Readers()
    hook = model.get_submodule(path).register_forward_hook(lambda *call: readers.watched.append(call[2]))
    with evaluating(model), torch.no_grad(), readers:
        model(image.to(device_of(model)))
    hook.remove()
    return bool(readers.found) and all(reader in RELU for reader in readers.found)


class _Readers(TorchDispatchMode):
    """Notes which operators take a watched tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched: list[Tensor] = []
        self.found: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if read := [watched for watched in self.watched if any(given is watched for given in args)]:
            self.found.append(func)
            if func in IN_PLACE:  # who reads it from now on reads what the ReLU gave
                self.watched = [watched for watched in self.watched if watched is not read[0]]
        return func(*args, **(kwargs or {}))
