"""What a search may vary: a proportion per channel group, the family's choices, and the resolution when asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna

from ..errors import BudgetTooSmall, InvalidSetting, UntraceableModel
from ..graph.channel_graph import ChannelGraph
from ..zoo import registry
from ..zoo.architecture import Architecture
from .budget import Budget, human_costs
from .latency import model_of, priced
from .projection import least, project, smallest_share

LOWEST, HIGHEST = 0.4, 2.5  # proportions relative to the default width; only their ratios matter
RESOLUTION = "resolution"
CHOICE, WIDTH = "choice", "width"  # prefixes of Optuna's parameter names


@dataclass(frozen=True)
class Candidate:
    """One network that meets the budget, with the share of the tightest limit that it spends and why not more."""

    architecture: Architecture
    share: float
    reason: str
    params: int
    macs: int
    latency_ms: float | None = None  # predicted, under a budget of milliseconds


Structure = dict[str, Any]  # choice -> option


class Space:
    """The networks that a search of `base` under `budget` may visit; every one of them meets the budget.

    Widths go in multiples of `multiple` where a group has as many channels.

    Options with which no network of the family fits are left out before anything is sampled. Raises BudgetTooSmall
    when nothing is left, OutsideCalibration when the device's model prices none of them, and UntraceableModel when no
    channel group can vary.
    """

    def __init__(self, base: Architecture, budget: Budget, resolutions: Sequence[int] = (), multiple: int = 1) -> None:
        self.base = base.with_widths(None)
        self.budget, self.multiple = budget, multiple
        self.latency = model_of(budget)
        self._graphs: dict[str, ChannelGraph] = {}
        self._family = None if base.is_foreign else registry.find(base.family)[0]
        options = _options(self.base, resolutions)
        self.cheapest = self._find_cheapest(options)
        self.options = {choice: self._reachable(choice, options[choice]) for choice in options}

    @cached_property
    def uniform(self) -> Candidate:
        """All groups scaled by one factor: the family's own width multiplier, projected to the budget."""
        return self.candidate(self.default_structure, {})

    @property
    def default_structure(self) -> Structure:
        """The base's own options, where they are within reach."""
        return {
            choice: own if (own := _option(self.base, choice)) in options else self.cheapest[choice]
            for choice, options in self.options.items()
        }

    @property
    def default_parameters(self) -> dict[str, float | str]:
        """The uniform network as Optuna's parameters."""
        structure = self._fitting(self.default_structure)
        widths = {f"{WIDTH} {name}": 1.0 for name in self._graph(self._applied(structure)).groups}
        return {f"{CHOICE} {choice}": str(option) for choice, option in structure.items()} | widths

    def suggest(self, trial: optuna.Trial) -> Candidate:
        """Ask Optuna for a structure and proportions; the network nearest to them within the budget."""
        structure = {}
        for choice, options in self.options.items():
            label = trial.suggest_categorical(f"{CHOICE} {choice}", [str(option) for option in options])
            structure[choice] = next(option for option in options if str(option) == label)
        structure = self._fitting(structure)
        proportions = {
            name: trial.suggest_float(f"{WIDTH} {name}", LOWEST, HIGHEST, log=True)
            for name in self._graph(self._applied(structure)).groups
        }
        return self.candidate(structure, proportions)

    def candidate(self, structure: Structure, proportions: dict[str, float]) -> Candidate:
        """The projected network; groups without a proportion take 1."""
        arch = self._applied(self._fitting(structure))
        graph = self._graph(arch)
        ratios = np.array([proportions.get(name, 1.0) for name in graph.groups])
        projected = project(priced(graph, self.latency), ratios, self.budget)
        costs = graph.price_many(projected.widths, ("params", "macs")).iloc[0]
        widths = dict(zip(graph.groups, projected.widths[0].tolist(), strict=True))
        return Candidate(
            arch.with_widths(widths),
            float(projected.share[0]),
            projected.reason[0],
            int(costs["params"]),
            int(costs["macs"]),
            None if self.latency is None else float(self.latency.predict(graph, projected.widths)[0]),
        )

    def _fitting(self, structure: Structure) -> Structure:
        """The structure, with choices set to their cheapest option, first to last, until its narrowest network fits."""
        for choice in [None, *structure]:
            structure = structure if choice is None else {**structure, choice: self.cheapest[choice]}
            if self._smallest_share(structure) <= 1:
                break
        return structure

    def _find_cheapest(self, options: dict[str, tuple[Any, ...]]) -> Structure:
        """Each choice's cheapest option, the other choices as in the base; all of them together must fit."""
        own = {choice: _option(self.base, choice) for choice in options}
        cheapest = {}
        for choice, several in options.items():
            shares = [self._smallest_share({**own, choice: option}) for option in several]
            cheapest[choice] = several[shares.index(min(shares))]
        if self._smallest_share(cheapest) > 1:
            graph = self._graph(self._applied(cheapest))
            if self.latency is not None:
                self.latency.predict(graph, [list(graph.steps.values())])  # says which operator it cannot price
            costs = human_costs(least(priced(graph, self.latency), self.budget))
            raise BudgetTooSmall(
                f"{self.budget} is below what {self.base.family} can reach: its narrowest network costs {costs};"
                " raise the budget or take a smaller model"
            )
        return cheapest

    def _reachable(self, choice: str, options: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(option for option in options if self._smallest_share({**self.cheapest, choice: option}) <= 1)

    def _smallest_share(self, structure: Structure) -> float:
        try:
            return smallest_share(priced(self._graph(self._applied(structure)), self.latency), self.budget)
        except InvalidSetting:  # two options that the family does not combine
            return float("inf")

    def _applied(self, structure: Structure) -> Architecture:
        arch = self.base
        for choice, option in structure.items():
            if choice == RESOLUTION:
                arch = replace(arch, resolution=option)
            elif self._family is not None:
                settings = registry.with_choice(dict(arch.settings), self._family.defaults, choice, option)
                arch = arch.with_settings(**settings)
        return arch

    def _graph(self, arch: Architecture) -> ChannelGraph:
        if arch.key not in self._graphs:
            graph = arch.graph(multiple=self.multiple)
            if not graph.groups:
                frozen = ", ".join(f"{name} ({why})" for name, why in graph.frozen.items())
                raise UntraceableModel(f"{arch.family} has no channels whose number can vary: {frozen}")
            self._graphs[arch.key] = graph
        return self._graphs[arch.key]


def _options(base: Architecture, resolutions: Sequence[int]) -> dict[str, tuple[Any, ...]]:
    choices = {} if base.is_foreign else dict(registry.find(base.family)[0].choices)
    if resolutions:
        choices[RESOLUTION] = tuple(resolutions)
    return {choice: tuple(dict.fromkeys([*options, _option(base, choice)])) for choice, options in choices.items()}


def _option(base: Architecture, choice: str) -> Any:
    """The option that the base itself has."""
    if choice == RESOLUTION:
        return base.resolution
    name, _, index = choice.partition("[")
    setting = base.settings[name]
    return setting[int(index.rstrip("]"))] if index else setting
