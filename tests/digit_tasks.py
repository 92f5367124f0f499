"""Tasks that a method of pruning gets, on a few digits."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pocketzoo as pz
from pocketzoo.search.methods.method import Method, Proposal, Task
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


def check_reads_nothing_left_out(method: Method, name: str, column: str, within: float) -> None:
    """Within the budget, the proposed weights read no channel that goes; `column` of the history is no worse for it."""
    task = task_of(name)
    before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    proposal = method.propose(task)
    check_proposal(task, proposal)
    _, keep = cut(task.graph, proposal)
    x = task.data.info.normalise(task.data.val.images[:4])
    masked = task.graph.mask(proposal.model, keep).eval()
    torch.testing.assert_close(proposal.model.eval()(x), masked(x))
    assert (proposal.history[column] <= proposal.history["error"] + within).all()
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.model.state_dict().items())


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
