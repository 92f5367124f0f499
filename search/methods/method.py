"""What every method of pruning as architecture search takes, and what it gives; and the table of all of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd
from torch import nn

from ...errors import InvalidSetting, suggestion
from ...graph.channel_graph import ChannelGraph, Scores, Widths
from ...training.data import DataSet
from ...training.evaluate import evaluate
from ...training.loop import AfterStep, ExtraLoss, History, fit
from ...training.recipe import Recipe
from ..budget import Budget


@dataclass(frozen=True)
class Task:
    """A trained network, its graph, data and the budget. Methods read it and work on copies of the model.

    Validation images choose; the test split is not a method's to read. `recipe` is how the network was trained, or
    would be.
    """

    model: nn.Module
    graph: ChannelGraph
    data: DataSet
    budget: Budget
    recipe: Recipe
    folder: Path | None = None  # for the checkpoints of the trainings that a method does
    progress: bool = False

    def train(
        self, model: nn.Module, stage: str, recipe: Recipe, *, extra_loss: ExtraLoss | None = None,
        after_step: AfterStep | None = None,
    ) -> History:  # fmt: skip
        """Train a method's copy in place; a stage of a name goes on where it was stopped. Raises DivergedTraining."""
        folder = None if self.folder is None else self.folder / stage
        return fit(model, self.data, recipe, extra_loss=extra_loss, after_step=after_step, checkpoint_dir=folder,
                   progress=self.progress)  # fmt: skip

    def accuracy(self, model: nn.Module) -> float:
        """On the validation images."""
        return evaluate(model, self.data.val, self.data.info).accuracy


@dataclass(frozen=True)
class Proposal:
    """Widths within the budget, which channels are worth keeping, and the weights that go on with them.

    `model` is of the task's structure at full width: only its kept channels travel. `history` has a row per step of
    the method, for its plot; `layers` a row per layer where the method counted weights (surviving ones and all).
    """

    widths: Widths
    scores: Scores
    model: nn.Module
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)


class Method(Protocol):
    """A frozen dataclass whose fields are the method's settings, each with a default."""

    def propose(self, task: Task) -> Proposal:
        """Find widths within the task's budget."""
        ...


@runtime_checkable
class Choosy(Protocol):
    """A method that not every network suits."""

    def check(self, graph: ChannelGraph) -> None:
        """Raise InvalidSetting for a network that does not, before anything is trained."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """A method that can take whole groups out of grouped convolutions."""

    @property
    def by_groups(self) -> bool:
        """Whether it does: its task's graph then has `whole_groups`."""
        ...


METHODS = {  # name -> module and class; the class's first line says what it does
    "l1": ("l1", "L1Norm"),
    "morphnet": ("morphnet", "MorphNet"),
    "slimming": ("slimming", "Slimming"),
    "sss": ("sss", "SparseStructureSelection"),
    "random": ("criteria", "Random"),
    "mean_activation": ("criteria", "MeanActivation"),
    "apoz": ("criteria", "APoZ"),
    "entropy": ("criteria", "Entropy"),
    "scaled_entropy": ("criteria", "ScaledEntropy"),
    "taylor": ("criteria", "Taylor"),
    "thinet": ("thinet", "ThiNet"),
    "reconstruction": ("reconstruction", "Reconstruction"),
    "amc": ("amc", "AMC"),
    "magnitude": ("magnitude", "Magnitude"),
    "snip": ("snip", "Snip"),
    "sparse_momentum": ("sparse_momentum", "SparseMomentum"),
    "dsd": ("dsd", "DenseSparseDense"),
    "ssl": ("ssl", "StructuredSparsity"),
    "guided": ("guided", "Guided"),
}


def method_named(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name, with settings as values or as text; raises InvalidSetting."""
    if name not in METHODS:
        raise InvalidSetting(f"no method {name!r}{suggestion(name, METHODS)}; there are {', '.join(METHODS)}")
    known = {own.name: own for own in fields(_class_of(name))}
    given = {}
    for key, value in (settings or {}).items():
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidSetting(f"{name} has no setting {key!r}{suggestion(key, known)}; {has}")
        given[key] = _read(f"{name}: {key}", value, known[key].default) if isinstance(value, str) else value
    made: Method = _class_of(name)(**given)
    return made


def summary(name: str) -> str:
    """What a method does, in a line."""
    return (_class_of(name).__doc__ or "").splitlines()[0]


def settings_of(name: str) -> dict[str, Any]:
    """A method's settings and their defaults."""
    return {own.name: own.default for own in fields(_class_of(name))}


def _class_of(name: str) -> Any:
    module, class_name = METHODS[name]
    return getattr(importlib.import_module(f".{module}", __package__), class_name)


def _read(what: str, text: str, default: Any) -> Any:
    """Text as a value of the default's type."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise InvalidSetting(f"{what} is {text!r}; expected true or false")
        return text.lower() == "true"
    kind = type(default)
    try:
        return kind(text)
    except ValueError:
        raise InvalidSetting(f"{what} is {text!r}; expected a value like {default!r}") from None
