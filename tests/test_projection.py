"""The projection on a small chain of layers whose costs are products written out here."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketzoo.errors import BudgetTooSmall
from pocketzoo.search.budget import Budget
from pocketzoo.search.projection import CAPPED, NO_STEP, WITHIN, least, project, smallest_share

AREAS = (64, 64, 16, 16, 4)  # of the five layers' outputs
SIDES = (3, 10)  # input channels, classes


class Chain:
    """Five 1x1 convolutions in a row and a classifier; the third comes in sevens, the second and fourth in pairs."""

    def __init__(self) -> None:
        self.groups = {"a": 8, "b": 16, "c": 35, "d": 24, "e": 11}
        self.steps = {"a": 1, "b": 2, "c": 7, "d": 2, "e": 1}

    def valid(self, widths: np.ndarray) -> np.ndarray:
        return (widths % np.array(list(self.steps.values())) == 0).all(axis=1)

    def price_many(self, widths: np.ndarray, columns: tuple[str, ...]) -> pd.DataFrame:
        w = np.concatenate([np.full((len(widths), 1), SIDES[0]), widths, np.full((len(widths), 1), SIDES[1])], axis=1)
        areas = np.array([*AREAS, 1])
        weights = w[:, :-1] * w[:, 1:]
        live = 4 * w[:, 1:-1] * np.array(AREAS)
        return pd.DataFrame(
            {
                "macs": (weights * areas).sum(axis=1),
                "params": weights.sum(axis=1),
                "peak_memory_bytes": (live[:, :-1] + live[:, 1:]).max(axis=1),
                "energy_uj": 4.6e-6 * (weights * areas).sum(axis=1),
            }
        )[list(columns)]


CHAIN = Chain()
DEFAULT = np.array(list(CHAIN.groups.values()))
STEP = np.array(list(CHAIN.steps.values()))
TOP = 4 * DEFAULT // STEP * STEP
proportions = st.lists(st.floats(0.25, 4), min_size=5, max_size=5)
budgets = st.builds(
    Budget,
    macs=st.none() | st.integers(3_000, 200_000),
    params=st.none() | st.integers(300, 30_000),
    memory=st.none() | st.integers(6_000, 60_000),
    energy=st.just("1J"),  # never binds
)


def shares(widths: np.ndarray, budget: Budget) -> np.ndarray:
    limits = budget.limits
    return (CHAIN.price_many(widths, tuple(limits)) / np.array(list(limits.values()))).max(axis=1).to_numpy()


@given(proportions, budgets)
@settings(max_examples=150, deadline=None)
def test_every_budget_is_met_and_spent(ratios: list[float], budget: Budget) -> None:
    if smallest_share(CHAIN, budget) > 1:
        with pytest.raises(BudgetTooSmall):
            project(CHAIN, ratios, budget)
        return
    projected = project(CHAIN, ratios, budget)
    [widths], [share], [reason] = projected.widths, projected.share, projected.reason
    assert CHAIN.valid(widths[None]).all()
    assert (widths >= STEP).all()
    assert (widths <= TOP).all()
    assert share == pytest.approx(shares(widths[None], budget)[0])
    assert share <= 1
    assert (reason == WITHIN) == (share >= 0.97)
    if reason != WITHIN:  # then no step of any group below its cap fits
        wider = widths + np.diag(STEP)
        assert (shares(wider, budget)[widths < TOP] > 1).all()
        assert (shares(wider, budget)[widths == TOP] <= 1).any() == (reason == CAPPED)


def test_many_candidates_are_projected_alike() -> None:
    ratios = np.exp(np.random.default_rng(0).uniform(-1.4, 1.4, (20, 5)))
    budget = Budget(macs="40k")
    together = project(CHAIN, ratios, budget)
    for i, row in enumerate(ratios):
        alone = project(CHAIN, row, budget)
        assert (together.widths[i] == alone.widths[0]).all()
        assert together.share[i] == alone.share[0]


def test_only_the_ratios_of_proportions_matter() -> None:
    ratios = np.array([1, 2, 0.5, 1.5, 0.7])
    budget = Budget(macs="40k")
    assert (project(CHAIN, ratios, budget).widths == project(CHAIN, 3 * ratios, budget).widths).all()


def test_proportions_are_kept() -> None:
    """Four times the budget in MACs is about twice every width."""
    wide = project(CHAIN, np.ones(5), Budget(macs=4 * 29_000)).widths[0]
    narrow = project(CHAIN, np.ones(5), Budget(macs=29_000)).widths[0]
    assert wide / narrow == pytest.approx(2 * np.ones(5), rel=0.25)


def test_the_tightest_limit_binds() -> None:
    alone = project(CHAIN, np.ones(5), Budget(params=1000))
    both = project(CHAIN, np.ones(5), Budget(params=1000, macs="1M"))
    assert (alone.widths == both.widths).all()


def test_a_large_budget_ends_at_the_cap() -> None:
    projected = project(CHAIN, np.ones(5), Budget(macs="1G"))
    assert (projected.widths[0] == TOP).all()
    assert projected.reason == (CAPPED,)


def test_no_step_fits() -> None:
    """The narrowest network has 3*1 + 1*2 + 2*7 + 7*2 + 2*1 + 1*10 = 45 weights; the cheapest step 3 + 2."""
    projected = project(CHAIN, np.ones(5), Budget(params=47))
    assert (projected.widths[0] == STEP).all()
    assert projected.share[0] == 45 / 47
    assert projected.reason == (NO_STEP,)
    assert project(CHAIN, np.ones(5), Budget(params=50)).reason == (WITHIN,)


def test_too_small_says_the_least() -> None:
    """[3,1,2,7,2,1,10] channels: 3*1*64 + 1*2*64 + 2*7*16 + 7*2*16 + 2*1*4 + 1*10*1 MACs."""
    assert least(CHAIN, Budget(macs="1k")) == {"macs": 192 + 128 + 224 + 224 + 8 + 10}
    with pytest.raises(BudgetTooSmall, match=r"macs=500 .* costs macs=786") as caught:
        project(CHAIN, np.ones(5), Budget(macs=500))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ratios", [[1, 1], [1, 1, 0, 1, 1], [1, 1, float("nan"), 1, 1]])
def test_wrong_proportions(ratios: list[float]) -> None:
    with pytest.raises(ValueError, match="positive numbers"):
        project(CHAIN, ratios, Budget(macs="1M"))
