"""SNIP: the sensitivities of the paper's equations 5 and 6, of a fresh network."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from digit_tasks import check_proposal, task_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.search.methods.snip import Snip, sensitivity


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))


def test_sensitivities_are_derivatives_by_the_masks() -> None:
    model = small()
    images, labels = torch.randn(6, 1, 5, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    weights = {name: model.get_parameter(name).detach() for name in ("0.weight", "4.weight")}
    masks = {name: torch.ones_like(weight, requires_grad=True) for name, weight in weights.items()}
    outputs = functional_call(model.train(), {name: masks[name] * weights[name] for name in weights}, (images,))
    slopes = torch.autograd.grad(F.cross_entropy(outputs, labels), list(masks.values()))
    total = sum(slope.abs().sum() for slope in slopes)
    found = sensitivity(small(), iter([(images, labels)]), seed=0)
    assert list(found) == list(weights)
    for own, slope in zip(found.values(), slopes, strict=True):
        torch.testing.assert_close(own, slope.abs() / total)
    assert sum(float(own.sum()) for own in found.values()) == pytest.approx(1)


def test_batches_add_their_gradients() -> None:
    # without batch norm, the gradient of a mean over two equal batches is the mean of theirs
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4))
    images, labels = torch.randn(8, 1, 3, 3), torch.arange(8) % 4
    whole = sensitivity(model, iter([(images, labels)]), seed=0)
    halves = sensitivity(model, iter([(images[:4], labels[:4]), (images[4:], labels[4:])]), seed=0)
    for name, own in whole.items():
        torch.testing.assert_close(own, halves[name])


@pytest.mark.parametrize("name", ["lenet5", "cifar_resnet20", "mobilenet_v2_x0_35", "shufflenet_v2_x0_5"])
def test_widths_meet_the_budget(name: str) -> None:
    task = task_of(name)
    proposal = Snip(batches=2).propose(task)
    check_proposal(task, proposal)
    assert proposal.model is task.model


def test_the_trained_weights_do_not_matter() -> None:
    task, other = task_of("lenet5"), task_of("lenet5")
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(-3)
    first, second = Snip(sparsity=0.9).propose(task), Snip(sparsity=0.9).propose(other)
    assert first.widths == second.widths
    assert first.layers.equals(second.layers)
    n = first.layers["weights"].sum()
    assert first.layers["surviving"].sum() == round(0.1 * n)


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(InvalidSetting, match="0 batches"):
        Snip(batches=0)
