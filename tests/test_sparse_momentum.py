"""Sparse momentum: one cycle by hand, counts that stay, and a training that is sparse throughout."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from digit_tasks import check_proposal, task_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import prunable
from pocketzoo.search.methods import sparse_momentum
from pocketzoo.search.methods.sparse_momentum import SparseMomentum, redistributed


def first(size: int, count: int) -> Tensor:
    return torch.arange(size) < count


def test_a_cycle_by_hand() -> None:
    # a: 6 of 12 weights, mean momentum 0.1; b: 4 of 10, mean momentum 0.3. Half of each goes: 3 + 2.
    # Shares 1/4 and 3/4 of 5 are 1.25 and 3.75: 1 and 3, and the one that rounding leaves goes to b.
    weights = {"a": torch.tensor([6.0, -5, 4, 3, -2, 1, *[0] * 6]), "b": torch.tensor([0.4, 0.3, -0.2, 0.1, *[0] * 6])}
    momenta = {"a": torch.tensor([0.1, -0.1, 0.1, 0.1, 0.1, -0.1, 1, 2, 3, 4, 5, -6]),
               "b": torch.tensor([0.3, 0.3, 0.3, -0.3, -6, 5, 4, 3, 2, 1])}  # fmt: skip
    masks = redistributed(weights, momenta, {"a": first(12, 6), "b": first(10, 4)}, rate=0.5)
    assert masks["a"].nonzero().flatten().tolist() == [0, 1, 2, 11]
    assert masks["b"].nonzero().flatten().tolist() == [0, 1, 4, 5, 6, 7]


def test_a_nearly_dense_layer_that_is_to_grow_loses_no_more_than_it_lacks() -> None:
    weights = {"a": torch.arange(20.0), "b": torch.arange(40.0)}
    momenta = {"a": torch.full((20,), 3.0), "b": torch.full((40,), 1.0)}
    masks = redistributed(weights, momenta, {"a": first(20, 18), "b": first(40, 20)}, rate=0.5)
    # a lacks 10 %: it loses floor(0.1 * 18) = 1, b loses 10; of these 11, a has room for 3
    assert (int(masks["a"].sum()), int(masks["b"].sum())) == (20, 18)


layers = st.lists(st.tuples(st.integers(2, 40), st.floats(0, 1), st.floats(0, 10)), min_size=1, max_size=5)


@given(layers, st.floats(0.01, 0.99), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_as_many_weights_as_before(parts: list[tuple[int, float, float]], rate: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = {str(i): torch.randn(n, generator=draw) for i, (n, _, _) in enumerate(parts)}
    momenta = {str(i): scale * torch.randn(n, generator=draw) for i, (n, _, scale) in enumerate(parts)}
    masks = {str(i): first(n, round(density * n)) for i, (n, density, _) in enumerate(parts)}
    after = redistributed(weights, momenta, masks, rate)
    assert sum(int(mask.sum()) for mask in after.values()) == sum(int(mask.sum()) for mask in masks.values())


def test_a_network_trains_with_few_weights_and_meets_the_budget() -> None:
    task = task_of("cifar_resnet20")
    proposal = SparseMomentum(sparsity=0.6).propose(task)
    check_proposal(task, proposal)
    sizes = {name: weight.numel() for name, weight in prunable(task.model).items()}
    assert proposal.layers["surviving"].sum() == sum(round(0.4 * size) for size in sizes.values())
    assert proposal.layers["density"].std() > 0.01  # they moved between layers
    assert proposal.model.state_dict().keys() == task.model.state_dict().keys()
    zeros = [int((weight == 0).sum()) for weight in prunable(proposal.model).values()]
    assert zeros == (proposal.layers["weights"] - proposal.layers["surviving"]).tolist()
    assert len(proposal.history) == task.recipe.epochs


def test_the_rate_falls_by_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    cycle = redistributed
    monkeypatch.setattr(sparse_momentum, "redistributed", lambda *given: rates.append(given[3]) or cycle(*given))
    SparseMomentum(rate=0.4).propose(task_of("lenet5", epochs=4))
    assert rates == pytest.approx([0.4 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (1, 2, 3)])


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SparseMomentum(sparsity=0.8).propose(task_of("lenet5", epochs=4))
    cycle, calls = redistributed, []

    def stop(*given: object) -> object:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return cycle(*given)  # type: ignore[arg-type]

    task = task_of("lenet5", folder=tmp_path, epochs=4)
    monkeypatch.setattr(sparse_momentum, "redistributed", stop)
    with pytest.raises(KeyboardInterrupt):
        SparseMomentum(sparsity=0.8).propose(task)
    monkeypatch.undo()
    resumed = SparseMomentum(sparsity=0.8).propose(task)
    for own, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, expected)
    assert resumed.layers.equals(whole.layers)


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(InvalidSetting, match=r"rate is 1\.5"):
        SparseMomentum(rate=1.5)
    with pytest.raises(InvalidSetting, match="needs momentum"):
        SparseMomentum().propose(task_of("lenet5", momentum=0.0))
