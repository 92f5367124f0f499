"""Costs against figures derived by hand, on networks small enough to do so; every side is distinct."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pocketzoo as pz
from pocketzoo.graph.costs import EnergyTable, default_energy
from pocketzoo.graph.importance import l1_importance


def small() -> nn.Sequential:
    """3 -> 5 channels by 3x3, batch norm, ReLU in place, 5 -> 7 by 1x1 with bias, mean, 7 -> 2 linear."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 7, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 2),
    )  # fmt: skip


SHAPE = (1, 3, 4, 6)
PLACES = 4 * 6


def test_every_cost_by_hand() -> None:
    costs = pz.trace(small().eval(), SHAPE).price()
    weights = 9 * 3 * 5, 5 * 7, 7 * 2
    assert costs.params == sum(weights) + 2 * 5 + 7 + 2
    assert costs.macs == PLACES * (9 * 3 * 5 + 5 * 7) + 7 * 2
    assert costs.flops == 2 * costs.macs
    assert costs.size_bytes == 4 * costs.params
    assert costs.activations == PLACES * (5 + 7) + 2
    reads_and_writes = PLACES * (3 + 5) + PLACES * (5 + 7) + 7 + 2
    assert costs.memory_access == reads_and_writes + sum(weights) + 7 + 2  # the biases are read too
    # while batch norm runs: its input and output; ReLU overwrites; the second convolution has 5 + 7 channels alive
    assert costs.peak_memory_bytes == 4 * PLACES * (5 + 7)
    picojoules = costs.macs * (3.7 + 0.9) + (sum(weights) + 7 + 2) * 640 + reads_and_writes * 5
    assert costs.energy_uj == pytest.approx(picojoules * 1e-6, rel=1e-12)


def test_energy_is_priced_from_the_table_handed_in() -> None:
    graph = pz.trace(small().eval(), SHAPE)
    only_macs = EnergyTable(mac_pj=2.0, weight_read_pj=0.0, activation_access_pj=0.0)
    assert graph.price(energy=only_macs).energy_uj == pytest.approx(2e-6 * graph.price().macs)
    assert graph.price(graph.widths, only_macs).energy_uj == pytest.approx(2e-6 * graph.price().macs)
    assert default_energy() == EnergyTable(mac_pj=3.7 + 0.9, weight_read_pj=640.0, activation_access_pj=5.0)


class Skip(nn.Module):
    """The stem's output stays alive across two convolutions because the addition needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.back = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 11, 1), nn.Conv2d(11, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.back(self.wide(x))


def test_a_residual_keeps_its_input_alive() -> None:
    costs = pz.trace(Skip().eval(), (1, 2, 5, 5)).price()
    assert costs.peak_memory_bytes == 4 * 25 * (3 + 11 + 3)  # input of the branch, its wide inside, its output


def test_grouped_and_transposed_convolution() -> None:
    grouped = nn.Conv2d(33, 39, (5, 7), stride=2, groups=3, bias=False)
    costs = pz.trace(grouped, (2, 33, 21, 45)).price()
    assert costs.macs == 2 * 39 * (33 // 3) * (5 * 7) * (9 * 20)  # images, outputs, inputs a group, kernel, places
    assert costs.params == 39 * (33 // 3) * 5 * 7
    transposed = nn.ConvTranspose2d(6, 10, 3, stride=2, bias=False)
    assert pz.trace(transposed, (1, 6, 7, 9)).price().macs == 7 * 9 * 9 * 6 * 10  # each input place is read once


def test_many_candidates_are_priced_like_one() -> None:
    graph = pz.trace(small().eval(), SHAPE)
    widths = np.array([[5, 7], [1, 1], [4, 9], [20, 3]])
    table = graph.price_many(widths)
    for row, price in zip(widths, table.itertuples(), strict=True):
        one = graph.price(dict(zip(graph.groups, row.tolist(), strict=True)))
        assert (price.params, price.macs, price.flops) == (one.params, one.macs, one.flops)
        assert (price.activations, price.memory_access) == (one.activations, one.memory_access)
        assert (price.peak_memory_bytes, price.energy_uj) == (one.peak_memory_bytes, pytest.approx(one.energy_uj))
    with pytest.raises(pz.InvalidWidths, match="2 groups"):
        graph.price_many([[1, 2, 3]])


def test_l1_importance_is_the_mean_absolute_filter() -> None:
    model = small().eval()
    graph = pz.trace(model, SHAPE)
    scores = l1_importance(graph, model)
    torch.testing.assert_close(torch.tensor(scores["0"]).float(), model[0].weight.abs().mean((1, 2, 3)).detach())
    keep = graph.select(scores, {"0": 2})
    assert keep["0"] == sorted(np.argsort(-scores["0"])[:2].tolist())
