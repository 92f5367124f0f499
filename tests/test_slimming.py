"""Network slimming: the penalty, what a threshold on the scales removes, and the paper's fact about sparse training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_morphnet import SIDE, Residual, digits, task
from torch import nn

import pocketzoo as pz
from pocketzoo import InvalidSetting
from pocketzoo.search.methods.scales import scales_of
from pocketzoo.search.methods.slimming import Slimming
from pocketzoo.search.shrink import cut
from pocketzoo.training.data import load_data
from pocketzoo.training.evaluate import reestimate_batchnorm
from pocketzoo.training.loop import fit
from pocketzoo.training.recipe import Recipe


def test_penalty_is_the_subgradient_step_of_the_paper() -> None:
    """Where nothing else moves the scales, each step takes lr * lambda off each; the learning rate rises and falls."""
    torch.manual_seed(0)
    given = task(Residual(), budget="macs=50%")
    model = given.model
    scales = scales_of(given.graph, model, "slimming")
    weight = 0.01
    optimizer = torch.optim.SGD(scales.of(model), lr=0.5)
    before = scales.magnitudes(model).detach().clone()
    (weight * scales.magnitudes(model).sum()).backward()
    optimizer.step()
    assert torch.allclose(scales.magnitudes(model), before - 0.5 * weight)


def test_a_short_training_has_a_heavier_penalty_and_a_long_one_the_papers() -> None:
    given = task(Residual())
    short = Slimming().weight(given, 1.0)
    flat = replace(given.recipe, warmup=0.0, schedule="one-cycle")
    rates = sum(flat.lr * (1 - step / 10) for step in range(10))  # 160 images in batches of 16
    assert Slimming().weight(replace(given, recipe=flat), 1.0) == pytest.approx(0.5 * 0.1 / rates)
    assert short > 1e-4
    assert Slimming().weight(replace(given, recipe=replace(flat, epochs=100_000)), 1.0) == 1e-4
    assert Slimming(sparsity=0.0).weight(given, 1.0) == 0.0


def test_a_tied_channel_is_worth_its_largest_scale() -> None:
    model = Residual()
    graph = pz.trace(model, (1, 1, SIDE, SIDE))
    with torch.no_grad():
        model.stem[1].weight.copy_(torch.tensor([0.1, -0.9, 0.3, 0.4, 0.5, 0.6]))
        model.outer[1].weight.copy_(torch.tensor([0.2, 0.8, -0.7, 0.0, 0.1, 0.2]))
    largest = scales_of(graph, model, "slimming").largest(model)
    assert largest[graph.channels("stem.1.weight", 0)].tolist() == pytest.approx([0.2, 0.9, 0.7, 0.4, 0.5, 0.6])


def test_a_layer_without_batch_norm_keeps_the_share_that_the_network_keeps() -> None:
    torch.manual_seed(0)
    model = pz.create_model("mobilenet_v3_small", num_classes=10, in_channels=1, resolution=32)
    graph = pz.trace(model, (1, 1, 32, 32))
    scales = scales_of(graph, model, "slimming")
    with torch.no_grad():
        for scale in scales.of(model):
            scale.uniform_()
    scores = graph.by_group(scales.completed(scales.largest(model)))
    everywhere = scales.largest(model)[np.unique(scales.channel)]
    squeeze = scores["stages.4.1.squeeze_excite.reduce"]
    for threshold in (0.3, 0.6, 0.9):
        assert np.mean(squeeze > threshold) == pytest.approx(np.mean(everywhere > threshold), abs=1 / len(squeeze))


def test_sparse_training_leaves_many_scales_near_zero_and_cutting_them_costs_less() -> None:
    """The paper's Figures 1 and 4: against the same cut of a network trained as long without the penalty."""
    torch.manual_seed(0)
    data = load_data("digits")
    model = Residual()
    recipe = Recipe(epochs=8, batch_size=32, lr=0.1, augment=False)
    fit(model, data, recipe)
    given = replace(task(model, budget="macs=50%", data=data), recipe=recipe)
    near_zero, lost = {}, {}
    enough = 4 * Slimming().weight(given, 1.0)  # as much as brings a scale of 1 to zero twice over: this net bears it
    for sparsity in (enough, 0.0):
        found = Slimming(sparsity).propose(given)
        magnitudes = scales_of(given.graph, found.model, "slimming").magnitudes(found.model)
        near_zero[sparsity] = float((magnitudes < 0.1 * magnitudes.max()).float().mean())
        network, _ = cut(given.graph, found)
        reestimate_batchnorm(network, data.info.normalise(data.train.images))
        lost[sparsity] = given.accuracy(found.model) - given.accuracy(network)
    assert near_zero[enough] > 0.3 > near_zero[0.0]
    assert lost[enough] < lost[0.0]


def test_passes_cut_by_the_same_factor_and_what_is_cut_stays_so() -> None:
    torch.manual_seed(0)
    given = task(Residual(), budget="macs=30%", data=digits(64))
    found = Slimming(passes=2).propose(given)
    assert found.history["pass"].tolist() == [1, 2]
    limit = given.budget.limits["macs"]
    assert 0.8 * limit < given.graph.price(found.widths).macs <= limit
    # what the first pass cut has scales of exactly zero ever since, and is not among what the second keeps
    scales = scales_of(given.graph, found.model, "slimming")
    assert sum((scores == 0).sum() for scores in found.scores.values()) > 0
    _, keep = cut(given.graph, found)
    assert all(scales.largest(found.model)[given.graph.channels_of(name)[keep[name]]].all() for name in keep)


def test_needs_batch_norm() -> None:
    with pytest.raises(InvalidSetting, match=r"slimming learns batch-norm scales"):
        Slimming().propose(task(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))))


@pytest.mark.parametrize("settings", [{"sparsity": -1.0}, {"passes": 0}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(settings))):
        Slimming(**settings)  # type: ignore[arg-type]
