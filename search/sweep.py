"""One search per budget, merged into one Pareto front."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..training.folder import open_folder, write_text
from .inherit import Parent
from .outcome import Study, pareto
from .page import write_page
from .plan import Plan
from .single import prepared, search_budget, supernet_of

BUDGET = "budget"  # the column that tells the searches apart


def search_budgets(plans: Mapping[str, Plan], out: str | Path) -> Study:
    """Search under each budget in `out/<name>`; all trials, their common Pareto front and one page in `out`.

    The best network is the one with the highest validation accuracy of all; `budgets.csv` has each budget's best and
    uniform-width network, `proxies.csv` each budget's correlations. One supernet serves all budgets. Every
    budget is checked before the first search begins. Raises what `search_budget` does.
    """
    for plan in plans.values():
        prepared(plan)
    first = next(iter(plans.values()))
    folder = open_folder(out, {**first.fingerprint, "kind": "sweep", "budget": None})
    parent = Parent.load(supernet_of(first, folder), first.base) if first.supernet else None
    studies = {name: search_budget(plan, folder / _file_name(name), parent) for name, plan in plans.items()}
    trials = pd.concat([study.trials.assign(**{BUDGET: name}) for name, study in studies.items()], ignore_index=True)
    front = pareto(trials)
    best = max(studies.values(), key=lambda study: study.best.accuracy["validation"])
    merged = replace(best, out=folder, trials=trials, pareto=front)
    table = pd.DataFrame([_row(name, study) for name, study in studies.items()])
    write_text(folder / "trials.csv", trials.to_csv(index=False))
    write_text(folder / "pareto.csv", front.to_csv(index=False))
    write_text(folder / "budgets.csv", table.to_csv(index=False))
    proxies = [study.proxies.assign(**{BUDGET: name}) for name, study in studies.items() if len(study.proxies)]
    if proxies:
        write_text(folder / "proxies.csv", pd.concat(proxies, ignore_index=True).to_csv(index=False))
    title = f"{first.base.family} on {first.data_name}: {', '.join(studies)}"
    write_page(folder / "index.html", title, table.to_string(index=False), trials, group=BUDGET)
    return merged


def _row(name: str, study: Study) -> dict[str, object]:
    difference = study.difference
    return {
        BUDGET: name,
        "macs": study.best.costs["macs"],
        "params": study.best.costs["params"],
        "best_test_accuracy": study.best.accuracy["test"],
        "uniform_test_accuracy": study.uniform.accuracy["test"],
        "difference_low": None if difference is None else difference.low,
        "difference_high": None if difference is None else difference.high,
    }


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", name)
