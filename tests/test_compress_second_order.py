"""Optimal brain damage and surgeon: second derivatives, inverses and corrections against closed forms."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

import pocketzoo as pz
from pocketzoo.compress.compression import Compression, Pass
from pocketzoo.compress.hessian import diagonal
from pocketzoo.compress.inverse_hessian import derivatives, elimination, inverse, softmax_root, without
from pocketzoo.compress.passes.obd import OptimalBrainDamage
from pocketzoo.compress.passes.obs import OptimalBrainSurgeon
from pocketzoo.compress.passes.prune import Prune
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import prunable
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.recipe import Recipe

SIDE = 6
GOAL = torch.linspace(-1, 1, 21, dtype=torch.float64).view(7, 3)


def squared(outputs: Tensor) -> Tensor:
    return (outputs - GOAL).square().sum()


def exact(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The diagonal of the whole Hessian of each weight."""
    found = {}
    for name, weight in prunable(model).items():
        own = torch.autograd.functional.hessian(
            lambda flat, name=name, form=weight.shape: loss(functional_call(model, {name: flat.view(form)}, x)),
            weight.detach().flatten(),
        )
        found[name] = own.diagonal().view_as(weight)
    return found


class Branches(nn.Module):
    """Two hidden layers side by side, added."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.left(x)) + self.act(self.right(x)))


def normed() -> nn.Module:
    norm = nn.BatchNorm1d(5)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, -2, 2)
    return nn.Sequential(nn.Linear(4, 5), norm, nn.ReLU(inplace=True), nn.Linear(5, 3))


ONE_HIDDEN_LAYER = {
    "tanh and sigmoid": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid()),
    "silu over a sum": Branches,
    "batch norm": normed,
    "means": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.GELU(), nn.Unflatten(1, (4, 2)), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(4, 3)
    ),
    "convolution over all": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 6, 2), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_HIDDEN_LAYER)
def test_second_derivatives_are_exact_for_one_hidden_layer(kind: str) -> None:
    torch.manual_seed(3)
    model = ONE_HIDDEN_LAYER[kind]().double().eval()
    x = torch.randn(7, 4, dtype=torch.float64)
    expected = exact(model, x, squared)
    found = diagonal(model, x, squared, full=True)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    gauss_newton = diagonal(model, x, squared)
    for name, weight in prunable(model).items():
        slopes = jacrev(lambda own, name=name: functional_call(model, {name: own}, x))(weight.detach())
        last = isinstance(model, nn.Sequential) and isinstance(model[-1], nn.Sigmoid)
        assert slopes.shape == (7, 3, *weight.shape)
        torch.testing.assert_close(gauss_newton[name], 2 * slopes.square().sum((0, 1)))
        if last:  # then the form without second derivatives is another
            assert not torch.allclose(gauss_newton[name], expected[name], rtol=0.01)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.inplace for module in model.modules() if isinstance(module, nn.SiLU))


def test_deeper_and_shared_weights_follow_the_papers_recursion() -> None:
    """Eq. 7 to 9 written out for a convolution with shared weights under two layers; neither is exact there."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()
    x = torch.randn(7, 2, 4, dtype=torch.float64)
    conv, _, _, middle, _, last = model
    a1 = conv(x)
    x1 = a1.tanh().flatten(1)
    a2 = middle(x1)
    x2 = a2.tanh()
    slope2 = 2 * (last(x2) - GOAL) @ last.weight
    slope1 = (slope2 * (1 - x2**2)) @ middle.weight
    d_x2 = 2 * torch.ones(7, 3, dtype=torch.float64) @ last.weight**2
    d_a2 = (1 - x2**2) ** 2 * d_x2 - 2 * x2 * (1 - x2**2) * slope2
    d_x1 = d_a2 @ middle.weight**2
    d_a1 = ((1 - x1**2) ** 2 * d_x1 - 2 * x1 * (1 - x1**2) * slope1).view(7, 3, 3)
    shared = torch.zeros(3, 2, 2, dtype=torch.float64)
    for place in range(3):
        shared += torch.einsum("no,nit->oit", d_a1[:, :, place], x[:, :, place : place + 2] ** 2)
    found = diagonal(model, x, squared, full=True)
    torch.testing.assert_close(found["3.weight"], (d_a2.T @ x1**2).detach())
    torch.testing.assert_close(found["0.weight"], shared.detach())


def test_of_the_cross_entropy() -> None:
    """Softmax regression: d2E/dw_ij^2 is the sum of p_i (1 - p_i) x_j^2."""
    torch.manual_seed(5)
    layer, x, labels = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3
    p = layer(x).softmax(1)
    found = diagonal(layer, x, lambda z: F.cross_entropy(z, labels, reduction="sum"))
    torch.testing.assert_close(found["weight"], ((p * (1 - p)).T @ x.square()).detach())


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet5", "cifar_resnet20", "cifar_vgg16", "squeezenet1_1"])
def test_networks_of_the_zoo_let_it_through(name: str) -> None:
    model = pz.create_model(name, num_classes=10, in_channels=1, resolution=32).eval()
    found = diagonal(model, torch.randn(2, 1, 32, 32), lambda z: z.square().sum())
    assert found.keys() == prunable(model).keys()
    assert all(bool((own >= 0).all()) and bool((own > 0).any()) for own in found.values())


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.layer(x).sigmoid()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Gated(), "no second derivatives through Mul"),
        (Recurrent(), "no second derivatives through"),
        (nn.AvgPool1d(2, 1), "windows overlap or differ"),
    ],
)
def test_what_it_would_get_wrong_is_refused(model: nn.Module, said: str) -> None:
    x = torch.randn(2, 4) if not isinstance(model, nn.AvgPool1d) else torch.randn(2, 1, 4)
    with pytest.raises(InvalidSetting, match=said):
        diagonal(model, x, lambda z: z.square().sum())


# -- inverses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "grouped", "same"])
def test_derivatives_are_those_of_the_outputs(kind: str) -> None:
    torch.manual_seed(6)
    layer, x = {
        "linear": lambda: (nn.Linear(6, 3), torch.randn(9, 6)),
        "grouped": lambda: (nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2), torch.randn(5, 4, 5, 7)),
        "same": lambda: (
            nn.Conv2d(2, 2, 2, padding="same", padding_mode="reflect", dilation=2),
            torch.randn(3, 2, 4, 4),
        ),
    }[kind]()
    model, x = nn.Sequential(layer, nn.Flatten()).double(), x.double()
    slopes = jacrev(lambda own: functional_call(model, {"0.weight": own}, x))(layer.weight.detach())
    expected = slopes.flatten(2).transpose(0, 1)  # [outputs, images, weights]
    found = derivatives(model, x, lambda z: torch.eye(z.shape[1]).double()[:, None].expand(-1, len(z), -1))["0.weight"]
    n = layer.weight.numel()
    torch.testing.assert_close(found.of(0, n), expected.flatten(0, 1))
    torch.testing.assert_close(found.of(4, n - 3), expected.flatten(0, 1)[:, 4 : n - 3])


class Twice(nn.Module):
    """A layer that is used twice, and a second one that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x[:, :4]) + self.second(x[:, 4:8]) + self.first(x[:, 8:])


def test_a_weight_that_is_used_again_counts_every_use() -> None:
    model, x = Twice().double(), torch.randn(9, 12, dtype=torch.float64)
    [found] = derivatives(model, x, lambda z: torch.eye(4).double()[:, None].expand(-1, len(z), -1)).values()
    slopes = jacrev(lambda own: functional_call(model, {"first.weight": own}, x, tie_weights=True))(
        model.first.weight.detach()
    )
    torch.testing.assert_close(found.of(0, 16), slopes.flatten(2).transpose(0, 1).flatten(0, 1))
    [curvature] = diagonal(model, x, lambda z: z.square().sum()).values()
    torch.testing.assert_close(curvature, 2 * x.square().sum(0).view(3, 4).sum(0).expand(4, 4))  # eq. 7


def test_the_root_of_the_cross_entropy() -> None:
    z = torch.randn(4, 5, dtype=torch.float64)
    root = softmax_root(z.float()).double()
    for i in range(4):
        expected = torch.autograd.functional.hessian(lambda own: F.cross_entropy(own, torch.tensor(2)), z[i])
        torch.testing.assert_close(root[:, i].T @ root[:, i], expected, atol=1e-6, rtol=1e-5)


def test_the_recursion_ends_in_the_inverse() -> None:
    torch.manual_seed(7)
    x = torch.randn(150, 20)
    one_by_one = torch.eye(20, dtype=torch.float64) / 1e-3
    for row in x.double():  # eq. 9 of the paper as it stands
        across = one_by_one @ row
        one_by_one = one_by_one - torch.outer(across, across) / (50 + row @ across)
    found = inverse(x, 50, 1e-3)
    torch.testing.assert_close(found, one_by_one)
    torch.testing.assert_close(found, torch.linalg.inv(x.double().T @ x.double() / 50 + 1e-3 * torch.eye(20).double()))


def test_on_a_quadratic_every_step_is_the_constrained_minimum() -> None:
    """Linear regression with a ridge: the error after each removal, and the weights, by least squares."""
    torch.manual_seed(8)
    x, ridge = torch.randn(40, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64), 0.01
    y = x @ torch.randn(8, dtype=torch.float64) + torch.randn(40, dtype=torch.float64)

    def least(kept: list[int]) -> tuple[Tensor, float]:
        own = x[:, kept]
        w = torch.linalg.solve(own.T @ own / 40 + ridge * torch.eye(len(kept)), own.T @ y / 40)
        return w, float((own @ w - y).square().sum() / 80 + ridge * w.square().sum() / 2)

    start, error = least(list(range(8)))
    inverse_hessian = inverse(x, 40, ridge)
    order, costs = elimination(inverse_hessian[None], start[None])
    kept = list(range(8))
    for q, cost in zip(order[0].tolist(), costs[0].tolist(), strict=True):
        rises = {i: least([j for j in kept if j != i])[1] - error for i in kept}
        assert q == min(rises, key=rises.__getitem__)
        assert cost == pytest.approx(rises[q], rel=1e-6)
        error += rises[q]
        kept.remove(q)
        gone = torch.ones(8, dtype=torch.bool)
        gone[kept] = False
        corrected = without(inverse_hessian, start, gone)
        torch.testing.assert_close(corrected[kept], least(kept)[0])
        assert bool((corrected[gone] == 0).all())


@cache
def data() -> DataSet:
    return load_data("digits", resolution=SIDE)


@cache
def regression() -> Compression:
    """Softmax regression on tiny digits, trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 10))
    start = Compression(model.eval(), (1, 1, SIDE, SIDE), Recipe(batch_size=32, augment=False), data())
    return start.finetuned(4)


def loss_of(compression: Compression) -> float:
    train = data().train
    with torch.no_grad():
        return float(F.cross_entropy(compression.model(data().info.normalise(train.images)), train.labels))


def hessian() -> Tensor:
    """Of all 360 weights over all training images, as autograd has it."""
    x = data().info.normalise(data().train.images).flatten(1).double()
    bias = regression().model[1].bias.detach().double()  # type: ignore[index]
    weight = regression().model[1].weight.detach().double()  # type: ignore[index]
    return torch.autograd.functional.hessian(
        lambda flat: F.cross_entropy(F.linear(x, flat.view(10, -1), bias), data().train.labels), weight.flatten()
    )


def test_the_surgeon_does_the_papers_steps() -> None:
    weight = regression().model[1].weight.detach().double().flatten()  # type: ignore[index]
    whole = hessian() + 1e-4 * torch.eye(len(weight)).double()
    kept, expected = list(range(len(weight))), weight.clone()
    for _ in range(180):
        now = torch.linalg.inv(whole[kept][:, kept])
        at = int((expected[kept].square() / now.diagonal()).argmin())
        expected[kept] -= expected[kept[at]] / now[at, at] * now[at]
        expected[kept[at]] = 0
        kept.pop(at)
    found = OptimalBrainSurgeon(0.5, images=len(data().train), block=360, damping=1e-4).apply(regression())
    mask = torch.zeros(360, dtype=torch.bool)
    mask[kept] = True
    assert torch.equal(found.masks["1.weight"].flatten(), mask)
    torch.testing.assert_close(found.model[1].weight.detach().flatten().double(), expected, atol=1e-4, rtol=1e-3)  # type: ignore[index]


def test_saliencies_are_half_the_curvature_times_the_square() -> None:
    given = regression()
    weight = given.model[1].weight.detach().double()  # type: ignore[index]
    expected = hessian().diagonal().view_as(weight) * weight.square() / 2
    damage = OptimalBrainDamage(0.5, images=len(data().train))
    torch.testing.assert_close(damage.saliencies(given)["1.weight"].double(), expected, rtol=1e-3, atol=1e-8)
    found = damage.apply(given)
    assert torch.equal(
        found.masks["1.weight"].flatten().nonzero().flatten(), expected.flatten().argsort()[180:].sort().values
    )


def test_correcting_costs_less_than_leaving_out() -> None:
    given = regression()
    whole, blocks = (loss_of(OptimalBrainSurgeon(0.6, block=size).apply(given)) for size in (360, 36))
    left_out = min(loss_of(OptimalBrainDamage(0.6).apply(given)), loss_of(Prune(0.6).apply(given)))
    assert whole < blocks < left_out - 0.05


@pytest.mark.parametrize(
    "step", [OptimalBrainDamage(0.8, rounds=2, epochs=1), OptimalBrainSurgeon(0.8, rounds=2, epochs=1)]
)
def test_exactly_so_many_stay_and_what_is_gone_stays_gone(step: Pass) -> None:
    before = Prune({"1": 0.3}).apply(regression())
    found = step.apply(before)
    weight = found.model[1].weight.detach()  # type: ignore[index]
    assert int(found.masks["1.weight"].sum()) == 72
    assert torch.equal(weight.view(torch.int32) != 0, found.masks["1.weight"])  # +0.0, to the bit
    assert not bool((found.masks["1.weight"] & ~before.masks["1.weight"]).any())
    unchanged = type(step)(0.1).apply(before)  # type: ignore[call-arg]
    assert torch.equal(unchanged.masks["1.weight"], before.masks["1.weight"])
    assert torch.equal(unchanged.model[1].weight, before.model[1].weight)  # type: ignore[index]


def test_the_surgeon_works_on_networks_that_were_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 10))
    given = Compression(model.eval(), (1, 1, SIDE, SIDE), Recipe(batch_size=32), data()).finetuned(1)  # channels last
    found = OptimalBrainSurgeon(0.5, images=64, block=100).apply(given)
    total = sum(weight.numel() for weight in prunable(found.model).values())
    assert sum(int(mask.sum()) for mask in found.masks.values()) == round(total / 2)
    assert loss_of(found) < loss_of(Prune(0.5).apply(given))


@pytest.mark.parametrize("kind", [OptimalBrainDamage, OptimalBrainSurgeon])
def test_settings_that_cannot_be_are_named(kind: type) -> None:
    for settings, said in (
        ({"sparsity": 1.0}, "sparsity is 1.0"), ({"rounds": 0}, "0 rounds"), ({"images": 0}, "0 images"),
    ):  # fmt: skip
        with pytest.raises(InvalidSetting, match=said):
            kind(**settings)
    with pytest.raises(InvalidSetting, match="damping 0"):
        OptimalBrainSurgeon(damping=0.0)
    without_data = Compression(regression().model, (1, 1, SIDE, SIDE), Recipe())
    with pytest.raises(InvalidSetting, match="needs data"):
        kind().apply(without_data)
