"""Whole groups of grouped convolutions: which are separable, exact prices, networks that compute what was masked."""

import pytest
import torch
from test_sss import Cardinal
from torch import nn

import pocketzoo as pz
import torchvision_on_cpu  # noqa: F401
from pocketzoo.errors import InvalidWidths
from pocketzoo.graph.cardinality import separable_groups
from pocketzoo.graph.channel_graph import ChannelGraph, trace
from properties import Shape, check_identity, check_pruning, counted, randomise

from torchvision import models  # isort: skip


class TwoGroupings(nn.Sequential):
    """As in AlexNet: two convolutions in four groups, one behind the other, but for a third in `last`."""

    def __init__(self, last: int = 1) -> None:
        conv = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3, groups=4), nn.Conv2d(24, 32, 3, groups=4)]
        super().__init__(*conv, nn.Conv2d(32, 16, 1, groups=last), nn.Flatten(), nn.Linear(16 * 4, 10))


NETWORKS = {
    "cardinal": (Cardinal, (2, 1, 8, 8)),
    "alexnet": (TwoGroupings, (2, 3, 8, 8)),
    "resnext50": (lambda: pz.create_model("resnext50_8x14d", num_classes=10, resolution=32), (2, 3, 32, 32)),
    "regnet, with squeeze and excite": (lambda: models.regnet_y_400mf(num_classes=10), (2, 3, 64, 64)),
}  # fmt: skip


def graph_of(model: nn.Module, shape: Shape) -> ChannelGraph:
    return trace(model, shape, whole_groups=separable_groups(model, shape))


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_groups_cost_and_compute_what_they_should(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(make())
    graph = graph_of(model, shape)
    assert graph.whole_groups
    check_identity(graph, model, shape)
    widths = graph.random_widths(4, seed=0)
    prices = graph.price_many(widths)
    for row, price in zip(widths, prices.itertuples(), strict=True):
        resized = graph.resize(model, dict(zip(graph.groups, row.tolist(), strict=True)))
        assert (price.params, price.macs) == counted(resized, shape)
        again = graph.of(resized).price()
        assert (again.peak_memory_bytes, again.memory_access) == (price.peak_memory_bytes, price.memory_access)
        for path in graph.whole_groups:
            before, after = model.get_submodule(path), resized.get_submodule(path)
            assert before.in_channels // before.groups == after.in_channels // after.groups
    assert any(resized.get_submodule(p).groups < model.get_submodule(p).groups for p in graph.whole_groups)
    check_pruning(graph, model, shape, 3)


def test_as_many_groups_as_are_left_by_hand() -> None:
    """A channel and pixel takes 8 MACs in the first 1x1, 4 * 9 in the grouped one, 8 in the last; a group has four."""
    model = Cardinal()
    graph = graph_of(model, (1, 1, 8, 8))
    assert graph.steps["a1.0"] == 4
    assert "a2.0" not in graph.groups  # goes with a1.0
    fewer = graph.price({"a1.0": 16}).macs - graph.price({"a1.0": 12}).macs
    assert fewer == 64 * 4 * (8 + 4 * 9 + 8)
    assert graph.price({"a1.0": 16}).params - graph.price({"a1.0": 12}).params == 4 * (8 + 4 * 9 + 8 + 2 * 2)


def test_the_last_group_is_still_one() -> None:
    """A network that is down to one group is read as one of groups when it is made wider again."""
    model = Cardinal()
    graph = graph_of(model, (1, 1, 8, 8))
    one = graph.resize(model, {"a1.0": 4})
    assert one.get_submodule("a2.0").groups == 1
    again = graph.of(one)
    assert list(again.groups) == list(graph.groups)
    assert again.resize(one, {"a1.0": 12}).get_submodule("a2.0").groups == 3


def test_groups_that_a_shuffle_or_another_grouping_ties_are_not_separable() -> None:
    assert separable_groups(pz.create_model("shufflenet_v1_g3_x0_25", resolution=32), (1, 3, 32, 32)) == frozenset()
    assert separable_groups(pz.create_model("mobilenet_v2_x0_35", resolution=32), (1, 3, 32, 32)) == frozenset()
    assert separable_groups(TwoGroupings(), (1, 3, 8, 8)) == {"1", "2"}
    assert separable_groups(TwoGroupings(last=4), (1, 3, 8, 8)) == {"1", "2", "3"}
    assert separable_groups(TwoGroupings(last=8), (1, 3, 8, 8)) == frozenset()


def test_a_name_that_is_no_layer() -> None:
    with pytest.raises(InvalidWidths, match=r"names 'a2\.9', which is no layer; did you mean a2"):
        trace(Cardinal(), (1, 1, 8, 8), whole_groups=["a2.9"])


def test_an_architecture_says_so_only_where_it_is_so() -> None:
    base = pz.Architecture.of("resnext50_8x14d", num_classes=10, in_channels=1, resolution=8)
    assert "whole_groups" not in base.to_json()
    path = "stages.0.0.branch.spatial.conv"
    own = base.with_whole_groups([path]).with_widths({"stages.0.0.branch.reduce": 28})
    assert own.key != base.key
    assert pz.Architecture.from_json(own.to_json()) == own
    assert own.build().get_submodule(path).groups == 2
    assert own.graph().whole_groups == {path}
