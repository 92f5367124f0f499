"""L1-norm pruning: the scores, and a sensitivity scan that finds the layer that must not be touched."""

import numpy as np
import pytest
import torch
from torch import nn

from pocketzoo import Architecture, InvalidSetting, trace
from pocketzoo.graph.importance import l1_importance
from pocketzoo.search.methods import l1
from pocketzoo.search.methods.l1 import RATIOS, L1Norm
from pocketzoo.search.methods.method import Task, method_named
from pocketzoo.search.shrink import absolute, cut
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.loop import fit
from pocketzoo.training.recipe import Recipe


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="module")
def trained(data: DataSet) -> nn.Module:
    """A net whose second layer needs all of its 6 channels, and whose others have channels to spare."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 6, 4), nn.ReLU(),
                          nn.Flatten(), nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 10))  # fmt: skip
    fit(model, data, Recipe(epochs=15, batch_size=32, augment=False))
    return model.cpu().eval()


def task_of(model: nn.Module, data: DataSet, budget: str) -> Task:
    graph = trace(model, (1, data.in_channels, data.resolution, data.resolution))
    return Task(model, graph, data, absolute(budget, graph), Recipe(epochs=1))


def test_scores_are_mean_absolute_weights(trained: nn.Module) -> None:
    graph = trace(trained, (1, 1, 8, 8))
    found = l1_importance(graph, trained)["3"]
    np.testing.assert_allclose(found, [trained[3].weight[i].abs().mean().item() for i in range(6)], rtol=1e-6)


def test_scan_measures_what_each_cut_costs(trained: nn.Module, data: DataSet) -> None:
    task = task_of(trained, data, "macs=70%")
    scan = L1Norm(images=len(data.train)).propose(task).history
    assert list(scan["group"]) == [g for g in ("0", "3", "6") for _ in RATIOS]
    assert list(scan["width"]) == [24, 16, 8, 4, 3, 2, 48, 32, 16]  # round(4.5) and round(1.5) are even
    weakest = trained[3].weight.detach().abs().mean((1, 2, 3)).argsort()
    x, labels = data.info.normalise(data.val.images), data.val.labels
    whole = (trained(x).argmax(1) == labels).double().mean().item()
    for (_, row), gone in zip(scan[scan["group"] == "3"].iterrows(), (2, 3, 4), strict=True):
        hidden = trained[:5](x).detach()
        hidden[:, weakest[:gone]] = 0
        accuracy = (trained[5:](hidden).argmax(1) == labels).double().mean().item()
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["loss"] == pytest.approx(whole - accuracy)


def test_sensitive_groups_keep_their_width_and_the_same_share_of_the_others_goes(
    trained: nn.Module, data: DataSet
) -> None:
    task = task_of(trained, data, "macs=60%")
    proposal = L1Norm(images=len(data.train), tolerance=0.1).propose(task)
    first = proposal.history[proposal.history["ratio"] == RATIOS[0]].set_index("group")
    assert first["loss"]["3"] > 0.1 > max(first["loss"]["0"], first["loss"]["6"])
    assert first["decision"].to_dict() == {"0": "pruned", "3": "skipped", "6": "pruned"}
    assert proposal.widths["3"] == 6
    assert 0.55 < proposal.widths["0"] / 32 <= proposal.widths["6"] / 64 < 0.75  # its small steps fill what is left
    assert 0.97 <= task.graph.price(proposal.widths).macs / task.budget.limits["macs"] <= 1


def test_without_tolerance_for_nothing_all_groups_lose_the_same_share(trained: nn.Module, data: DataSet) -> None:
    proposal = L1Norm(images=50, tolerance=1.0).propose(task_of(trained, data, "macs=50%"))
    assert set(proposal.history["decision"]) == {"pruned"}
    shares = [proposal.widths[name] / width for name, width in {"0": 32, "3": 6, "6": 64}.items()]
    assert shares[0] == pytest.approx(shares[1], abs=1 / 6)  # a channel of the narrowest
    assert shares[2] >= max(shares[:2])  # whose small steps fill what a channel more of the others would exceed


def test_the_least_sensitive_are_released_where_the_budget_needs_them(trained: nn.Module, data: DataSet) -> None:
    """With everything skipped (any loss is too much), a budget of 10 % takes two of the groups back."""
    proposal = L1Norm(images=len(data.train), tolerance=0.0).propose(task_of(trained, data, "macs=10%"))
    first = proposal.history[proposal.history["ratio"] == RATIOS[0]].set_index("group")
    released = first[first["decision"] == "released"]["loss"]
    skipped = first[first["decision"] == "skipped"]["loss"]
    assert len(released) >= 1
    assert released.max() <= min(skipped, default=1.0)


@pytest.mark.parametrize("name", ["cifar_resnet20", "shufflenet_v2_x0_5"])
def test_every_kind_of_net(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l1, "RATIOS", RATIOS[-1:])  # a third of the scan
    data = load_data("digits", resolution=32)
    torch.manual_seed(0)
    model = Architecture.of(name, in_channels=1, num_classes=10, resolution=32).build()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    task = task_of(model, data, "macs=50%")
    proposal = L1Norm(images=4).propose(task)
    assert 0.97 <= task.graph.price(proposal.widths).macs / task.budget.limits["macs"] <= 1
    network, _ = cut(task.graph, proposal)
    assert network.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("settings", [{"tolerance": "2"}, {"images": "0"}])
def test_settings_out_of_range(settings: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting, match="expected"):
        method_named("l1", settings)
