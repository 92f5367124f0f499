"""The verdict on a shrinking: its weights and its widths against fresh weights, uniform widths and random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from ..errors import InvalidSetting
from ..graph.channel_graph import Widths
from ..training.data import DataSet, load_data
from ..training.folder import write_text
from ..training.recipe import Recipe
from ..training.result import Result
from ..training.saved import RESULT_NAME
from ..zoo.architecture import Architecture
from . import nearest
from .arms import Trained, Training
from .budget import Budget
from .findings import ARMS, Findings, findings
from .inherit import begin
from .methods.method import Method
from .origin import recipe_of, resolution_of
from .remaining import Remaining
from .shrink import PAGE, Shrunk, chosen_method, finetune_recipe, shrink
from .shrink_page import write_shrink_page

FOLDER, TABLE, TRAININGS = "verdict", "verdict.csv", "trainings.csv"
SEEDS = 3

WidthsOf = Callable[[Shrunk, int], Widths]


@dataclass(frozen=True)
class Verdict:
    """What the arms came to.

    `small` is the first seed's shrinking; `trainings` has a row per seed and arm, `findings` the means, the tests and
    the arm that is recommended, in a sentence.
    """

    small: Shrunk
    trainings: pd.DataFrame
    findings: Findings

    def __str__(self) -> str:
        return str(self.findings)


def found_widths(small: Shrunk, seed: int) -> Widths:
    """The method's."""
    return small.widths


def uniform_widths(small: Shrunk, seed: int) -> Widths:
    """All groups scaled by one factor that meets the budget."""
    return nearest.uniform_widths(small.origin.graph, small.budget)


def random_widths(small: Shrunk, seed: int) -> Widths:
    """Proportions between a quarter and one drawn from the seed, scaled to the budget."""
    graph = small.origin.graph
    drawn = graph.random_widths(1, seed=seed)[0] / np.array(list(graph.groups.values()))
    return nearest.nearest_widths(graph, dict(zip(graph.groups, drawn.tolist(), strict=True)), small.budget)


SCRATCH: dict[str, tuple[WidthsOf, bool]] = {  # arm -> widths, and whether it trains for as much compute as the parent
    "scratch_e": (found_widths, False),
    "scratch_b": (found_widths, True),
    "uniform": (uniform_widths, True),
    "random": (random_widths, True),
}


def verdict(
    model: Architecture | str | Path,
    data: str | Path | DataSet,
    budget: Budget | str,
    method: str | Method = "slimming",
    *,
    out: str | Path,
    seeds: int = SEEDS,
    settings: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    finetune: Recipe | None = None,
    multiple: int = 1,
    trust: Sequence[str] = (),
    progress: bool = False,
) -> Verdict:
    """Shrink as `shrink` does, from several seeds, and train the networks that the outcome must be held against.

    Arms (Liu et al. 2019, arXiv:1810.05270, section 3): the cut network fine-tuned; the same widths from fresh weights
    for the parent's epochs (Scratch-E) and for the parent's compute (Scratch-B: epochs times the ratio of MACs); one
    factor for all widths, and random widths, at the same budget and the parent's compute. Parent and method run anew
    for each of the seeds `recipe.seed`, + 1, ..., and a method's own seed moves along; a saved parent is the same for
    all. Every training has a folder and goes on there; its network is tested once. Writes verdict/verdict.csv,
    verdict/trainings.csv and index.html in `out`. Raises what `shrink` does.
    """
    if isinstance(model, nn.Module):
        raise InvalidSetting("a verdict trains from fresh weights: give the network as module:factory, not as a module")
    if seeds < 1:
        raise InvalidSetting(f"seeds is {seeds}; expected at least 1")
    dataset = data if isinstance(data, DataSet) else load_data(data, resolution=resolution_of(model, trust))
    source = dataset.name if isinstance(data, DataSet) else str(data)
    recipe = recipe or recipe_of(model, dataset)
    finetune = finetune or finetune_recipe(recipe)
    chosen = chosen_method(method, settings)
    folder, remaining = Path(out), Remaining(seeds * (1 + len(SCRATCH)), shown=progress)
    first: Shrunk | None = None
    rows: list[dict[str, Any]] = []
    correct: dict[tuple[str, int], Tensor] = {}
    for number in range(seeds):
        seed = recipe.seed + number
        own = recipe.with_settings(seed=seed)
        place = folder / FOLDER / f"seed{seed}"
        run = place / "shrink" if first else folder
        with remaining.training(f"seed {seed}: parent, method and fine-tuning", (run / RESULT_NAME).exists()):
            small = shrink(model, data, budget, seeded(chosen, number), out=run, recipe=own,
                           finetune=finetune.with_settings(seed=seed), multiple=multiple, trust=trust,
                           progress=progress)  # fmt: skip
        first = first or small
        account = Account(small, dataset)
        rows += account.shrunk(seed)
        correct["finetuned", seed] = small.correct
        for arm in SCRATCH:
            training = arm_training(arm, small, own, dataset, source, place / arm, progress)
            with remaining.training(f"seed {seed}: {ARMS[arm]}, {training.recipe.epochs} epochs", training.is_finished):
                trained = from_scratch(arm, training)
            rows.append(account.scratch(arm, seed, trained.result))
            correct[arm, seed] = trained.correct
    assert first is not None
    trainings = pd.DataFrame(rows)
    found = findings(trainings, correct)
    _write(folder, dataset, first, trainings, found)
    return Verdict(first, trainings, found)


def seeded(method: Method, number: int) -> Method:
    """The method for the seed of that number: one with a seed of its own counts up from it."""
    seed = getattr(method, "seed", None)
    return method if seed is None else replace(method, seed=seed + number)  # type: ignore[type-var]


def arm_training(
    arm: str, small: Shrunk, recipe: Recipe, data: DataSet, source: str, folder: Path, progress: bool = False
) -> Training:  # fmt: skip
    """How an arm's network is trained, by a recipe that is the parent's or as many times longer as its compute allows.

    The seed is the recipe's.
    """
    widths_of, same_compute = SCRATCH[arm]
    architecture = small.origin.at(widths_of(small, recipe.seed))
    assert architecture is not None  # only a bare module lacks one
    own = as_much_compute(recipe, small, architecture) if same_compute else recipe
    return Training(architecture, data, source, own, folder, folder, progress)


def from_scratch(arm: str, training: Training) -> Trained:
    """Train from fresh weights, drawn from the recipe's seed."""
    assert training.architecture is not None
    return training.carry_out(partial(begin, training.architecture, training.recipe.seed, None), {"verdict": arm})


def as_much_compute(recipe: Recipe, small: Shrunk, architecture: Architecture) -> Recipe:
    """The recipe with as many more epochs as the architecture has fewer MACs than the network that was shrunk."""
    ratio = small.origin.graph.price().macs / architecture.graph().price().macs
    return recipe.with_settings(epochs=max(1, round(recipe.epochs * ratio)))


@dataclass(frozen=True)
class Account:
    """Rows of one seed, with what the trainings took in forward MACs times images.

    `training_macs` are all trainings that a network's weights went through, `widths_macs` those that its widths needed
    beside them.
    """

    small: Shrunk
    data: DataSet

    def shrunk(self, seed: int) -> list[dict[str, Any]]:
        """The parent, where there is a record of it, and the fine-tuned network."""
        parent = self.small.origin.result
        rows = [self._row("finetuned", seed, self.small.result, self._before, 0)]
        return rows if parent is None else [self._row("parent", seed, parent, 0, 0), *rows]

    def scratch(self, arm: str, seed: int, result: Result) -> dict[str, Any]:
        """A network from fresh weights."""
        return self._row(arm, seed, result, 0, self._before if SCRATCH[arm][0] is found_widths else 0)

    @property
    def _before(self) -> int:
        """The trainings of parent and method; a parent without a record counts as nothing."""
        parent = self.small.origin.result
        return self.small.method_macs + (0 if parent is None else self._spent(parent))

    def _row(self, arm: str, seed: int, result: Result, before: int, widths_macs: int) -> dict[str, Any]:
        return {
            "arm": arm, "seed": seed, "test": result.accuracy["test"], "validation": result.accuracy["validation"],
            "macs": int(result.costs["macs"]), "params": int(result.costs["params"]), "epochs": result.recipe.epochs,
            "training_macs": before + self._spent(result), "widths_macs": widths_macs,
        }  # fmt: skip

    def _spent(self, result: Result) -> int:
        images, size = len(self.data.train), min(result.recipe.batch_size, len(self.data.train))
        return int(result.costs["macs"]) * result.recipe.epochs * (images // size * size)


def _write(folder: Path, data: DataSet, first: Shrunk, trainings: pd.DataFrame, found: Findings) -> None:
    write_text(folder / FOLDER / TRAININGS, trainings.to_csv(index=False))
    write_text(folder / FOLDER / TABLE, found.table.to_csv(index=False))
    assert first.origin.architecture is not None
    title = f"Verdict: {first.origin.architecture.family} on {data.name}, {first.budget}"
    write_shrink_page(folder / PAGE, title, f"{first}\n\n{found}", first.origin.graph.groups, first.widths,
                      first.history, trainings)  # fmt: skip
