"""Weights that share values: where centroids start and settle, how they are trained, and what a file makes of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pocketzoo as pz
from digit_tasks import digits
from pocketzoo.compress.compression import Compression, Pass
from pocketzoo.compress.passes.half import Half
from pocketzoo.compress.passes.kmeans import KMeans, centroids, clustered
from pocketzoo.compress.passes.product import Product, nearest_divisor
from pocketzoo.compress.passes.prune import Prune
from pocketzoo.compress.passes.residual import Residual
from pocketzoo.compress.recipes import passes, text_of
from pocketzoo.compress.tied import Codebook
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import prunable
from pocketzoo.packing.forms import PRODUCT, Books, Scaled, encode
from pocketzoo.packing.packed import pack_model, unpack_model
from pocketzoo.training.evaluate import evaluate
from pocketzoo.training.recipe import Recipe

SIDE = 32


class Rows(nn.Module):
    """An image read row by row by two recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, 12, batch_first=True)
        self.gru = nn.GRU(12, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(x.squeeze(1))[0])[0][:, -1])


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)
    )  # fmt: skip


def of(model: nn.Module | str, data: bool = True, **recipe: object) -> Compression:
    torch.manual_seed(0)
    if isinstance(model, str):
        model = pz.create_model(model, num_classes=10, in_channels=1, resolution=SIDE)
    return Compression(
        model.eval(), (1, 1, SIDE, SIDE), Recipe(**{"batch_size": 16, **recipe}), digits() if data else None
    )


def weight_of(compression: Compression, name: str) -> Tensor:
    return compression.model.get_parameter(name).detach()


def test_centroids_start_even_in_value_even_in_number_or_at_weights() -> None:
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.normal(0, 1, 9_000), [-8.0, 8.0]]).astype(np.float32)
    assert centroids(values, 5, "linear", draw) == pytest.approx([-8, -4, 0, 4, 8])
    ranked = np.sort(values)
    middles = [ranked[round((i + 0.5) / 4 * (len(ranked) - 1))] for i in range(4)]
    assert centroids(values, 4, "density", draw) == pytest.approx(middles, abs=2e-3)
    forgy = centroids(values, 300, "random", draw)
    assert len(set(forgy.tolist())) == 300
    assert set(forgy.tolist()) <= set(values.tolist())
    assert centroids(np.float32([3, 1, 3, 2]), 8, "linear", draw).tolist() == [1, 2, 3]


@pytest.mark.parametrize("init", ["linear", "density", "random"])
def test_every_weight_takes_its_nearest_level_and_levels_are_means(init: str) -> None:
    torch.manual_seed(3)
    weight = torch.randn(40, 50)
    weight[torch.rand(40, 50) < 0.5] = 0
    book = clustered(weight, 8, init, np.random.default_rng(0))
    stands = weight != 0
    assert torch.equal(book.assigned >= 0, stands)
    assert torch.equal(book.weight() != 0, stands)
    near = (weight[stands][:, None] - book.levels).abs()
    assert torch.equal(book.weight()[stands], book.levels[near.argmin(1)])
    for level in range(8):
        torch.testing.assert_close(book.levels[level], weight[book.assigned == level].mean(), atol=2e-2, rtol=0)


def test_a_level_that_nobody_takes_is_no_level() -> None:
    weight = torch.cat([torch.full((50,), -1.0), torch.linspace(0.9, 1.0, 50)])  # nothing between -1 and 0.9
    book = clustered(weight, 16, "linear", np.random.default_rng(0))
    assert book.assigned.unique().tolist() == list(range(len(book.levels)))
    few = clustered(torch.tensor([1.0, 2.0, 0.0, 2.0]), 16, "linear", np.random.default_rng(0))
    assert few.levels.tolist() == [1, 2]
    assert few.assigned.tolist() == [0, 1, -1, 1]


def test_linear_starts_find_the_large_weights() -> None:
    """Section 6.2 and figure 6: with few levels a start by density leaves no level for the few large weights."""
    torch.manual_seed(0)
    weight = torch.cat([0.1 * torch.randn(20_000), torch.tensor([2.0, -2.0])])
    draw = np.random.default_rng(0)
    largest = {init: float(clustered(weight, 4, init, draw).levels.abs().max()) for init in ("linear", "density")}
    assert largest["linear"] > 1 > largest["density"]


def test_bits_by_kind_of_layer_and_by_layer() -> None:
    found = KMeans(3, conv_bits=5).apply(of("lenet5", data=False))
    assert {name: len(book.levels) for name, book in found.codebooks.items()} == {
        "conv1.weight": 32, "conv2.weight": 32, "hidden.weight": 8, "classifier.weight": 8,
    }  # fmt: skip
    own = KMeans({"hidden": 2, "conv1": 1}).apply(of("lenet5", data=False))
    assert {name: len(book.levels) for name, book in own.codebooks.items()} == {"hidden.weight": 4, "conv1.weight": 2}
    for compression in (found, own):
        for name, book in compression.codebooks.items():
            assert torch.equal(weight_of(compression, name), book.weight())


def one_step(given: Compression, lr: float) -> tuple[Compression, dict[str, Tensor], float]:
    """A training of one step on all images, the gradients of the weights that it begins from, and its rate."""
    data = digits()
    recipe = given.recipe.with_settings(
        epochs=1, batch_size=len(data.train), momentum=0.0, weight_decay=0.0, warmup=0.0, label_smoothing=0.0,
        augment=False, clip_norm=1e9,
    )  # fmt: skip
    model = given.copied().train()
    loss = F.cross_entropy(model(data.info.normalise(data.train.images)), data.train.labels)
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return given.changed(recipe=recipe).finetuned(1, lr), gradients, lr


@pytest.mark.parametrize("make", [lambda: "lenet_300_100", Rows])
def test_a_level_moves_by_the_sum_of_its_gradients(make: Callable[[], nn.Module | str]) -> None:
    shared = KMeans(2).apply(Prune(0.5, scope="layer").apply(of(make())))
    trained, gradients, lr = one_step(shared, 0.1)
    moved = 0.0
    for name, before in shared.codebooks.items():
        after, own = trained.codebooks[name], gradients[name]
        assert torch.equal(after.assigned, before.assigned)
        for level in range(len(before.levels)):
            members = before.assigned == level
            expected = before.levels[level] - lr / int(members.sum()) * own[members].sum()  # eq. 3 by hand
            torch.testing.assert_close(after.levels[level], expected, rtol=1e-5, atol=1e-7)
        moved += float((after.levels - before.levels).abs().sum())
        assert torch.equal(weight_of(trained, name), after.weight())
    assert moved > 1e-4
    assert not any("parametrizations" in name for name in trained.model.state_dict())


def test_trained_levels_help_and_stay_few_and_zeros_stay_zero() -> None:
    data = digits(320, 100)
    given = of("lenet5", batch_size=32).changed(data=data)
    given = Prune({"hidden": 0.6}).apply(given.finetuned(5))
    rough = KMeans(1).apply(given)
    trained = KMeans(1, epochs=3).apply(given)  # at the recipe's rate
    losses = [evaluate(state.model, data.val, data.info).loss for state in (given, rough, trained)]
    assert given.accuracy() > 0.8
    assert losses[1] > losses[0] + 0.1
    assert losses[2] < losses[1] - 0.5 * (losses[1] - losses[0])
    for name, mask in given.masks.items():
        weight = weight_of(trained, name)
        assert not weight[~mask].any()
        assert len(weight[mask].unique()) == 2
    again = trained.finetuned(1)
    assert all(len(weight_of(again, name).unique()) == 3 for name in given.masks)


def test_recurrent_layers_train_and_compute_with_shared_weights() -> None:
    found = KMeans(3, epochs=1).apply(of(Rows(), lr=0.5))
    untrained = KMeans(3).apply(of(Rows()))
    assert len(found.codebooks) == 2 + 4 + 1
    for name, book in found.codebooks.items():
        assert len(weight_of(found, name).unique()) == 8
        assert not torch.equal(book.levels, untrained.codebooks[name].levels)
    fresh = Rows().eval()
    fresh.load_state_dict(found.model.state_dict())
    x = torch.randn(3, 1, SIDE, SIDE)
    assert torch.equal(found.model(x), fresh(x))


def test_divisors_nearest_by_ratio() -> None:
    assert [nearest_divisor(n, 4) for n in (784, 1250, 25, 7, 6, 32)] == [4, 5, 5, 7, 3, 4]


def test_product_quantisation_is_k_means_in_each_part() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(12, 90)
    kinds = torch.randn(3, 4, 4)  # four vectors in each of three parts
    chosen = torch.randint(4, (90, 3))
    layer.weight.data = torch.cat([kinds[part, chosen[:, part]] for part in range(3)], 1)
    noisy = layer.weight.detach() + 1e-3 * torch.randn(90, 12)
    exact = Product(2, 4).apply(Compression(nn.Sequential(layer), (1, 12), Recipe()))
    torch.testing.assert_close(weight_of(exact, "0.weight"), layer.weight.detach(), atol=1e-6, rtol=0)
    layer.weight.data = noisy
    found = Product(2, 4).apply(Compression(nn.Sequential(layer), (1, 12), Recipe()))
    for part in range(3):
        for kind in range(4):
            members = chosen[:, part] == kind
            mean = noisy[members, 4 * part : 4 * part + 4].mean(0)
            rows = weight_of(found, "0.weight")[members, 4 * part : 4 * part + 4]
            torch.testing.assert_close(rows, mean.expand_as(rows))


def test_residual_quantisation_sums_codebooks_of_what_was_left() -> None:
    torch.manual_seed(0)
    coarse, fine = 10 * torch.randn(4, 7), torch.randn(4, 7)
    layer = nn.Linear(7, 400)
    which = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(25, 1)
    layer.weight.data = coarse[which[:, 0]] + fine[which[:, 1]]
    given = Compression(nn.Sequential(layer), (1, 7), Recipe())
    errors = []
    for books in (1, 2):
        found = Residual(2, books).apply(given)
        errors.append(float((weight_of(found, "0.weight") - layer.weight).abs().max().detach()))
        hint = found.hints["0.weight"]
        assert isinstance(hint, Books)
        assert [book.vectors.shape for book in hint.books] == books * [(1, 4, 7)]  # whole rows
    assert errors[0] > 0.5
    assert errors[1] < 1e-5


@pytest.mark.parametrize("step", [Product(3, 8, epochs=1), Residual(2, 3, 8, epochs=1), Residual(3, epochs=1)])
def test_trained_vectors_are_packed_as_such(step: Pass) -> None:
    given = of(small())
    found = step.apply(given)
    names = [name for name, hint in found.hints.items() if isinstance(hint, Books)]
    assert "3.weight" in names
    for name in names:
        assert encode(found.model.get_parameter(name), found.hints[name])[0] == PRODUCT
    packed = pack_model(found.model, hints=found.hints)
    again = unpack_model(packed.data, into=given.model).model
    assert all(torch.equal(again.state_dict()[name], own) for name, own in found.model.state_dict().items())
    assert packed.tensors["3.weight"] < pack_model(given.model).tensors["3.weight"] / 2


def test_vectors_move_by_the_mean_of_their_gradients() -> None:
    shared = Product(3, 4).apply(of(small()))
    trained, gradients, lr = one_step(shared, 0.1)
    [before], [after] = shared.hints["3.weight"].books, trained.hints["3.weight"].books
    own = gradients["3.weight"].view(64, -1, 4).numpy()  # [rows, parts, length]
    for part, vector in ((0, 0), (3, 5), (127, 7)):
        members = before.indices[:, part] == vector
        expected = before.vectors[part, vector] - lr * own[members, part].mean(0)
        np.testing.assert_allclose(after.vectors[part, vector], expected, rtol=1e-5, atol=1e-7)
    assert (before.vectors != after.vectors).any()


def test_what_codebooks_would_not_make_smaller_stays_and_is_named() -> None:
    given = Prune({"0": 0.9}).apply(of(small(), data=False))
    found = Product(4, 8).apply(given)
    assert found.notes["product_whole"] == "0, 5"  # pruned; 10 vectors stand for 10 rows
    for name in ("0.weight", "5.weight"):
        assert torch.equal(weight_of(found, name), weight_of(given, name))
    both = KMeans(2).apply(found)  # takes what is left
    assert set(both.codebooks) == {"0.weight", "5.weight"}
    assert torch.equal(weight_of(both, "3.weight"), weight_of(found, "3.weight"))


def halves(tensor: Tensor) -> bool:
    return torch.equal(tensor.half().float(), tensor)


def test_all_numbers_become_halves_and_the_file_keeps_them() -> None:
    given = of("cifar_resnet20", data=False)
    found = Half().apply(KMeans({"classifier": 3}).apply(given))
    for name, tensor in found.model.state_dict().items():
        assert halves(tensor) or tensor.dtype != torch.float32
        if name != "classifier.weight":
            expected = given.model.state_dict()[name]
            assert torch.equal(tensor, expected if expected.dtype != torch.float32 else expected.half().float())
    book = found.codebooks["classifier.weight"]
    assert halves(book.levels)
    assert torch.equal(book.weight(), weight_of(found, "classifier.weight"))
    n = 16 * 16 * 9
    name = next(name for name, weight in prunable(given.model).items() if weight.numel() == n)
    assert pack_model(found.model).tensors[name] <= 2 * n + 8


def test_halves_of_codebooks_of_vectors_are_still_codebooks() -> None:
    quantised = Residual(3, 2, 8).apply(of(small(), data=False))
    found = Half().apply(quantised)
    name = "3.weight"
    assert all((book.vectors == book.vectors.astype(np.float16)).all() for book in found.hints[name].books)
    assert encode(found.model.get_parameter(name), found.hints[name])[0] == PRODUCT
    before, after = (pack_model(state.model, hints=state.hints).tensors[name] for state in (quantised, found))
    assert after < before - 0.75 * 2 * 8 * 512 * 2  # two codebooks of eight vectors for every column, two bytes less


def test_scaled_integers_and_what_no_half_can_be_stay() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, -6.0]]) * 0.1
    layer.bias.data = torch.tensor([70_000.0, 0.1])
    scales = np.array([0.1], np.float32)
    given = Compression(nn.Sequential(layer), (1, 3), Recipe(), hints={"0.weight": Scaled(scales)})
    found = Half().apply(given)
    assert found.notes["half_whole"] == "0.bias"
    assert all(torch.equal(found.model.state_dict()[name], own) for name, own in given.model.state_dict().items())


def test_codebooks_of_one_pass_do_not_disturb_the_other() -> None:
    given = of("lenet5", data=False)
    first = KMeans({"hidden": 2}).apply(given)
    both = KMeans(4).apply(first)
    assert torch.equal(both.codebooks["hidden.weight"].levels, first.codebooks["hidden.weight"].levels)
    assert len(both.codebooks) == 4
    assert not given.codebooks
    assert isinstance(both.codebooks["conv1.weight"], Codebook)
    bits = sum(math.log2(len(book.levels)) * book.assigned.numel() for book in both.codebooks.values()) / 8
    packed = pack_model(both.model)
    assert sum(packed.tensors[name] for name in both.codebooks) < bits + 4 * 16 * 4 + 200


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: KMeans(0), "0 bits"),
        (lambda: KMeans(5, conv_bits=13), "13 bits"),
        (lambda: KMeans({"conv1": 4}, conv_bits=8), "leave out conv_bits"),
        (lambda: KMeans(init="uniform"), "expected one of linear, density, random"),
        (lambda: KMeans(epochs=-1), "-1 epochs"),
        (lambda: Product(0), "product: 0 bits"),
        (lambda: Product(length=0), "vectors of 0"),
        (lambda: Residual(books=17), "17 codebooks"),
    ],
)
def test_settings_that_cannot_be_are_named(make: Callable[[], Pass], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        make()


def test_training_without_data_is_refused() -> None:
    for step in (KMeans(1, epochs=1), Product(epochs=1), Residual(epochs=1)):
        with pytest.raises(InvalidSetting, match="needs data"):
            step.apply(of(small(), data=False))


def test_recipes_reach_every_setting() -> None:
    text = "kmeans({'conv1': 8}, init=density) | product(3, length=8, epochs=1) | residual(books=3) | half"
    steps = passes(text)
    assert steps == [KMeans({"conv1": 8}, init="density"), Product(3, 8, 1), Residual(books=3), Half()]
    assert passes(text_of(steps)) == steps
