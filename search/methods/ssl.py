"""Structured sparsity learning (Wen et al. 2016, arXiv:1608.03665): group lasso while the network trains on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...graph.channel_graph import ChannelGraph, Scores
from ...graph.masks import Reader
from ...graph.sparsity import counts, filter_side, prunable
from ...training.evaluate import device_of
from ...training.loop import AfterStep
from ...training.recipe import Recipe
from ..threshold import widths_by_score
from .method import Proposal, Task
from .surviving import epochs_of

Weights = Mapping[str, Tensor]
LEAST = torch.finfo(torch.float32).tiny
PULL = 0.5  # times what takes an average group to zero by the end; more ends groups that a short training needs


@dataclass(frozen=True)
class StructuredSparsity:
    """Group lasso over filters, channels, filter shapes and whole layers removes what the loss does not hold on to.

    `on`: which groups, of filters, channels, shapes, layers; shapes, which no width can make use of, are reported where
    asked for. `strength`: lambda, one for all of them, 0: what would halve average groups by the end, with all kinds
    that are `on` pulling, if the loss did not hold on to them, so that lesser ones vanish. `epochs`: of
    training with it, 0: as many as the recipe's.

    A tied channel is one filter to eq. 2, made of everything that writes it (depthwise filters too), and one input
    channel, made of everything that reads it; so is a channel that several layers read. A shape column (eq. 3) is a
    position of one input channel over the filters of its group; a layer (eq. 4) is a group only inside a residual
    branch that may go, as the paper asks for a shortcut. Norms are not weighted by group sizes, as in the paper.

    Proximal steps, not subgradients: after each step of SGD every group is soft-thresholded by the learning rate times
    lambda, which makes zeros that are exact (a subgradient step jitters around them and needs a threshold of its own).
    Groups of one kind do not overlap, so that each kind's step is in closed form; the kinds take turns, the smaller
    groups first, which is exact where groups are nested (Jenatton et al. 2011, arXiv:1009.2139) and an incremental
    proximal step where filters and channels cross.

    Channels compete by the geometric mean of the norms of what writes and what reads them, which is zero where either
    is gone, relative to what it was on average in their group: layers differ in their norms before any of it is lost.
    Over several layers the mean square is taken.
    """

    on: str = "filters,channels,layers"
    strength: float = 0.0
    epochs: int = 0

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self._kinds if kind not in KINDS]:
            raise InvalidSetting(f"ssl: on has {unknown[0]!r}; expected some of {','.join(KINDS)}")
        if not self.strength >= 0 or self.epochs < 0:
            raise InvalidSetting(
                f"ssl: strength is {self.strength!r} and epochs {self.epochs!r}; expected 0 or more of both"
            )

    @property
    def _kinds(self) -> list[str]:
        return [kind.strip() for kind in self.on.split(",")]

    def check(self, graph: ChannelGraph) -> None:
        """Raises InvalidSetting for a network that has no such groups of weights."""
        self._groups(graph, graph.model)

    def propose(self, task: Task) -> Proposal:
        """Train with the group lasso; let one threshold on what is left of the channels meet the budget."""
        model = copy.deepcopy(task.model)
        kinds = self._groups(task.graph, model)
        recipe = task.recipe.with_settings(epochs=self.epochs or task.recipe.epochs)
        strength = self.strength or _strength(kinds, model, recipe, len(task.data.train))
        history = task.train(model, "ssl", recipe, after_step=_shrinking(kinds, strength))
        model.to(device_of(task.model))
        scores = channel_scores(task.graph, model, task.model)
        nonzero = {name: weight.detach() != 0 for name, weight in prunable(model).items()}
        widths = widths_by_score(task.graph, scores, task.budget)
        return Proposal(widths, scores, model, epochs_of(history), counts(model, nonzero))

    def _groups(self, graph: ChannelGraph, model: nn.Module) -> list[Groups]:
        made = [make(graph, model) for kind, make in KINDS.items() if kind in self._kinds]
        kinds = [groups for groups in made if groups.places]
        if not kinds:
            raise InvalidSetting(f"ssl: the network has no groups of {self.on}; there are {','.join(KINDS)}")
        return kinds


@dataclass(frozen=True)
class Groups:
    """Groups of weights that do not overlap: for each weight the number of its group, in a shape that broadcasts."""

    count: int
    places: tuple[tuple[str, Tensor], ...]  # parameter, int64 index

    def squares(self, weights: Weights) -> Tensor:
        """[count] sums of squares."""
        total = torch.zeros(self.count, device=next(iter(weights.values())).device)
        for name, index in self.places:
            own = weights[name].detach().float().square().sum_to_size(index.shape)
            total.index_add_(0, index.flatten(), own.flatten())
        return total

    def reach(self) -> Tensor:
        """[count] how many layers each of them has weights of."""
        total = torch.zeros(self.count)
        for _, index in self.places:
            total[index.unique()] += 1
        return total

    def lasso(self, weights: Weights) -> float:
        """The sum of the groups' norms."""
        return float(self.squares(weights).sqrt().sum())

    @torch.no_grad()
    def shrink(self, weights: Weights, threshold: float) -> None:
        """The proximal step: w -> w max(0, 1 - threshold / ||its group||), in place."""
        scale = (1 - threshold / self.squares(weights).sqrt().clamp_min(LEAST)).clamp_min(0)
        for name, index in self.places:
            weights[name].mul_(scale[index])

    def to(self, device: torch.device) -> Groups:
        """The same groups with their indices there."""
        return Groups(self.count, tuple((name, index.to(device)) for name, index in self.places))


def filters(graph: ChannelGraph, model: nn.Module) -> Groups:
    """Eq. 2, first sum: for every channel all filters that write it."""
    places = []
    for name, weight in prunable(model).items():
        side = filter_side(model.get_submodule(name.rpartition(".")[0]))
        written = graph.channels(name, side)
        if written is not None:
            places.append((name, _along(written, weight, side)))
    return Groups(graph.n_channels, tuple(places))


def channels(graph: ChannelGraph, model: nn.Module) -> Groups:
    """Eq. 2, second sum: for every channel all weights that read it."""
    weights = prunable(model)
    read = {name: reader for name, reader in graph.readers().items() if name in weights}
    return Groups(graph.n_channels, tuple((name, _read(reader, weights[name])) for name, reader in read.items()))


def shapes(graph: ChannelGraph, model: nn.Module) -> Groups:
    """Eq. 3: for every position of the filter shape all filters; depthwise filters read nothing in common."""
    places, count = [], 0
    for name, weight in prunable(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        groups, side = getattr(layer, "groups", 1), filter_side(layer)
        if groups == weight.shape[0] > 1:
            continue
        form = list(weight.shape)
        form[side] = groups if side == 0 else 1  # transposed convolutions hold the channels of all groups in a row
        index = count + torch.arange(int(np.prod(form))).reshape(form)
        count += index.numel()
        by_rows = side == 0 and groups > 1
        places.append((name, index.repeat_interleave(weight.shape[0] // groups, 0) if by_rows else index))
    return Groups(count, tuple(places))


def layers(graph: ChannelGraph, model: nn.Module) -> Groups:
    """Eq. 4: every layer that writes or reads what a removable branch has inside."""
    per_group = graph.members
    inside = np.unique([c for group in graph.removable for own in per_group[group] for c in graph.channels_of(own)])
    touching = [*filters(graph, model).places, *channels(graph, model).places]
    names = list(dict.fromkeys(name for name, index in touching if np.isin(index.numpy(), inside).any()))
    weights = prunable(model)
    return Groups(len(names), tuple((name, torch.full([1] * weights[name].dim(), i)) for i, name in enumerate(names)))


KINDS: dict[str, Callable[[ChannelGraph, nn.Module], Groups]] = {  # the smaller groups first
    "shapes": shapes, "filters": filters, "channels": channels, "layers": layers,
}  # fmt: skip


def channel_scores(graph: ChannelGraph, model: nn.Module, before: nn.Module) -> Scores:
    """Norm of each channel over the mean norm of its group `before`: 0 where all that writes, or reads, it is gone."""
    now, then = (graph.by_group(_channel_norms(graph, network)) for network in (model, before))
    return {group: _relative(now[group], then[group]) for group in graph.groups}


def _channel_norms(graph: ChannelGraph, model: nn.Module) -> npt.NDArray[np.float64]:
    """[n_channels] geometric mean of the norms of what writes and what reads each."""
    written, read = (_norm_per_layer(make(graph, model), model) for make in (filters, channels))
    both = np.sqrt(written * read)
    return np.where(np.isnan(written), read, np.where(np.isnan(read), written, both))


def _relative(now: Any, then: Any) -> Any:
    """Numbers over the mean of others, by layer for members tied by size only; 1 for what has no prunable weights."""
    if isinstance(now, Mapping):
        return {layer: _relative(now[layer], then[layer]) for layer in now}
    return np.nan_to_num(now / max(then.mean(), LEAST), nan=1.0)


def _norm_per_layer(groups: Groups, model: nn.Module) -> npt.NDArray[np.float64]:
    """[count]; NaN for a group that no layer has."""
    layers = groups.reach()
    squares = groups.to(device_of(model)).squares(prunable(model)).cpu()
    return np.where(layers > 0, (squares / layers.clamp_min(1)).sqrt().double(), np.nan)


def _strength(kinds: list[Groups], model: nn.Module, recipe: Recipe, images: int) -> float:
    """Lambda at which the thresholds of all steps and kinds add up to `PULL` times the mean norms."""
    steps = recipe.epochs * (images // min(recipe.batch_size, images))
    rates = sum(recipe.lr_at(step, steps) for step in range(steps))
    norms = [kind.to(device_of(model)).squares(prunable(model)).sqrt() for kind in kinds]
    return PULL / rates / sum(1 / max(float(own[own > 0].mean()), LEAST) for own in norms if own.any())


def _shrinking(kinds: list[Groups], strength: float) -> AfterStep:
    there: list[Groups] = []

    def after_step(model: nn.Module, optimizer: torch.optim.Optimizer, *_: int) -> None:
        if not there:  # the training has put the model where it runs
            there.extend(kind.to(device_of(model)) for kind in kinds)
        weights = prunable(model)
        for kind in there:
            kind.shrink(weights, optimizer.param_groups[0]["lr"] * strength)

    return after_step


def _along(numbers: npt.NDArray[np.int64], weight: Tensor, side: int) -> Tensor:
    """Numbers of the positions of a side, in a shape that broadcasts to the weight."""
    form = [1] * weight.dim()
    form[side] = len(numbers)
    return torch.from_numpy(numbers).reshape(form)


def _read(reader: Reader, weight: Tensor) -> Tensor:
    """Which channel each weight reads; the rows of a grouped weight read their group's part."""
    if len(reader.channels) == weight.shape[reader.side]:
        return _along(reader.channels, weight, reader.side)
    parts = torch.from_numpy(reader.channels).reshape(reader.groups, 1, -1)
    rows = parts.expand(-1, weight.shape[0] // reader.groups, -1).reshape(weight.shape[0], -1)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))
