"""MorphNet (Gordon et al. 2018, arXiv:1711.06798): a regulariser with the budget's own price, then uniform growth."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidSetting
from ...graph.channel_graph import ChannelGraph
from ...training.recipe import Recipe
from ..budget import Budget
from ..latency import model_of, priced
from ..projection import CAP, Limits
from ..shrink import cut
from ..threshold import widths_by_score
from .living import Membership, projected, share_of
from .method import Proposal, Task
from .scales import scaled_channels, scales_of
from .steering import Steering

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MorphNet:
    """Trains under a regulariser that charges each channel its share of the budget, and widens what lives to fill it.

    `threshold`: a channel lives while one of its batch-norm scales is above it. `below`: the share of the budget that
    training shrinks the network to, before the uniform width multiplier brings it back to the whole (step 3 of the
    paper's Algorithm 1; no group grows beyond four times its width). `rounds`: how often both are done.
    """

    threshold: float = 0.01
    below: float = 0.9
    rounds: int = 1

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise InvalidSetting(f"morphnet: threshold is {self.threshold!r}; expected 0 or more")
        if not 0 < self.below <= 1:
            raise InvalidSetting(f"morphnet: below is {self.below!r}; expected a share above 0 and at most 1")
        if self.rounds < 1:
            raise InvalidSetting(f"morphnet: rounds is {self.rounds!r}; expected 1 or more")

    def check(self, graph: ChannelGraph) -> None:
        """Raises InvalidSetting for a network without batch norm."""
        scaled_channels(graph, "morphnet")

    def propose(self, task: Task) -> Proposal:
        """Shrink and expand.

        Weights go on from the first round, whose network still has the task's structure; later rounds train networks
        of the widths found so far, and only their widths are taken.
        """
        graph = task.graph
        first = latest = self._round(task, graph, copy.deepcopy(task.model), 0)
        histories = [first.history]
        for number in range(1, self.rounds):
            model, _ = cut(graph, latest)
            graph = graph.of(model)
            latest = self._round(task, graph, model, number)
            histories.append(latest.history)
        widths = {name: latest.widths.get(name, 0) for name in task.graph.groups}  # 0: gone with an earlier round
        return Proposal(widths, first.scores, first.model, pd.concat(histories, ignore_index=True))

    def _round(self, task: Task, graph: ChannelGraph, model: nn.Module, number: int) -> Proposal:
        regulariser = Regulariser(graph, model, task.budget, task.recipe, self.threshold, self.below)
        regulariser.steering.attach(model)
        trained = task.train(model, f"shrink{number}", task.recipe, after_step=regulariser.after_step)
        history = regulariser.steering.detach(model, trained.epochs).assign(round=number + 1)
        scores = graph.by_group(regulariser.scores(model))
        living = regulariser.living(model)
        if share_of(regulariser.limits, living[None])[0] > 1:
            by_score = widths_by_score(graph, scores, task.budget)
            living = np.array([by_score[name] for name in graph.groups])
        widths = projected(graph, model, living, task.budget, CAP)
        return Proposal(widths, scores, model, history)


class Regulariser:
    """G of a network, and the training steps under it.

    The paper's section 3 charges a layer that costs C per input and output channel with C times (the sum of |gamma|
    over its inputs times its living outputs, plus its living inputs times the sum over its outputs). Summed over all
    layers that is the derivative of the price F at the living widths, in the direction of the sums of |gamma|:
    G = sum over groups of dF/dw_g * sum over the group's channels of |gamma|. F is the share of the budget that the
    living network costs, of whichever limit is the tightest; MACs and parameters are quadratic in each width, so that
    differences of prices give their derivatives exactly, and memory (a maximum) and predicted latency go the same way.
    A tied channel counts with its largest |gamma|, the L-infinity group lasso of the section on topology.

    Its strength, the paper's lambda, is steered until the living network costs `goal` of the budget; then it rests.
    """

    def __init__(
        self, graph: ChannelGraph, model: nn.Module, budget: Budget, recipe: Recipe, threshold: float, goal: float
    ) -> None:
        self.scales, self.membership = scales_of(graph, model, "morphnet"), Membership(graph)
        self.limits = Limits(priced(graph, model_of(budget)), budget, cap=1.0)
        self.threshold, self.goal = threshold, goal
        self.channels, table, row = _table(self.scales.channel, self.membership.channel)
        device = next(model.parameters()).device
        self._table, self._row = torch.from_numpy(table).to(device), torch.from_numpy(row).to(device)
        self.charge: Tensor  # [channels that may go] what one more or less of each costs, as a share of the budget
        self.charge_at(self.limits.default)
        self.steering = Steering(("regulariser", *self.limits.columns), recipe, self.share, goal)

    def living(self, model: nn.Module) -> Ints:
        """The widths [G] of what is alive."""
        return self.membership.widths(self.scores(model) > self.threshold)

    def scores(self, model: nn.Module) -> Floats:
        """The largest |gamma| of each channel, [channels], with values for those that have none."""
        return self.scales.completed(self.scales.largest(model))

    @torch.no_grad()
    def value(self, model: nn.Module) -> float:
        """G, at what the channels are charged now."""
        largest = F.pad(self.scales.magnitudes(model), (0, 1))[self._table].amax(1)
        return float((largest * self.charge).sum())

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, done: int, steps: int) -> None:
        """The proximal step of learning rate * strength * G, with a look at what lives every few steps."""
        self._move(model)
        if self.steering.due(done, steps):
            living = self.living(model)
            if not np.array_equal(living, self._charged_at):
                self.charge_at(living)
            size = self.scales.magnitudes(model).mean() / self.charge.mean()
            self.steering.steer(model, self.share, done, steps, float(size))
            self.steering.note(model, done, steps, [self.value(model), *self.limits.costs(living[None])[0]])
        if self.share > self.goal:
            rate = optimizer.param_groups[0]["lr"]
            self.shrink(model, rate * self.steering.strength(model) * self.charge)

    def shrink(self, model: nn.Module, by: Tensor) -> None:
        """Proximal map of `by` [charged channels] times the largest |gamma| of each: its scales are cut to one level.

        The level is where the cuts add up to `by` (what is cut off is the projection onto an L1 ball: Moreau). A
        subgradient would share the recipe's bound on the whole gradient's norm with the loss, and drown it where the
        training is short and the strength therefore high; nor does it end at zero.
        """
        scales = self.scales.of(model)
        flat = torch.cat([scale.float() for scale in scales])
        ordered = F.pad(flat.abs(), (0, 1))[self._table].sort(dim=1, descending=True).values  # [channels, most scales]
        count = torch.arange(1, ordered.shape[1] + 1, device=flat.device)
        level = ((ordered.cumsum(1) - by[:, None]) / count).amax(1).clamp(min=0)
        level = F.pad(level, (0, 1), value=torch.inf)[self._row]
        torch._foreach_copy_(list[Tensor](scales), flat.clamp(-level, level).split(self.scales.lengths))

    def _move(self, model: nn.Module) -> None:
        device = self.scales.of(model)[0].device
        if self._table.device != device:
            self._table, self._row, self.charge = self._table.to(device), self._row.to(device), self.charge.to(device)

    def charge_at(self, living: Ints) -> None:
        """Charge each channel what one more or less of it costs at these widths [G]."""
        self._charged_at, self.share = living, float(share_of(self.limits, living[None])[0])
        charge = self.membership.charged(price_slopes(self.limits, living))[self.channels]
        self.charge = torch.from_numpy(charge).to(self._table.device, torch.float32)


def price_slopes(limits: Limits, living: Ints) -> Floats:
    """[G] -> the derivative of the budget's share by each width, [G]; exact where it is quadratic, never negative.

    Taken from three prices at widths between one step and the whole: width 0 would take a branch out, and wider than
    the network is may lie outside what a latency model knows. Where it does not know these either, the slope is 0.
    """
    widths = np.maximum(living, limits.step)
    start = np.clip(widths - limits.step, limits.step, np.maximum(limits.step, limits.default - 2 * limits.step))
    points = np.tile(widths, (3, len(widths), 1))
    for i in range(3):
        np.fill_diagonal(points[i], start + i * limits.step)
    low, middle, high = share_of(limits, points.reshape(-1, len(widths))).reshape(3, -1)
    known = np.isfinite(low + middle + high)
    low, middle, high = (np.where(known, share, 0.0) for share in (low, middle, high))
    at = (widths - start) / limits.step
    slopes = (middle - low + (high - 2 * middle + low) * (at - 0.5)) / limits.step
    return np.maximum(slopes, 0)


def _table(channel: Ints, free: Ints) -> tuple[Ints, Ints, Ints]:
    """Free channels with scales; the positions of each one's scales, padded with one past the last; each scale's row.

    A scale of a channel that is not free has the row past the last.
    """
    position = np.flatnonzero(np.isin(channel, free))
    channels, row = np.unique(channel[position], return_inverse=True)
    order = np.argsort(row, kind="stable")
    count = np.bincount(row)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    table = np.full((len(channels), count.max()), len(channel))
    table[row[order], rank] = position[order]
    rows = np.full(len(channel), len(channels))
    rows[position] = row
    return channels, table, rows
