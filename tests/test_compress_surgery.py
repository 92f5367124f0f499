"""Dynamic network surgery: thresholds, which masks change and when, and weights that come back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pocketzoo as pz
from digit_tasks import digits
from pocketzoo.compress.compression import Compression
from pocketzoo.compress.passes.prune import Prune
from pocketzoo.compress.passes.surgery import Surgery, _Operation, looked_at
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import Masks, prunable
from pocketzoo.training.recipe import Recipe

SIDE = 32
NEVER = {"gamma": 1e9, "power": 2.0}  # the probability of a look is nothing after the first


def of(model: nn.Module | str = "lenet5", data: bool = True) -> Compression:
    torch.manual_seed(0)
    if isinstance(model, str):
        model = pz.create_model(model, num_classes=10, in_channels=1, resolution=SIDE)
    return Compression(model.eval(), (1, 1, SIDE, SIDE), Recipe(batch_size=16), digits() if data else None)


def zeros(weight: Tensor) -> Tensor:
    """Where a weight is +0.0, to the bit."""
    return weight.detach().view(torch.int32) == 0


def at_first(given: Compression, surgery: Surgery) -> Masks:
    """The masks before the first step."""
    model = given.model
    return {
        name: model.get_parameter(name).detach().abs() >= 0.9 * own for name, own in surgery.thresholds(model).items()
    }


def test_a_weight_goes_below_a_comes_back_above_b_and_stays_as_it_is_between() -> None:
    weight = torch.tensor([0.5, -0.5, 0.89, 0.95, -0.95, 1.05, 1.05, -1.2, 1.2])
    before = torch.tensor([True, False, True, True, False, True, False, False, True])
    after = torch.tensor([False, False, False, True, False, True, False, True, True])
    assert torch.equal(looked_at(before, weight, 1.0), after)
    assert torch.equal(looked_at(before, 3 * weight, 3.0), after)


def test_thresholds_are_mean_and_deviation_of_what_is_not_zero() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.data = torch.tensor([[1.0, -3.0, 0.0], [2.0, -2.0, 0.0]])  # mean 2, deviation sqrt(1/2)
    layer.bias.data = torch.tensor([0.5, 9.0])
    model = nn.Sequential(layer, nn.Linear(2, 2))
    assert Surgery({"0": 4.0}).thresholds(model) == {"0.weight": pytest.approx(2 + 4 * 0.5**0.5)}
    assert Surgery({"0": -9.0}).thresholds(model) == {"0.weight": 0.0}
    assert list(Surgery(1.0, biases=True).thresholds(model)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_every_weight_learns_from_the_gradient_at_the_masked_ones() -> None:
    """Eq. 2 and 3 by hand for y = (W * T) x, with a pruned weight that the data ask for."""
    torch.manual_seed(1)
    wanted = torch.tensor([[2.0, 0.0, -1.5]])
    x = torch.randn(20, 3)
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[0.1, 1.2, -1.4]])
    whole, mask = layer.weight.detach().clone(), torch.tensor([[False, True, True]])
    operation = _Operation(layer, {}, {"weight": 1.0})
    operation.begin(layer)
    assert torch.equal(operation.masks["weight"], mask)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, weight_decay=0.02)
    history = []
    for step in range(60):
        optimizer.zero_grad()
        ((layer(x) - x @ wanted.T).square().mean() + 0.02 * operation.decay(layer)).backward()
        optimizer.step()
        looks = step % 3 == 0
        operation.after_step(layer, ["weight"] if looks else [])

        residual = x @ (whole * mask - wanted).T  # [20, 1]
        whole = whole - 0.05 * (2 * residual.T @ x / len(x) + 0.02 * whole)
        if looks:
            for i, value in enumerate(whole[0].abs().tolist()):
                mask[0, i] = False if value < 0.9 else True if value >= 1.1 else mask[0, i]
        torch.testing.assert_close(operation.weights["weight"], whole)
        assert torch.equal(operation.masks["weight"], mask)
        torch.testing.assert_close(layer.weight.detach(), whole * mask)
        assert torch.equal(zeros(layer.weight), ~mask)
        history.append(mask.clone())
    assert mask.tolist() == [[True, False, True]]  # the wrongly pruned one is back, the useless one is gone
    assert len({tuple(own[0].tolist()) for own in history}) == 3  # first the one went or came, then the other
    torch.testing.assert_close(layer.weight.detach(), wanted, atol=0.1, rtol=0)


def test_weights_come_back_in_a_training() -> None:
    given = of()
    surgery = Surgery(1.0, epochs=2, lr=0.1, turns=False)
    first = at_first(given, surgery)
    found = surgery.apply(given)
    back = sum(int((found.masks[name] & ~mask).sum()) for name, mask in first.items())
    gone = sum(int((~found.masks[name] & mask).sum()) for name, mask in first.items())
    assert back > 0
    assert gone > 0
    for name, weight in prunable(found.model).items():
        assert torch.equal(zeros(weight), ~found.masks[name])
        assert weight.device == found.masks[name].device == torch.device("cpu")
    assert all(int(zeros(weight).sum()) == 0 for weight in prunable(given.model).values())


@pytest.mark.parametrize("settings", [NEVER, {"stop": 0.01}])
def test_masks_rest_when_nobody_looks(settings: dict[str, float]) -> None:
    given = of()
    surgery = Surgery(1.0, epochs=1, lr=0.1, turns=False, **settings)  # type: ignore[arg-type]
    found = surgery.apply(given)
    assert all(torch.equal(found.masks[name], mask) for name, mask in at_first(given, surgery).items())


def test_looks_become_rarer() -> None:
    """With gamma 1 and power 1 a mask is looked at with probability 1 / (1 + step)."""
    looks: list[int] = []

    class Counting(_Operation):
        def after_step(self, model: nn.Module, awake: list[str]) -> None:  # type: ignore[override]
            looks.append(len(awake))
            super().after_step(model, awake)

    names = [f"l{i}" for i in range(30)]
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = model, nn.Linear(SIDE * SIDE, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1)) + 0 * sum(layer.weight.sum() for layer in self.layers.values())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketzoo.compress.passes.surgery._Operation", Counting)
        settings = {f"layers.{name}": 0.0 for name in names}
        Surgery(settings, epochs=5, gamma=1.0, stop=1.0).apply(of(Net()))  # 4 steps an epoch
    expected = [len(names) / (1 + step) for step in range(1, 20)]
    assert len(looks) == 20
    assert looks[-1] == 0  # nobody could train with what the last step's look gives
    assert sum(looks) == pytest.approx(sum(expected), rel=0.3)  # 78, deviation 7
    assert sum(looks[:5]) > 2 * sum(looks[-5:])


def test_convolutions_have_their_turn_first() -> None:
    steps: list[dict[str, float]] = []

    class Watched(Compression):
        def finetuned(self, epochs: int, lr: float | None = None, **hooks: object) -> Compression:
            steps.append({name: int((~zeros(weight)).sum()) for name, weight in prunable(self.model).items()})
            return super().finetuned(epochs, lr, **hooks)

    given = of()
    watched = Watched(**{name: getattr(given, name) for name in given.__dataclass_fields__})
    surgery = Surgery({"conv1": 0.0, "conv2": 1.0, "hidden": 2.0}, epochs=1, lr=0.1)
    found = surgery.apply(watched)
    sizes = {name: weight.numel() for name, weight in prunable(given.model).items()}
    first, second = steps
    assert all(first[name] < sizes[name] for name in ("conv1.weight", "conv2.weight"))
    assert first["hidden.weight"] == sizes["hidden.weight"] > second["hidden.weight"]
    left = {name: int((~zeros(weight)).sum()) for name, weight in prunable(found.model).items()}
    assert [left[name] for name in ("conv1.weight", "conv2.weight")] == [
        second[name] for name in ("conv1.weight", "conv2.weight")
    ]
    assert left["classifier.weight"] == sizes["classifier.weight"]
    assert set(found.masks) == {"conv1.weight", "conv2.weight", "hidden.weight"}


def test_what_was_pruned_before_may_come_back_where_there_is_surgery_and_nowhere_else() -> None:
    before = Prune(0.9, scope="layer").apply(of("lenet_300_100"))
    found = Surgery({"hidden1": -30.0}, epochs=2, lr=0.2).apply(before)
    assert bool((found.masks["hidden1.weight"] & ~before.masks["hidden1.weight"]).any())
    for name in ("hidden2.weight", "classifier.weight"):
        assert torch.equal(found.masks[name], before.masks[name])
        assert torch.equal(zeros(found.model.get_parameter(name)), ~before.masks[name])


class Rows(nn.Module):
    """An image read row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SIDE, 12, batch_first=True)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


def test_recurrent_layers_and_biases() -> None:
    found = Surgery(0.5, epochs=1, lr=0.1, biases=True).apply(of(Rows()))
    assert set(found.masks) == {name for name, _ in found.model.named_parameters()}
    for name, parameter in found.model.named_parameters():
        assert torch.equal(zeros(parameter), ~found.masks[name])
        assert 0 < int(found.masks[name].sum()) < parameter.numel()
    trained = found.finetuned(1, 0.1)  # later trainings keep the promise
    assert all(
        torch.equal(zeros(parameter), ~found.masks[name]) for name, parameter in trained.model.named_parameters()
    )


def test_the_seed_decides() -> None:
    given = of("lenet_300_100")
    one, again = (Surgery(1.0, epochs=1, gamma=0.1).apply(given) for _ in range(2))
    assert all(torch.equal(mask, again.masks[name]) for name, mask in one.masks.items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Surgery(epochs=0),
        lambda: Surgery(gamma=-1.0),
        lambda: Surgery(power=-1.0),
        lambda: Surgery(stop=0.0),
        lambda: Surgery(stop=1.5),
    ],
)
def test_settings_that_cannot_be_are_named(make: Callable[[], Surgery]) -> None:
    with pytest.raises(InvalidSetting, match="surgery: epochs"):
        make()


def test_surgery_needs_data_and_layers_that_are_there() -> None:
    with pytest.raises(InvalidSetting, match="surgery needs data"):
        Surgery().apply(of(data=False))
    with pytest.raises(InvalidSetting, match="no layer 'conv9'"):
        Surgery({"conv9": 1.0}).apply(of())
