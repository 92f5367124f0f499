"""Magnitude pruning (Han et al. 2015, arXiv:1506.02626), of single weights to whole filters (Mao et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...errors import InvalidSetting
from ...graph.sparsity import Masks, apply_masks, magnitudes
from ..compression import Compression
from ..granularity import by_weight, check_granularity, masks_for
from .sensitivity import NOTE, scan, tolerated

SCHEDULES = ("oneshot", "iterative")
SCOPES = ("global", "layer", "sensitivity")

Step = Callable[[Compression, float], Compression]  # pruned as far as it should be after that part of the rounds


@dataclass(frozen=True)
class Prune:
    """Set the smallest weights to zero and train what is left, at once or in several rounds.

    `sparsity`: the share of the prunable weights that goes, or a mapping from layers to their shares; layers that it
    does not name stay whole. `scope`: global compares all weights, layer takes the share from each layer, sensitivity
    prunes each layer alone to see how much may go of it (at most `sparsity`) until the accuracy falls by `tolerance`;
    the scan is in the notes. `granularity` is explained in `compress.granularity`; blocks compete by mean magnitude.
    """

    sparsity: float | Mapping[str, float] = 0.9
    schedule: str = "oneshot"
    scope: str = "global"
    granularity: str = "fine"
    rounds: int = 5  # of the iterative schedule
    epochs: int = 0  # of training after each round
    lr: float | None = None  # of these trainings; None: the recipe's
    tolerance: float = 0.01  # accuracy that a layer may cost, before training

    def __post_init__(self) -> None:
        given = self.sparsity.values() if isinstance(self.sparsity, Mapping) else [self.sparsity]
        if wrong := [share for share in given if not 0 <= share < 1]:
            raise InvalidSetting(f"prune: sparsity is {wrong[0]}; expected a share from 0 to below 1")
        for name, known in (("schedule", SCHEDULES), ("scope", SCOPES)):
            if getattr(self, name) not in known:
                raise InvalidSetting(f"prune: {name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        check_granularity("prune", self.granularity)
        if self.rounds < 1 or self.epochs < 0 or self.tolerance < 0:
            raise InvalidSetting(
                f"prune: {self.rounds} rounds with {self.epochs} epochs each, tolerance {self.tolerance}; expected at"
                " least 1, 0 and 0"
            )
        if isinstance(self.sparsity, Mapping) and self.scope == "sensitivity":
            raise InvalidSetting("prune: sparsity names the layers' shares already; leave out scope=sensitivity")

    def apply(self, compression: Compression) -> Compression:
        """Find out how much goes of what, and let it go."""
        if self.scope == "sensitivity" and not isinstance(self.sparsity, Mapping):
            table = scan(compression, self.granularity, self.sparsity)
            compression = compression.changed(notes={**compression.notes, NOTE: table})
            goal: float | dict[str, float] = by_weight(compression.model, tolerated(table, self.tolerance))
        elif self.scope == "layer" or isinstance(self.sparsity, Mapping):
            goal = by_weight(compression.model, self.sparsity)
        else:
            goal = self.sparsity

        def step(compression: Compression, progress: float) -> Compression:
            now: float | dict[str, float] = (
                {name: gone_at(share, progress) for name, share in goal.items()}
                if isinstance(goal, dict)
                else gone_at(goal, progress)
            )
            scores = magnitudes(compression.model)
            return pruned(compression, masks_for(compression.model, scores, now, self.granularity))

        rounds = self.rounds if self.schedule == "iterative" else 1
        return in_rounds(compression, step, rounds, self.epochs, self.lr)


def in_rounds(compression: Compression, step: Step, rounds: int, epochs: int, lr: float | None) -> Compression:
    """Prune and train that often."""
    for number in range(1, rounds + 1):
        compression = step(compression, number / rounds).finetuned(epochs, lr)
    return compression


def gone_at(sparsity: float, progress: float) -> float:
    """What is gone after a part of the rounds, each of which keeps the same share of what the one before left."""
    return 1 - math.pow(1 - sparsity, progress)


def pruned(compression: Compression, masks: Masks) -> Compression:
    """With only the weights of these masks, and without those that were gone before."""
    before = compression.masks
    masks = {**before, **{name: mask & before[name] if name in before else mask for name, mask in masks.items()}}
    model = compression.copied()
    apply_masks(model, masks)
    return compression.changed(model=model, masks=masks)
