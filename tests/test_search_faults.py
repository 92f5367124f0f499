"""What a search does when it is killed, shared, stopped, or given something that cannot be."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from pocketzoo import (
    BudgetTooSmall,
    InvalidBudget,
    InvalidData,
    InvalidRun,
    InvalidSetting,
    PocketzooError,
    UnknownDevice,
    UnknownModel,
)
from pocketzoo.search import objective
from pocketzoo.search.budget import Budget
from pocketzoo.search.explore import explore, study_of
from pocketzoo.search.objective import Objective
from pocketzoo.search.outcome import trials_table
from pocketzoo.search.plan import Plan
from pocketzoo.search.run import run_search
from pocketzoo.search.space import Space
from pocketzoo.search.studies import WORKER, open_study, take_up_lost_trials, worker
from pocketzoo.training.loop import DivergedTraining
from pocketzoo.training.recipe import Recipe

NET = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 20, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, num_classes))
"""
WORK = """
import sys, torch
from pocketzoo.search.budget import Budget
from pocketzoo.search.explore import explore, study_of
from pocketzoo.search.objective import Objective
from pocketzoo.search.plan import Plan
from pocketzoo.search.space import Space
from pocketzoo.training.recipe import Recipe

torch.set_num_threads(1)
epochs, trials = map(int, sys.argv[1:])
plan = Plan("faultnets:net", "digits", Budget(macs="40k"), trials, trial_recipe=Recipe(epochs=epochs))
study = study_of(plan, "sqlite:///study.db")
explore(plan, study, Objective(Space(plan.base, plan.budget), plan.data_at, plan.short_recipe))
"""
RECIPE = Recipe(epochs=1)
BUDGET = Budget(macs="40k")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "faultnets.py").write_text(NET)
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.set_num_threads(1)
    return tmp_path


def plan_of(trials: int, recipe: Recipe = RECIPE) -> Plan:
    return Plan("faultnets:net", "digits", BUDGET, trials, trial_recipe=recipe)


def opened(folder: Path, plan: Plan) -> optuna.Study:
    return study_of(plan, f"sqlite:///{folder / 'study.db'}")


def explored(plan: Plan, study: optuna.Study) -> bool:
    return explore(plan, study, Objective(Space(plan.base, plan.budget), plan.data_at, plan.short_recipe))


def search(out: Path, trials: int = 2, **options: object) -> object:
    return run_search("faultnets:net", "digits", BUDGET, trials, out, trial_recipe=RECIPE, recipe=RECIPE, **options)  # type: ignore[arg-type]


def work(folder: Path, epochs: int, trials: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "work.py", str(epochs), str(trials)], cwd=folder, env=environment)


def complete(study: optuna.Study) -> dict[int, float | None]:
    return {t.number: t.value for t in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))}


# -- processes -----------------------------------------------------------------------------------------------------


def test_a_killed_search_loses_no_finished_trial(folder: Path) -> None:
    recipe = Recipe(epochs=8)
    plan = plan_of(5, recipe)
    process = work(folder, 8, 50)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "study.db").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # the tables are being made
        study = opened(folder, plan)
        while time.monotonic() < deadline:
            running = study.get_trials(states=(TrialState.RUNNING,))
            if len(complete(study)) >= 2 and any(trial.user_attrs.get("epochs") for trial in running):
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = complete(study)
    left = study.get_trials(states=(TrialState.RUNNING,))  # none, should the kill fall between two trials
    assert len(finished) >= 2

    plan = plan_of(len(finished) + 1, recipe)
    assert explored(plan, study)
    assert complete(study).items() >= finished.items()
    assert len(complete(study)) == len(finished) + 1
    table = trials_table(study)
    assert list(table["trial"][table["state"] == "lost"]) == [trial.number for trial in left]
    begun = [trial for trial in left if trial.params]
    again = [trial for trial in study.trials if "retry_of" in trial.user_attrs]
    assert [trial.user_attrs["retry_of"] for trial in again] == [trial.number for trial in begun]
    assert all(new.params.items() >= old.params.items() for new, old in zip(again, begun, strict=True))


def test_two_processes_share_a_study(folder: Path) -> None:
    trials = 8
    both = [work(folder, 2, trials) for _ in range(2)]
    assert [process.wait(timeout=80) for process in both] == [0, 0]
    table = trials_table(opened(folder, plan_of(trials, Recipe(epochs=2))))
    assert set(table["state"]) <= {"complete", "pruned"}, table.to_string()
    assert trials <= len(table) <= trials + 1  # both may begin the last one in the same instant
    workers = {trial.user_attrs[WORKER] for trial in opened(folder, plan_of(trials, Recipe(epochs=2))).trials}
    assert len(workers) == 2


def test_a_trial_of_a_live_process_is_left_alone(folder: Path) -> None:
    study = opened(folder, plan_of(1))
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        trial = study.ask()
        trial.suggest_float("width 0", 0.5, 2)
        host, _, token = worker().rsplit(":", 2)
        trial.set_user_attr(WORKER, f"{host}:{other.pid}:{token}")
        take_up_lost_trials(study)
        assert study.trials[0].state == TrialState.RUNNING
    finally:
        other.kill()
        other.wait()
    take_up_lost_trials(study)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.trials[1].user_attrs == {"retry_of": 0}
    take_up_lost_trials(study)
    assert len(study.trials) == 2


def test_a_trial_of_another_machine_waits_for_its_heartbeat(folder: Path) -> None:
    study = opened(folder, plan_of(1))
    study.ask().set_user_attr(WORKER, "another-machine:1:00000000")
    take_up_lost_trials(study)
    assert study.trials[0].state == TrialState.RUNNING


def test_a_reused_process_number_is_not_us(folder: Path) -> None:
    study = opened(folder, plan_of(1))
    study.ask().set_user_attr(WORKER, worker().rpartition(":")[0] + ":00000000")
    take_up_lost_trials(study)
    assert study.trials[0].state == TrialState.FAIL


def test_ctrl_c_ends_with_the_best_so_far(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, calls = objective.fit, []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(objective, "fit", interrupted)
    study = search(folder / "run", trials=9)
    assert list(study.trials["state"]) == ["complete", "lost", "waiting"]  # type: ignore[attr-defined]
    assert (folder / "run" / "best.safetensors").exists()
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(folder))
    rest = search(folder / "run", trials=2).trials  # type: ignore[attr-defined]
    assert list(rest["state"]) == ["complete", "lost", "complete"]
    assert rest["width 0"][1] == rest["width 0"][2]


# -- training that fails -------------------------------------------------------------------------------------------


def test_a_diverged_trial_is_recorded_and_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, calls = objective.fit, []

    def diverging(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise DivergedTraining("the loss became nan in epoch 1")
        return fit(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(objective, "fit", diverging)
    study = opened(folder, plan_of(3))
    assert explored(plan_of(3), study)
    table = trials_table(study)
    assert list(table["state"]) == ["complete", "failed", "complete"]
    assert "nan" in table["error"][1]
    assert math.isnan(table["value"][1])


def test_when_nothing_can_be_trained(folder: Path) -> None:
    hopeless = Recipe(epochs=1, lr=1e30, warmup=0.0, clip_norm=1e30)
    with pytest.raises(DivergedTraining, match="none of 2 trials could be trained"):
        run_search("faultnets:net", "digits", BUDGET, 2, folder / "run", trial_recipe=hopeless)
    assert (folder / "run" / "trials.csv").read_text().count("failed") == 2
    assert not (folder / "run" / "best.json").exists()


# -- folders and storages ------------------------------------------------------------------------------------------


def refused(kind: type[PocketzooError], says: str, **options: object) -> None:
    defaults = {"model": "faultnets:net", "data": "digits", "budget": BUDGET, "trials": 1}
    with pytest.raises(kind) as caught:
        run_search(**{**defaults, **options})  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_another_search(folder: Path) -> None:
    search(folder / "run", trials=1)
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
    refused(InvalidRun, "holds another run: its budget", out=folder / "run", budget=Budget(macs="30k"),
            recipe=RECIPE, trial_recipe=RECIPE)  # fmt: skip
    refused(InvalidRun, "holds a search", out=folder / "run", recipe=RECIPE, trial_recipe=RECIPE, resume=False)
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before


def test_a_folder_with_something_else(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.tex").write_text("years of work")
    refused(InvalidRun, "'thesis.tex'", out=folder / "run")
    assert [path.name for path in (folder / "run").iterdir()] == ["thesis.tex"]


def test_a_file_for_a_folder(folder: Path) -> None:
    (folder / "file").write_text("")
    refused(InvalidRun, "cannot use", out=folder / "file")
    refused(InvalidRun, "cannot use", out=folder / "file" / "run")


@pytest.mark.parametrize("url", ["sqlite:////no/such/folder/study.db", "nonsense", "nosuchdatabase://host/name"])
def test_a_storage_that_cannot_be_opened(folder: Path, url: str) -> None:
    refused(InvalidRun, "cannot be opened", out=folder / "run", storage=url)


def test_a_storage_that_fills_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise optuna.exceptions.StorageInternalError("database or disk is full")

    monkeypatch.setattr(optuna.Study, "optimize", full)
    refused(InvalidRun, "database or disk is full", out=folder / "run")


def test_any_storage_of_optuna_serves(folder: Path) -> None:
    storage = f"sqlite:///{folder / 'elsewhere.db'}"
    search(folder / "first", trials=2, storage=storage)
    second = search(folder / "second", trials=2, storage=storage)  # as on another machine
    assert len(second.trials) == 2  # type: ignore[attr-defined]
    assert not (folder / "first" / "study.db").exists()
    with pytest.raises(InvalidRun, match="cannot be opened"):
        open_study("any", "sqlite:////no/such/folder/x.db", optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())


# -- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "says", "options"),
    [
        (UnknownModel, "mobilenet_v2", {"model": "mobilenetv2"}),
        (UnknownModel, "cannot be imported", {"model": "faultnets:nonet"}),
        (InvalidData, "digits", {"data": "digit"}),
        (UnknownDevice, "pocketzoo calibrate --device cpu", {"budget": Budget(latency="8ms", device="cpu")}),
        (InvalidBudget, "needs a budget", {"budget": None}),
        (InvalidBudget, "budgets is empty", {"budgets": []}),
        (InvalidBudget, "no unit", {"budgets": ["1M", "2Q"]}),
        (BudgetTooSmall, "narrowest network costs", {"budget": Budget(macs=100)}),
        (BudgetTooSmall, "narrowest network costs", {"budgets": ["40k", "0.1k"]}),
        (InvalidSetting, "at least 1", {"trials": 0}),
        (InvalidSetting, "positive", {"resolutions": [0]}),
        (InvalidRun, "there is no", {"weights": "no/such/run"}),
    ],
)
def test_wrong_input_writes_nothing(
    folder: Path, kind: type[PocketzooError], says: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETZOO_HOME", str(folder / "home"))  # without a calibration
    refused(kind, says, out=folder / "run", **options)
    assert not (folder / "run").exists()


def test_the_fingerprint_is_json() -> None:
    assert json.loads(json.dumps(plan_of(1).fingerprint))["kind"] == "search"
