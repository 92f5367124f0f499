"""Every method of the table on every kind of network: the budget met, valid widths, a network that runs and counts."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pocketzoo as pz
from pocketzoo.graph.channel_graph import ChannelGraph
from pocketzoo.search.methods import method as methods
from pocketzoo.search.methods.method import METHODS, Method, Proposal, Task, method_named, settings_of, summary
from pocketzoo.search.patterns import pattern_of
from pocketzoo.search.shrink import cut
from pocketzoo.search.verdict import seeded
from pocketzoo.training.data import DataSet
from pocketzoo.training.recipe import Recipe
from properties import counted

SHAPE = (1, 1, 8, 8)
SHARE = 0.6  # of the MACs


class Own(nn.Module):
    """A user's: two convolutions side by side, concatenated, a gate over the channels, batch norm throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(20, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Sigmoid())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mix(torch.cat([self.left(x), self.right(x)], 1))
        return self.classifier(self.pool(x * self.gate(x)).flatten(1))


def chain() -> nn.Module:
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((1, 12, 1), (12, 16, 2), (16, 24, 2)):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


def from_zoo(name: str, **settings: Any) -> Callable[[], nn.Module]:
    form = {"num_classes": 10, "in_channels": 1, "resolution": 8}
    return lambda: pz.create_model(name, **form, **settings)


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": chain,
    "tied": from_zoo("cifar_resnet20", repeats=(1, 2, 1)),
    "depthwise": from_zoo("mobilenet_v2_x0_35", repeats=(1, 2, 1, 1, 1, 1, 1)),
    "groups, shuffle": from_zoo("shufflenet_v1_g2_x0_25", repeats=(2, 2, 2)),
    "split, shuffle": from_zoo("shufflenet_v2_x0_5", repeats=(2, 2, 2)),
    "concatenation": from_zoo("cifar_densenet40_12", repeats=(3, 3, 3)),
    "own module": Own,
}
QUICK = {"amc": {"trials": 4, "images": 50}, "l1": {"images": 50}}  # settings that make a method's search short
EVERYWHERE = ("taylor", "slimming")  # on every net in the quick half; the others on the chain


@cache
def data() -> DataSet:
    return pz.load_data("digits", subset=400)


def task_for(net: str, folder: Path | None = None, epochs: int = 1, multiple: int = 1) -> Task:
    torch.manual_seed(0)
    model = NETS[net]()
    graph = pz.trace(model, SHAPE, multiple=multiple)
    budget = pz.Budget(macs=SHARE * graph.price().macs)
    return Task(model, graph, data(), budget, Recipe(epochs=epochs, batch_size=64), folder)


def made(name: str, graph: ChannelGraph, folder: Path) -> Method:
    settings = {key: value for key, value in QUICK.get(name, {}).items() if key in settings_of(name)}
    if name == "guided":
        halves = {group: max(step, width // 2 // step * step) for (group, width), step in
                  zip(graph.groups.items(), graph.steps.values(), strict=True)}  # fmt: skip
        (folder / "pattern.json").write_text(pattern_of(graph, halves).to_json())
        settings = {"pattern": str(folder / "pattern.json")}
    return method_named(name, settings)


def combination(name: str, net: str) -> Any:
    quick = net == "chain" or name in EVERYWHERE
    return pytest.param(name, net, marks=() if quick else pytest.mark.slow, id=f"{name}-{net}")


def check_meets_the_budget(task: Task, proposal: Proposal) -> None:
    graph, limit = task.graph, task.budget.limits["macs"]
    graph.check(proposal.widths)
    assert proposal.widths.keys() == graph.groups.keys()
    macs = graph.price(proposal.widths).macs
    assert macs <= limit
    if macs < 0.97 * limit:
        widths = np.array(list(proposal.widths.values()))
        wider = widths + np.diag(list(graph.steps.values()))
        possible = (widths > 0) & (wider.diagonal() <= np.array(list(graph.groups.values())))
        assert (graph.price_many(wider[possible], ("macs",))["macs"] > limit).all(), f"{macs / limit:.1%} of the budget"


@pytest.mark.parametrize(("name", "net"), [combination(name, net) for name in METHODS for net in NETS])
def test_every_method_meets_the_budget_with_a_network_that_runs(name: str, net: str, tmp_path: Path) -> None:
    task = task_for(net)
    before = copy.deepcopy(task.model.state_dict())
    proposal = made(name, task.graph, tmp_path).propose(task)
    check_meets_the_budget(task, proposal)

    network, _ = cut(task.graph, proposal)
    price = task.graph.price(proposal.widths)
    assert (price.params, price.macs) == counted(network, SHAPE)
    with torch.no_grad():
        outputs = network.eval()(data().info.normalise(data().val.images[:4]))
    assert outputs.shape == (4, 10)
    assert outputs.isfinite().all()

    after = task.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "the task's model was changed"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in (*EVERYWHERE, "morphnet") else pytest.mark.slow) for n in METHODS]
)
def test_every_method_keeps_to_the_multiple(name: str, tmp_path: Path) -> None:
    task = task_for("chain", multiple=4)
    assert list(task.graph.steps.values()) == [4, 4, 4]
    proposal = made(name, task.graph, tmp_path).propose(task)
    check_meets_the_budget(task, proposal)
    assert [width % 4 for width in proposal.widths.values()] == [0, 0, 0]


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_and_a_kill_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once as it is; once more with every training stopped after its first epoch and the method begun again."""
    task = task_for("chain", epochs=2)
    method = made(name, task.graph, tmp_path)
    first = method.propose(task)

    real, stopped = methods.fit, set()

    def interrupted(*args: Any, **options: Any) -> object:
        place = options["checkpoint_dir"]

        def stop(epoch: int, accuracy: float) -> None:
            if epoch == 1 and place not in stopped:
                stopped.add(place)
                raise KeyboardInterrupt

        return real(*args, **options, on_epoch=stop)

    monkeypatch.setattr(methods, "fit", interrupted)
    again = task_for("chain", tmp_path / "stages", epochs=2)
    while True:
        try:
            second = method.propose(again)
            break
        except KeyboardInterrupt:
            continue
    assert second.widths == first.widths
    for group, scores in first.scores.items():
        np.testing.assert_array_equal(scores, second.scores[group])
    weights = second.model.state_dict()
    assert all(torch.equal(own, weights[key]) for key, own in first.model.state_dict().items())


def test_random_scores_follow_their_seed() -> None:
    task = task_for("chain")
    widths = [seeded(method_named("random"), number).propose(task).widths for number in (0, 1)]
    assert widths[0] != widths[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_does(name: str) -> None:
    assert summary(name).endswith(".")
    with pytest.raises(pz.InvalidSetting, match=f"{name} has no setting 'nonsense'"):
        method_named(name, {"nonsense": "1"})
