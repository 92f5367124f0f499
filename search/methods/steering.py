"""A penalty's strength that brings a network's cost down a path while it is trained, and the record of it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from ...training.loop import Epoch
from ...training.recipe import Recipe

STRENGTH, ROWS = "penalty_strength", "penalty_rows"  # buffers of the model
KEPT = 200  # rows of the record at most, whatever the number of steps
EVERY = 10  # steps between looks at the cost, each of which waits for the device
RAMP = 0.7  # of the training in which the cost comes down to its goal
DOUBLING = 0.1  # of the training in which the strength may double or halve


class Steering:
    """Grows the strength while the network costs more than the path says, and lets it fall while it costs less.

    Costs are shares of the budget; the path falls from the first to `goal` by the same factor each step. The strength
    and the record are buffers of the model while it is trained, and so part of a checkpoint.
    """

    def __init__(self, columns: Sequence[str], recipe: Recipe, first: float, goal: float) -> None:
        self.columns = ("step", "strength", *columns)
        self.recipe, self.first, self.goal = recipe, first, goal

    def attach(self, model: nn.Module) -> None:
        """Begin with no strength and an empty record."""
        device = next(model.parameters()).device
        model.register_buffer(STRENGTH, torch.zeros((), dtype=torch.float64, device=device))
        model.register_buffer(ROWS, torch.zeros(KEPT, len(self.columns), dtype=torch.float64, device=device))

    def detach(self, model: nn.Module, epochs: Sequence[Epoch]) -> pd.DataFrame:
        """The record, with the loss and the validation accuracy of each row's epoch; the model is as it was."""
        rows = model.get_buffer(ROWS).cpu().numpy()
        delattr(model, STRENGTH)
        delattr(model, ROWS)
        table = pd.DataFrame(rows[rows[:, 0] > 0], columns=self.columns).astype({"step": int})
        own = [epochs[(step - 1) * len(epochs) // table["step"].max()] for step in table["step"]]
        return table.assign(loss=[e.loss for e in own], val_accuracy=[e.val_accuracy for e in own])

    def due(self, done: int, steps: int) -> bool:
        """Whether to look at the cost after this step."""
        return done == 1 or done == steps or done % self._every(steps) == 0

    def steer(self, model: nn.Module, share: float, done: int, steps: int, size: float) -> None:
        """After a look: the living network costs this share of the budget.

        `size` is the sum of strength times learning rate that ends the average of what is penalised: the first strength
        would do so in the whole training, were there no other gradient.
        """
        strength = model.get_buffer(STRENGTH)
        if strength == 0:
            strength.fill_(size / sum(self.recipe.lr_at(step, steps) for step in range(steps)))
            return
        path = self.first * (self.goal / self.first) ** min(1, done / (RAMP * steps))
        up = 1 if share > path else -1
        strength *= 2 ** (up * min(0.5, self._every(steps) / (DOUBLING * steps)))

    def note(self, model: nn.Module, done: int, steps: int, values: Sequence[float]) -> None:
        """A row of the record; of several that fall together the last stays."""
        row = [done, float(model.get_buffer(STRENGTH)), *values]
        model.get_buffer(ROWS)[(done - 1) * KEPT // steps] = torch.tensor(row, dtype=torch.float64)

    @staticmethod
    def strength(model: nn.Module) -> Tensor:
        """What the penalty is weighted with now, a scalar."""
        return model.get_buffer(STRENGTH).float()

    @staticmethod
    def _every(steps: int) -> int:
        return max(1, min(EVERY, steps // KEPT))
