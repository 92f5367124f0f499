"""Sparse structure selection: the paper's equations by hand, factors that leave with the structure, what is removed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_morphnet import SIDE, Residual, digits, normed, task
from torch import nn
from torch.nn import functional as F

import pocketzoo as pz
from pocketzoo import InvalidSetting
from pocketzoo.graph.cardinality import separable_groups
from pocketzoo.packing.edits import apply
from pocketzoo.search.methods.method import Task
from pocketzoo.search.methods.sss import FACTORS, SparseStructureSelection, Structures, apg_step
from pocketzoo.search.projection import Limits
from pocketzoo.search.shrink import cut


class Cardinal(nn.Module):
    """A stem, then a block with a convolution in four groups, as in ResNeXt, and a second block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = normed(1, 8, 3)
        self.a1, self.a2, self.a3 = normed(8, 16), normed(16, 16, 3, groups=4), normed(16, 8)
        self.b1, self.b2 = normed(8, 12, 3), normed(12, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.a3(F.relu(self.a2(F.relu(self.a1(x))))))
        x = F.relu(x + self.b2(F.relu(self.b1(x))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


def test_apg_by_hand() -> None:
    """Two steps of a factor that stays and one that is driven to zero, written out as the paper's equations."""
    rate, momentum, strength = 0.1, 0.9, 0.5
    factors, velocity = torch.tensor([1.0, 0.04]), torch.zeros(2)
    want, v = [1.0, 0.04], [0.0, 0.0]
    for gradients in ([2.0, 0.1], [-1.0, 0.2]):
        apg_step(factors, velocity, torch.tensor(gradients), rate, momentum, strength)
        for i, gradient in enumerate(gradients):
            z = want[i] - rate * gradient
            soft = max(abs(z) - rate * strength, 0) * (1 if z > 0 else -1)
            v[i] = soft - want[i] + momentum * v[i]
            want[i] = max(0.0, soft + momentum * v[i])
    assert factors.tolist() == pytest.approx(want)
    assert factors[1] == 0


@pytest.mark.parametrize(
    ("name", "on"),
    [("cardinal", "channels"), ("cardinal", "groups"), ("cardinal", "blocks"), ("cifar_densenet40_12", "channels"),
     ("mobilenet_v3_small", "channels"), ("resnext50_8x14d", "groups")],
)  # fmt: skip
def test_folded_factors_compute_what_they_computed_outside(name: str, on: str) -> None:
    torch.manual_seed(0)
    side = SIDE if name == "cardinal" else 32
    model = Cardinal() if name == "cardinal" else pz.create_model(name, num_classes=10, in_channels=1, resolution=32)
    model.eval()
    names = sorted(model.state_dict())
    graph = by_groups(model, side) if on == "groups" else pz.trace(model, (1, 1, side, side))
    x = torch.randn(2, 1, side, side)
    plain = model(x)
    structures = Structures(graph, model, on)
    structures.attach(model)
    assert off(model(x), plain) < 1e-5
    with torch.no_grad():
        model.get_parameter(FACTORS).uniform_(0.0, 2.0)
    scaled = model(x)
    assert off(scaled, plain) > 0.01
    structures.fold(model)
    assert off(model(x), scaled) < 1e-4
    assert sorted(model.state_dict()) == names


def by_groups(model: nn.Module, side: int) -> pz.ChannelGraph:
    shape = (1, 1, side, side)
    return pz.trace(model, shape, whole_groups=separable_groups(model, shape))


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


def test_a_channel_of_factor_zero_is_a_channel_removed() -> None:
    torch.manual_seed(0)
    model = Cardinal().eval()
    graph = pz.trace(model, (1, 1, SIDE, SIDE))
    x = torch.randn(2, 1, SIDE, SIDE)
    keep = graph.select({}, {**graph.groups, "b1.0": 7})
    structures = Structures(graph, model, "channels")
    structures.attach(model)
    dropped = np.setdiff1d(graph.channels_of("b1.0"), graph.channels_of("b1.0")[keep["b1.0"]])
    with torch.no_grad():
        model.get_parameter(FACTORS)[structures.of_channel[dropped]] = 0
    factors = model.get_parameter(FACTORS).detach().double().numpy()
    assert dict(zip(graph.groups, structures.living(factors).tolist(), strict=True)) == {**graph.groups, "b1.0": 7}
    outside = model(x)
    structures.fold(model)
    assert torch.allclose(graph.resize(model, keep=keep)(x), outside, atol=1e-5)


def test_a_group_has_the_channels_that_it_writes_and_a_block_those_inside() -> None:
    model = Cardinal()
    graph = by_groups(model, SIDE)
    groups = Structures(graph, model, "groups")
    for layer in ("a1", "a2"):  # what it reads, and what it writes
        assert groups.of_channel[graph.channels(f"{layer}.1.weight", 0)].tolist() == [i // 4 for i in range(16)]
    assert groups.number == 4
    graph = pz.trace(model, (1, 1, SIDE, SIDE))
    blocks = Structures(graph, model, "blocks")
    inside = {name: set(blocks.of_channel[graph.channels(f"{name}.1.weight", 0)]) for name in ("a1", "a2", "b1")}
    assert inside == {"a1": {0}, "a2": {0}, "b1": {1}}
    assert set(blocks.of_channel[graph.channels("stem.1.weight", 0)]) == {-1}
    widths = dict(zip(graph.groups, blocks.living(np.array([0.0, 0.5])).tolist(), strict=True))
    assert (widths["a1.0"], widths["a2.0"], widths["b1.0"], widths["stem.0"]) == (0, 0, 12, 8)


def test_the_fewest_structures_that_cost_the_budget() -> None:
    model = Cardinal()
    graph = pz.trace(model, (1, 1, SIDE, SIDE))
    blocks = Structures(graph, model, "blocks")
    without_a = graph.price({"a1.0": 0, "a2.0": 0}).macs
    without_both = graph.price({"a1.0": 0, "a2.0": 0, "b1.0": 0}).macs
    factors = np.array([0.2, 0.7])  # b before a
    for macs, kept in ((without_both - 1, 0), (without_both + 1, 1), (without_a, 1), (without_a + 1, 2)):
        limits = Limits(graph, pz.Budget(macs=macs), cap=1.0)
        widths = dict(zip(graph.groups, blocks.least_over(limits, factors).tolist(), strict=True))
        assert (widths["b1.0"] > 0, widths["a1.0"] > 0) == (kept > 0, kept > 1)


def cardinal(budget: str, epochs: int = 1) -> Task:
    torch.manual_seed(0)
    return task(Cardinal(), budget=budget, epochs=epochs)


@pytest.mark.parametrize("on", ["channels", "groups", "blocks"])
def test_meets_the_budget(on: str) -> None:
    given = cardinal("macs=60%")
    if on == "groups":
        given = replace(given, graph=by_groups(given.model, SIDE))
    found = SparseStructureSelection(on).propose(given)
    limit = given.budget.limits["macs"]
    assert 0.85 * limit < given.graph.price(found.widths).macs <= limit
    network, _ = cut(given.graph, found)
    assert network(torch.zeros(2, 1, SIDE, SIDE)).shape == (2, 10)
    assert found.model.state_dict().keys() == given.model.state_dict().keys()


def test_strength_grows_until_zeros_meet_the_budget() -> None:
    given = replace(cardinal("macs=50%", epochs=8), data=digits(96))
    history = SparseStructureSelection().propose(given).history
    assert history["zeros"].iloc[0] == 0 < history["zeros"].max()
    assert history["strength"].max() > history["strength"].iloc[0]
    assert history["macs"].min() <= given.budget.limits["macs"]


def test_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """A second call finds the training finished, and the factors that it led to."""
    given = replace(cardinal("macs=60%", epochs=2), folder=tmp_path)
    first, again = (SparseStructureSelection().propose(given) for _ in range(2))
    assert again.widths == first.widths
    assert all((again.scores[name] == first.scores[name]).all() for name in first.scores)
    assert (first.scores["b1.0"] != 1).all()


def test_a_group_of_factor_zero_is_a_group_removed() -> None:
    torch.manual_seed(0)
    model = Cardinal().eval()
    graph = by_groups(model, SIDE)
    structures = Structures(graph, model, "groups")
    structures.attach(model)
    with torch.no_grad():
        model.get_parameter(FACTORS)[:] = torch.tensor([1.2, 0.0, 0.7, 0.0])
    factors = model.get_parameter(FACTORS).detach().double().numpy()
    widths = dict(zip(graph.groups, structures.living(factors).tolist(), strict=True))
    assert widths == {**graph.groups, "a1.0": 8}
    x = torch.randn(2, 1, SIDE, SIDE)
    outside = model(x)
    structures.fold(model)
    keep = graph.select(graph.by_group(structures.per_channel(factors)), widths)
    assert keep["a1.0"] == [0, 1, 2, 3, 8, 9, 10, 11]
    smaller = graph.resize(model, keep=keep)
    assert smaller.get_submodule("a2.0").groups == 2
    assert torch.allclose(smaller(x), outside, atol=1e-5)


OWN, BRIEFLY = "test_sss:Cardinal", pz.Recipe(epochs=1, batch_size=32, lr=0.05)


def test_groups_go_and_what_is_left_comes_back_from_its_files(tmp_path: Path) -> None:
    base = pz.Architecture.of(OWN, num_classes=10, in_channels=1, resolution=SIDE)
    settings = {"on": "groups"}
    small = pz.shrink(base, digits(), "macs=80%", "sss", settings=settings, out=tmp_path / "a", recipe=BRIEFLY)
    assert small.origin.graph.whole_groups == {"a2.0"}
    conv = small.model.get_submodule("a2.0")
    assert (conv.groups, conv.in_channels // conv.groups) == (small.widths["a1.0"] // 4, 4)
    assert 1 <= conv.groups < 4
    limits = Limits(small.origin.graph, small.budget, cap=1.0)
    widths = np.array(list(small.widths.values()))
    one_more = widths + np.diag(limits.step)[widths < limits.default]
    assert limits.share(widths[None]) <= 1
    assert (limits.share(one_more) > 1).all()  # no single step fits
    x = digits().info.normalise(digits().val.images[:4])
    with torch.no_grad():
        expected = small.model.eval()(x)
        saved = pz.load(tmp_path / "a", trust=[OWN])
        assert off(saved(x), expected) < 1e-4
        assert small.architecture is not None
        again = pz.Architecture.from_json(small.architecture.to_json()).build()
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in saved.state_dict().items()
        }
        assert again.get_submodule("a2.0").groups == conv.groups
        pz.compress_model(tmp_path / "a", "half", data="digits", trust=[OWN]).save(tmp_path / "a.pz")
        assert off(pz.load_packed(tmp_path / "a.pz", trust=[OWN])(x), expected) < 0.01
        edit = {"widths": small.widths, "whole_groups": ["a2.0"], "input": [1, 1, SIDE, SIDE]}
        assert apply(Cardinal(), [edit], 1 << 20).get_submodule("a2.0").groups == conv.groups
    further = pz.shrink(tmp_path / "a", digits(), "macs=80%", "l1", recipe=BRIEFLY, trust=[OWN])
    smaller = further.model.get_submodule("a2.0")
    assert smaller.in_channels // smaller.groups == 4


def test_a_branch_without_groups_is_gone(tmp_path: Path) -> None:
    base = pz.Architecture.of(OWN, num_classes=10, in_channels=1, resolution=SIDE)
    gone = base.with_whole_groups(["a2.0"]).with_widths({"a1.0": 0})
    assert not isinstance(gone.build().get_submodule("a2.0"), nn.Conv2d)
    assert "a1.0" not in gone.graph().groups
    pz.train(gone, digits(), tmp_path, BRIEFLY)
    small = pz.shrink(tmp_path, digits(), "macs=60%", "l1", recipe=BRIEFLY, trust=[OWN])
    assert small.architecture is not None
    assert small.architecture.graph().price().macs == small.result.costs["macs"]


def test_groups_that_are_narrower_already_cannot_go_whole(tmp_path: Path) -> None:
    base = pz.Architecture.of(OWN, num_classes=10, in_channels=1, resolution=SIDE)
    pz.shrink(base, digits(), "macs=50%", "random", out=tmp_path, recipe=BRIEFLY)
    with pytest.raises(InvalidSetting, match="begin with the network before that"):
        pz.shrink(tmp_path, digits(), "macs=70%", "sss", settings={"on": "groups"}, recipe=BRIEFLY, trust=[OWN])


@pytest.mark.parametrize("on", ["groups", "blocks"])
def test_nothing_to_select(on: str) -> None:
    with pytest.raises(InvalidSetting, match=f"on={on} needs a .*take on=channels"):
        SparseStructureSelection(on).propose(task(nn.Sequential(normed(1, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 10))))


def test_blocks_of_a_residual_network() -> None:
    assert SparseStructureSelection("blocks").propose(task(Residual(), budget="macs=8%")).widths["inner.0"] == 0


def test_unknown_structure() -> None:
    with pytest.raises(InvalidSetting, match="on is 'layers'"):
        SparseStructureSelection("layers")
