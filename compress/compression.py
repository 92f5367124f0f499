"""Compression: a model on its way through the passes, and what the packer and later passes must know of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn

from ..errors import InvalidSetting
from ..graph.sparsity import Masks, hold
from ..packing.edits import Edit, put, replaced
from ..packing.forms import Books, Hint
from ..training.data import DataSet
from ..training.evaluate import evaluate
from ..training.loop import History, fit
from ..training.recipe import Recipe
from ..zoo.architecture import Architecture
from .tied import Codebook, Shared, Ties


@dataclass(frozen=True)
class Compression:
    """The state between two passes. Passes give a new one and leave the one that they took as it is.

    `masks`, `codebooks` and the `Books` among the hints are promises that later trainings keep: a pruned weight stays
    zero, tied ones stay tied. `hints` tells the packer what numbers do not show, `edits` what was done to the
    structure.
    """

    model: nn.Module
    input_shape: tuple[int, ...]
    recipe: Recipe  # of the trainings that passes do; they set its epochs and rate
    data: DataSet | None = None
    architecture: Architecture | None = None
    edits: tuple[Edit, ...] = ()
    hints: Mapping[str, Hint] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    codebooks: Mapping[str, Codebook] = field(default_factory=dict)
    coder: str | None = None  # the only one that the packer may use; None: the smallest for each stream
    teacher: nn.Module | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # what a pass found, for the report
    progress: bool = False

    def copied(self) -> nn.Module:
        """A copy of the model for a pass to change."""
        return copy.deepcopy(self.model)

    def changed(self, **fields: Any) -> Compression:
        """With other fields."""
        return replace(self, **fields)

    def with_part(self, path: str, network: nn.Module) -> Compression:
        """With a network in a module's place, written down as an edit; what was known of its weights is forgotten."""
        model = self.copied()
        put(model, path, network)
        known = {
            field: {name: value for name, value in getattr(self, field).items() if name.rpartition(".")[0] != path}
            for field in ("hints", "masks", "codebooks")
        }
        return self.changed(model=model, edits=(*self.edits, replaced(path, network)), **known)

    def the_data(self, what: str) -> DataSet:
        """The data; raises InvalidSetting for a pass that cannot do without."""
        if self.data is None:
            raise InvalidSetting(f"{what} needs data: give data=, such as --data digits")
        return self.data

    def accuracy(self, model: nn.Module | None = None) -> float | None:
        """Of a model on the validation images; None without data."""
        if self.data is None:
            return None
        return evaluate(model or self.model, self.data.val, self.data.info).accuracy

    def finetuned(self, epochs: int, lr: float | None = None, **hooks: Any) -> Compression:
        """Trained on, keeping the promises of masks and codebooks; `hooks` go to `fit`. Raises DivergedTraining."""
        if epochs == 0:
            return self
        model = self.copied()
        recipe = self.recipe.with_settings(epochs=epochs, **({} if lr is None else {"lr": lr}))
        _, shared = self.train(model, recipe, **hooks)
        codebooks = {name: known for name, known in shared.items() if isinstance(known, Codebook)}
        books = {name: known for name, known in shared.items() if isinstance(known, Books)}
        return self.changed(model=model, codebooks=codebooks, hints={**self.hints, **books})

    def train(self, model: nn.Module, recipe: Recipe, **hooks: Any) -> tuple[History, Shared]:
        """Train a pass's own copy in place; tied weights move together, and come back as they are shared then."""
        free = {name: mask for name, mask in self.masks.items() if name not in self.codebooks}
        if free and "after_step" not in hooks:
            hooks["after_step"] = hold(free)
        ties = Ties(model, self.shared())
        history = fit(model, self.the_data("training"), recipe, teacher=self.teacher, progress=self.progress, **hooks)
        model.cpu()
        return history, ties.undo()

    def shared(self) -> Shared:
        """The weights that are put together from codebooks."""
        return {**self.codebooks, **{name: hint for name, hint in self.hints.items() if isinstance(hint, Books)}}


class Pass(Protocol):
    """A frozen dataclass whose fields are the pass's settings, the most important one first."""

    def apply(self, compression: Compression) -> Compression:
        """The compression after this pass."""
        ...
