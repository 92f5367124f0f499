"""Feature reconstruction: the LASSO path and the least squares against closed forms, and nets that it must recover."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from digit_tasks import check_reads_nothing_left_out
from pocketzoo import InvalidSetting, trace
from pocketzoo.search.methods.method import Task, method_named
from pocketzoo.search.methods.reconstruction import Reconstruction, lasso_scores, least_squares
from pocketzoo.search.shrink import absolute, cut
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.recipe import Recipe


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


def task_of(model: nn.Module, data: DataSet, share: str = "macs=50%") -> Task:
    graph = trace(model, (1, data.in_channels, data.resolution, data.resolution))
    return Task(model, graph, data, absolute(share, graph), Recipe(epochs=1))


def test_lasso_of_orthogonal_channels_is_soft_thresholding() -> None:
    """Coefficients are b = sign(q) max(|q| - lambda, 0) / 1: those with the largest |z'y| stay."""
    products = np.array([0.3, -2.0, 1.0, 0.0, 1.5])
    scores = lasso_scores(np.eye(5), products, 3)
    assert set(np.flatnonzero(scores >= 1)) == {1, 2, 4}
    size = np.abs(products[[1, 2, 4]]) - 0.3  # at the lambda at which the fourth would enter
    np.testing.assert_allclose(scores[[1, 2, 4]] - 1, size / size.max())
    assert scores[0] == pytest.approx(0.3 / 2, rel=1e-3)
    assert scores[3] == 0


def test_lasso_choice_satisfies_the_optimality_conditions() -> None:
    """The chosen set is the support at some lambda: there |z'(y - Zb)| is lambda inside it and no more outside."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 8)) + rng.normal(size=(300, 1))
    y = z @ rng.uniform(0.2, 2, 8)
    chosen = lasso_scores(z.T @ z, z.T @ y, 4) >= 1
    assert chosen.sum() == 4
    feasible = []
    for some in itertools.combinations(range(8), 4):
        own = list(some)
        inverse = np.linalg.inv(z[:, own].T @ z[:, own])
        for penalty in np.geomspace(1, np.abs(z.T @ y).max(), 400):
            b = inverse @ (z[:, own].T @ y - penalty)  # all signs are positive here
            left = np.abs(z.T @ (y - z[:, own] @ b))
            if (b > 0).all() and np.delete(left, own).max() <= penalty + 1e-9:
                feasible.append(some)
                break
    assert feasible == [tuple(np.flatnonzero(chosen))]


def test_least_squares_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    for n, f in ((50, 7), (7, 50)):  # the second has many solutions: the smallest
        x, y = rng.normal(size=(n, f)), rng.normal(size=(n, 3))
        expected = np.linalg.pinv(x) @ y
        found = least_squares(torch.from_numpy(x), torch.from_numpy(y)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_refitted_weights_are_the_regression_of_the_original_outputs(data: DataSet) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    task = task_of(model, data)
    proposal = Reconstruction(images=len(data.train), locations=1).propose(task)
    kept = ~task.graph.dropped(task.graph.select(proposal.scores, proposal.widths))
    kept = kept[task.graph.channels_of("1")]
    assert 0 < kept.sum() == proposal.widths["1"] < 12
    x = model[:3](data.info.normalise(data.train.images)).detach().double().numpy()
    outputs = x @ model[3].weight.detach().double().numpy().T
    expected, *_ = np.linalg.lstsq(x[:, kept], outputs)
    np.testing.assert_allclose(proposal.model[3].weight.detach().numpy()[:, kept], expected.T, atol=1e-3)
    assert (proposal.model[3].weight[:, ~kept] == 0).all()
    (row,) = proposal.history.to_dict("records")
    error = ((outputs - x[:, kept] @ expected) ** 2).sum() / (outputs**2).sum()
    assert row["fitted_error"] == pytest.approx(error, rel=1e-3)
    assert row["fitted_error"] < row["error"]


@pytest.mark.parametrize("kind", ["dead", "duplicate"])
def test_a_net_of_superfluous_channels_is_recovered(kind: str, data: DataSet) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(3),
                          nn.Flatten(), nn.Linear(32, 10)).eval()  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[::2] = 0 if kind == "dead" else layer.weight[1::2]
            layer.bias[::2] = -1 if kind == "dead" else layer.bias[1::2]
        if kind == "duplicate":  # read alike too: what they add is one and the same
            model[2].weight[:, ::2] = model[2].weight[:, 1::2]
            by_channel = model[6].weight.view(10, 8, 4)
            by_channel[:, ::2] = by_channel[:, 1::2]
    task = task_of(model, data, "macs=33%")
    network, _ = cut(task.graph, Reconstruction(images=500, locations=20).propose(task))
    assert network[0].out_channels == network[2].out_channels == 4
    x = data.info.normalise(data.val.images)
    torch.testing.assert_close(network(x), model(x), rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("name", ["cifar_resnet20", "shufflenet_v1_g3_x0_25", "lenet5"])
def test_every_kind_of_net(name: str) -> None:
    check_reads_nothing_left_out(Reconstruction(images=4, locations=4), name, "fitted_error", 1e-9)


def test_settings_out_of_range() -> None:
    with pytest.raises(InvalidSetting, match="images is 0"):
        method_named("reconstruction", {"images": "0"})
