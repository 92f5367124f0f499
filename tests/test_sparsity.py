"""Masks of weights: what may go, exact counts, and proportions of groups from what is left."""

import pytest
import torch
from torch import Tensor, nn

import pocketzoo as pz
from digit_tasks import task_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import (
    apply_masks,
    counts,
    hold,
    largest,
    largest_per_layer,
    prunable,
    surviving_mass,
    surviving_proportions,
    top,
)
from pocketzoo.search.methods.magnitude import Magnitude
from pocketzoo.search.methods.surviving import fresh, sparsity_of
from pocketzoo.search.nearest import nearest_widths


class Residual(nn.Module):
    """stem -> + (inner -> outer), all 3x3, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (
            nn.Conv2d(1, 8, 3),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.Conv2d(6, 8, 3, padding=1),
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(x))
        return self.head(x.mean((2, 3)))


def first(weight: Tensor, share: float) -> Tensor:
    """A mask of the first `share` of each filter."""
    mask = torch.zeros(weight.shape[0], weight[0].numel(), dtype=torch.bool)
    mask[:, : round(share * mask.shape[1])] = True
    return mask.view(weight.shape)


def test_what_multiplies_may_go_and_nothing_else() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.norm = nn.LayerNorm([4, 4])
            self.memory = nn.LSTM(4, 3)
            self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
            self.up = nn.ConvTranspose2d(4, 4, 2)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.token = nn.Parameter(torch.zeros(1, 1, 4))

    assert list(prunable(Mixed())) == [
        "memory.weight_ih_l0", "memory.weight_hh_l0", "attention.in_proj_weight", "attention.out_proj.weight",
        "up.weight", "a.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("sparsity", [0, 0.1, 1 / 3, 0.5, 0.95, 0.999])
def test_exactly_so_many_weights_stay(sparsity: float) -> None:
    torch.manual_seed(0)
    scores = {"a": torch.rand(7, 3, 5, 5).to(memory_format=torch.channels_last), "b": torch.rand(11, 13)}
    masks = largest(scores, sparsity)
    n = 7 * 3 * 5 * 5 + 11 * 13
    ranked = torch.cat([own.flatten() for own in scores.values()]).sort(descending=True).values
    kept = torch.cat([scores[name][mask] for name, mask in masks.items()]).sort(descending=True).values
    assert torch.equal(kept, ranked[: round((1 - sparsity) * n)])
    apart = largest_per_layer(scores, sparsity)
    assert [int(mask.sum()) for mask in apart.values()] == [round((1 - sparsity) * 525), round((1 - sparsity) * 143)]


def test_of_equal_scores_the_first_stay() -> None:
    masks = top({"a": torch.tensor([[0.0, 2, 1], [1, 0, 1]]), "b": torch.tensor([1.0, 3])}, 4)
    assert masks["a"].tolist() == [[False, True, True], [True, False, False]]
    assert masks["b"].tolist() == [False, True]
    assert not any(mask.any() for mask in top({"a": torch.rand(3, 3)}, 0).values())


def test_dead_filters_channels_and_columns_are_counted() -> None:
    model = nn.ModuleDict({"grouped": nn.Conv2d(6, 4, (1, 3), groups=2), "up": nn.ConvTranspose2d(3, 5, 2)})
    grouped, up = torch.ones(4, 3, 1, 3, dtype=torch.bool), torch.ones(3, 5, 2, 2, dtype=torch.bool)
    grouped[0] = False  # the first filter
    grouped[2:, 1] = False  # the second channel of the second group
    grouped[:2, 0, 0, 2] = False  # one column of the first group
    up[1] = False  # transposed: an input channel
    up[:, 4] = False  # and a filter
    table = counts(model, {"grouped.weight": grouped, "up.weight": up}).set_index("layer")
    weights = 36 - 9 - 2 * 3 - 1  # the column's second weight: the first went with its filter
    assert table.loc["grouped"].tolist() == [36, weights, weights / 36, 4, 1, 6, 1, 18, 3 + 1]
    assert table.loc["up"].tolist() == [60, 60 - 20 - 8, 32 / 60, 5, 1, 3, 1, 12, 4]


def test_a_group_has_the_mean_density_of_its_makers() -> None:
    model = Residual()
    graph = pz.trace(model, (1, 1, 32, 32))
    masks = {"stem.weight": first(model.stem.weight, 2 / 9), "inner.weight": first(model.inner.weight, 1 / 4),
             "outer.weight": first(model.outer.weight, 1 / 2)}  # fmt: skip
    proportions = surviving_proportions(graph, masks)
    assert proportions == pytest.approx({"stem": (2 / 9 + 1 / 2) / 2, "inner": 1 / 4})
    del masks["outer.weight"]  # a layer without a mask is dense
    masks["inner.weight"] = first(model.inner.weight, 0)  # one that is gone leaves its group a channel
    assert surviving_proportions(graph, masks) == pytest.approx({"stem": (2 / 9 + 1) / 2, "inner": 1 / 6})


def test_the_mass_of_a_channel_is_that_of_its_makers() -> None:
    model = Residual()
    graph = pz.trace(model, (1, 1, 32, 32))
    masks = {"stem.weight": first(model.stem.weight, 1 / 3)}
    stem = model.stem.weight.detach().flatten(1)[:, :3].abs().sum(1) + model.outer.weight.detach().flatten(1).abs().sum(
        1
    )
    mass = surviving_mass(graph, model, masks)
    assert mass["stem"] == pytest.approx(stem.numpy(), rel=1e-5)
    assert mass["inner"] == pytest.approx(model.inner.weight.detach().flatten(1).abs().sum(1).numpy(), rel=1e-5)


def test_held_weights_stay_zero() -> None:
    model = Residual()
    masks = {name: first(weight, 1 / 2) for name, weight in prunable(model).items()}
    apply_masks(model, masks)
    after_step = hold(masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        model(torch.randn(2, 1, 8, 8)).square().sum().backward()
        optimizer.step()
        after_step(model, optimizer, 1, 2)
        assert all(bool((weight[~masks[name]] == 0).all()) for name, weight in prunable(model).items())
        assert all(bool((weight[masks[name]] != 0).all()) for name, weight in prunable(model).items())


def test_equal_survival_means_a_uniform_network_near_the_budget() -> None:
    task = task_of("cifar_resnet20")
    density = 1 - sparsity_of(task, 0)
    masks = {name: first(weight, density) for name, weight in prunable(task.model).items()}
    widths = nearest_widths(task.graph, surviving_proportions(task.graph, masks), task.budget)
    assert all(abs(widths[group] / width - density) <= 1.5 / width for group, width in task.graph.groups.items())
    rounded = {group: round(density * width) for group, width in task.graph.groups.items()}
    assert task.graph.price(rounded).macs == pytest.approx(task.budget.macs, rel=0.1)
    assert sparsity_of(task, 0.3) == 0.3


def test_fresh_weights_come_from_the_seed() -> None:
    torch.manual_seed(5)
    model = Residual()
    state = torch.get_rng_state()
    again = [fresh(model, seed).stem.weight for seed in (0, 0, 1)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])
    assert not torch.equal(again[0], model.stem.weight)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_a_sparsity_that_cannot_be_is_named(sparsity: float) -> None:
    with pytest.raises(InvalidSetting, match=f"magnitude: sparsity is {sparsity}"):
        Magnitude(sparsity=sparsity)
