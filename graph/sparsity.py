"""Masks of single weights: which ones stay, how many of each layer, and what their number says of the widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from .channel_graph import ChannelGraph, Scores

Masks = dict[str, Tensor]  # parameter -> bool of its shape, True where the weight stays

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase, nn.MultiheadAttention)
TRANSPOSED = nn.modules.conv._ConvTransposeNd


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights that layers multiply with: kernels of convolutions, matrices of linear, recurrent and attention layers.

    Biases, normalisation and embeddings are left alone. A weight that layers share comes once, under its first name.
    """
    own = {
        id(parameter)
        for layer in model.modules()
        if isinstance(layer, LAYERS)
        for name, parameter in layer.named_parameters(recurse=False)
        if "weight" in name and parameter.dim() >= 2
    }
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}


def magnitudes(model: nn.Module) -> dict[str, Tensor]:
    """Absolute values of the prunable weights."""
    return {name: weight.detach().abs() for name, weight in prunable(model).items()}


def largest(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """Masks of the largest scores of all layers together: exactly round((1 - sparsity) n) of n; of equals the first."""
    return top(scores, round((1 - sparsity) * sum(own.numel() for own in scores.values())))


def largest_per_layer(scores: Mapping[str, Tensor], sparsity: float) -> Masks:
    """As `largest`, in each layer for itself."""
    return {name: largest({name: own}, sparsity)[name] for name, own in scores.items()}


def top(scores: Mapping[str, Tensor], count: int) -> Masks:
    """Masks of the `count` largest scores of all layers together; of equals the first ones stay."""
    if count == 0:
        return {name: torch.zeros_like(own, dtype=torch.bool) for name, own in scores.items()}
    flat = np.concatenate([own.float().cpu().numpy().ravel() for own in scores.values()])
    flat.partition(len(flat) - count)  # in place: a sort would take several times the model
    threshold = float(flat[len(flat) - count])
    left = count - int((flat > threshold).sum())
    masks = {}
    for name, own in scores.items():
        values = own.float().flatten()
        equals = (values == threshold).nonzero().flatten()[:left]
        left -= len(equals)
        mask = values > threshold
        mask[equals] = True
        masks[name] = mask.view(own.shape)
    return masks


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights that do not stay to zero, in place."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def hold(masks: Masks) -> Callable[..., None]:
    """What a training does after each step so that weights which do not stay remain zero."""
    there: Masks = {}

    def after_step(model: nn.Module, *_: object) -> None:
        if not there:  # the training has put the model where it runs
            device = next(model.parameters()).device
            there.update({name: mask.to(device) for name, mask in masks.items()})
        apply_masks(model, there)

    return after_step


def counts(model: nn.Module, masks: Mapping[str, Tensor]) -> pd.DataFrame:
    """A row per layer: its weights, how many survive, and its filters, channels and shape columns, all and dead.

    A column of the filter shape is one position of one input channel, over all filters (Wen et al. 2016,
    arXiv:1608.03665, section 3.2); grouped layers count channels and columns in each group.
    """
    rows = []
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        stays = by_filter(model.get_submodule(path), mask)
        filters, channels, columns = stays.any(3).any(2), stays.any(3).any(1), stays.any(1)
        rows.append({
            "layer": path if attribute == "weight" else name,
            "weights": mask.numel(), "surviving": int(mask.sum()), "density": int(mask.sum()) / mask.numel(),
            "filters": filters.numel(), "dead_filters": int((~filters).sum()),
            "channels": channels.numel(), "dead_channels": int((~channels).sum()),
            "columns": columns.numel(), "dead_columns": int((~columns).sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def by_filter(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as [groups, filters, channels, kernel positions]."""
    groups: int = getattr(layer, "groups", 1)
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return parts.transpose(1, 2) if isinstance(layer, TRANSPOSED) else parts


def filter_side(layer: nn.Module) -> int:
    """The side of a layer's weight along which its filters lie."""
    return 1 if isinstance(layer, TRANSPOSED) else 0


def surviving_proportions(graph: ChannelGraph, masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Group -> mean density of the layers that make its channels, at least that of one channel.

    Only a channel's makers speak for it: a reader's weights are shared out among all that it reads, and are counted
    for the channels that it makes. Every maker has one voice, so that in a group tied by additions a 3x3 layer does
    not outweigh the 1x1 layers it is added to. A layer without a mask is dense.
    """
    total, makers = np.zeros(graph.n_channels), np.zeros(graph.n_channels)
    for maker, (parameter, side) in graph.makers().items():
        mask = masks.get(parameter)
        np.add.at(total, graph.channels_of(maker), 1.0 if mask is None else _per_filter(mask.float(), side).mean(1))
        np.add.at(makers, graph.channels_of(maker), 1)
    densities = graph.by_group(total / np.maximum(makers, 1))
    return {group: max(_mean(densities[group]), 1 / width) for group, width in graph.groups.items()}


def surviving_mass(graph: ChannelGraph, model: nn.Module, masks: Mapping[str, Tensor]) -> Scores:
    """Sum of the absolute surviving weights that make each channel, over all layers that write a tied one."""
    total = np.zeros(graph.n_channels)
    parameters = dict(model.named_parameters())
    for maker, (parameter, side) in graph.makers().items():
        weight, mask = parameters[parameter].detach().abs(), masks.get(parameter)
        surviving = weight if mask is None else weight * mask.to(weight.device)
        np.add.at(total, graph.channels_of(maker), _per_filter(surviving, side).sum(1))
    return graph.by_group(total)


def _per_filter(weight: Tensor, side: int) -> npt.NDArray[np.float32]:
    """[filters, weights of each]."""
    return weight.movedim(side, 0).flatten(1).float().cpu().numpy()


def _mean(numbers: Any) -> float:
    """Over a group's channels; those of groups tied by size only come by layer."""
    parts = list(numbers.values()) if isinstance(numbers, Mapping) else [numbers]
    return float(np.concatenate(parts).mean())
