"""The widths nearest to a network's proportions that a budget allows, none wider than now."""

from __future__ import annotations

from collections.abc import Mapping

from ..graph.channel_graph import ChannelGraph, Widths
from .budget import Budget
from .latency import model_of, priced
from .projection import project


def nearest_widths(graph: ChannelGraph, proportions: Mapping[str, float], budget: Budget) -> Widths:
    """The widths nearest to proportions by group that meet the budget; no group grows. Raises BudgetTooSmall."""
    ratios = [proportions[name] for name in graph.groups]
    projected = project(priced(graph, model_of(budget)), ratios, budget, cap=1.0)
    return dict(zip(graph.groups, projected.widths[0].tolist(), strict=True))


def uniform_widths(graph: ChannelGraph, budget: Budget) -> Widths:
    """The same share of every group's channels, as large as the budget allows. Raises BudgetTooSmall."""
    return nearest_widths(graph, dict.fromkeys(graph.groups, 1.0), budget)
