"""ThiNet's sums, greedy choice and scaling, against direct computation and exhaustive search."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from digit_tasks import check_reads_nothing_left_out
from pocketzoo import InvalidSetting, UntraceableModel, trace
from pocketzoo.search.methods.activations import Sampler, contributions, outputs_of, reading_layers, weight_of
from pocketzoo.search.methods.method import Task, method_named
from pocketzoo.search.methods.thinet import ThiNet, removal_order
from pocketzoo.search.shrink import absolute, cut
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.recipe import Recipe


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


def task_of(model: nn.Module, data: DataSet, share: str = "macs=50%") -> Task:
    graph = trace(model, (1, data.in_channels, data.resolution, data.resolution))
    return Task(model, graph, data, absolute(share, graph), Recipe(epochs=1))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 9, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(6, 9, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(6, 9, 3, groups=3),
    ],
)
def test_contributions_add_up_to_the_outputs_at_every_place(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 1), layer, nn.Conv2d(9, 1, 1)).eval()
    images = torch.randn(2, 2, 7, 6)
    reader = reading_layers(trace(model, (1, 2, 7, 6)), model)["1"]
    samples = Sampler(model, ["1"], 10_000, seed=0).read(images, 0)["1"]  # all places, in some order
    outputs = model[:2](images).detach() - layer.bias.detach()[:, None, None]
    found = outputs_of(samples, weight_of(layer), layer.groups)
    assert len(found) == outputs.shape[0] * outputs.shape[2] * outputs.shape[3]
    for o in range(9):
        torch.testing.assert_close(found[:, o].sort().values, outputs[:, o].flatten().sort().values)
    added = contributions(samples, weight_of(layer), reader, torch.tensor([8, 0, 4]))
    torch.testing.assert_close(added.sum(2), found[:, [8, 0, 4]], rtol=1e-4, atol=1e-5)
    without = model[0](images).detach()
    without[:, 2] = 0  # the third channel that the layer reads, in its second group if it has several
    now = layer(without).detach()[:, 4].flatten() - layer.bias[4].detach()
    left = found[:, 4] - added[:, 2, 2]
    torch.testing.assert_close(left.sort().values, now.sort().values, rtol=1e-4, atol=1e-5)
    if layer.groups == 3:
        assert (added[:, 0, 2] == 0).all()  # output 8 is of another group


def test_contributions_of_a_flattened_channel_are_those_of_all_its_positions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 5)).eval()
    images = torch.randn(4, 1, 2, 2)
    reader = reading_layers(trace(model, (1, 1, 2, 2)), model)["2"]
    samples = Sampler(model, ["2"], 10, seed=0).read(images, 0)["2"]
    added = contributions(samples, weight_of(model[2]), reader, torch.arange(5))
    x = model[:2](images).detach()
    for channel in range(3):
        part = slice(4 * channel, 4 * channel + 4)
        torch.testing.assert_close(added[:, :, channel], x[:, part] @ model[2].weight[:, part].detach().T)


def test_greedy_removes_what_equation_6_says() -> None:
    """Algorithm 1 step by step on the samples themselves; and the best sets, by trying all."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 7)) * rng.uniform(0.2, 3, 7)
    x[:, 5] = -x[:, 2] + 0.01 * rng.normal(size=200)  # two that cancel each other may go together
    order = removal_order(x.T @ x)
    removed: list[int] = []
    for step in range(7):
        errors = {j: (x[:, [*removed, j]].sum(1) ** 2).sum() for j in set(range(7)) - set(removed)}
        removed.append(min(errors, key=errors.__getitem__))
        assert order[step] == removed[-1]

    def error(some: tuple[int, ...]) -> float:
        return float((x[:, list(some)].sum(1) ** 2).sum())

    independent = np.linalg.qr(rng.normal(size=(50, 6)))[0] * [5, 1, 3, 2, 6, 4]  # greedy is optimal then
    order = removal_order(independent.T @ independent)
    for n in range(1, 6):
        x = independent
        best = min(itertools.combinations(range(6), n), key=error)
        assert set(order[:n].tolist()) == set(best)


def test_scaling_is_the_least_squares_of_equation_7(data: DataSet) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
    task = task_of(model, data)
    proposal = ThiNet(images=len(data.train), locations=1).propose(task)
    kept = ~task.graph.dropped(task.graph.select(proposal.scores, proposal.widths))
    kept = kept[task.graph.channels_of("1")]
    assert 0 < kept.sum() == proposal.widths["1"] < 12
    # every batch looks at all 10 outputs: the whole training split is in the regression
    x = model[:3](data.info.normalise(data.train.images)).detach().double()
    weight = model[3].weight.detach().double()
    added = (x[:, None] * weight).flatten(0, 1).numpy()  # [images x outputs, channels]
    scale, *_ = np.linalg.lstsq(added[:, kept], added.sum(1))
    found = (proposal.model[3].weight.detach()[:, kept] / model[3].weight.detach()[:, kept]).numpy()
    np.testing.assert_allclose(found, np.broadcast_to(scale, found.shape), rtol=1e-3)
    (row,) = proposal.history.to_dict("records")
    total = (added.sum(1) ** 2).sum()
    assert row["layer"] == "3"
    assert row["error"] == pytest.approx((added[:, ~kept].sum(1) ** 2).sum() / total, rel=1e-3)
    assert row["scaled_error"] == pytest.approx(((added.sum(1) - added[:, kept] @ scale) ** 2).sum() / total, rel=1e-3)
    assert row["scaled_error"] < row["error"]


def test_dead_channels_go_and_nothing_is_lost(data: DataSet) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(8, 10)).eval()  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[::2], layer.bias[::2] = 0, -1
    task = task_of(model, data, "macs=33%")
    network, _ = cut(task.graph, ThiNet(images=64).propose(task))
    x = data.info.normalise(data.val.images)
    assert network[0].out_channels == network[2].out_channels == 4
    torch.testing.assert_close(network(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["cifar_resnet20", "shufflenet_v1_g3_x0_25", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_every_kind_of_net(name: str) -> None:
    check_reads_nothing_left_out(ThiNet(images=8, locations=4), name, "scaled_error", 1e-6)


def test_a_layer_of_another_kind_is_named(data: DataSet) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 10))  # fmt: skip
    with pytest.raises(UntraceableModel, match="1 is a ConvTranspose2d"):
        ThiNet().propose(task_of(model, data))


def test_settings_out_of_range() -> None:
    with pytest.raises(InvalidSetting, match="locations is 0"):
        method_named("thinet", {"locations": "0"})
