"""Sparse structure selection (Huang & Wang 2018, arXiv:1707.01213): factors on structures, driven to exact zeros."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ...errors import InvalidSetting
from ...graph.channel_graph import ChannelGraph
from ...graph.masks import Reader
from ..latency import model_of, priced
from ..projection import Limits
from .living import Membership, projected, share_of
from .method import Proposal, Task
from .steering import Steering

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STRUCTURES = ("channels", "groups", "blocks")
# Factors' gradients are this much smaller on their way: the recipe bounds the norm of the whole gradient, and a factor
# near zero has one that would take the weights' share.
QUIET = 1e-3
FACTORS, BEFORE, VELOCITY = "structure_factors", "structure_factors_before", "structure_velocity"


@dataclass(frozen=True)
class SparseStructureSelection:
    """Multiplies structures by factors, trains those to exact zeros by proximal gradient, and removes the zeros.

    `on`: `channels`; `groups`, those of grouped convolutions (ResNeXt's cardinality), which then have fewer of them; or
    `blocks`, the residual branches beside an identity.
    """

    on: str = "channels"

    def __post_init__(self) -> None:
        if self.on not in STRUCTURES:
            raise InvalidSetting(f"sss: on is {self.on!r}; expected one of {list(STRUCTURES)}")

    @property
    def by_groups(self) -> bool:
        """Whether whole groups go."""
        return self.on == "groups"

    def check(self, graph: ChannelGraph) -> None:
        """Raises InvalidSetting for a network that has no such structures, or one that cannot hold factors."""
        Structures(graph, graph.model, self.on)

    def propose(self, task: Task) -> Proposal:
        """Train factors and weights together, with a strength that grows until the zeros meet the budget.

        Structures are then kept, the largest factors first, until they cost at least the budget, and their widths come
        down to it by one multiplier. Weights hold their factors afterwards.
        """
        graph, model = task.graph, copy.deepcopy(task.model)
        limits = Limits(priced(graph, model_of(task.budget)), task.budget, cap=1.0)
        structures = Structures(graph, model, self.on)
        selection = Selection(structures, limits, Steering(("zeros", *limits.columns), task.recipe,
                              float(share_of(limits, limits.default[None])[0]), goal=1.0))  # fmt: skip
        structures.attach(model)
        selection.steering.attach(model)
        trained = task.train(model, "sparse", task.recipe, after_step=selection.after_step)
        history = selection.steering.detach(model, trained.epochs)
        factors = structures.fold(model)
        widths = projected(graph, model, structures.least_over(limits, factors), task.budget, cap=1.0)
        scores = graph.by_group(structures.per_channel(factors))
        return Proposal(widths, scores, model, history)


class Structures:
    """What has a factor, and where it multiplies.

    Factors of channels and groups multiply what the layers behind read of them: before or after a ReLU is the same, as
    factors are never negative, and a tied channel, read by several layers, has one factor. A block's multiplies its
    last layer's output.
    """

    def __init__(self, graph: ChannelGraph, model: nn.Module, on: str) -> None:
        self.membership = Membership(graph)
        self.of_channel = numbered(graph, on)
        self.number = int(self.of_channel.max()) + 1
        self._ends: list[str] = graph.branch_ends if on == "blocks" else []
        self._readers: Mapping[str, Reader] = {} if on == "blocks" else graph.readers()
        self._check(model)

    def attach(self, model: nn.Module) -> None:
        """Put a factor of 1 on every structure of the model."""
        device = next(model.parameters()).device
        factors = nn.Parameter(torch.ones(self.number, device=device))
        factors.register_hook(lambda gradient: QUIET * gradient)
        model.register_parameter(FACTORS, factors)
        model.register_buffer(BEFORE, torch.ones(self.number, device=device))
        model.register_buffer(VELOCITY, torch.zeros(self.number, device=device))
        for name, reader in self._readers.items():
            index = self._index(reader, model.get_parameter(name))
            path, _, attribute = name.rpartition(".")
            scaled = _Scaled(factors, index.to(device))
            parametrize.register_parametrization(model.get_submodule(path), attribute, scaled, unsafe=True)
        self._hooks = [
            model.get_submodule(end).register_forward_hook(lambda _, __, output, i=i: output * factors[i])
            for i, end in enumerate(self._ends)
        ]

    @torch.no_grad()
    def fold(self, model: nn.Module) -> Floats:
        """Multiply the factors into the weights and take all else away again; the factors."""
        factors = model.get_parameter(FACTORS).detach()
        for name in self._readers:
            path, _, attribute = name.rpartition(".")
            parametrize.remove_parametrizations(model.get_submodule(path), attribute, leave_parametrized=True)
        for hook in self._hooks:
            hook.remove()
        for factor, end in zip(factors, self._ends, strict=False):
            for parameter in model.get_submodule(end).parameters(recurse=False):
                parameter.mul_(factor)
        for name in (FACTORS, BEFORE, VELOCITY):
            delattr(model, name)
        return np.asarray(factors.cpu().numpy(), dtype=np.float64)

    def per_channel(self, factors: Floats) -> Floats:
        """The factor of each channel's structure, 1 where it is of none, [channels]."""
        return np.append(factors, 1.0)[self.of_channel]

    def living(self, factors: Floats) -> Ints:
        """The widths [G] of what has a factor that is not zero."""
        return self.membership.widths(self.per_channel(factors) > 0)

    def least_over(self, limits: Limits, factors: Floats) -> Ints:
        """The widths [G] of the fewest structures, the largest factors first, that cost the budget at least."""
        owner = np.append(np.argsort(np.argsort(-factors, kind="stable")) + 1, 0)[self.of_channel]  # 0: always there
        counts = np.zeros((self.number + 1, len(limits.default)), dtype=np.int64)
        np.add.at(counts, (owner[self.membership.channel], self.membership.group), 1)
        widths = self.membership.holding(counts.cumsum(axis=0))
        over = share_of(limits, widths) >= 1
        return np.asarray(widths[over.argmax() if over.any() else -1])

    def _index(self, reader: Reader, weight: Tensor) -> Tensor:
        """Which factor multiplies each entry of a weight, one past the last for none; shaped to broadcast over it."""
        own = torch.from_numpy(self.of_channel[reader.channels])
        own = torch.where(own < 0, self.number, own)
        shape = [1] * weight.dim()
        if reader.groups > 1:
            rows = own.view(reader.groups, -1).repeat_interleave(weight.shape[0] // reader.groups, dim=0)
            return rows.reshape(*rows.shape, *shape[2:])
        shape[reader.side] = len(own)
        return own.view(shape)

    def _check(self, model: nn.Module) -> None:
        for name in self._readers:
            if ".parametrizations." in name:
                layer = name.split(".parametrizations")[0]
                raise InvalidSetting(f"sss: the weight of {layer} is computed from others; remove its parametrization")
        for end in self._ends:
            last = model.get_submodule(end)
            if not isinstance(last, _BatchNorm | _ConvNd | nn.Linear):
                raise InvalidSetting(
                    f"sss: the block that ends in {end} ({type(last).__name__}) cannot hold a factor; expected batch"
                    " norm, a convolution or a linear layer; take on=channels"
                )


class _Scaled(nn.Module):
    """A weight times the factors of what it reads. The factors are the model's own parameter, and not listed here."""

    index: Tensor

    def __init__(self, factors: nn.Parameter, index: Tensor) -> None:
        super().__init__()
        self._factors = (factors,)
        self.register_buffer("index", index, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Of the weight's shape."""
        return weight * F.pad(self._factors[0], (0, 1), value=1.0)[self.index]


class Selection:
    """The training steps of the factors."""

    def __init__(self, structures: Structures, limits: Limits, steering: Steering) -> None:
        self.structures, self.limits, self.steering = structures, limits, steering
        self.share = steering.first

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, done: int, steps: int) -> None:
        """Take the factors to where this step leads them; what the optimiser did to them does not count."""
        factors = model.get_parameter(FACTORS)
        settings = optimizer.param_groups[0]
        strength = self.steering.strength(model) if self.share > 1 else 0.0
        assert factors.grad is not None
        before, velocity = model.get_buffer(BEFORE), model.get_buffer(VELOCITY)
        apg_step(before, velocity, factors.grad / QUIET, settings["lr"], settings["momentum"], strength)
        factors.copy_(before)
        if self.steering.due(done, steps):
            values = factors.detach().cpu().double().numpy()
            living = self.structures.living(values)
            self.share = float(share_of(self.limits, living[None])[0])
            self.steering.steer(model, self.share, done, steps, size=1 - settings["momentum"])
            zeros = float((values == 0).mean())
            self.steering.note(model, done, steps, [zeros, *self.limits.costs(living[None])[0]])


def apg_step(
    factors: Tensor, velocity: Tensor, gradient: Tensor, rate: float, momentum: float, strength: Tensor | float
) -> None:
    """The paper's modified accelerated proximal gradient (section 3.3, last three equations), in place.

    z = factors - rate * gradient; velocity = S(z) - factors + momentum * velocity;
    factors = S(z) + momentum * velocity, where S takes rate * strength off a magnitude. Factors stay at or above zero,
    as in the authors' code.
    """
    z = factors - rate * gradient
    z = z.sign() * (z.abs() - rate * strength).clamp(min=0)
    velocity.mul_(momentum).add_(z - factors)
    factors.copy_((z + momentum * velocity).clamp(min=0))


def numbered(graph: ChannelGraph, on: str) -> Ints:
    """The structure that each channel is of, -1 for none; raises InvalidSetting where there are no structures."""
    of_channel = {"channels": _channels, "groups": _conv_groups, "blocks": _blocks}[on](graph)
    if of_channel.max(initial=-1) < 0:
        what = {
            "groups": "grouped convolution whose groups may go one by one",
            "blocks": "residual branch beside an identity that may go",
        }[on]
        raise InvalidSetting(f"sss: on={on} needs a {what}, and the network has none; take on=channels")
    return of_channel


def _channels(graph: ChannelGraph) -> Ints:
    of_channel = np.full(graph.n_channels, -1)
    free = np.unique(Membership(graph).channel)
    of_channel[free] = np.arange(len(free))
    return of_channel


def _conv_groups(graph: ChannelGraph) -> Ints:
    """The groups of every grouped convolution; all channels that one of them reads and writes are one of the graph."""
    of_channel, number = np.full(graph.n_channels, -1), 0
    for layer in sorted(graph.whole_groups):
        written = graph.channels(f"{layer}.weight", 0)
        assert written is not None  # it is separable
        own = np.unique(written[of_channel[written] < 0])
        of_channel[own] = number + np.arange(len(own))
        number += len(own)
    return of_channel


def _blocks(graph: ChannelGraph) -> Ints:
    """The block of each channel inside of a residual branch that may go."""
    of_channel = np.full(graph.n_channels, -1)
    for number, branch in enumerate(graph.branches):
        for name in branch:
            for layer in graph.members[name]:
                of_channel[graph.channels_of(layer)] = number
    return of_channel
