"""The network that is to shrink: loaded, given, or trained first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import InvalidData, UntraceableModel
from ..graph.channel_graph import ChannelGraph, trace
from ..training.data import DataSet
from ..training.loop import fit
from ..training.recipe import Recipe
from ..training.run import fitted, train
from ..training.saved import load_with_info
from ..zoo.architecture import Architecture


@dataclass(frozen=True)
class Origin:
    """A trained network, its architecture (None: nobody said how it is built) and its graph."""

    model: nn.Module
    architecture: Architecture | None
    graph: ChannelGraph

    @classmethod
    def of(
        cls, model: nn.Module | Architecture | str | Path, data: DataSet, recipe: Recipe, folder: Path | None,
        check: Callable[[ChannelGraph], object], *, trust: Sequence[str] = (), progress: bool = False,
    ) -> Origin:  # fmt: skip
        """A module as it is, a run's folder or file as it was saved; a name or Architecture is trained by the recipe.

        `check` looks at the graph before a training. Raises InvalidData where a saved network was made for other
        classes, UntraceableModel where no width can vary.
        """
        architecture: Architecture | None = None
        if isinstance(model, nn.Module):
            network = model
        elif isinstance(model, Path) or (isinstance(model, str) and Path(model).exists()):
            network, architecture, info = load_with_info(model, trust=trust)
            if (info.classes, info.in_channels, info.resolution) != (data.classes, data.in_channels, data.resolution):
                raise InvalidData(
                    f"{model} was trained on {len(info.classes)} classes of {info.in_channels}x{info.resolution}^2 "
                    f"pixels, {data.name} has {data.num_classes} of {data.in_channels}x{data.resolution}^2"
                )
        else:
            architecture = fitted(model, data)
            check(_searchable(architecture.graph(), architecture.family))
            network = _trained(architecture, data, recipe, folder, progress)
        graph = trace(network, (1, data.in_channels, data.resolution, data.resolution))
        return cls(network, architecture, _searchable(graph, architecture.family if architecture else "the model"))


def resolution_of(model: nn.Module | Architecture | str | Path, trust: Sequence[str]) -> int | None:
    """The images' side that a saved network or an Architecture was made for; None: the data's own."""
    if isinstance(model, Architecture):
        return model.resolution
    if isinstance(model, nn.Module) or not Path(model).exists():
        return None
    return load_with_info(model, trust=trust)[1].resolution


def _trained(
    architecture: Architecture, data: DataSet, recipe: Recipe, folder: Path | None, progress: bool
) -> nn.Module:
    if folder is not None:
        train(architecture, data, folder, recipe, progress=progress)
        return load_with_info(folder, trust=(architecture.family,))[0]
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        network = architecture.build()
    fit(network, data, recipe, progress=progress)
    return network.cpu()


def _searchable(graph: ChannelGraph, name: str) -> ChannelGraph:
    if not graph.groups:
        frozen = "; ".join(f"{layer}: {why}" for layer, why in graph.frozen.items())
        raise UntraceableModel(f"{name} has no channels whose number can vary ({frozen}): nothing can shrink")
    return graph
