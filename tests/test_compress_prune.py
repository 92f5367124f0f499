"""Magnitude pruning: how many weights stay, which ones, alone and in blocks, per layer, and through trainings."""

import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import pocketzoo as pz
from digit_tasks import digits
from pocketzoo.compress.compression import Compression, Pass
from pocketzoo.compress.passes.nm import NM
from pocketzoo.compress.passes.prune import Prune
from pocketzoo.compress.passes.sensitivity import Sensitivity, scan, tolerated
from pocketzoo.compress.recipes import passes, text_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import prunable
from pocketzoo.training.recipe import Recipe

SIDE = 32


class Rows(nn.Module):
    """An image read row by row by a convolution and two recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, (3, 5), padding=(1, 2), groups=1)
        self.lstm = nn.LSTM(6 * SIDE, 12, batch_first=True)
        self.gru = nn.GRU(12, 8, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).transpose(1, 2).flatten(2)  # [N, rows, channels * columns]
        return self.head(self.gru(self.lstm(x)[0])[0][:, -1])


def of(model: nn.Module | str, data: bool = True) -> Compression:
    torch.manual_seed(0)
    if isinstance(model, str):
        model = pz.create_model(model, num_classes=10, in_channels=1, resolution=SIDE)
    return Compression(model.eval(), (1, 1, SIDE, SIDE), Recipe(batch_size=16), digits() if data else None)


def stays(weight: Tensor) -> Tensor:
    """Where a weight is not +0.0, to the bit."""
    return weight.detach().view(torch.int32) != 0


def surviving(compression: Compression) -> dict[str, int]:
    return {name: int(stays(weight).sum()) for name, weight in prunable(compression.model).items()}


@pytest.mark.parametrize("make", [lambda: "lenet5", lambda: "cifar_resnet20", Rows])
def test_exactly_the_largest_of_all_weights_stay(make: Callable[[], nn.Module | str]) -> None:
    given = of(make(), data=False)
    before = {name: weight.detach().clone() for name, weight in prunable(given.model).items()}
    found = Prune(0.83).apply(given)
    ranked = torch.cat([weight.abs().flatten() for weight in before.values()]).sort(descending=True).values
    count = round(0.17 * len(ranked))
    assert sum(surviving(found).values()) == count
    for name, weight in prunable(found.model).items():
        expected = torch.where(before[name].abs() >= ranked[count - 1], before[name], 0.0)
        assert torch.equal(weight, expected)
        assert torch.equal(found.masks[name], stays(weight))
    assert all(torch.equal(weight, before[name]) for name, weight in prunable(given.model).items())


def test_each_layer_loses_its_own_share() -> None:
    given = of(Rows())
    sizes = {name: weight.numel() for name, weight in prunable(given.model).items()}
    assert surviving(Prune(0.6, scope="layer").apply(given)) == {name: round(0.4 * n) for name, n in sizes.items()}
    own = Prune({"lstm": 0.75, "gru.weight_hh_l0": 0.5, "head": 0.9}).apply(given)
    assert surviving(own) == {
        "conv.weight": 6 * 15,  # not named
        "lstm.weight_ih_l0": 4 * 12 * 6 * SIDE // 4,
        "lstm.weight_hh_l0": 4 * 12 * 12 // 4,
        "gru.weight_ih_l0": 3 * 8 * 12,
        "gru.weight_hh_l0": 3 * 8 * 8 // 2,
        "head.weight": 8,
    }
    assert set(own.masks) == {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "gru.weight_hh_l0", "head.weight"}


def by_hand(layer: nn.Module, granularity: str) -> list[Tensor]:
    """The blocks of a layer's weight, each a mask of it, found one weight after another."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    blocks: dict[tuple[int, ...], Tensor] = {}
    transposed = isinstance(layer, nn.ConvTranspose2d)
    per_group = weight.shape[0] // getattr(layer, "groups", 1)
    for place in torch.ones_like(weight).nonzero().tolist():
        first, second, *inside = place
        group = first // per_group
        other = group * weight.shape[1] + second  # the second side counts within the group
        kernel = (other, first) if transposed else (first, other)
        keys = {"fine": (*place,), "vector": (*kernel, *inside[:-1]), "kernel": kernel, "filter": kernel[:1]}
        key = keys[granularity]
        blocks.setdefault(key, torch.zeros_like(weight, dtype=torch.bool))[tuple(place)] = True
    return list(blocks.values())


LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, (3, 5)),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 5), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, (2, 3), groups=2),
    "conv1d": lambda: nn.Conv1d(3, 5, 4),
    "linear": lambda: nn.Linear(7, 5),
}


@pytest.mark.parametrize("granularity", ["fine", "vector", "kernel", "filter"])
@pytest.mark.parametrize("kind", LAYERS)
def test_whole_blocks_stay_or_go(kind: str, granularity: str) -> None:
    torch.manual_seed(1)
    layer = LAYERS[kind]()
    blocks = by_hand(layer, granularity)
    size = {"fine": 1, "vector": layer.weight.shape[-1], "kernel": math.prod(layer.weight.shape[2:])}
    if kind == "linear":
        size = dict.fromkeys(size, 1)
    assert {int(block.sum()) for block in blocks} == {size.get(granularity, layer.weight.numel() // len(blocks))}
    best = sorted(blocks, key=lambda block: float(layer.weight.detach()[block].abs().sum()), reverse=True)
    expected = torch.stack(best[: round(0.4 * len(blocks))]).any(0)
    model = nn.Sequential(layer)
    found = Prune(0.6, scope="layer", granularity=granularity).apply(Compression(model, (1,), Recipe()))
    assert torch.equal(stays(found.model[0].weight), expected)  # type: ignore[index]


def test_blocks_of_all_layers_compete_by_their_means_and_fit() -> None:
    given = of("lenet5", data=False)
    found = Prune(0.8, granularity="filter").apply(given)
    filters = []
    for name, weight in prunable(given.model).items():
        for mine, left in zip(weight.detach().flatten(1), stays(prunable(found.model)[name]).flatten(1), strict=True):
            assert bool(left.all()) or not bool(left.any())
            filters.append((float(mine.abs().mean()), len(mine), bool(left.any())))
    filters.sort(reverse=True)
    allowed, total = round(0.2 * sum(size for _, size, _ in filters)), 0
    for _, size, left in filters:
        total += size
        assert left == (total <= allowed)


def test_what_was_pruned_before_stays_so() -> None:
    first = Prune(0.9).apply(of("lenet_300_100"))
    again = Prune(0.5).apply(first)
    assert surviving(again) == surviving(first)
    assert all(torch.equal(again.masks[name], mask) for name, mask in first.masks.items())
    mixed = Prune({"classifier": 0.9}).apply(NM().apply(of("lenet_300_100")))
    assert set(mixed.masks) == {"hidden1.weight", "hidden2.weight", "classifier.weight"}
    assert surviving(mixed) == {"hidden1.weight": 150 * 1024, "hidden2.weight": 15000, "classifier.weight": 100}


class Watched(Compression):
    """Tells of every training."""

    def finetuned(self, epochs: int, lr: float | None = None, **hooks: object) -> Compression:
        SEEN.append((surviving(self), epochs, lr))
        return super().finetuned(epochs, lr, **hooks)


SEEN: list[tuple[dict[str, int], int, float | None]] = []


def test_rounds_take_the_same_share_of_what_is_left_and_train() -> None:
    SEEN.clear()
    given = of("lenet5")
    watched = Watched(**{name: getattr(given, name) for name in given.__dataclass_fields__})
    found = Prune(0.875, schedule="iterative", rounds=3, epochs=1, lr=0.01).apply(watched)
    n = sum(weight.numel() for weight in prunable(given.model).values())
    assert [sum(left.values()) for left, _, _ in SEEN] == [round(n / 2), round(n / 4), round(n / 8)]
    assert {(epochs, lr) for _, epochs, lr in SEEN} == {(1, 0.01)}
    assert sum(surviving(found).values()) == round(n / 8)
    one = Prune(0.875).apply(given)
    assert any(not torch.equal(found.masks[name], mask) for name, mask in one.masks.items())  # the training mattered
    assert all(torch.equal(stays(weight), found.masks[name]) for name, weight in prunable(found.model).items())


def test_recurrent_weights_stay_zero_while_they_train() -> None:
    found = Prune(0.7, scope="layer", epochs=1).apply(of(Rows()))
    for name, weight in prunable(found.model).items():
        assert torch.equal(stays(weight), found.masks[name])
    x = torch.randn(2, 1, SIDE, SIDE)
    whole = Rows()
    whole.load_state_dict(found.model.state_dict())
    torch.testing.assert_close(found.model(x), whole.eval()(x))  # recurrent layers compute with what was pruned


def test_a_scan_prunes_one_layer_at_a_time() -> None:
    given = of("lenet5")
    table = scan(given)
    assert table["layer"].unique().tolist() == ["conv1", "conv2", "hidden", "classifier"]
    whole = given.accuracy()
    assert set(table[table["sparsity"] == 0]["accuracy"]) == {whole}
    model = given.copied()
    weight = model.get_parameter("conv2.weight")
    smallest = weight.detach().abs().flatten().argsort()[: weight.numel() - round(0.1 * weight.numel())]
    weight.data.flatten()[smallest] = 0
    [told] = table[(table["layer"] == "conv2") & (table["sparsity"] == 0.9)]["accuracy"]
    assert told == given.accuracy(model)
    noted = Sensitivity().apply(given)
    pd.testing.assert_frame_equal(noted.notes["sensitivity"], table)
    assert noted.model is given.model


def test_each_layer_goes_as_far_as_the_accuracy_bears() -> None:
    table = pd.DataFrame(
        [("a", 0.0, 0.9), ("a", 0.5, 0.89), ("a", 0.7, 0.85), ("a", 0.9, 0.9), ("b", 0.0, 0.9), ("b", 0.5, 0.2)],
        columns=["layer", "sparsity", "accuracy"],
    )
    assert tolerated(table, 0.02) == {"a": 0.5, "b": 0.0}  # beyond the first fall nothing counts
    assert tolerated(table, 0.05) == {"a": 0.9, "b": 0.0}
    given = of("lenet5")
    found = Prune(0.8, scope="sensitivity", tolerance=0.03).apply(given)
    bearable = tolerated(scan(given, most=0.8), 0.03)
    assert found.notes["sensitivity"]["sparsity"].max() == 0.8
    sizes = {name: weight.numel() for name, weight in prunable(given.model).items()}
    assert surviving(found) == {name: round((1 - bearable[name[:-7]]) * n) for name, n in sizes.items()}


@pytest.mark.parametrize("kind", ["conv", "grouped", "linear", "transposed"])
def test_of_m_inputs_in_a_row_the_n_largest_stay(kind: str) -> None:
    torch.manual_seed(2)
    layer = {
        "conv": lambda: nn.Conv2d(8, 3, (3, 5)), "grouped": lambda: nn.Conv2d(16, 6, 3, groups=2),
        "linear": lambda: nn.Linear(12, 5), "transposed": lambda: nn.ConvTranspose2d(8, 3, 2),
    }[kind]()  # fmt: skip
    weight = layer.weight.detach().clone()
    found = NM(2, 4).apply(Compression(nn.Sequential(layer), (1,), Recipe())).model[0].weight.detach()  # type: ignore[index]
    inputs = 0 if kind == "transposed" else 1
    for before, after in zip(weight.split(4, inputs), found.split(4, inputs), strict=True):
        olds, news = (part.movedim(inputs, -1).reshape(-1, 4) for part in (before, after))
        for old, new in zip(olds, news, strict=True):
            best = old.abs().argsort()[2:]
            expected = torch.zeros(4)
            expected[best] = old[best]
            assert torch.equal(new, expected)
            assert stays(new).sum() == 2


def test_layers_that_no_pattern_fits_stay_whole_and_are_named() -> None:
    found = NM(epochs=1).apply(of("lenet5"))
    assert found.notes["nm_whole"] == "conv1, hidden"  # 1 and 50 * 5 * 5 inputs
    assert surviving(found) == {
        "conv1.weight": 20 * 25, "conv2.weight": 50 * 20 * 25 // 2, "hidden.weight": 500 * 1250,
        "classifier.weight": 5000 // 2,
    }  # fmt: skip
    recurrent = NM().apply(of(Rows()))
    assert surviving(recurrent)["lstm.weight_hh_l0"] == 4 * 12 * 12 // 2
    assert surviving(recurrent)["gru.weight_ih_l0"] == 3 * 8 * 12 // 2


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Prune(1.0), "sparsity is 1.0"),
        (lambda: Prune({"a": -0.1}), "sparsity is -0.1"),
        (lambda: Prune(scope="everywhere"), "expected one of global, layer, sensitivity"),
        (lambda: Prune(schedule="now"), "expected one of oneshot, iterative"),
        (lambda: Prune(granularity="row"), "expected one of fine, vector, kernel, filter"),
        (lambda: Prune(rounds=0), "0 rounds"),
        (lambda: Prune({"a": 0.5}, scope="sensitivity"), "leave out scope=sensitivity"),
        (lambda: NM(4, 4), "4:4"),
        (lambda: Sensitivity("row"), "sensitivity: granularity is 'row'"),
    ],
)
def test_settings_that_cannot_be_are_named(make: Callable[[], Pass], said: str) -> None:
    with pytest.raises(InvalidSetting, match=said):
        make()


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidSetting, match="no layer 'conv3'; did you mean"):
        Prune({"conv3": 0.5}).apply(of("lenet5"))


def test_what_needs_data_refuses_without() -> None:
    for step in (Prune(scope="sensitivity"), Prune(epochs=1), NM(epochs=1), Sensitivity()):
        with pytest.raises(InvalidSetting, match="needs data"):
            step.apply(of("lenet5", data=False))


def test_recipes_reach_every_setting() -> None:
    text = "prune({'conv1': 0.3, 'hidden': 0.9}, schedule=iterative, granularity=vector) | nm(1, 4)"
    steps = passes(text)
    assert steps == [Prune({"conv1": 0.3, "hidden": 0.9}, "iterative", granularity="vector"), NM(1, 4)]
    assert passes(text_of(steps)) == steps


def test_pruning_starts_from_copies() -> None:
    given = of("lenet5")
    state = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    for step in (Prune(0.5, epochs=1), Prune(0.5, scope="sensitivity"), NM(epochs=1), Sensitivity()):
        step.apply(replace(given))
    assert all(torch.equal(tensor, state[name]) for name, tensor in given.model.state_dict().items())
