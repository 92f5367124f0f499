"""AMC-style search of layer ratios: every trial within the budget, uniform first, the best kept whatever happens."""

import numpy as np
import pytest
import torch
from torch import nn

from pocketzoo import InvalidSetting, trace
from pocketzoo.graph.importance import l1_importance
from pocketzoo.search.methods import amc
from pocketzoo.search.methods.amc import AMC
from pocketzoo.search.methods.method import Task, method_named
from pocketzoo.search.projection import project
from pocketzoo.search.shrink import absolute
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.loop import fit
from pocketzoo.training.recipe import Recipe

TRIALS = 12


@pytest.fixture(scope="module")
def task() -> Task:
    data: DataSet = load_data("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 32), nn.ReLU(),
                          nn.Linear(32, 10))  # fmt: skip
    fit(model, data, Recipe(epochs=10, batch_size=32, lr=0.1, augment=False))
    graph = trace(model.cpu().eval(), (1, 1, 8, 8))
    return Task(model, graph, data, absolute("macs=40%", graph), Recipe(epochs=1))


def test_trials_meet_the_budget_and_the_best_is_no_worse_than_uniform(task: Task) -> None:
    proposal = AMC(trials=TRIALS).propose(task)
    history = proposal.history
    assert list(history["trial"]) == list(range(TRIALS))
    names = list(task.graph.groups)
    widths = history[names].to_numpy()
    share = task.graph.price_many(widths, ("macs",))["macs"] / task.budget.limits["macs"]
    assert ((share >= 0.97) & (share <= 1)).all()
    uniform = project(task.graph, np.ones(len(names)), task.budget, cap=1.0).widths[0]
    assert list(widths[0]) == list(uniform)
    assert len(np.unique(widths, axis=0)) > TRIALS / 2
    assert list(history["best"]) == list(history["accuracy"].cummax())
    best = history["accuracy"].idxmax()
    assert list(proposal.widths.values()) == list(widths[best])
    assert history["accuracy"][best] > history["accuracy"][0]  # it found something


def test_reward_is_the_accuracy_of_the_masked_network(task: Task) -> None:
    """Without batch norm, what is left of the network computes what the masked original computes."""
    proposal = AMC(trials=1, images=10_000).propose(task)
    keep = task.graph.select(l1_importance(task.graph, task.model), proposal.widths)
    masked = task.graph.mask(task.model, keep)
    x = task.data.info.normalise(task.data.val.images)
    accuracy = (masked(x).argmax(1) == task.data.val.labels).double().mean().item()
    assert proposal.history["accuracy"][0] == pytest.approx(accuracy)


def test_the_same_seed_searches_the_same(task: Task) -> None:
    first, again, other = (AMC(trials=4, images=50, seed=seed).propose(task).history for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


@pytest.mark.parametrize("done", [0, 2])
def test_an_interrupted_search_gives_the_best_so_far(task: Task, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    calls, original = [], amc._Judge.accuracy

    def interrupted(judge: amc._Judge, widths: dict[str, int]) -> float:
        if len(calls) == done:
            raise KeyboardInterrupt
        calls.append(widths)
        return original(judge, widths)

    monkeypatch.setattr(amc._Judge, "accuracy", interrupted)
    if done == 0:
        with pytest.raises(KeyboardInterrupt):
            AMC(images=50).propose(task)
        return
    proposal = AMC(images=50).propose(task)
    assert len(proposal.history) == done
    assert proposal.widths == calls[int(proposal.history["accuracy"].idxmax())]


@pytest.mark.parametrize("settings", [{"trials": "0"}, {"low": "1.5"}])
def test_settings_out_of_range(settings: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting, match="expected"):
        method_named("amc", settings)
