"""L1-norm filter pruning (Li et al. 2017, "Pruning filters for efficient ConvNets", arXiv:1608.08710)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from ...errors import InvalidSetting
from ...graph.channel_graph import Keep, Scores
from ...graph.importance import l1_importance
from ...training.evaluate import evaluate, reestimate_batchnorm
from ..latency import model_of, priced
from ..projection import Limits
from ..threshold import widths_by_score
from .activations import batch_size, drawn
from .method import Proposal, Task

RATIOS = (0.25, 0.5, 0.75)  # of a group's channels that the scan takes out
KEPT, SKIPPED, RELEASED = "pruned", "skipped", "released"


@dataclass(frozen=True)
class L1Norm:
    """Filters with the smallest L1 norm go first, in the layers that a sensitivity scan finds insensitive.

    As in section 3.2 and Figure 2, one channel group at a time loses a quarter, a half and three quarters of its
    channels, batch-norm statistics are estimated anew on `images` of the training split, and accuracy is measured on
    `images` of the validation split (drawn with `seed`): the proposal's history. A group is skipped, and keeps its
    width, when the first quarter costs more than `tolerance` of accuracy (a share of the images). As the paper does
    within a stage, the same share of every other group goes.

    Where the others would have to lose more than the three quarters that were scanned, the least sensitive of the
    skipped groups are released. The history's column `decision` says which.
    """

    tolerance: float = 0.02
    images: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise InvalidSetting(f"tolerance is {self.tolerance}; expected a share of the images between 0 and 1")
        if self.images < 1:
            raise InvalidSetting(f"images is {self.images}; expected a positive number")

    def propose(self, task: Task) -> Proposal:
        """Scan, skip the sensitive groups, and rank the channels of the others within their groups."""
        scores = l1_importance(task.graph, task.model)
        scan = self._scan(task, scores)
        first = scan[scan["ratio"] == RATIOS[0]].set_index("group")["loss"].sort_values()
        skipped = [str(group) for group in first[first > self.tolerance].index]  # the least sensitive first
        released = []
        while skipped and not _reachable(task, skipped):
            released.append(skipped.pop(0))
        decisions = {**dict.fromkeys(released, RELEASED), **dict.fromkeys(skipped, SKIPPED)}
        scan["decision"] = [decisions.get(group, KEPT) for group in scan["group"]]
        ranks = {group: _ranks(own, group in skipped) for group, own in scores.items()}
        return Proposal(widths_by_score(task.graph, ranks, task.budget), scores, task.model, scan)

    def _scan(self, task: Task, scores: Scores) -> pd.DataFrame:
        """A row for each group and ratio: channels left, accuracy, and how much less that is than without a cut."""
        train, val = (drawn(split, self.images, self.seed) for split in (task.data.train, task.data.val))
        images = task.data.info.normalise(train.images)

        def accuracy(keep: Keep) -> float:
            cut = task.graph.mask(task.model, keep)
            reestimate_batchnorm(cut, images)
            return evaluate(cut, val, task.data.info, batch_size=batch_size(val)).accuracy

        whole = accuracy({})
        rows = []
        for group, width in task.graph.groups.items():
            step = task.graph.steps[group]
            for ratio in RATIOS:
                left = max(step, round((1 - ratio) * width / step) * step)
                now = accuracy({group: _best(scores[group], left)})
                rows.append({"group": group, "ratio": ratio, "width": left, "accuracy": now, "loss": whole - now})
        return pd.DataFrame(rows)


def _reachable(task: Task, skipped: list[str]) -> bool:
    """Whether the budget is met with these groups whole and no other below what the scan has left of it."""
    limits = Limits(priced(task.graph, model_of(task.budget)), task.budget, cap=1.0)
    least = limits.rounded(np.asarray((1 - RATIOS[-1]) * limits.default))
    whole = np.isin(list(task.graph.groups), skipped)
    return bool(limits.share(np.where(whole, limits.default, least)[None])[0] <= 1)


def _best(scores: Any, left: int) -> Any:
    """The indices of the highest scores, in order; of every layer where a group is tied by size only."""
    if isinstance(scores, Mapping):
        return {layer: _best(own, left) for layer, own in scores.items()}
    return np.sort(np.argsort(-scores, kind="stable")[:left]).tolist()


def _ranks(scores: Any, skipped: bool) -> Any:
    """Scores as ranks from 0 (exclusive) to 1, so that one threshold takes the same share of every group.

    Those of a skipped group lie above all others.
    """
    if isinstance(scores, Mapping):
        return {layer: _ranks(own, skipped) for layer, own in scores.items()}
    return (rankdata(scores, "ordinal") / len(scores)) + skipped
