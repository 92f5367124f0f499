"""Budgets met by construction: proportions in, widths out that fit every limit and spend what they can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import BudgetTooSmall
from .budget import Budget, human_costs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CAP = 4.0  # no group grows beyond this many times its default width
ENOUGH = 0.97  # of the tightest limit
GRID, ROUNDS = 64, 3  # multipliers priced at once, and how often the gap between two of them is divided again
STRIDES = (64, 16, 4, 1)

WITHIN = "within 97-100 %"
NO_STEP = "no single step fits"
CAPPED = "width cap"


class Priced(Protocol):
    """What a projection asks of a ChannelGraph."""

    @property
    def groups(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def steps(self) -> Mapping[str, int]: ...  # noqa: D102
    def valid(self, widths: Ints) -> Bools: ...  # noqa: D102
    def price_many(self, widths: Ints, columns: tuple[str, ...]) -> pd.DataFrame: ...  # noqa: D102


@dataclass(frozen=True)
class Projected:
    """Widths [N, G] within the budget, the share of the tightest limit that each spends, and why it is not more."""

    widths: Ints
    share: Floats
    reason: tuple[str, ...]


def project(graph: Priced, proportions: npt.ArrayLike, budget: Budget, cap: float = CAP) -> Projected:
    """The widths nearest to the proportions [N, G], or [G], that meet the budget.

    A proportion is relative to the group's default width; only their ratios matter. First the largest uniform
    multiplier whose rounded widths fit, then what is left is spent a step of a group at a time, the step that distorts
    the proportions least first. Raises BudgetTooSmall when not even the narrowest network fits.
    """
    limits = Limits(graph, budget, cap)
    ratios = np.atleast_2d(np.asarray(proportions, dtype=np.float64))
    if ratios.shape[1] != len(limits.default) or not (np.isfinite(ratios) & (ratios > 0)).all():
        raise ValueError(f"proportions are [N, {len(limits.default)}] positive numbers, not {ratios.shape}")
    limits.check_reachable()
    targets = _largest_multiplier(limits, ratios)
    widths = np.stack([limits.fill(limits.rounded(target), target) for target in targets])
    share = limits.share(widths)
    return Projected(widths, share, tuple(limits.reason(w, s) for w, s in zip(widths, share, strict=True)))


def least(graph: Priced, budget: Budget) -> dict[str, float]:
    """Costs of the narrowest network (every group at one step) in the columns that the budget limits."""
    return Limits(graph, budget, CAP).least()


def smallest_share(graph: Priced, budget: Budget) -> float:
    """The share of the tightest limit that the narrowest network takes; above 1, nothing fits."""
    limits = Limits(graph, budget, CAP)
    return float(limits.share(limits.step[None])[0])


class Limits:
    """A graph under a budget: widths between one step and the cap, priced against the limits."""

    def __init__(self, graph: Priced, budget: Budget, cap: float) -> None:
        self.graph = graph
        self.budget = budget
        limits = budget.limits
        self.columns = tuple(limits)
        self.limits = np.array(list(limits.values()), dtype=np.float64)
        self.default = np.array(list(graph.groups.values()), dtype=np.int64)
        self.step = np.array([graph.steps[name] for name in graph.groups], dtype=np.int64)
        self.top = np.maximum(self.step, np.floor(cap * self.default / self.step).astype(np.int64) * self.step)

    def costs(self, widths: Ints) -> Floats:
        """[N, G] -> [N, limits]."""
        return self.graph.price_many(widths, self.columns).to_numpy(dtype=np.float64)

    def share(self, widths: Ints) -> Floats:
        """[N, G] -> the largest cost / limit of each; infinite where a constraint of the graph is broken."""
        share = (self.costs(widths) / self.limits).max(axis=1)
        return np.where(self.graph.valid(widths), share, np.inf)

    def rounded(self, targets: Floats) -> Ints:
        """Nearest multiples of the steps, within one step and the cap."""
        steps = np.floor(targets / self.step + 0.5).astype(np.int64) * self.step
        return np.asarray(np.clip(steps, self.step, self.top))

    def least(self) -> dict[str, float]:
        """Costs of the narrowest network by column."""
        return dict(zip(self.columns, self.costs(self.step[None])[0].tolist(), strict=True))

    def check_reachable(self) -> None:
        """Raise BudgetTooSmall when not even the narrowest network fits."""
        if self.share(self.step[None])[0] > 1:
            raise BudgetTooSmall(
                f"{self.budget} is below what the model can reach: the narrowest network costs"
                f" {human_costs(self.least())}; raise the budget or take a smaller model or resolution"
            )

    def fill(self, widths: Ints, target: Floats) -> Ints:
        """Spend what is left: first steps that raise the share, then, below 97 %, also those that cost nothing.

        A limit on peak memory is set by a few layers; growing the others would leave the proportions for no gain.
        """
        widths = self._grow(widths, target, stride=1, spending=True)
        for stride in STRIDES:
            widths = self._grow(widths, target, stride=stride, spending=False)
        return widths

    def _grow(self, widths: Ints, target: Floats, stride: int, spending: bool) -> Ints:
        moves = np.diag(self.step * stride)
        while True:
            share = self.share(widths[None])[0]
            if not spending and share >= ENOUGH:
                return widths
            single = self.share(widths + moves)
            fits = (single <= 1) & (widths + moves.diagonal() <= self.top)
            if spending:
                fits &= single > share
            if not fits.any():
                return widths
            nearest = np.argsort((widths + moves.diagonal()) / target, kind="stable")
            order = nearest[fits[nearest]]
            together = widths + np.cumsum(moves[order], axis=0)  # one step each for the first 1, 2, ... of them
            widths = together[np.flatnonzero(self.share(together) <= 1)[-1]]

    def reason(self, widths: Ints, share: float) -> str:
        """Why no more of the budget is spent."""
        if share >= ENOUGH:
            return WITHIN
        capped = widths >= self.top
        beyond = self.share(widths + np.diag(self.step))
        return CAPPED if (beyond[capped] <= 1).any() else NO_STEP


def _largest_multiplier(limits: Limits, ratios: Floats) -> Floats:
    """[N, G] -> real widths at the largest multiplier of each row whose rounded widths fit.

    A whole grid is priced at once and the gap above the best of it divided again: unlike bisection this needs no cost
    to be monotone and no multiplier to be valid.
    """
    wanted = ratios * limits.default
    low = (limits.step / wanted).min(axis=1) / 2  # every group rounds to one step
    high = (limits.top / wanted).max(axis=1)  # every group is at its cap
    rows = np.arange(len(ratios))
    for _ in range(ROUNDS):
        grid = np.geomspace(low, high, GRID, axis=1)  # [N, GRID]
        widths = limits.rounded(grid[:, :, None] * wanted[:, None, :])
        fits = limits.share(widths.reshape(-1, wanted.shape[1])).reshape(grid.shape) <= 1
        fits[:, 0] = True  # known from the round before
        best = GRID - 1 - fits[:, ::-1].argmax(axis=1)
        low, high = grid[rows, best], grid[rows, np.minimum(best + 1, GRID - 1)]
    return np.asarray(low[:, None] * wanted)
