"""Tasks that a method of pruning gets, on a few digits."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pocketzoo as pz
from pocketzoo.search.methods.method import Proposal, Task
from pocketzoo.search.shrink import absolute, cut
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.recipe import Recipe

RESOLUTION = 32


@cache
def digits(train: int = 64, val: int = 32) -> DataSet:
    data = load_data("digits", resolution=RESOLUTION)
    return replace(data, train=data.train.take(torch.arange(train)), val=data.val.take(torch.arange(val)))


def task_of(model: nn.Module | str, budget: str = "macs=40%", folder: Path | None = None, **recipe: Any) -> Task:
    """A fresh network that is to meet the budget, with two epochs of four steps."""
    if isinstance(model, str):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = pz.create_model(model, num_classes=10, in_channels=1, resolution=RESOLUTION)
    graph = pz.trace(model.eval(), (1, 1, RESOLUTION, RESOLUTION))
    settings = {"epochs": 2, "batch_size": 16, **recipe}
    return Task(model, graph, digits(), absolute(budget, graph), Recipe(**settings), folder)


def check_proposal(task: Task, proposal: Proposal) -> None:
    """Valid widths, 97-100 % of the budget, a network that runs, at the costs it was promised."""
    [limit] = task.budget.limits.values()
    widths = np.array([list(proposal.widths.values())])
    assert list(proposal.widths) == list(task.graph.groups)
    assert task.graph.valid(widths).all()
    assert (widths <= np.array(list(task.graph.groups.values()))).all()
    network, _ = cut(task.graph, proposal)
    costs = pz.trace(network, (1, 1, RESOLUTION, RESOLUTION)).price()
    assert 0.97 * limit <= costs.macs <= limit
    assert network.eval()(torch.zeros(2, 1, RESOLUTION, RESOLUTION)).shape == (2, 10)
