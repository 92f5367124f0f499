"""Dense-sparse-dense: the phases' masks and rates, and widths from what the final network makes use of."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from digit_tasks import check_proposal, task_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import prunable
from pocketzoo.search.methods.dsd import DenseSparseDense
from pocketzoo.search.methods.method import Task
from pocketzoo.training.recipe import Recipe


class Watched(Task):
    """A task that tells of each training it has done."""

    seen: list[tuple[str, Recipe, dict[str, int]]]

    def train(self, model: nn.Module, stage: str, recipe: Recipe, **given: Any) -> Any:
        history = super().train(model, stage, recipe, **given)
        zeros = {name: int((weight == 0).sum()) for name, weight in prunable(model).items()}
        self.seen.append((stage, recipe, zeros))
        return history


@pytest.fixture
def watched() -> Callable[[str], Watched]:
    def make(name: str) -> Watched:
        task = Watched(**vars(task_of(name)))
        object.__setattr__(task, "seen", [])
        return task

    return make


def test_weights_are_away_in_the_sparse_phase_only(watched: Callable[[str], Watched]) -> None:
    task = watched("lenet5")
    proposal = DenseSparseDense(sparsity=0.3, epochs=1).propose(task)
    (sparse, first, away), (dense, second, back) = task.seen
    assert (sparse, dense) == ("sparse", "dense")
    assert (first.lr, second.lr) == pytest.approx((task.recipe.lr, task.recipe.lr / 10))
    sizes = {name: weight.numel() for name, weight in prunable(task.model).items()}
    assert away == {name: size - round(0.7 * size) for name, size in sizes.items()}
    assert all(back[name] < 0.05 * size for name, size in sizes.items())
    assert proposal.layers["surviving"].tolist() == [round(0.7 * size) for size in sizes.values()]


def test_what_survives_is_at_least_the_sparse_phase_threshold_at_the_end() -> None:
    task = task_of("cifar_resnet20")
    proposal = DenseSparseDense(sparsity=0.5).propose(task)
    check_proposal(task, proposal)
    used = []
    for name, weight in prunable(task.model).items():
        threshold = weight.detach().abs().flatten().sort().values[-round(0.5 * weight.numel())]
        used.append(int((proposal.model.get_parameter(name).abs() >= threshold).sum()))
    assert proposal.layers["used"].tolist() == used
    assert proposal.layers["used_density"].std() > 0
    assert proposal.history["phase"].unique().tolist() == ["sparse", "dense"]


@pytest.mark.parametrize(("budget", "sparsity"), [("macs=95%", 0.25), ("macs=5%", 0.5)])
def test_the_budget_asks_for_no_more_than_the_papers_sparsities(budget: str, sparsity: float) -> None:
    layers = DenseSparseDense(epochs=1).propose(task_of("lenet5", budget=budget)).layers
    assert layers["surviving"].tolist() == [round((1 - sparsity) * size) for size in layers["weights"]]


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(InvalidSetting, match="-1 epochs"):
        DenseSparseDense(epochs=-1)
