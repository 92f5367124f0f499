"""Plan: everything that decides what a search does, and the record that tells one search from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from ..errors import InvalidSetting
from ..training.data import DataSet, load_data
from ..training.recipe import Recipe, recipe_for
from ..training.run import fitted
from ..zoo.architecture import Architecture
from .budget import Budget
from .evaluators import TRAIN, Stages
from .inherit import SUPERNET
from .studies import PREFIX

FINAL_EPOCHS = 12
SCREEN = 10  # candidates of which one is trained
SHORT = 4  # a trial takes a quarter of the final training's epochs


@dataclass(frozen=True)
class Plan:
    """One search: what is varied, on which data, under which budget, and how networks are trained."""

    model: str | Architecture
    data: str | Path | DataSet
    budget: Budget
    trials: int
    weights: str | Path | None = None
    supernet: bool = False  # the search trains a parent to be cut
    evaluate: str = TRAIN
    screen: int = SCREEN  # candidates of a trial, where something screens them
    finalists: int = 1  # networks of the best trials that are trained to the end
    storage: str | BaseStorage | None = None
    seed: int = 0
    recipe: Recipe | None = None  # of the final trainings
    trial_recipe: Recipe | None = None
    resolutions: Sequence[int] = ()
    multiple: int = 1  # what widths go in multiples of
    sampler: optuna.samplers.BaseSampler | None = None
    pruner: optuna.pruners.BasePruner | None = None
    timeout: float | None = None  # seconds, after which no trial begins
    progress: bool = False
    _loaded: dict[int | None, DataSet] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise InvalidSetting(f"trials is {self.trials}; expected at least 1")
        if self.finalists < 1:
            raise InvalidSetting(f"finalists is {self.finalists}; expected at least 1")
        if self.multiple < 1:
            raise InvalidSetting(f"multiple is {self.multiple}; widths go in multiples of at least 1")
        if self.screen < 2:
            raise InvalidSetting(f"screen is {self.screen}; expected at least 2 candidates to choose from")
        if self.supernet and self.weights is not None:
            raise InvalidSetting("a search has one parent: give weights, or let it train a supernet, not both")
        if self.stages.inherits and not self.supernet and self.weights is None:
            raise InvalidSetting(
                f"evaluate={self.evaluate} needs a parent to inherit from: give the weights of a trained run, or have a"
                " supernet trained"
            )
        if self.resolutions and isinstance(self.data, DataSet):
            raise InvalidSetting("resolutions are searched over data given by name or path, not over a DataSet")
        if any(resolution < 1 for resolution in self.resolutions):
            raise InvalidSetting(f"resolutions are {list(self.resolutions)}; expected positive numbers of pixels")

    @cached_property
    def stages(self) -> Stages:
        """What judges the candidates; raises InvalidSetting."""
        return Stages.parse(self.evaluate)

    def data_at(self, resolution: int | None) -> DataSet:
        """The data, its images at a resolution (None: their own)."""
        if isinstance(self.data, DataSet):
            return self.data
        if resolution not in self._loaded:
            dataset = load_data(self.data, resolution=resolution)
            self._loaded[resolution] = self._loaded[dataset.resolution] = dataset
        return self._loaded[resolution]

    @property
    def data_source(self) -> str:
        """The data as the user named it."""
        return self.data.name if isinstance(self.data, DataSet) else str(self.data)

    @property
    def data_name(self) -> str:
        """What the data is called."""
        return self.data_at(self.base.resolution).name

    @cached_property
    def base(self) -> Architecture:
        """The network whose widths and choices are varied, for the data's classes, channels and resolution."""
        own = self.model.resolution if isinstance(self.model, Architecture) else None
        wanted = own or (self.resolutions[0] if self.resolutions else None)
        return fitted(self.model, self.data_at(wanted))

    @cached_property
    def final_recipe(self) -> Recipe:
        """How the best and the uniform network are trained."""
        images = len(self.data_at(self.base.resolution).train)
        return self.recipe or recipe_for(images, least_epochs=FINAL_EPOCHS, seed=self.seed)

    @cached_property
    def short_recipe(self) -> Recipe:
        """How a trial is trained."""
        epochs = max(1, self.final_recipe.epochs // SHORT)
        return self.trial_recipe or self.final_recipe.with_settings(epochs=epochs)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What may not differ between two runs of one search; the number of trials and their time may."""
        judged = {"evaluate": str(self.stages)} if str(self.stages) != TRAIN else {}
        screened = {"screen": self.screen} if self.stages.screen else {}
        parent = {SUPERNET: True} if self.supernet else {}
        stepped = {"multiple": self.multiple} if self.multiple != 1 else {}
        return {
            "kind": "search",
            "architecture": json.loads(self.base.to_json()),
            "data": self.data_at(self.base.resolution).hash,
            "budget": self.budget.to_dict(),
            "weights": None if self.weights is None else str(self.weights),
            "resolutions": list(self.resolutions),
            "seed": self.seed,
            "trial_recipe": asdict(self.short_recipe),
            "recipe": asdict(self.final_recipe),
            **judged,
            **screened,
            **parent,
            **stepped,
        }

    @property
    def study_name(self) -> str:
        """The same for every process, on any machine, that works on this search."""
        text = json.dumps(self.fingerprint, sort_keys=True)
        return f"{PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:12]}"
