"""What each criterion says of a channel, against its paper's formula worked out another way."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pocketzoo import Architecture, InvalidSetting, UntraceableModel, trace
from pocketzoo.search.methods.activations import image_means, loss_changes, reading_layers
from pocketzoo.search.methods.criteria import APoZ, Entropy, MeanActivation, Random, ScaledEntropy, Taylor, entropies
from pocketzoo.search.methods.method import Task, method_named
from pocketzoo.search.shrink import absolute, cut
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.recipe import Recipe

IMAGES = 60
CRITERIA = ("taylor", "mean_activation", "apoz", "entropy", "scaled_entropy", "random")


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


def net() -> nn.Sequential:
    """A chain: 5 channels, pooled and flattened to 4 positions each, then 7."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(20, 7),
                         nn.ReLU(), nn.Linear(7, 10)).eval()  # fmt: skip


def task_of(model: nn.Module, data: DataSet, share: str = "macs=50%") -> Task:
    graph = trace(model, (1, data.in_channels, data.resolution, data.resolution))
    return Task(model, graph, data, absolute(share, graph), Recipe(epochs=1))


def test_activations_are_what_the_next_layer_reads(data: DataSet) -> None:
    model = net()
    graph = trace(model, (1, 1, 8, 8))
    means = image_means(graph, model, data.train, data.info, torch.abs)
    read = model[:3](data.info.normalise(data.train.images))  # after activation and pooling
    torch.testing.assert_close(means[:, graph.channels_of("0")], read.detach().mean((2, 3)))
    hidden = model[:6](data.info.normalise(data.train.images)).detach()
    torch.testing.assert_close(means[:, graph.channels_of("4")], hidden)


def test_taylor_is_the_change_of_loss_to_first_order(data: DataSet) -> None:
    model = net()
    graph = trace(model, (1, 1, 8, 8))
    split = data.train.take(torch.arange(IMAGES))
    changes = loss_changes(graph, model, split, data.info)
    images = data.info.normalise(split.images)

    def loss(scale: float, channel: int) -> torch.Tensor:
        factor = torch.ones(5).double()
        factor[channel] = scale
        pooled = model[:3](images.double()) * factor[:, None, None]
        return F.cross_entropy(model[3:](pooled), split.labels, reduction="none")

    model.double()
    with torch.no_grad():
        for channel, number in enumerate(graph.channels_of("0")):
            slope = (loss(1 + 1e-6, channel) - loss(1 - 1e-6, channel)) / 2e-6
            torch.testing.assert_close(changes[:, number].double(), slope, rtol=1e-3, atol=1e-5)


def test_taylor_is_exact_for_a_linear_loss_even_when_several_layers_read_a_channel() -> None:
    """With loss = logits[label], removing a channel changes it by exactly activation x gradient."""

    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.make(x)
            return self.left(x) + self.right(x)

    torch.manual_seed(0)
    model = Forked()
    graph = trace(model, (1, 3))
    x = torch.randn(6, 3)
    split = type("S", (), {"images": x[:, :, None, None], "labels": torch.zeros(6).long(), "__len__": lambda s: 6})()
    info = type("I", (), {"normalise": staticmethod(lambda images: images.flatten(1).clone())})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", lambda out, labels, reduction: out[:, 0].sum())
        changes = loss_changes(graph, model, split, info)
    weight = (model.left.weight + model.right.weight)[0].detach()
    expected = model.make(x).detach() * weight
    torch.testing.assert_close(changes[:, graph.channels_of("make")], expected)


def test_apoz_counts_zeros(data: DataSet) -> None:
    model = net()
    task = task_of(model, data)
    scores = APoZ(images=IMAGES, seed=3).channel_scores(task)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(3))[:IMAGES]
    read = model[:6](data.info.normalise(data.train.images[order]))
    zeros = [int((read[:, i] == 0).sum()) for i in range(7)]
    assert 0 < sum(zeros) < 7 * IMAGES
    np.testing.assert_allclose(scores[task.graph.channels_of("4")], [1 - n / IMAGES for n in zeros], rtol=1e-6)


def test_entropy_of_a_known_histogram() -> None:
    """Quarters, halves and one constant: log 4, log 2 and 0; numbers of another scale have the same entropy."""
    quarters, halves, constant = [0, 1, 2, 3] * 2, [0, 3] * 4, [2] * 8
    pooled = torch.tensor([quarters, halves, constant, [1000 * q for q in quarters]]).float().T
    np.testing.assert_allclose(entropies(pooled, 4), [math.log(4), math.log(2), 0, math.log(4)], atol=1e-12)


def test_scaled_entropy_is_entropy_times_mean(data: DataSet) -> None:
    task = task_of(net(), data)
    own = task.graph.channels_of("4")
    entropy = Entropy(images=IMAGES).channel_scores(task)[own]
    mean = MeanActivation(images=IMAGES).channel_scores(task)[own]
    np.testing.assert_allclose(ScaledEntropy(images=IMAGES).channel_scores(task)[own], entropy * mean, rtol=1e-6)


@pytest.mark.parametrize("criterion", [MeanActivation, APoZ, Entropy, Taylor])
def test_a_dead_channel_scores_lowest_and_layers_have_norm_one(criterion: type, data: DataSet) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, -1
    scores = criterion(images=IMAGES).propose(task_of(model, data)).scores
    assert scores["0"][2] == 0
    assert (np.delete(scores["0"], 2) > 0).all()
    for own in scores.values():
        assert np.linalg.norm(own) == pytest.approx(1)


def test_random_takes_the_same_share_of_every_layer(data: DataSet) -> None:
    model = nn.Sequential(nn.Conv2d(1, 400, 1), nn.ReLU(), nn.Conv2d(400, 100, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(100, 10))  # fmt: skip
    task = task_of(model, data, "macs=25%")
    widths, others = Random(seed=0).propose(task).widths, Random(seed=1).propose(task).scores
    assert widths["0"] / 400 == pytest.approx(0.5, abs=0.06)
    assert widths["2"] / 100 == pytest.approx(0.5, abs=0.12)
    assert not np.array_equal(others["0"], Random(seed=0).propose(task).scores["0"])


@pytest.mark.parametrize("name", ["cifar_resnet20", "mobilenet_v2_x0_35", "shufflenet_v2_x0_5", "googlenet_aux"])
def test_every_kind_of_net_and_the_model_is_left_as_it_was(name: str) -> None:
    data = load_data("digits", resolution=32)
    arch = Architecture.of(name, in_channels=1, num_classes=10, resolution=32)
    torch.manual_seed(0)
    model = arch.build().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    task = task_of(model, data)
    for criterion in (Taylor(images=8), APoZ(images=8)):
        proposal = criterion.propose(task)
        assert 0.97 <= task.graph.price(proposal.widths).macs / task.budget.limits["macs"] <= 1
        network, _ = cut(task.graph, proposal)
        assert network.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_channels_that_only_a_depthwise_layer_reads_are_read_further_on() -> None:
    model = Architecture.of("mobilenet_v2_x0_35", in_channels=1, num_classes=10, resolution=32).build()
    graph = trace(model, (1, 1, 32, 32))
    read = {c for reader in reading_layers(graph, model).values() for c in reader.channels.tolist()}
    assert {int(c) for group in graph.groups for c in graph.channels_of(group)} <= read


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.conv2d(F.relu(self.first(x)), self.second.weight))
        return self.head(x.mean((2, 3)))


def test_a_layer_that_is_read_by_a_function_is_named(data: DataSet) -> None:
    with pytest.raises(UntraceableModel, match=r"Functional reads its input by a functional call"):
        Taylor().propose(task_of(Functional(), data))


@pytest.mark.parametrize("settings", [{"images": 0}, {"bins": 1}])
def test_settings_out_of_range(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidSetting, match="expected"):
        method_named("entropy", settings)


@pytest.mark.parametrize("name", CRITERIA)
def test_is_registered(name: str) -> None:
    assert callable(method_named(name).propose)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_is_twice_the_model_plus_a_batch() -> None:
    """On one batch of 10 images; a fifth of the batch and 50 MB are for what the allocator holds back."""
    benchmark = Path(__file__).parents[1] / "benchmarks" / "importance_speed.py"

    def measured(what: str) -> dict[str, float]:
        size = ["--model", "mobilenet_v2_x0_35", "--resolution", "224", "--images", "10"]
        command = [sys.executable, str(benchmark), "--one", what, *size]
        found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return found

    for criterion, plain in (("taylor", "a batch forward and backward"), ("apoz", "a batch forward")):
        found, batch = measured(criterion), measured(plain)["memory_mb"]
        assert found["memory_mb"] <= 2 * found["model_mb"] + 1.2 * batch + 50
