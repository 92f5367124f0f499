"""Guided pruning: what a method found on one network shapes another (Liu et al. 2019, arXiv:1810.05270, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InvalidSetting
from ...graph.importance import l1_importance
from ..nearest import nearest_widths
from ..patterns import Pattern
from .method import Proposal, Task


@dataclass(frozen=True)
class Guided:
    """The pattern that another run has found, of any network on any data, shapes this one.

    `pattern`: a pattern's JSON file, or the folder of a shrink run. The widths nearest to it that meet the budget are
    taken; the channels of the largest L1 norm go on in them.
    """

    pattern: str = ""

    def __post_init__(self) -> None:
        if not self.pattern:
            raise InvalidSetting("guided needs a pattern: give a pattern's JSON file or the folder of a shrink run")
        Pattern.load(self.pattern)  # before anything is trained

    def propose(self, task: Task) -> Proposal:
        """Read the pattern at the depths of this network's stages, and project it."""
        proportions = Pattern.load(self.pattern).proportions(task.graph)
        widths = nearest_widths(task.graph, proportions, task.budget)
        return Proposal(widths, l1_importance(task.graph, task.model), task.model)
