"""MorphNet: the regulariser against the paper's formula layer by layer, its proximal map, and what it finds."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pocketzoo as pz
from pocketzoo import BudgetTooSmall, InvalidSetting
from pocketzoo.search.budget import Budget
from pocketzoo.search.methods.method import Task
from pocketzoo.search.methods.morphnet import MorphNet, Regulariser
from pocketzoo.search.shrink import cut
from pocketzoo.training.data import DataSet, Split, load_data
from pocketzoo.training.recipe import Recipe

RECIPE = Recipe(epochs=1, batch_size=16, augment=False)
SIDE, CLASSES = 8, 10


def normed(c_in: int, c_out: int, kernel: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Chain(nn.Module):
    """Two convolutions, 3x3 and 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = normed(1, 6, 3), normed(6, 10), nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


class Residual(nn.Module):
    """A stem and a block that is added to it: the stem's channels and the block's last are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = normed(1, 6, 3), normed(6, 9, 3), normed(9, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


class Grouped(nn.Module):
    """A convolution in two groups, then a depthwise one, which ties what it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = normed(1, 8, 3), normed(8, 12, 3, groups=2), normed(12, 12, 3, groups=12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        out: torch.Tensor = self.head(x.mean((2, 3)))
        return out


# layer -> MACs per input and output channel, what it reads and writes; None: the image or the classes
PIXELS = SIDE * SIDE
LAYERS = {
    Chain: [(9 * PIXELS, None, "a"), (PIXELS, "a", "b"), (1, "b", None)],
    Residual: [(9 * PIXELS, None, "stem"), (9 * PIXELS, "stem", "inner"), (PIXELS, "inner", "stem"), (1, "stem", None)],
    Grouped: [(9 * PIXELS, None, "a"), (9 * PIXELS / 2, "a", "b"), (9 * PIXELS, "b", "b depthwise"), (1, "b", None)],
}
NORMS = {Chain: {"a": ["a"], "b": ["b"]}, Residual: {"stem": ["stem", "outer"], "inner": ["inner"]},
         Grouped: {"a": ["a"], "b": ["b", "c"]}}  # fmt: skip


def by_layers(kind: type[nn.Module], model: nn.Module, threshold: float) -> tuple[float, float]:
    """The paper's G and F for MACs: C (sum |gamma| of the inputs * living outputs + living inputs * sum of outputs)."""
    gamma = {
        channels: torch.stack([model.get_submodule(name)[1].weight.detach().abs() for name in names]).amax(0)  # type: ignore[index]
        for channels, names in NORMS[kind].items()
    }
    size: dict[str | None, tuple[float, float]] = {
        channels: (float(own.sum()), float((own > threshold).sum())) for channels, own in gamma.items()
    }
    g = f = 0.0
    for cost, reads, writes in LAYERS[kind]:
        fixed = 1.0 if reads is None else float(CLASSES)
        if writes == "b depthwise":  # one input channel an output channel
            g, f = g + cost * size["b"][0], f + cost * size["b"][1]
            continue
        (sum_in, in_), (sum_out, out) = (size.get(c, (0.0, fixed)) for c in (reads, writes))
        g, f = g + cost * (sum_in * out + in_ * sum_out), f + cost * in_ * out
    return g, f


def regulariser(model: nn.Module, limits: Mapping[str, float], threshold: float = 0.01) -> Regulariser:
    graph = pz.trace(model, (1, 1, SIDE, SIDE))
    return Regulariser(graph, model, Budget(**limits), RECIPE, threshold, goal=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", LAYERS)
def test_g_is_the_papers_formula_layer_by_layer(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(-1, 1)
        for names in NORMS[kind].values():
            for name in names:
                model.get_submodule(name)[1].weight[[1, 4]] = 0.005  # dead: below the threshold, and not 0
    own = regulariser(model, {"macs": 1000})
    own.charge_at(own.living(model))
    g, f = by_layers(kind, model, 0.01)
    assert own.share * 1000 == f
    assert own.value(model) * 1000 == pytest.approx(g, rel=1e-5)


def test_parameters_are_charged_with_all_that_a_channel_has() -> None:
    torch.manual_seed(0)
    model = Chain()
    own = regulariser(model, {"params": 1})
    # a channel of a: 9 weights, scale, shift, and 10 readers; of b: 6 weights, scale, shift and 10 readers
    assert own.charge.tolist() == [21.0] * 6 + [18.0] * 10


def test_memory_charges_the_layers_at_the_peak_only() -> None:
    own = regulariser(Chain(), {"memory": 1})
    # at the peak something reads b's 10 maps and writes 10 (6 and 10 before), at 4 bytes an entry: two maps a channel
    assert own.charge.tolist() == [0.0] * 6 + [2 * 4.0 * PIXELS] * 10


def test_proximal_map_is_the_least_of_distance_and_largest() -> None:
    """Of t * max |g| + |g - x|^2 / 2, against a solver that knows no closed form; one scale is a soft threshold."""
    torch.manual_seed(0)
    model = Residual()
    own = regulariser(model, {"macs": 1000})
    by = torch.linspace(0.0, 3.0, len(own.charge))
    with torch.no_grad():
        for name in ("stem", "inner", "outer"):
            model.get_submodule(name)[1].weight.normal_()
    before = copy.deepcopy(model)
    with torch.no_grad():
        own.shrink(model, by)
    graph = pz.trace(before, (1, 1, SIDE, SIDE))
    stem, inner = (by[np.searchsorted(own.channels, graph.channels(f"{n}.1.weight", 0))] for n in ("stem", "inner"))
    alone = before.inner[1].weight.detach()
    assert torch.allclose(model.inner[1].weight, alone.sign() * (alone.abs() - inner).clamp(min=0))
    tied = torch.stack([before.stem[1].weight, before.outer[1].weight]).detach()  # [2, 6]
    got = torch.stack([model.stem[1].weight, model.outer[1].weight])
    for x, t, cut_to in zip(tied.T, stem, got.T, strict=True):
        levels = torch.linspace(0, float(x.abs().max()), 100_001)
        cost = t * levels + ((x.abs()[:, None] - levels).clamp(min=0) ** 2).sum(0) / 2
        level = float(levels[cost.argmin()])
        assert torch.allclose(cut_to, x.clamp(-level, level), atol=2e-3)


def digits(images: int = 160) -> DataSet:
    data = load_data("digits")
    return replace(data, train=Split(data.train.images[:images], data.train.labels[:images]))


def task(
    model: nn.Module, side: int = SIDE, budget: str = "macs=40%", epochs: int = 1, data: DataSet | None = None
) -> Task:
    graph = pz.trace(model, (1, 1, side, side))
    costs = graph.price()
    limits = Budget.relative(budget, {"macs": costs.macs, "params": costs.params})
    return Task(model, graph, data or digits(), limits, replace(RECIPE, epochs=epochs))


def test_training_brings_the_living_network_to_the_budget_and_expansion_fills_it() -> None:
    torch.manual_seed(0)
    given = task(Residual(), epochs=12)
    found = MorphNet(below=0.7).propose(given)
    limit = given.budget.limits["macs"]
    last = found.history.iloc[-1]
    assert last["macs"] <= 0.8 * limit < 0.8 * found.history["macs"].iloc[0]
    assert last["regulariser"] < found.history["regulariser"].iloc[0]
    macs = given.graph.price(found.widths).macs
    assert 0.9 * limit < macs <= limit  # a channel of a net this small is several per cent
    network, _ = cut(given.graph, found)
    assert network(torch.zeros(2, 1, SIDE, SIDE)).shape == (2, CLASSES)
    assert found.model.state_dict().keys() == given.model.state_dict().keys()


def test_a_branch_that_dies_is_removed() -> None:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model.inner[1].weight.fill_(1e-4)
    given = task(model, budget="macs=60%")
    own = Regulariser(given.graph, model, given.budget, RECIPE, 0.01, 0.9)
    widths = dict(zip(given.graph.groups, own.living(model).tolist(), strict=True))
    inner = next(name for name in given.graph.removable)
    assert widths[inner] == 0
    assert own.limits.costs(own.living(model)[None])[0, 0] < given.graph.price().macs / 2


def test_a_second_round_starts_from_the_widths_of_the_first() -> None:
    torch.manual_seed(0)
    given = task(Residual(), epochs=2)
    found = MorphNet(rounds=2).propose(given)
    assert found.history["round"].unique().tolist() == [1, 2]
    assert given.graph.price(found.widths).macs <= given.budget.limits["macs"]
    second = found.history[found.history["round"] == 2]
    assert second["macs"].iloc[0] <= given.budget.limits["macs"]


@pytest.mark.parametrize("name", ["cifar_resnet20", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_living_channels_cost_what_the_network_costs(name: str) -> None:
    """Before anything is dead: tied, shuffled, gated channels, and those without batch norm, are all counted once."""
    torch.manual_seed(0)
    given = task(pz.create_model(name, num_classes=10, in_channels=1, resolution=32), side=32)
    own = Regulariser(given.graph, given.model, given.budget, RECIPE, 0.01, 0.9)
    assert dict(zip(given.graph.groups, own.living(given.model).tolist(), strict=True)) == given.graph.groups
    assert own.share == pytest.approx(2.5)


def test_latency_is_charged_by_the_predictor() -> None:
    """A channel more or less, from a parabola through three predictions of the device's model itself."""
    model = pz.create_model("mobilenet_v2_x0_35", num_classes=10, in_channels=1, resolution=32)
    graph = pz.trace(model, (1, 1, 32, 32))
    predictor = pz.latency_model("pixel1")
    widths = np.tile(list(graph.groups.values()), (3, 1))
    name = "stages.5.1.expand"
    column = list(graph.groups).index(name)
    widths[:, column] -= [0, 1, 2]
    times = predictor.predict(graph, widths)
    budget = Budget(latency=times[0] / 1e3 / 2, device="pixel1")
    own = Regulariser(graph, model, budget, RECIPE, 0.01, 0.9)
    assert own.share == pytest.approx(2.0)
    slope = np.polyder(np.poly1d(np.polyfit(widths[:, column], times, 2)))(widths[0, column]) / (times[0] / 2)
    charged = own.charge.numpy()[np.isin(own.channels, graph.channels_of(name))]
    assert charged == pytest.approx(max(slope, 0), rel=1e-3)
    assert charged.max() > 0


def test_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """A second call finds the training finished, and the history and the widths that it led to."""
    torch.manual_seed(0)
    given = replace(task(Residual(), epochs=3), folder=tmp_path)
    first = MorphNet().propose(given)
    again = MorphNet().propose(given)
    assert again.widths == first.widths
    assert len(first.history) > 10
    pd.testing.assert_frame_equal(again.history, first.history)


def test_needs_batch_norm() -> None:
    with pytest.raises(InvalidSetting, match=r"morphnet learns batch-norm scales, and .*0.* has none.*sss"):
        MorphNet().propose(task(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))))


@pytest.mark.parametrize("settings", [{"threshold": -1.0}, {"below": 0.0}, {"below": 1.5}, {"rounds": 0}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(settings))):
        MorphNet(**settings)  # type: ignore[arg-type]


def test_a_budget_below_the_narrowest_network() -> None:
    with pytest.raises(BudgetTooSmall):
        MorphNet().propose(replace(task(Chain()), budget=Budget(macs=10)))
