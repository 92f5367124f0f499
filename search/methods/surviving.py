"""The surviving-weights rule: masks of single weights become widths within a budget."""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd
import torch
from torch import nn

from ...errors import InvalidSetting
from ...graph.sparsity import Masks, counts, surviving_mass, surviving_proportions
from ...training.evaluate import device_of
from ...training.loop import History
from ..nearest import nearest_widths, uniform_widths
from .method import Proposal, Task

DERIVED = 0.0  # a setting's sparsity that stands for the budget's own


def surviving(task: Task, model: nn.Module, masks: Masks, history: pd.DataFrame | None = None) -> Proposal:
    """Widths in proportion to what survives of the layers that make each group's channels; `model` goes on."""
    widths = nearest_widths(task.graph, surviving_proportions(task.graph, masks), task.budget)
    scores = surviving_mass(task.graph, model, masks)
    model.to(device_of(task.model))  # a training may have moved it
    return Proposal(widths, scores, model, pd.DataFrame() if history is None else history, counts(model, masks))


def check_sparsity(method: str, sparsity: float) -> None:
    """Raise InvalidSetting for what is no share of the weights to take away."""
    if not 0 <= sparsity < 1:
        raise InvalidSetting(
            f"{method}: sparsity is {sparsity!r}; expected a share of the weights to take away, from 0 (what the budget"
            " asks for) to below 1"
        )


def sparsity_of(task: Task, sparsity: float) -> float:
    """The sparsity asked for, or else the budget's own: that at which the rule's widths are near the budget already.

    Layers that all keep a share d of their weights have widths of d times the default by the rule, so that d is the
    share of its channels that the uniformly narrower network within the budget has.
    """
    if sparsity != DERIVED:
        return sparsity
    uniform = uniform_widths(task.graph, task.budget)
    return 1 - sum(uniform.values()) / sum(task.graph.groups.values())


def fresh(model: nn.Module, seed: int) -> nn.Module:
    """A copy with new weights: every layer's own `reset_parameters`, drawn from the seed; others' stay as they are."""
    copied = copy.deepcopy(model).cpu()  # so that the draw is the same on every device
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for module in copied.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return copied.to(device_of(model))


def epochs_of(history: History, **columns: Any) -> pd.DataFrame:
    """A row per epoch of a training: its number, training loss and validation accuracy, with columns that name it."""
    return pd.DataFrame([
        {**columns, "epoch": i, "loss": epoch.loss, "val_accuracy": epoch.val_accuracy}
        for i, epoch in enumerate(history.epochs, 1)
    ])  # fmt: skip
