"""What the passes that factorise layers have in common: which layers, how far, and what flows through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidSetting, suggestion
from ..training.data import DataSet
from ..training.evaluate import device_of, evaluating

Spectrum = npt.NDArray[np.float64]  # energies of the directions of a layer, the largest first
Layer = TypeVar("Layer", bound=nn.Module)

BATCH = 128  # images
POSITIONS = 10  # of an image, as many as Zhang et al. take (arXiv:1505.06798, section 3)


def factorable(model: nn.Module, *kinds: type[Layer]) -> dict[str, Layer]:
    """Path -> layer of exactly such a class, which nobody shares: a subclass may use its weight in a way of its own.

    Grouped convolutions and those that pad with anything but zeros are left out.
    """
    modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    weights = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    return {
        path: layer
        for path, layer in model.named_modules()
        if type(layer) in kinds and path and modules[id(layer)] == weights[id(layer.weight)] == 1 and _is_plain(layer)
    }


def by_layer(layers: Mapping[str, Layer], setting: float | Mapping[str, float]) -> dict[str, float]:
    """Path -> its value of a setting: one for all, or a mapping from paths; those that it does not name are left out.

    Raises InvalidSetting for a name that is no such layer.
    """
    if not isinstance(setting, Mapping):
        return dict.fromkeys(layers, setting)
    if unknown := [path for path in setting if path not in layers]:
        raise InvalidSetting(
            f"there is no layer {unknown[0]!r} to factorise{suggestion(unknown[0], layers)}; there are"
            f" {', '.join(layers)}"
        )
    return dict(setting)


def _is_plain(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv2d):
        return True
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def ranks_within(
    spectra: Mapping[str, Spectrum], unit: Mapping[str, float], whole: Mapping[str, float], limit: float
) -> dict[str, int]:
    """Ranks of all layers within a cost (Zhang et al. 2016, arXiv:1505.06798, section 2.4, eq. 14 and 15).

    The product over layers of the energy that they keep is made large step by step: that direction goes next whose
    share of its layer's energy is the smallest for what it costs. A rank costs its `unit`, a layer as it is `whole`.
    Raises InvalidSetting where one rank for each layer is too much.
    """
    kept = {name: np.cumsum(spectrum) for name, spectrum in spectra.items()}
    ranks = {name: len(spectrum) for name, spectrum in spectra.items()}

    def loss(name: str) -> float:
        rank = ranks[name]
        return float(spectra[name][rank - 1] / max(kept[name][rank - 1], np.finfo(float).tiny) / unit[name])

    while sum(min(rank * unit[name], whole[name]) for name, rank in ranks.items()) > limit:
        able = [name for name, rank in ranks.items() if rank > 1]
        if not able:
            least = sum(min(unit[name], whole[name]) for name in ranks)
            raise InvalidSetting(
                f"a rank of 1 for each of {', '.join(ranks)} leaves {least / sum(whole.values()):.2%}, more than was"
                " asked; ask for less"
            )
        ranks[min(able, key=loss)] -= 1
    return ranks


def described(ranks: Mapping[str, int], full: Mapping[str, int]) -> str:
    """Ranks for the report, such as `conv1 12 of 20, conv2 31 of 50`."""
    return ", ".join(f"{name} {rank} of {full[name]}" for name, rank in ranks.items())


def some_images(data: DataSet, count: int, seed: int) -> Tensor:
    """That many training images, drawn with the seed, as a network takes them."""
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count]
    return data.info.normalise(data.train.images[drawn])


def responses(model: nn.Module, path: str, images: Tensor, seed: int) -> Tensor:
    """[N, outputs] float64: what a convolution gives at some positions of each image, the same for the same seed."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _, output in _calls(model, path, images):
        columns = output.flatten(2)  # [N, outputs, positions]
        drawn = torch.randint(columns.shape[2], (len(columns), POSITIONS), generator=generator)
        found.append(columns.gather(2, drawn[:, None].expand(-1, columns.shape[1], -1)).transpose(1, 2).flatten(0, 1))
    return torch.cat(found).double()


def input_gram(model: nn.Module, path: str, images: Tensor) -> Tensor:
    """[n, n] float64: the mean of x x^T over all x that the rows of a layer's matrix are multiplied with."""
    layer, total, count = model.get_submodule(path), None, 0
    for given, _ in _calls(model, path, images):
        if isinstance(layer, nn.Conv2d):
            given = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)  # type: ignore[arg-type]
        rows = given.flatten(0, -2)
        part = (rows.T @ rows).double()
        total, count = part if total is None else total + part, count + len(rows)
    assert total is not None
    return total / count


def call_order(model: nn.Module, paths: Sequence[str], image: Tensor) -> list[str]:
    """The paths in the order in which the network calls them; those that it does not call are left out."""
    seen: list[str] = []
    hooks = [model.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.append(path)) for path in paths]
    with evaluating(model), torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(seen))


def _calls(model: nn.Module, path: str, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What goes into a layer and what comes out, a batch at a time."""
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, given: Any, output: Tensor) -> None:
        calls.append((given[0], output.clone()))  # what follows may be in place

    hook = model.get_submodule(path).register_forward_hook(keep)
    try:
        with evaluating(model), torch.no_grad():
            for batch in images.split(BATCH):
                model(batch.to(device_of(model)))
                yield from calls
                calls.clear()
    finally:
        hook.remove()
