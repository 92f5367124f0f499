"""shrink: pruning as architecture search, from a network and a budget to a smaller network, trained and tested."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InvalidBudget, InvalidSetting
from ..graph.channel_graph import ChannelGraph, Keep, Widths, trace
from ..graph.price_table import COLUMNS
from ..training.data import DataSet, load_data
from ..training.evaluate import reestimate_batchnorm
from ..training.folder import open_folder, write_text, write_with
from ..training.loop import AfterStep, ExtraLoss, History
from ..training.recipe import Recipe
from ..training.result import Result
from ..training.state import load_state, state_of
from ..zoo.architecture import Architecture
from .arms import Training
from .budget import Budget
from .latency import COLUMN, model_of, priced
from .methods.method import Choosy, Grouped, Method, Proposal, Task, method_named
from .origin import Origin, graph_before, recipe_of, resolution_of
from .patterns import FILE as PATTERN
from .patterns import pattern_of
from .projection import Limits
from .shrink_page import write_shrink_page

PARENT, METHOD, FINETUNE = "parent", "method", "finetune"  # folders of the stages
PROPOSAL, WEIGHTS, PAGE = "proposal.json", "proposal.safetensors", "index.html"
STATISTICS = 2000  # training images from which a cut network takes its batch-norm statistics anew


@dataclass(frozen=True)
class Shrunk:
    """A smaller network: the module, its widths, the channels that it kept, its Result and its Architecture.

    `architecture` is None for a bare module. `accuracies` are shares of the validation images `before`, `cut` (before
    fine-tuning) and `after`; `history` and `layers` are the method's own record; `method_macs` is what the method's
    own trainings took, in forward MACs times images; `correct` which test images it gets right (bool [N]).
    """

    model: nn.Module
    widths: Widths
    keep: Keep
    result: Result
    architecture: Architecture | None
    origin: Origin
    budget: Budget
    accuracies: Mapping[str, float]
    history: pd.DataFrame
    layers: pd.DataFrame
    method_macs: int
    correct: Tensor

    def __str__(self) -> str:
        before, now = self.origin.graph.price(), self.result.costs
        steps = ", ".join(f"{when} {accuracy:.2%}" for when, accuracy in self.accuracies.items())
        return (
            f"{self.result.accuracy['test']:.2%} of the test images; of the validation images: {steps}\n"
            f"MACs {now['macs']:,.0f} of {before.macs:,} ({now['macs'] / before.macs:.1%}), "
            f"parameters {now['params']:,.0f} of {before.params:,} ({now['params'] / before.params:.1%})"
        )


@dataclass(frozen=True)
class MeteredTask(Task):
    """A Task that keeps account of what its method trains: forward MACs times images."""

    spent: list[int] = field(default_factory=list)

    def train(
        self, model: nn.Module, stage: str, recipe: Recipe, *, extra_loss: ExtraLoss | None = None,
        after_step: AfterStep | None = None,
    ) -> History:  # fmt: skip
        """As a Task does."""
        history = super().train(model, stage, recipe, extra_loss=extra_loss, after_step=after_step)
        self.spent.append(trace(model, self.graph.inputs).price().macs * history.images)
        return history


@dataclass(frozen=True)
class Found:
    """A method's proposal, and what its trainings took in forward MACs times images."""

    proposal: Proposal
    macs: int


def shrink(
    model: nn.Module | Architecture | str | Path,
    data: str | Path | DataSet,
    budget: Budget | str,
    method: str | Method = "slimming",
    *,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    finetune: Recipe | None = None,
    multiple: int = 1,
    trust: Sequence[str] = (),
    progress: bool = False,
) -> Shrunk:
    """Let a method find widths within the budget, cut the network to them and train on what is left.

    `model` is a trained module, a run's folder or file, or a name or Architecture, which `recipe` trains first.
    `budget` may be relative: `"macs=40%"`. Widths go in multiples of `multiple` where a layer has as many channels, for
    runtimes that work on blocks of them. With `out` every stage is kept there, and the same call goes on where it was
    stopped; a finished run is read. Raises what its parts do, all of them PocketzooError; BudgetTooSmall before
    anything is trained.
    """
    dataset = data if isinstance(data, DataSet) else load_data(data, resolution=resolution_of(model, trust))
    source = dataset.name if isinstance(data, DataSet) else str(data)
    recipe = recipe or recipe_of(model, dataset)
    finetune = finetune or finetune_recipe(recipe)
    chosen = chosen_method(method, settings)
    by_groups = isinstance(chosen, Grouped) and chosen.by_groups
    graph = graph_before(model, dataset, trust, multiple, by_groups)  # before a folder is begun and hours are spent
    absolute(budget, graph)
    if isinstance(chosen, Choosy):
        chosen.check(graph)
    folder = None if out is None else _opened(out, model, dataset, budget, chosen, recipe, finetune, multiple)
    origin = Origin.of(model, dataset, recipe, folder and folder / PARENT, graph, trust=trust, progress=progress)
    limit = absolute(budget, origin.graph)
    task = MeteredTask(
        _on_device(origin.model), origin.graph, dataset, limit, recipe, folder and folder / METHOD, progress
    )
    found = _found(chosen, task, folder)
    network, keep = cut(origin.graph, found.proposal)

    architecture = origin.at(found.proposal.widths)
    training = Training(architecture, dataset, source, finetune, folder, folder and folder / FINETUNE, progress)
    if (trained := training.read()) is None:
        reestimate_batchnorm(network, dataset.info.normalise(dataset.train.images[:STATISTICS]))
        validation = {"before": task.accuracy(task.model), "cut": task.accuracy(network)}
        record = {"method": repr(chosen), "budget": limit.to_dict(), "validation": validation}
        trained = training.carry_out(lambda: network, {"shrink": record})
    validation = trained.result.provenance["shrink"]["validation"]
    small = Shrunk(
        trained.model, found.proposal.widths, keep, trained.result, architecture, origin, limit,
        {**validation, "after": trained.result.accuracy["validation"]}, found.proposal.history, found.proposal.layers,
        found.macs, trained.correct,
    )  # fmt: skip
    if folder is not None and not (folder / PAGE).exists():  # a verdict's page says more
        title = f"{architecture.family if architecture else 'network'} on {dataset.name} by {chosen}, {limit}"
        write_shrink_page(folder / PAGE, title, str(small), origin.graph.groups, small.widths, small.history)
    return small


def chosen_method(method: str | Method, settings: Mapping[str, Any] | None) -> Method:
    """The method by name and settings, or as it is; raises InvalidSetting."""
    if isinstance(method, str):
        return method_named(method, settings)
    if settings:
        raise InvalidSetting(f"settings are for a method's name; {method} has its own")
    return method


def finetune_recipe(recipe: Recipe) -> Recipe:
    """How a cut network is trained on: a quarter of the epochs, at a fifth of the rate, without a warm-up."""
    return recipe.with_settings(epochs=max(1, recipe.epochs // 4), lr=recipe.lr / 5, warmup=0.0)


def absolute(budget: Budget | str, graph: ChannelGraph) -> Budget:
    """The budget in plain numbers; raises InvalidBudget for one that is met already, BudgetTooSmall below the least."""
    columns = (*COLUMNS, COLUMN)
    asked = Budget.relative(budget, dict.fromkeys(columns, 1.0)) if isinstance(budget, str) else budget
    model = model_of(asked)
    widths = np.array([list(graph.groups.values())])
    row = priced(graph, model).price_many(widths, columns if model else COLUMNS).iloc[0]
    costs = {str(column): float(value) for column, value in row.items()}
    limit = Budget.relative(budget, costs) if isinstance(budget, str) else budget
    Limits(priced(graph, model), limit, cap=1.0).check_reachable()
    if all(costs[column] <= most for column, most in limit.limits.items()):
        raise InvalidBudget(f"the network meets {limit} as it is; give less, such as half of what it costs: macs=50%")
    return limit


def cut(graph: ChannelGraph, proposal: Proposal) -> tuple[nn.Module, Keep]:
    """The proposal's network, its best channels with their weights, and which they are.

    What has no source (a method that widens a group, channels that a shuffle pairs otherwise) is drawn fresh.
    """
    narrower = {name: min(width, graph.groups[name]) for name, width in proposal.widths.items()}
    keep = graph.select(proposal.scores, narrower, strict=False)
    return graph.resize(proposal.model, proposal.widths, keep=keep), keep


def _opened(
    out: str | Path, model: nn.Module | Architecture | str | Path, data: DataSet, budget: Budget | str, method: Method,
    recipe: Recipe, finetune: Recipe, multiple: int,
) -> Path:  # fmt: skip
    if isinstance(model, nn.Module):
        raise InvalidSetting("a bare module could not be loaded again: give it as module:factory, or leave `out`")
    named = model.to_json() if isinstance(model, Architecture) else str(model)
    return open_folder(out, {
        "kind": "shrink", "model": named, "data": data.hash, "budget": str(budget), "method": repr(method),
        "recipe": asdict(recipe), "finetune": asdict(finetune), **({"multiple": multiple} if multiple != 1 else {}),
    })  # fmt: skip


def _on_device(model: nn.Module) -> nn.Module:
    """The model where trainings run; a copy when that is elsewhere, for the given one stays where it is."""
    device = Accelerator().device
    return model if device.type == "cpu" else copy.deepcopy(model).to(device)


def _found(method: Method, task: MeteredTask, folder: Path | None) -> Found:
    """The method's proposal, read where an earlier call has made it; its checkpoints go when it is there."""
    if folder is None:
        return Found(_on_cpu(method.propose(task)), sum(task.spent))
    if not (folder / PROPOSAL).exists():
        made = method.propose(task)
        write_with(folder / WEIGHTS, lambda path: save_file(state_of(made.model), path))
        tables = {"history": made.history.to_dict("list"), "layers": made.layers.to_dict("list")}
        record = {"widths": made.widths, "scores": made.scores, "macs": sum(task.spent), **tables}
        write_text(folder / PATTERN, pattern_of(task.graph, made.widths).to_json())
        write_text(folder / PROPOSAL, json.dumps(record, default=lambda numbers: np.asarray(numbers).tolist()))
        if (folder / METHOD).exists():
            shutil.rmtree(folder / METHOD)
    record = json.loads((folder / PROPOSAL).read_text(encoding="utf-8"))
    model = copy.deepcopy(task.model).cpu()
    load_state(model, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
    history, layers = pd.DataFrame(record["history"]), pd.DataFrame(record["layers"])
    return Found(Proposal(record["widths"], record["scores"], model, history, layers), record["macs"])


def _on_cpu(proposal: Proposal) -> Proposal:
    return replace(proposal, model=proposal.model.cpu())
