"""A search under one budget, from the first trial to the saved model."""

from __future__ import annotations

from pathlib import Path

import optuna
from filelock import FileLock
from optuna.trial import TrialState
from rich.console import Console

from ..training.folder import open_folder, write_text
from ..training.loop import DivergedTraining
from .explore import explore, study_of
from .final import finish
from .inherit import Parent
from .objective import Objective
from .outcome import Study, pareto, trials_table
from .page import write_page
from .plan import Plan
from .space import Space

LOCK = ".finish.lock"  # one process trains the final networks; the others wait and read them


def search_budget(plan: Plan, out: str | Path) -> Study:
    """Search, train the best and the uniform-width network to the end, save all of it in `out`.

    A folder with the same search goes on where it was. After Ctrl-C the best network so far is trained to the end;
    a second Ctrl-C leaves it, to be taken up by the next run. Raises BudgetTooSmall before anything is written,
    InvalidRun for a folder that cannot be used, DivergedTraining when not one trial could be trained.
    """
    space = Space(plan.base, plan.budget, plan.resolutions)
    parent = None if plan.weights is None else Parent.load(plan.weights, plan.base)
    folder = open_folder(out, plan.fingerprint)
    study = study_of(plan, f"sqlite:///{folder.absolute() / 'study.db'}")
    went_through = explore(plan, study, Objective(space, plan.data_at, plan.short_recipe, parent))
    _write_tables(study, folder)
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
    outcome = Study(folder, finished.best, finished.uniform, finished.difference, trials, pareto(trials))
    write_page(folder / "index.html", f"{plan.base.family} on {plan.data_name}, {plan.budget}", str(outcome), trials)
    return outcome


def _write_tables(study: optuna.Study, folder: Path) -> None:
    trials = trials_table(study)
    write_text(folder / "trials.csv", trials.to_csv(index=False))
    write_text(folder / "pareto.csv", pareto(trials).to_csv(index=False))
