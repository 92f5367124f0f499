"""run_search: from a budget to a trained, saved and compared network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from ..errors import InvalidBudget, InvalidRun
from ..training.data import DataSet
from ..training.folder import FINGERPRINT
from ..training.recipe import Recipe
from ..zoo.architecture import Architecture
from .budget import Budget
from .evaluators import TRAIN
from .outcome import Study
from .plan import SCREEN, Plan
from .single import search_budget
from .sweep import search_budgets


def run_search(
    model: str | Architecture,
    data: str | Path | DataSet,
    budget: Budget | None = None,
    trials: int = 20,
    out: str | Path = "runs/search",
    *,
    weights: str | Path | None = None,
    supernet: bool = False,
    evaluate: str = TRAIN,
    screen: int = SCREEN,
    finalists: int = 1,
    storage: str | BaseStorage | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    trial_recipe: Recipe | None = None,
    resume: bool = True,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    timeout: float | None = None,
    budgets: Sequence[str | float | Budget] | None = None,
    resolutions: Sequence[int] = (),
    multiple: int = 1,
    progress: bool = False,
) -> Study:
    """Find widths (and the family's own choices) that make the best of a budget; leave model and record in `out`.

    `model` is a zoo name, Architecture or `module:factory`. Every trial meets the budget by construction and is
    trained by `trial_recipe` (a quarter of `recipe`'s epochs); the best network on the validation images and the
    uniform-width one are then trained by `recipe` and tested. `weights` (a run, a safetensors file of ours or
    `hf_hub:org/repo`) lets candidates begin from a trained parent's channels; `supernet` trains such a parent first,
    made to be cut, in `out/supernet`. `evaluate` says how trials are judged: `"train"`, `"inherit"` (the parent, cut,
    untrained), or one of these after a cheaper screen, `"inherit,train"`, `"proxy:synflow,train"`: of `screen`
    candidates that the sampler proposes for a trial the best by that screen is taken. Of several `finalists`, the best
    trials, all trained to the end, the best on the validation images wins. `storage` is any Optuna URL or
    storage; several processes that give the same one, or the same `out`, share one study. `budgets` sweeps MAC limits
    (`"2M"`) or whole Budgets, each on top of `budget`. Widths go in multiples of `multiple`
    where a layer has as many channels. `timeout` in seconds ends the trials. `resume=False` refuses a
    folder with a search in it. Raises what its parts do, all of them PocketzooError.
    """
    if not resume and (Path(out) / FINGERPRINT).exists():
        raise InvalidRun(f"{out} holds a search; give another folder, or go on with it (resume)")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InvalidRun(
            "a search is shared by workers, not by accelerate launch: start the same command several times"
        )
    limits = _limits(budget, budgets)
    plan = Plan(
        model,
        data,
        next(iter(limits.values())),
        trials,
        weights=weights,
        supernet=supernet,
        evaluate=evaluate,
        screen=screen,
        finalists=finalists,
        storage=storage,
        seed=seed,
        recipe=recipe,
        trial_recipe=trial_recipe,
        resolutions=tuple(resolutions),
        multiple=multiple,
        sampler=sampler,
        pruner=pruner,
        timeout=timeout,
        progress=progress,
    )
    if budgets is None:
        return search_budget(plan, out)
    return search_budgets({name: replace(plan, budget=limit) for name, limit in limits.items()}, out)


def _limits(budget: Budget | None, budgets: Sequence[str | float | Budget] | None) -> dict[str, Budget]:
    """{name: Budget} of each search; raises InvalidBudget, also for a limit that cannot be searched for."""
    if budgets is None:
        if budget is None:
            raise InvalidBudget("a search needs a budget, for example Budget(macs='2M')")
        named = {str(budget): budget}
    else:
        named = {str(limit): _on_top(budget, limit) for limit in budgets}
        if not named:
            raise InvalidBudget("budgets is empty; expected MAC limits such as 1M,2M,4M")
    for limit in named.values():
        _ = limit.limits
    return named


def _on_top(budget: Budget | None, limit: str | float | Budget) -> Budget:
    own = limit if isinstance(limit, Budget) else Budget(macs=limit)
    return own if budget is None else budget.replaced(**own.to_dict())
