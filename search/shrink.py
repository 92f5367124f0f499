"""shrink: pruning as architecture search, from a network and a budget to a smaller network, trained and tested."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import InvalidBudget, InvalidSetting
from ..graph.channel_graph import COLUMNS, ChannelGraph, Keep, Widths
from ..training.data import DataSet, load_data
from ..training.evaluate import reestimate_batchnorm
from ..training.folder import open_folder, write_text, write_with
from ..training.loop import fit
from ..training.recipe import Recipe, recipe_for
from ..training.result import Result
from ..training.run import tested
from ..training.saved import save_model
from ..training.state import load_state, state_of
from ..zoo.architecture import Architecture
from .budget import Budget
from .latency import COLUMN, model_of, priced
from .methods.method import Method, Proposal, Task, method_named
from .origin import Origin, resolution_of
from .projection import Limits

PARENT, METHOD, FINETUNE = "parent", "method", "finetune"  # folders of the stages
PROPOSAL, WEIGHTS = "proposal.json", "proposal.safetensors"
STATISTICS = 2000  # training images from which a cut network takes its batch-norm statistics anew
EXAMPLES = 32  # validation images on which the ONNX file is compared with PyTorch


@dataclass(frozen=True)
class Shrunk:
    """A smaller network: the module, its widths, the channels that it kept, its Result and its Architecture.

    `architecture` is None for a bare module. `accuracies` are shares of the validation images `before`, `cut` (before
    fine-tuning) and `after`; `history` and `layers` are the method's own record.
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

    def __str__(self) -> str:
        before, now = self.origin.graph.price(), self.result.costs
        steps = ", ".join(f"{when} {accuracy:.2%}" for when, accuracy in self.accuracies.items())
        return (
            f"{self.result.accuracy['test']:.2%} of the test images; of the validation images: {steps}\n"
            f"MACs {now['macs']:,.0f} of {before.macs:,} ({now['macs'] / before.macs:.1%}), "
            f"parameters {now['params']:,.0f} of {before.params:,} ({now['params'] / before.params:.1%})"
        )


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
    trust: Sequence[str] = (),
    progress: bool = False,
) -> Shrunk:
    """Let a method find widths within the budget, cut the network to them and train on what is left.

    `model` is a trained module, a run's folder or file, or a name or Architecture, which `recipe` trains first.
    `budget` may be relative: `"macs=40%"`. With `out` every stage is kept there, and the same call goes on where it was
    stopped. Raises what its parts do, all of them PocketzooError; BudgetTooSmall before anything is trained.
    """
    dataset = data if isinstance(data, DataSet) else load_data(data, resolution=resolution_of(model, trust))
    recipe = recipe or recipe_for(len(dataset.train))
    finetune = finetune or finetune_recipe(recipe)
    chosen = method_named(method, settings) if isinstance(method, str) else method
    folder = None
    if out is not None:
        if isinstance(model, nn.Module):
            raise InvalidSetting("a bare module could not be loaded again: give it as module:factory, or leave `out`")
        named = model.to_json() if isinstance(model, Architecture) else str(model)
        folder = open_folder(out, {
            "kind": "shrink", "model": named, "data": dataset.hash, "budget": str(budget), "method": repr(chosen),
            "recipe": asdict(recipe), "finetune": asdict(finetune),
        })  # fmt: skip
    stages = {name: folder and folder / name for name in (PARENT, METHOD, FINETUNE)}
    check = lambda graph: absolute(budget, graph)  # before hours of training
    origin = Origin.of(model, dataset, recipe, stages[PARENT], check, trust=trust, progress=progress)
    limit = absolute(budget, origin.graph)
    task = Task(origin.model, origin.graph, dataset, limit, recipe, stages[METHOD], progress)
    proposal = _proposed(chosen, task, folder)
    network, keep = cut(origin.graph, proposal)
    reestimate_batchnorm(network, dataset.info.normalise(dataset.train.images[:STATISTICS]))
    accuracies = {"before": task.accuracy(origin.model), "cut": task.accuracy(network)}
    history = fit(network, dataset, finetune, checkpoint_dir=stages[FINETUNE], progress=progress)
    accuracies["after"] = history.val_accuracy
    architecture = origin.architecture and origin.architecture.with_widths(proposal.widths)
    result, _ = tested(
        network, architecture, dataset, finetune, history, dataset.name if data is dataset else str(data)
    )
    record = {"method": repr(chosen), "budget": limit.to_dict(), "validation": accuracies}
    result = replace(result, provenance={**result.provenance, "shrink": record})
    if folder is not None and architecture is not None:
        examples = dataset.info.normalise(dataset.val.images[:EXAMPLES])
        save_model(folder, network, architecture, dataset.info, result, example=examples, overwrite=True)
    return Shrunk(network, proposal.widths, keep, result, architecture, origin, limit, accuracies, proposal.history,
                  proposal.layers)  # fmt: skip


def finetune_recipe(recipe: Recipe) -> Recipe:
    """How a cut network is trained on: a quarter of the epochs, at a fifth of the rate, without a warm-up."""
    return recipe.with_settings(epochs=max(1, recipe.epochs // 4), lr=recipe.lr / 5, warmup=0.0)


def absolute(budget: Budget | str, graph: ChannelGraph) -> Budget:
    """The budget in plain numbers; raises InvalidBudget for one that is met already, BudgetTooSmall below the least."""
    timed = "latency" in str(budget)
    model = model_of(budget if isinstance(budget, Budget) else Budget(latency=1)) if timed else None
    widths = np.array([list(graph.groups.values())])
    row = priced(graph, model).price_many(widths, (*COLUMNS, COLUMN) if timed else COLUMNS).iloc[0]
    costs = {str(column): float(value) for column, value in row.items()}
    budget = Budget.relative(budget, costs) if isinstance(budget, str) else budget
    Limits(priced(graph, model), budget, cap=1.0).check_reachable()
    if all(costs[column] <= limit for column, limit in budget.limits.items()):
        raise InvalidBudget(f"the network meets {budget} as it is; give less, such as half of what it costs: macs=50%")
    return budget


def cut(graph: ChannelGraph, proposal: Proposal) -> tuple[nn.Module, Keep]:
    """The proposal's network, its best channels with their weights, and which they are.

    What has no source (a method that widens a group, channels that a shuffle pairs otherwise) is drawn fresh.
    """
    narrower = {name: min(width, graph.groups[name]) for name, width in proposal.widths.items()}
    keep = graph.select(proposal.scores, narrower, strict=False)
    return graph.resize(proposal.model, proposal.widths, keep=keep), keep


def _proposed(method: Method, task: Task, folder: Path | None) -> Proposal:
    """The method's proposal, read where an earlier call has made it."""
    if folder is None:
        return method.propose(task)
    if not (folder / PROPOSAL).exists():
        made = method.propose(task)
        write_with(folder / WEIGHTS, lambda path: save_file(state_of(made.model), path))
        tables = {"history": made.history.to_dict("list"), "layers": made.layers.to_dict("list")}
        record = {"widths": made.widths, "scores": made.scores, **tables}
        write_text(folder / PROPOSAL, json.dumps(record, default=lambda numbers: np.asarray(numbers).tolist()))
    record = json.loads((folder / PROPOSAL).read_text(encoding="utf-8"))
    model = copy.deepcopy(task.model)
    load_state(model, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
    history, layers = pd.DataFrame(record["history"]), pd.DataFrame(record["layers"])
    return Proposal(record["widths"], record["scores"], model, history, layers)
