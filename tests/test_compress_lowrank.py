"""Layers in factors: exact where they can be, the best of their rank, never larger, and packed as data."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pocketzoo as pz
from digit_tasks import digits
from pocketzoo.compress.compression import Compression, Pass
from pocketzoo.compress.factorise import factorable, input_gram, ranks_within, responses, some_images
from pocketzoo.compress.passes.cp import CP, separated
from pocketzoo.compress.passes.grebdec import GreBdec, decomposed
from pocketzoo.compress.passes.lowrank import Costs, LowRank, auxiliary, energies, feeds_relu, fitted, fitted_to_relu
from pocketzoo.compress.passes.svd import SVD
from pocketzoo.compress.recipes import passes, text_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.packing.packed import pack_model, unpack_model
from pocketzoo.training.recipe import Recipe

SIDE = 32


class Net(nn.Module):
    """Convolutions that a ReLU reads, in place or not, or does not, of a stride and padding of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 12, (3, 5), stride=(1, 2), padding=(1, 2))
        self.second = nn.Conv2d(12, 16, 3, padding=2, dilation=2)
        self.third = nn.Conv2d(16, 10, 3, stride=2, bias=False)
        self.grouped = nn.Conv2d(10, 10, 3, groups=2)
        self.act = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(10, 40)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.second(x).relu()
        x = self.third(x)
        x = self.grouped(x.relu() + x).mean((2, 3))
        return self.head(self.hidden(x).tanh())


def of(model: nn.Module | str = "lenet5", data: bool = True) -> Compression:
    torch.manual_seed(0)
    if isinstance(model, str):
        model = pz.create_model(model, num_classes=10, in_channels=1, resolution=SIDE)
    return Compression(model.eval(), (1, 1, SIDE, SIDE), Recipe(batch_size=16), digits() if data else None)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def low_rank(rows: int, columns: int, rank: int) -> Tensor:
    return torch.randn(rows, rank, dtype=torch.float64) @ torch.randn(rank, columns, dtype=torch.float64)


# -- singular values -----------------------------------------------------------------------------------------------


def product_of(network: nn.Module) -> Tensor:
    inner, outer = network
    return (outer.weight @ inner.weight).detach()


def test_two_factors_are_the_best_of_their_rank() -> None:
    """Eckart and Young: what is missing has the squared norm of the singular values that were left out."""
    given = of()
    weight = given.model.hidden.weight.detach()
    found = SVD(energy=0.4).apply(given)
    s = torch.linalg.svdvals(weight.double())
    rank = found.model.hidden[0].out_features
    missing = float((weight - product_of(found.model.hidden)).double().square().sum())
    assert missing == pytest.approx(float(s[rank:].square().sum()), rel=1e-4)
    kept = s.square().cumsum(0) / s.square().sum()
    assert kept[rank - 1] >= 0.4 > kept[rank - 2]
    x = torch.randn(3, 1250)
    biased = x @ product_of(found.model.hidden).T + given.model.hidden.bias
    torch.testing.assert_close(found.model.hidden(x), biased, atol=1e-4, rtol=1e-4)


def test_a_matrix_of_low_rank_comes_back_exactly() -> None:
    layer = nn.Linear(30, 20, bias=False)
    torch.manual_seed(0)
    layer.weight.data = low_rank(20, 30, 3).float()
    found = SVD(energy=0.999999).apply(Compression(nn.Sequential(layer), (1, 30), Recipe()))
    assert found.notes["svd_ranks"] == "0 3 of 20"
    torch.testing.assert_close(product_of(found.model[0]), layer.weight.detach(), atol=1e-4, rtol=0)


def test_no_layer_gets_larger() -> None:
    given = of(Net())
    found = SVD(energy=1.0).apply(given)
    assert found.notes["svd_whole"] == "hidden, head"
    assert not found.edits
    for energy in (0.3, 0.7, 0.95, 0.99):
        assert parameters(SVD(energy=energy).apply(given).model) <= parameters(given.model)


def test_ranks_for_a_size() -> None:
    given = of("lenet_300_100")
    layers = factorable(given.model, nn.Linear)
    whole = sum(layer.weight.numel() for layer in layers.values())
    found = SVD(size=0.3).apply(given)
    left = sum(layer.weight.numel() for layer in factorable(found.model, nn.Linear).values())
    largest_unit = 1024 + 300
    assert 0.3 * whole - largest_unit < left <= 0.3 * whole
    with pytest.raises(InvalidSetting, match=r"a rank of 1 for each of hidden1, .* leaves"):
        SVD(size=1e-4).apply(given)


def test_the_smallest_size_that_the_accuracy_bears() -> None:
    given = of(data=True).finetuned(8)
    found = SVD(tolerance=0.05).apply(given)
    assert found.accuracy() >= given.accuracy() - 0.05
    assert parameters(found.model) < parameters(given.model) / 2


def test_ranks_go_where_they_cost_the_least_energy() -> None:
    """The greedy choice by hand: eq. 15's (energy of the last direction / energy of all) / cost."""
    spectra = {"a": np.array([8.0, 4.0, 1.0]), "b": np.array([5.0, 5.0])}
    unit, whole = {"a": 1.0, "b": 10.0}, {"a": 100.0, "b": 100.0}
    # a's last costs 1/13 each, b's last 5/10 / 10: b's goes first; then a's 1/13, then 4/12 (b has one left)
    assert ranks_within(spectra, unit, whole, 14) == {"a": 3, "b": 1}
    assert ranks_within(spectra, unit, whole, 12.5) == {"a": 2, "b": 1}
    assert ranks_within(spectra, unit, whole, 11) == {"a": 1, "b": 1}
    with pytest.raises(InvalidSetting, match="a rank of 1"):
        ranks_within(spectra, unit, whole, 10)


# -- responses -----------------------------------------------------------------------------------------------------


def test_responses_are_the_layers_outputs_at_the_same_places() -> None:
    given = of(Net())
    images = some_images(given.the_data("a test"), 40, 0)
    found = responses(given.model, "first", images, 7)
    assert found.shape == (400, 12)
    assert torch.equal(found, responses(given.model, "first", images, 7))
    assert (found < 0).any()  # before the ReLU that is in place
    outputs = given.model.first(images).detach().permute(0, 2, 3, 1).reshape(40, -1, 12).double()
    near = torch.cdist(found.view(40, 10, 12), outputs).amin(2)
    assert float(near.max()) < 1e-5


def test_equal_responses_are_fitted_by_principal_components() -> None:
    torch.manual_seed(0)
    y = low_rank(500, 9, 9) + 5
    p, q, b = fitted(y, y, 4)
    values = energies(y)
    error = float((y - (y @ q.T @ p.T + b)).square().sum()) / 500
    assert error == pytest.approx(values[4:].sum(), rel=1e-6)
    assert (values[:-1] >= values[1:]).all()
    torch.testing.assert_close(p.T @ p, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(p @ q, p @ p.T)  # M is the projection (eq. 5)


def test_other_responses_are_fitted_by_regression_of_reduced_rank() -> None:
    torch.manual_seed(1)
    x = torch.randn(400, 6, dtype=torch.float64)
    truth = low_rank(5, 6, 2)
    exact = x @ truth.T + 3
    p, q, b = fitted(exact, x, 2)
    torch.testing.assert_close(p @ q, truth)
    y = exact + torch.randn(400, 5, dtype=torch.float64)
    p, q, b = fitted(y, x, 2)
    least = float((y - (x @ q.T @ p.T + b)).square().sum())
    symmetric = fitted(y, y, 2)  # the same subspace of y, but fitted where y itself is given
    for other in [(symmetric[0], symmetric[0].T @ torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution.T)]:
        centre = y.mean(0) - other[0] @ (other[1] @ x.mean(0))
        assert least <= float((y - (x @ other[1].T @ other[0].T + centre)).square().sum())
    for _ in range(20):  # nothing near is better
        moved = p + 1e-2 * torch.randn_like(p), q + 1e-2 * torch.randn_like(q)
        assert least <= float((y - (x @ moved[1].T @ moved[0].T + b)).square().sum())


def test_auxiliary_responses_are_the_best_of_a_grid() -> None:
    torch.manual_seed(0)
    target, predicted = torch.randn(200, dtype=torch.float64).relu(), torch.randn(200, dtype=torch.float64)
    grid = torch.linspace(-5, 5, 20_001, dtype=torch.float64)[:, None]
    for penalty in (0.01, 1.0):

        def cost(z: Tensor, penalty: float = penalty) -> Tensor:
            return (target - z.relu()).square() + penalty * (z - predicted).square()

        found = cost(auxiliary(target, predicted, penalty))
        assert (found <= cost(grid).amin(0) + 1e-9).all()
        torch.testing.assert_close(found, cost(grid).amin(0), atol=1e-5, rtol=0)


def test_the_nonlinear_fit_keeps_what_the_relu_lets_through() -> None:
    torch.manual_seed(0)
    y = low_rank(800, 8, 8) - 3
    errors = {}
    for fit in (fitted, fitted_to_relu):
        p, q, b = fit(y, y, 3)
        errors[fit.__name__] = float((y.relu() - (y @ q.T @ p.T + b).relu()).square().sum())
    assert errors["fitted_to_relu"] < 0.9 * errors["fitted"]


def test_relus_are_found_in_the_forward_pass() -> None:
    net, image = Net().eval(), torch.zeros(1, 1, SIDE, SIDE)
    found = {path: feeds_relu(net, path, image) for path in ("first", "second", "third", "grouped")}
    assert found == {"first": True, "second": True, "third": False, "grouped": False}  # third's sum reads it too


@pytest.mark.parametrize("nonlinear", [True, False])
def test_responses_of_low_rank_are_kept_by_few_filters(nonlinear: bool) -> None:
    net = Net()
    torch.manual_seed(0)
    for layer, rank in ((net.first, 3), (net.second, 4), (net.third, 4)):
        layer.weight.data = 0.2 * low_rank(len(layer.weight), layer.weight[0].numel(), rank).float().view_as(
            layer.weight
        )
    given = of(net)
    found = LowRank(2.0, nonlinear=nonlinear, images=64).apply(given)
    assert found.notes["lowrank_ranks"].startswith("first ")
    before, after = (pz.trace(c.model, c.input_shape).layers() for c in (given, found))
    own = before["name"].isin(["first", "second", "third"])
    others = before[~own]["macs"].sum()
    assert after["macs"].sum() - others <= before[own]["macs"].sum() / 2
    images = digits().val.images
    x = given.the_data("a test").info.normalise(images)
    torch.testing.assert_close(found.model(x), given.model(x), atol=2e-3, rtol=0)


def test_a_later_layer_makes_up_for_an_earlier_one() -> None:
    given = of().finetuned(6)
    images = some_images(given.the_data("a test"), 64, 1)
    wanted = given.model(images).detach()
    errors = [
        float((LowRank(5.0, asymmetric=own, images=64).apply(given).model(images).detach() - wanted).square().mean())
        for own in (True, False)
    ]
    assert errors[0] < errors[1]


UNIFORM = {  # arXiv:1505.06798, table of rank selection, rows without: SPP-10's conv2 to conv7
    3: [77, 139, 153, 153, 153, 153],
    4: [57, 104, 115, 115, 115, 115],
    5: [46, 83, 92, 92, 92, 92],
}


@pytest.mark.parametrize("speedup", UNIFORM)
def test_uniform_ranks_are_the_papers(speedup: int) -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sides = [(96, 256, 5), (256, 512, 3)] + 4 * [(512, 512, 3)]
            self.layers = nn.ModuleList(nn.Conv2d(c, d, k, padding=k // 2) for c, d, k in sides)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    with torch.device("meta"):
        model = Convolutions()
    costs = Costs.of(Compression(model, (1, 96, 18, 18), Recipe()), factorable(model, nn.Conv2d))
    assert list(costs.uniform(speedup).values()) == UNIFORM[speedup]


# -- four thin convolutions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3])
def test_a_kernel_of_few_terms_comes_back_exactly(rank: int) -> None:
    torch.manual_seed(2)
    layer = nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1))
    sides = [torch.randn(n, rank) for n in layer.weight.shape]
    layer.weight.data = torch.einsum("fr,cr,hr,wr->fchw", *sides)
    found = separated(layer, rank)
    x = torch.randn(2, 4, 13, 11)
    torch.testing.assert_close(found(x), layer(x), atol=2e-3, rtol=1e-3)
    assert [tuple(part.weight.shape) for part in found] == [
        (rank, 4, 1, 1), (rank, 1, 3, 1), (rank, 1, 1, 5), (6, rank, 1, 1)
    ]  # fmt: skip


def test_weights_are_divided_by_the_speedup() -> None:
    given = of(data=False)
    found = CP(3.0).apply(given)
    for path in ("conv1", "conv2"):
        before, after = (sum(p.numel() for n, p in c.model.get_submodule(path).named_parameters() if "bias" not in n)
                         for c in (given, found))  # fmt: skip
        assert after <= before / 3
    assert found.notes["cp_ranks"] == f"conv1 {500 // 3 // 31} of 20, conv2 {25_000 // 3 // 80} of 50"
    whole = CP(rank=400).apply(given)
    assert whole.notes["cp_whole"] == "conv1, conv2"
    assert not whole.edits


# -- low rank plus sparse --------------------------------------------------------------------------------------------


def test_a_low_rank_and_a_sparse_part_are_told_apart() -> None:
    torch.manual_seed(0)
    smooth, spikes = low_rank(40, 60, 3), torch.zeros(40, 60, dtype=torch.float64)
    places = torch.randperm(2400)[:60]
    spikes.view(-1)[places] = 30 * torch.randn(60, dtype=torch.float64).sign()
    found = decomposed(smooth + spikes, torch.eye(60, dtype=torch.float64), 3, 60)
    torch.testing.assert_close(found.s != 0, spikes != 0)
    torch.testing.assert_close(found.u @ found.v, smooth, atol=1e-2, rtol=0)


def test_the_gram_matrix_gives_the_error_of_the_responses() -> None:
    given = of(Net())
    images = some_images(given.the_data("a test"), 30, 0)
    for path in ("second", "third", "hidden"):
        layer, inputs = given.model.get_submodule(path), []
        hook = layer.register_forward_hook(lambda _, args, __, inputs=inputs: inputs.append(args[0].clone()))
        given.model(images)
        hook.remove()
        difference = torch.randn_like(layer.weight)
        layer_of_difference = type(layer)(**arguments(layer))
        layer_of_difference.weight.data = difference
        expected = layer_of_difference(inputs[0]).detach().double().square()
        gram = input_gram(given.model, path, images)
        matrix = difference.double().flatten(1)
        positions = expected.numel() / len(matrix)
        assert float(((matrix @ gram) * matrix).sum()) == pytest.approx(float(expected.sum()) / positions, rel=1e-4)


def arguments(layer: nn.Module) -> dict[str, object]:
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": False}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {**{name: getattr(layer, name) for name in names}, "bias": False}


def test_data_keeps_responses_that_weights_alone_would_not() -> None:
    torch.manual_seed(0)
    weight = torch.randn(30, 50, dtype=torch.float64)
    basis = low_rank(50, 50, 50) @ torch.diag(0.8 ** torch.arange(50, dtype=torch.float64))
    gram = basis @ basis.T
    errors = []
    for metric in (gram, torch.eye(50, dtype=torch.float64)):
        left = weight - (found := decomposed(weight, metric, 5, 75)).u @ found.v - found.s
        errors.append(float(((left @ gram) * left).sum()))
        assert int((found.s != 0).sum()) == 75
        assert found.v.shape == (5, 50)
    assert errors[0] < 0.3 * errors[1]


def test_a_layer_without_inputs_is_approximated_by_its_weights() -> None:
    torch.manual_seed(0)
    weight, nothing = low_rank(20, 30, 2), torch.zeros(30, 30, dtype=torch.float64)
    found = decomposed(weight, nothing, 2, 10)
    torch.testing.assert_close(found.u @ found.v + found.s, weight, atol=1e-6, rtol=0)


def test_sums_replace_layers_and_their_zeros_stay() -> None:
    given = of(Net())
    found = GreBdec({"hidden": 0.2, "second": 0.2}, 0.05, images=64, epochs=1).apply(given)
    assert found.notes["grebdec_ranks"] == "hidden 2 of 10, second 3 of 16"
    counts = {name: int(found.model.get_parameter(name).count_nonzero()) for name in found.masks}
    assert counts == {"hidden.parts.1.weight": 20, "second.parts.1.weight": round(0.05 * 16 * 108)}
    one = GreBdec({"hidden": 0.2}, 0.05, images=64).apply(given).model.hidden
    (inner, outer), sparse = one.parts
    x = torch.randn(2, 10)
    expected = x @ (outer.weight @ inner.weight + sparse.weight).T + given.model.hidden.bias
    torch.testing.assert_close(one(x), expected, atol=1e-4, rtol=1e-4)
    assert GreBdec(0.9, images=16).apply(of(Net())).notes["grebdec_whole"].startswith("first, second, third")


# -- all -------------------------------------------------------------------------------------------------------------


STEPS = [SVD(0.5), LowRank(2.0, images=32), CP(3.0), GreBdec(0.1, images=32)]


@pytest.mark.parametrize("step", STEPS)
def test_factorised_networks_travel_as_data(step: Pass) -> None:
    given = of(Net())
    state = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    found = step.apply(given)
    assert found.edits
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.model.state_dict().items())
    packed = pack_model(found.model, edits=found.edits, hints=found.hints)
    again = unpack_model(packed.data, into=Net()).model
    x = torch.randn(2, 1, SIDE, SIDE)
    assert torch.equal(again(x), found.model(x))
    trained = found.finetuned(1)
    assert not torch.equal(trained.model(x), found.model(x))


def test_layers_that_cannot_be_replaced_are_left_alone() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2)  # reads its linear layer's weight itself
            self.once, self.tied, self.twice = (nn.Linear(16, 16) for _ in range(3))
            self.again, self.tied.weight = self.twice, nn.Linear(16, 16).weight
            self.reflected = nn.Conv2d(4, 8, 3, padding_mode="reflect", padding=1)
            self.same = nn.Conv2d(4, 8, 3, padding="same")
            self.other = nn.Linear(16, 16)
            self.other.weight = self.tied.weight

    assert list(factorable(Odd(), nn.Linear, nn.Conv2d)) == ["once"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SVD(0.5, size=0.5), "give one"),
        (lambda: SVD(1.5), "energy 1.5"),
        (lambda: SVD(size=0.0), "size 0.0"),
        (lambda: SVD(tolerance=-0.1), "tolerance -0.1"),
        (lambda: LowRank(1.0), "speedup 1.0"),
        (lambda: CP(rank=0), "rank 0"),
        (lambda: GreBdec(0.0), "rank 0.0"),
        (lambda: GreBdec({"hidden": 2.0}), "expected shares above 0"),
        (lambda: GreBdec({"hide": 0.1}).apply(of()), "no layer 'hide' to factorise; did you mean hidden"),
    ],
)
def test_settings_that_cannot_be_are_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        make()


def test_what_needs_data_refuses_without() -> None:
    for step in (SVD(tolerance=0.1), SVD(epochs=1), LowRank(), CP(epochs=1), GreBdec()):
        with pytest.raises(InvalidSetting, match="needs data"):
            step.apply(of(data=False))


def test_recipes_reach_every_setting_and_come_first() -> None:
    text = "svd(size=0.3) | lowrank(4, select=False) | cp(rank=3) | grebdec({'conv1': 0.5}, 0.1) | prune(0.5)"
    steps = passes(text)
    assert steps[:4] == [SVD(size=0.3), LowRank(4, select=False), CP(rank=3), GreBdec({"conv1": 0.5}, 0.1)]
    assert passes(text_of(steps)) == steps
    with pytest.raises(InvalidSetting, match="put svd before prune"):
        passes("prune(0.5) | svd")


def test_spectra_of_nothing_do_not_divide_by_zero() -> None:
    assert ranks_within({"a": np.zeros(3), "b": np.ones(2)}, {"a": 1, "b": 1}, {"a": 9, "b": 9}, 3) == {"a": 1, "b": 2}
    assert math.isfinite(energies(torch.zeros(4, 3, dtype=torch.float64)).sum())
