"""The network that is to shrink: loaded, given, or trained first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InvalidData, InvalidSetting, InvalidWidths, UntraceableModel
from ..graph.cardinality import separable_groups
from ..graph.channel_graph import ChannelGraph, Widths, trace
from ..training.data import DataSet
from ..training.loop import fit
from ..training.recipe import Recipe, recipe_for
from ..training.result import Result
from ..training.run import fitted, train
from ..training.saved import RESULT_NAME, load_unedited, load_with_info, weights_file
from ..zoo.architecture import Architecture


@dataclass(frozen=True)
class Origin:
    """A trained network, its architecture (None: nobody said how it is built), its graph and its training's Result."""

    model: nn.Module
    architecture: Architecture | None
    graph: ChannelGraph
    result: Result | None  # None where there is no record of it

    def at(self, widths: Widths) -> Architecture | None:
        """The architecture at other widths; a branch that it has lost before stays lost."""
        if self.architecture is None:
            return None
        whole = self.architecture.with_whole_groups(self.graph.whole_groups)
        return whole.with_widths({**(self.architecture.widths or {}), **widths})

    @classmethod
    def of(
        cls, model: nn.Module | Architecture | str | Path, data: DataSet, recipe: Recipe, folder: Path | None,
        before: ChannelGraph, *, trust: Sequence[str] = (), progress: bool = False,
    ) -> Origin:  # fmt: skip
        """A module as it is, a run's folder or file as it was saved; a name or Architecture is trained by the recipe.

        Its graph is traced as the one `before`, which `graph_before` gave. Raises DivergedTraining.
        """
        if (there := _there(model, data, trust)) is not None:
            network, architecture = there
            record = model
        else:
            architecture = _architecture(model, data)
            network = _trained(architecture, data, recipe, folder, progress)
            record = folder or network
        return cls(network, architecture, before.of(network), _result_of(record))


def graph_before(
    model: nn.Module | Architecture | str | Path, data: DataSet, trust: Sequence[str] = (), multiple: int = 1,
    by_groups: bool = False,
) -> ChannelGraph:  # fmt: skip
    """The graph of the network that is to shrink, before anything is trained or written.

    Widths go in multiples of `multiple`; `by_groups`: grouped convolutions have fewer groups, not narrower ones, where
    these are separable.

    Raises InvalidData where a saved network was made for other classes, InvalidRun where compression gave it other
    layers, UntraceableModel where no width can vary, InvalidSetting where groups are to go that are narrower already.
    """
    if (there := _there(model, data, trust)) is not None:
        network, architecture = there
        shape = (1, data.in_channels, data.resolution, data.resolution)
        whole = architecture.whole_groups if architecture else ()
        graph = trace(network, shape, multiple=multiple, whole_groups=whole)
    else:
        architecture = _architecture(model, data)
        graph = architecture.graph(multiple=multiple)
    if by_groups:
        graph = _by_groups(graph, architecture)
    return _searchable(graph, architecture.family if architecture else "the model")


def resolution_of(model: nn.Module | Architecture | str | Path, trust: Sequence[str]) -> int | None:
    """The images' side that a saved network or an Architecture was made for; None: the data's own."""
    if isinstance(model, Architecture):
        return model.resolution
    saved = _saved(model)
    return None if saved is None else load_with_info(saved, trust=trust)[1].resolution


def recipe_of(model: nn.Module | Architecture | str | Path, data: DataSet, **settings: Any) -> Recipe:
    """How the network was trained, where its run says so, else the default for the data; settings on top."""
    result = _result_of(model)
    return recipe_for(len(data.train), **settings) if result is None else result.recipe.with_settings(**settings)


def _there(
    model: nn.Module | Architecture | str | Path, data: DataSet, trust: Sequence[str]
) -> tuple[nn.Module, Architecture | None] | None:
    """A network that is given or saved; None for one that is to be built."""
    if isinstance(model, nn.Module):
        return model, None
    if (saved := _saved(model)) is None:
        return None
    network, architecture, info = load_unedited(saved, trust=trust)
    if (info.classes, info.in_channels, info.resolution) != (data.classes, data.in_channels, data.resolution):
        raise InvalidData(
            f"{model} was trained on {len(info.classes)} classes of {info.in_channels}x{info.resolution}^2 "
            f"pixels, {data.name} has {data.num_classes} of {data.in_channels}x{data.resolution}^2"
        )
    return network, architecture


def _architecture(model: nn.Module | Architecture | str | Path, data: DataSet) -> Architecture:
    assert isinstance(model, Architecture | str)  # anything else is there already
    return fitted(model, data)


def _by_groups(graph: ChannelGraph, architecture: Architecture | None) -> ChannelGraph:
    """The graph in which grouped convolutions lose whole groups, where these are separable."""
    if graph.whole_groups:
        return graph
    shape = graph.inputs[0]
    layers = separable_groups(graph.model, shape)
    if architecture is not None and architecture.widths and layers:
        _check_groups_are_full(architecture, graph.model, layers)
    return trace(graph.model, shape, multiple=graph.multiple, whole_groups=layers)


def _check_groups_are_full(architecture: Architecture, network: nn.Module, layers: Collection[str]) -> None:
    """An Architecture's widths mean narrower groups or fewer ones, not some of both."""
    try:
        rebuilt = architecture.with_whole_groups(layers).graph().model.state_dict()
        is_same = {k: v.shape for k, v in rebuilt.items()} == {k: v.shape for k, v in network.state_dict().items()}
    except InvalidWidths:
        is_same = False
    if not is_same:
        raise InvalidSetting(
            "its convolution groups were made narrower before, and whole ones can go only from a network whose groups"
            " have their full width: begin with the network before that, or take on=channels"
        )


def _saved(model: nn.Module | Architecture | str | Path) -> Path | None:
    """The path of a saved network; None for what is to be built, or is there."""
    if isinstance(model, Path):
        return model
    return Path(model) if isinstance(model, str) and Path(model).exists() else None


def _result_of(model: nn.Module | Architecture | str | Path) -> Result | None:
    """The Result beside a saved network."""
    if (saved := _saved(model)) is None:
        return None
    record = weights_file(saved).with_name(RESULT_NAME)
    return Result.from_json(record.read_text(encoding="utf-8")) if record.exists() else None


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
