"""Network slimming (Liu et al. 2017, arXiv:1708.06519): an L1 penalty on batch-norm scales, then one threshold."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ...errors import InvalidSetting
from ...graph.channel_graph import ChannelGraph
from ..budget import UNITS, Budget
from ..latency import model_of, priced
from ..projection import Limits
from ..threshold import widths_by_score
from .living import share_of
from .method import Proposal, Task
from .scales import Scales, scaled_channels, scales_of

Bools = npt.NDArray[np.bool_]

LEAST_TRAVEL = 0.5  # times the average scale: how far the penalty alone moves one; more makes short trainings collapse


@dataclass(frozen=True)
class Slimming:
    """Trains with an L1 penalty on the batch-norm scales and removes the channels with the smallest of all layers.

    `sparsity`: weight of the penalty, the paper's lambda (1e-4 for its VGG, 1e-5 for ResNet and DenseNet); 0 prunes
    what ordinary training leaves. In a training too short for it the weight is as much as would halve the average
    scale, if nothing else moved it (the paper's 160 epochs go far beyond that): the scales then rank the channels, but
    do not reach zero. `passes`: the multi-pass scheme; every pass trains anew and leaves the same share of what the
    network costs.
    """

    sparsity: float = 1e-4
    passes: int = 1

    def __post_init__(self) -> None:
        if not self.sparsity >= 0:
            raise InvalidSetting(f"slimming: sparsity is {self.sparsity!r}; expected 0 or more")
        if self.passes < 1:
            raise InvalidSetting(f"slimming: passes is {self.passes!r}; expected 1 or more")

    def check(self, graph: ChannelGraph) -> None:
        """Raises InvalidSetting for a network without batch norm."""
        scaled_channels(graph, "slimming")

    def propose(self, task: Task) -> Proposal:
        """Train sparsely and cut, as often as there are passes.

        A tied channel is worth its largest scale: it goes when all its scales lie below the threshold. So does one
        that the batch norms of a DenseNet read again and again. Between passes the network keeps its structure with
        the scales and shifts of what is cut held at zero, which computes what the smaller network computes.
        """
        graph, model = task.graph, copy.deepcopy(task.model)
        scales = scales_of(graph, model, "slimming")
        limits = Limits(priced(graph, model_of(task.budget)), task.budget, cap=1.0)
        excess = max(1.0, float(share_of(limits, limits.default[None])[0]))
        gone = np.zeros(graph.n_channels, dtype=bool)
        epochs = []
        for number in range(self.passes):
            weight = self.weight(task, scales.magnitudes(model).mean().item())
            penalty = lambda model, weight=weight: weight * scales.magnitudes(model).sum()
            held = _Held(scales, gone)
            trained = task.train(model, f"sparse{number}", task.recipe, extra_loss=penalty, after_step=held)
            epochs += [{"pass": number + 1, "loss": e.loss, "val_accuracy": e.val_accuracy} for e in trained.epochs]
            scores = graph.by_group(scales.completed(scales.largest(model)))
            budget = _looser(task.budget, excess ** (1 - (number + 1) / self.passes))
            widths = widths_by_score(graph, scores, budget)
            gone = graph.dropped(graph.select(scores, widths, strict=False))
        return Proposal(widths, scores, model, pd.DataFrame(epochs))

    def weight(self, task: Task, average: float) -> float:
        """Of the penalty, when the scales are `average` now.

        A constant gradient of 1 moves a parameter by the sum of the learning rates over 1 - momentum.
        """
        if self.sparsity == 0:
            return 0.0
        recipe = task.recipe
        steps = recipe.epochs * max(1, len(task.data.train) // recipe.batch_size)
        reach = sum(recipe.lr_at(step, steps) for step in range(steps)) / max(1e-3, 1 - recipe.momentum)
        return max(self.sparsity, LEAST_TRAVEL * average / reach)


class _Held:
    """Keeps the scales and shifts of channels that are gone at zero after each step."""

    def __init__(self, scales: Scales, gone: Bools) -> None:
        kept = torch.from_numpy(~gone[scales.channel])
        self._kept = dict(zip(scales.names, kept.split(list(scales.lengths)), strict=True))

    def __call__(self, model: nn.Module, *_: object) -> None:
        for name, kept in self._kept.items():
            if not kept.all():
                for parameter in (name, name.removesuffix("weight") + "bias"):
                    values = model.get_parameter(parameter)
                    values.mul_(kept.to(values.device))


def _looser(budget: Budget, factor: float) -> Budget:
    """The budget with every limit times the factor."""
    limits = {name: float(limit) * factor for name, limit in budget.to_dict().items() if name in UNITS}
    return budget.replaced(**limits)
