"""A search under one budget, from the first trial to the saved model."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
from filelock import FileLock
from optuna.trial import TrialState
from rich.console import Console

from ..training.folder import open_folder, write_text
from ..training.loop import DivergedTraining
from .evaluators import INHERIT, Untrained, evaluator
from .explore import explore, study_of
from .final import finish
from .inherit import SUPERNET, Parent, check_descent
from .objective import Objective
from .outcome import Study, candidates_table, pareto, proxies_table, trials_table
from .page import write_page
from .plan import Plan
from .screening import ScreeningSampler
from .space import RESOLUTION, Candidate, Space
from .supernet import train_supernet

LOCK = ".finish.lock"  # one process trains the final networks; the others wait and read them


def search_budget(plan: Plan, out: str | Path, parent: Parent | None = None) -> Study:
    """Search, train the best and the uniform-width network to the end, save all of it in `out`.

    `parent` is the plan's own where the caller has it already. A folder with the same search goes on where it was.
    After Ctrl-C the best network so far is trained to the end; a second Ctrl-C leaves it, to be taken up by the next
    run. Raises what `prepared` does before anything is written, BudgetTooSmall among it,
    InvalidRun for a folder that cannot be used, DivergedTraining when not one trial could be trained.
    """
    space, parent = prepared(plan, parent)
    folder = open_folder(out, plan.fingerprint)
    if parent is None and plan.supernet:
        parent = Parent.load(supernet_of(plan, folder), plan.base)
    study = study_of(plan, f"sqlite:///{folder.absolute() / 'study.db'}")
    went_through = explore(plan, study, _objective(plan, space, study, parent))
    proxies = _write_tables(study, folder)
    trained = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not went_through:
        if not trained:
            raise KeyboardInterrupt
        note = f"stopped: training the best of {len(trained)} networks to the end; Ctrl-C again leaves it"
        Console(stderr=True).print(note)
    if not trained:
        errors = [str(trial.user_attrs.get("error", "")) for trial in study.get_trials(deepcopy=False)]
        raise DivergedTraining(f"none of {len(errors)} trials could be trained; the first one's reason: {errors[0]}")
    with FileLock(folder / LOCK):
        finished = finish(plan, space, study, parent, folder)
    trials = trials_table(study)
    outcome = Study(folder, finished.best, finished.uniform, finished.difference, trials, pareto(trials), proxies)
    write_page(folder / "index.html", f"{plan.base.family} on {plan.data_name}, {plan.budget}", str(outcome), trials)
    return outcome


def prepared(plan: Plan, parent: Parent | None = None) -> tuple[Space, Parent | None]:
    """What the plan searches and what its candidates begin from, checked against each other before anything is written.

    Candidates that are judged by inheritance keep the parent's structure. The parent is None where there is none, or
    none yet. Raises BudgetTooSmall, WeightsMismatch for a parent that does not fit, UndefinedProxy.
    """
    space = Space(plan.base, plan.budget, plan.resolutions, plan.multiple)
    if plan.weights is not None and parent is None:
        parent = Parent.load(plan.weights, plan.base)
    if plan.stages.inherits:
        own = space.default_structure
        space.options = {c: options if c == RESOLUTION else (own[c],) for c, options in space.options.items()}
        check_descent(plan.base if parent is None else parent.architecture, space.uniform.architecture)
    if plan.stages.screen is not None and plan.stages.screen != INHERIT:
        evaluator(plan.stages.screen, _untrained(plan), None).score(space.uniform)
    return space, parent


def supernet_of(plan: Plan, folder: Path) -> Path:
    """The plan's parent to be cut, trained in the search's folder by the final recipe, or found there."""
    architecture = plan.base.with_widths(None)
    data = plan.data_at(architecture.resolution)
    return train_supernet(architecture, data, plan.final_recipe, folder / SUPERNET, progress=plan.progress)


def _objective(plan: Plan, space: Space, study: optuna.Study, parent: Parent | None) -> Objective:
    """What the study maximises; where candidates are screened, its sampler screens them."""
    stages, untrained = plan.stages, _untrained(plan)
    if stages.screen is not None:
        judge = evaluator(stages.screen, untrained, parent)
        study.sampler = ScreeningSampler(study.sampler, space, judge, plan.screen)
    if stages.last == INHERIT:
        return Objective(space, plan.data_at, plan.short_recipe, parent, evaluator(INHERIT, untrained, parent))
    inherited = evaluator(INHERIT, untrained, parent) if stages.inherits else None

    def expected(candidate: Candidate) -> dict[str, float]:
        scores = untrained.scores(candidate.architecture)
        return scores if inherited is None else {**scores, INHERIT: inherited.score(candidate)}

    return Objective(space, plan.data_at, plan.short_recipe, parent, expect=expected)


def _untrained(plan: Plan) -> Untrained:
    return Untrained(plan.data_at, plan.short_recipe.seed)


def _write_tables(study: optuna.Study, folder: Path) -> pd.DataFrame:
    """All tables of the trials; the proxies' correlations."""
    trials, candidates, proxies = trials_table(study), candidates_table(study), proxies_table(study)
    write_text(folder / "trials.csv", trials.to_csv(index=False))
    write_text(folder / "pareto.csv", pareto(trials).to_csv(index=False))
    if len(candidates):
        write_text(folder / "candidates.csv", candidates.to_csv(index=False))
    if len(proxies):
        write_text(folder / "proxies.csv", proxies.to_csv(index=False))
    return proxies
