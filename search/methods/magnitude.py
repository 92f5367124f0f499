"""Unstructured magnitude pruning as architecture search (Han et al. 2015, arXiv:1506.02626; Liu et al. 2019)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pandas as pd

from ...errors import InvalidSetting
from ...graph.sparsity import apply_masks, hold, largest, magnitudes
from ...training.recipe import Recipe
from .method import Proposal, Task
from .surviving import DERIVED, check_sparsity, epochs_of, sparsity_of, surviving

RATE = 0.1  # of the learning rate that the network was trained with (Han et al. 2015, section 4.1)


@dataclass(frozen=True)
class Magnitude:
    """The smallest weights of the whole network go; what survives of each layer becomes its width.

    `sparsity`: share of all weights that goes, 0: what the budget asks for. `rounds`: 1 prunes at once; more take the
    same share of what is left in each, and train `epochs` epochs (0: a tenth of the recipe's) between two of them at
    a tenth of the recipe's rate with the pruned weights held at zero, as Han et al. do. One threshold for all layers
    is what makes layers differ; Liu et al. (arXiv:1810.05270, section 5) read architectures off the result. The
    channels of the most surviving weight go on, with all their weights.
    """

    sparsity: float = DERIVED
    rounds: int = 1
    epochs: int = 0

    def __post_init__(self) -> None:
        check_sparsity("magnitude", self.sparsity)
        if self.rounds < 1 or self.epochs < 0:
            raise InvalidSetting(
                f"magnitude: {self.rounds} rounds with {self.epochs} epochs between; expected at least 1 and 0"
            )

    def propose(self, task: Task) -> Proposal:
        """Prune, train on between rounds, and project what survives."""
        sparsity = sparsity_of(task, self.sparsity)
        model = task.model if self.rounds == 1 else copy.deepcopy(task.model)
        masks = largest(magnitudes(model), self._sparsity_after(1, sparsity))
        trained = []
        for number in range(2, self.rounds + 1):
            apply_masks(model, masks)
            history = task.train(model, f"round{number - 1}", self._recipe(task), after_step=hold(masks))
            trained.append(epochs_of(history, round=number - 1, sparsity=self._sparsity_after(number - 1, sparsity)))
            masks = largest(magnitudes(model), self._sparsity_after(number, sparsity))
        return surviving(task, model, masks, pd.concat(trained, ignore_index=True) if trained else None)

    def _sparsity_after(self, number: int, sparsity: float) -> float:
        return float(1 - (1 - sparsity) ** (number / self.rounds))

    def _recipe(self, task: Task) -> Recipe:
        epochs = self.epochs or max(1, task.recipe.epochs // 10)
        return task.recipe.with_settings(epochs=epochs, lr=RATE * task.recipe.lr, warmup=0.0)
