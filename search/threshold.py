"""One threshold for all channels: the highest-scoring channels of the whole network that a budget has room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..graph.channel_graph import ChannelGraph, Scores, Widths
from .budget import Budget
from .latency import model_of, priced
from .projection import Limits

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Of a group's channels that stay whatever their scores: nothing gets past a layer of one channel, and wide layers have
# the smallest scales. Without it slimming leaves one of the 1280 channels before MobileNet v2's classifier.
FLOOR = 0.1


def widths_by_score(graph: ChannelGraph, scores: Scores, budget: Budget) -> Widths:
    """The widths at which one global threshold on the scores meets the budget, 97-100 % of it where steps allow.

    Channels are taken in steps of their group, the best first; every group keeps a tenth, or one step where the budget
    has no room for that, except that a residual branch none of whose channels is taken is removed (width 0). What the
    threshold leaves of the budget goes to the next best channels that still fit. Raises BudgetTooSmall.
    """
    limits = Limits(priced(graph, model_of(budget)), budget, cap=1.0)
    names = list(graph.groups)
    removable = np.array([name in graph.removable for name in names], dtype=bool)
    tenth = limits.rounded(np.asarray(FLOOR * limits.default, dtype=np.float64))
    least, tenth = (np.where(removable, 0, own) for own in (limits.step, tenth))
    blocks = [_blocks(scores[name], int(step)) for name, step in zip(names, limits.step, strict=True)]
    if limits.share(least[None])[0] > 1:
        limits.check_reachable()
    if limits.share(tenth[None])[0] <= 1:
        least = tenth
    order = _order(blocks, least // limits.step)
    taken = least + np.cumsum(np.eye(len(names), dtype=np.int64)[order] * limits.step, axis=0)
    paths = np.concatenate([least[None], taken])
    fits = np.flatnonzero(limits.share(paths) <= 1)
    widths = _filled(limits, paths[fits[-1]], blocks)
    return dict(zip(names, _without_stumps(graph, names, widths).tolist(), strict=True))


def _blocks(scores: Any, step: int) -> Floats:
    """Mean score of each step of channels, best first; groups tied by size only are averaged rank by rank."""
    several = list(scores.values()) if isinstance(scores, Mapping) else [scores]
    ranked = np.mean([np.sort(np.asarray(own, dtype=np.float64))[::-1] for own in several], axis=0)
    return np.asarray(ranked[: len(ranked) // step * step].reshape(-1, step).mean(axis=1))


def _order(blocks: list[Floats], starts: Ints) -> Ints:
    """Groups in the order in which their next blocks are taken, the highest score first."""
    group = np.concatenate(
        [np.full(len(own) - start, i) for i, (own, start) in enumerate(zip(blocks, starts, strict=True))]
    )
    score = np.concatenate([own[start:] for own, start in zip(blocks, starts, strict=True)])
    return np.asarray(group[np.argsort(-score, kind="stable")], dtype=np.int64)


def _filled(limits: Limits, widths: Ints, blocks: list[Floats]) -> Ints:
    """Take further blocks, the best first, until none fits; a branch that is gone stays so."""
    while True:
        more = np.flatnonzero((widths > 0) & (widths + limits.step <= limits.default))
        if not len(more):
            return widths
        grown = widths + np.diag(limits.step)[more]
        share = limits.share(grown)
        fits = share <= 1
        if not fits.any():
            return widths
        next_score = np.array([blocks[i][widths[i] // limits.step[i]] for i in more])
        widths = grown[np.argmax(np.where(fits, next_score, -np.inf))]


def _without_stumps(graph: ChannelGraph, names: list[str], widths: Ints) -> Ints:
    """A branch that one of its groups removes has no other channels either."""
    result = widths.copy()
    for branch in graph.branches:
        inside = [names.index(name) for name in branch]
        if (widths[inside] == 0).any():
            result[inside] = 0
    return result
