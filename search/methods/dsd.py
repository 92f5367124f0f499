"""Dense-sparse-dense training (Han et al. 2017, arXiv:1607.04381), and the widths it suggests."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import Tensor

from ...errors import InvalidSetting
from ...graph.sparsity import Masks, apply_masks, counts, hold, largest_per_layer, magnitudes
from .method import Proposal, Task
from .surviving import DERIVED, check_sparsity, epochs_of, sparsity_of, surviving

LEAST, MOST = 0.25, 0.5  # of the paper's sparsities
RATE = 0.1  # of the learning rate, in the final dense phase (section 2)


@dataclass(frozen=True)
class DenseSparseDense:
    """Every layer trains without its smallest weights, then with all of them again at a tenth of the rate.

    `sparsity`: share of each layer's weights that is away in the sparse phase, 0: what the budget asks for, within the
    paper's 25 to 50 %. `epochs`: of each of the two phases, 0: a quarter of the recipe's. The network as given is the
    first dense phase; the sparse one has the recipe's rate, without a warm-up; the final dense weights go on.

    One sparsity for all layers would mean one proportion for all widths. So what survives is read at the end: the
    weights that are then at least as large as their layer's threshold in the sparse phase (Algorithm 1's lambda).
    `layers` has both: the sparse phase's counts, and how many `used` and the `used_density` at the end.
    """

    sparsity: float = DERIVED
    epochs: int = 0

    def __post_init__(self) -> None:
        check_sparsity("dsd", self.sparsity)
        if self.epochs < 0:
            raise InvalidSetting(f"dsd: {self.epochs} epochs; expected at least 1, or 0 for a quarter of the recipe's")

    def propose(self, task: Task) -> Proposal:
        """Train sparse, train dense, and project what the final network makes use of."""
        sparsity = self.sparsity or float(np.clip(sparsity_of(task, DERIVED), LEAST, MOST))
        model = copy.deepcopy(task.model)
        before = magnitudes(model)
        masks = largest_per_layer(before, sparsity)
        thresholds = {name: _smallest(before[name], mask) for name, mask in masks.items()}
        apply_masks(model, masks)
        recipe = task.recipe.with_settings(epochs=self.epochs or max(1, task.recipe.epochs // 4), warmup=0.0)
        sparse = task.train(model, "sparse", recipe, after_step=hold(masks))
        dense = task.train(model, "dense", recipe.with_settings(lr=RATE * task.recipe.lr))
        used: Masks = {name: own >= thresholds[name] for name, own in magnitudes(model).items()}
        history = pd.concat([epochs_of(sparse, phase="sparse"), epochs_of(dense, phase="dense")], ignore_index=True)
        proposal = surviving(task, model, used, history)
        at_the_end = proposal.layers[["surviving", "density"]].set_axis(["used", "used_density"], axis=1)
        return replace(proposal, layers=counts(model, masks).join(at_the_end))


def _smallest(values: Tensor, kept: Tensor) -> float:
    """The threshold: the smallest magnitude that stays; infinite where none does."""
    return float(values[kept].min()) if kept.any() else float("inf")
