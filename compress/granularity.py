"""Which weights stay, alone or in blocks: from single weights (0-D) to whole filters (3-D).

The blocks are those of Mao et al. 2017 (arXiv:1705.08922, section 3): fine takes single weights, vector a row of a
kernel, kernel the kernel of one input channel, filter all that makes one output. A matrix, of a linear or a recurrent
layer, is a filter a row with kernels of one weight; so its vectors and kernels are single weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting, suggestion
from ..graph.sparsity import TRANSPOSED, Masks, by_filter, largest, prunable, top

WITHIN = {"fine": (), "vector": (4,), "kernel": (3, 4), "filter": (2, 3, 4)}  # axes of `in_blocks` that a block spans


def masks_for(
    model: nn.Module, scores: Mapping[str, Tensor], sparsity: float | Mapping[str, float], granularity: str = "fine"
) -> Masks:
    """Masks of the blocks with the largest mean scores; of equals the first stay.

    A mapping from weights' names says how much goes of each by itself: exactly round((1 - sparsity) n) of its n blocks
    stay. One number is for all layers together: blocks stay as long as they fit into round((1 - sparsity) n) weights,
    which single weights do to the last.
    """
    means = {name: block_means(layer_of(model, name), own, granularity) for name, own in scores.items()}
    if isinstance(sparsity, Mapping):
        kept = {name: largest({name: means[name]}, share)[name] for name, share in sparsity.items()}
    else:
        weights = round((1 - sparsity) * sum(own.numel() for own in scores.values()))
        kept = top(means, weights if granularity == "fine" else _that_fit(means, scores, weights))
    return {name: as_weight(layer_of(model, name), own, scores[name].shape) for name, own in kept.items()}


def by_weight(model: nn.Module, setting: float | Mapping[str, float]) -> dict[str, float]:
    """Prunable weight -> its value of a setting: one for all, or a mapping from names of layers or weights.

    Weights that a mapping does not name are left out; raises InvalidSetting for a name that is none.
    """
    weights = prunable(model)
    if not isinstance(setting, Mapping):
        return dict.fromkeys(weights, setting)
    found: dict[str, float] = {}
    for key, value in setting.items():
        own = [name for name in weights if key in (name, name.rpartition(".")[0])]
        if not own:
            known = [label(name) for name in weights]
            raise InvalidSetting(f"there is no layer {key!r}{suggestion(key, known)}; there are {', '.join(known)}")
        found |= dict.fromkeys(own, value)
    return found


def label(name: str) -> str:
    """What a table calls a weight: its layer, where this has no other."""
    return name.removesuffix(".weight")


def layer_of(model: nn.Module, name: str) -> nn.Module:
    """The layer that a weight belongs to."""
    return model.get_submodule(name.rpartition(".")[0])


def in_blocks(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight as [groups, filters, channels, rows of the kernel, places in a row]."""
    width = weight.shape[-1] if weight.dim() > 2 else 1
    parts: Tensor = by_filter(layer, weight).unflatten(-1, (-1, width))
    return parts


def block_means(layer: nn.Module, scores: Tensor, granularity: str) -> Tensor:
    """Means over the blocks, in the form of `in_blocks` with sides of 1 for what a block spans."""
    parts, within = in_blocks(layer, scores), WITHIN[granularity]
    return parts.mean(within, keepdim=True) if within else parts  # over no axes it would be over all


def as_weight(layer: nn.Module, kept: Tensor, shape: torch.Size) -> Tensor:
    """What is said of blocks, said of every weight in them."""
    spread = kept.expand(in_blocks(layer, torch.empty(shape, device="meta")).shape)
    return (spread.transpose(1, 2) if isinstance(layer, TRANSPOSED) else spread).reshape(shape)


def check_granularity(name: str, granularity: str) -> None:
    """Raises InvalidSetting for one that there is not."""
    if granularity not in WITHIN:
        raise InvalidSetting(f"{name}: granularity is {granularity!r}; expected one of {', '.join(WITHIN)}")


def _that_fit(means: Mapping[str, Tensor], scores: Mapping[str, Tensor], weights: int) -> int:
    """How many blocks of all layers, the largest means first, make up at most so many weights."""
    sizes = torch.cat([torch.full((own.numel(),), scores[name].numel() // own.numel()) for name, own in means.items()])
    order = torch.cat([own.flatten() for own in means.values()]).sort(descending=True, stable=True).indices
    return int((sizes[order].cumsum(0) <= weights).sum())
