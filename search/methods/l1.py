"""L1-norm filter pruning (Li et al. 2017, arXiv:1608.08710)."""

from __future__ import annotations

from dataclasses import dataclass

from ...graph.importance import l1_importance
from ..threshold import widths_by_score
from .method import Proposal, Task


@dataclass(frozen=True)
class L1Norm:
    """Filters with the smallest L1 norm go first, in the layers that a sensitivity scan finds insensitive."""

    def propose(self, task: Task) -> Proposal:
        """Rank the channels and let one threshold meet the budget."""
        scores = l1_importance(task.graph, task.model)
        return Proposal(widths_by_score(task.graph, scores, task.budget), scores, task.model)
