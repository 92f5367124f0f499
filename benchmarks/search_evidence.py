"""Does the budgeted search find better networks than its rivals at the same cost? Writes the table as it comes out.

Run: python benchmarks/search_evidence.py [--jobs 2] [--quick] [--out FILE.md]
Needs MNIST and CIFAR-10 as parquet in ../shared/data (beside the checkout). Each run is appended to FILE.jsonl as it
ends; what is there is not done again. `--quick` is a smoke test and writes to runs/.

Arms, paired by seed (which draws the 10,000 images, the validation split, the sampler and the weights):
ours      TPE as `pocketzoo search` uses it; every proposal is projected onto the budget
uniform   all groups of the family scaled by one factor that meets the budget; no search
random    random search over the same space, under the same projection
plain     Optuna's TPE without projection: proportions are relative to the uniform network, each MAC beyond the budget
          costs accuracy; the winner is the best network within the budget
The searching arms begin with the uniform network, share pruner and trial recipe, and may each spend the same forward
MACs x training images; a proposal that no longer fits in what is left is not trained, and ten of those end the arm.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from records import machine, note, read, versions, without_stump

from pocketzoo import Architecture, Budget
from pocketzoo.search.explore import study_of
from pocketzoo.search.objective import Objective, begin
from pocketzoo.search.plan import Plan
from pocketzoo.search.space import CHOICE, HIGHEST, LOWEST, WIDTH, Candidate, Space
from pocketzoo.search.studies import ARCHITECTURE, quiet
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.evaluate import evaluate
from pocketzoo.training.loop import DivergedTraining, fit
from pocketzoo.training.recipe import Recipe

CHECKOUT = Path(__file__).resolve().parents[1]
DATA = CHECKOUT.parent / "shared" / "data"
DATASETS = {"mnist": "MNIST, 28 px", "cifar10": "CIFAR-10, 32 px, JPEG q75"}
ARMS = {
    "ours": "ours: TPE, projected",
    "uniform": "(a) uniform width multiplier",
    "random": "(b) random search, projected",
    "plain": "(c) plain TPE, penalty",
}
SEARCHING = ("ours", "random", "plain")
PENALTY = 1.0  # accuracy lost per budget's worth of MACs beyond the budget
REFUSALS = 10  # proposals in a row that do not fit in what is left
PROPOSALS = 10  # at most so many times the nominal trials
T_975 = (12.706, 4.303, 3.182, 2.776)  # Student's t, two-sided 95 %, 1 to 4 degrees of freedom


@dataclass(frozen=True)
class Setting:
    """The sizes of the whole comparison."""

    model: str = "mobilenet_v1"
    macs: tuple[tuple[str, int], ...] = (("mnist", 600_000), ("cifar10", 1_500_000))
    seeds: int = 5
    images: int = 10_000  # of train, a tenth of them for validation
    trials: int = 12  # full ones at the budget: what an arm may spend
    trial_images: int = 2_500
    trial_epochs: int = 2
    final_epochs: int = 4
    batch_size: int = 32
    lr: float = 0.05

    @property
    def trial_recipe(self) -> Recipe:
        """How a trial is trained."""
        return Recipe(epochs=self.trial_epochs, batch_size=self.batch_size, lr=self.lr)

    @property
    def final_recipe(self) -> Recipe:
        """How every winner is trained."""
        return self.trial_recipe.with_settings(epochs=self.final_epochs)

    @property
    def epoch_images(self) -> int:
        """Images that one epoch of a trial trains on: whole batches only."""
        return self.trial_images // self.batch_size * self.batch_size


QUICK = Setting(seeds=2, images=1_000, trials=2, trial_images=320, trial_epochs=2, final_epochs=1)


@dataclass(frozen=True)
class Run:
    """One arm on one data set from one seed."""

    dataset: str
    seed: int
    arm: str
    setting: Setting

    @property
    def identity(self) -> tuple[str, int, str]:
        """What tells the runs of one setting apart."""
        return self.dataset, self.seed, self.arm

    @property
    def limit(self) -> int:
        """The budget in MACs."""
        return dict(self.setting.macs)[self.dataset]

    @property
    def work(self) -> int:
        """Images trained, about: for the time left."""
        size = self.setting
        searched = size.trials * size.trial_epochs * size.trial_images if self.arm in SEARCHING else 0
        return searched + size.final_epochs * size.images


@dataclass
class Purse:
    """MACs x images that an arm may spend on its search, and has spent."""

    total: int
    images: int  # of one epoch
    epochs: int
    spent: int = 0
    refused: int = 0  # in a row

    def admit(self, candidate: Candidate) -> Candidate:
        """The candidate, if training it fits in what is left; otherwise the trial is pruned untrained."""
        if candidate.macs * self.images * self.epochs > self.total - self.spent:
            self.refused += 1
            raise optuna.TrialPruned("does not fit in what is left to spend")
        self.refused = 0
        return candidate

    def charge(self, trial: FrozenTrial) -> None:
        """Book the epochs that a trial trained; a diverged one counts in full."""
        diverged = trial.state == TrialState.FAIL
        epochs = self.epochs if diverged else trial.user_attrs.get("epochs", 0)
        self.spent += trial.user_attrs.get("macs", 0) * epochs * self.images


class PaidSpace(Space):
    """The library's search space, projection included, that asks the purse before a network is trained."""

    def __init__(self, base: Architecture, budget: Budget, purse: Purse) -> None:
        super().__init__(base, budget)
        self.purse = purse

    def suggest(self, trial: optuna.Trial) -> Candidate:
        """As the library; raises TrialPruned for a network that the purse does not admit."""
        return self.purse.admit(super().suggest(trial))


class PlainSpace(PaidSpace):
    """The same choices and proportions, not projected: widths are the uniform network's times the proportion."""

    def suggest(self, trial: optuna.Trial) -> Candidate:
        """A network of any cost; raises TrialPruned for one that the purse does not admit."""
        labels = {
            choice: trial.suggest_categorical(f"{CHOICE} {choice}", [str(option) for option in options])
            for choice, options in self.options.items()
        }
        structure = {c: next(o for o in self.options[c] if str(o) == label) for c, label in labels.items()}
        architecture = self._applied(structure)
        graph = self._graph(architecture)
        uniform = self.uniform.architecture.widths or {}
        widths = {}
        for name, step in graph.steps.items():
            proportion = trial.suggest_float(f"{WIDTH} {name}", LOWEST, HIGHEST, log=True)
            widths[name] = max(step, round(uniform[name] * proportion / step) * step)
        costs = graph.price_many(np.array([[widths[name] for name in graph.groups]]), ("params", "macs")).iloc[0]
        macs = int(costs["macs"])
        share = macs / self.budget.limits["macs"]
        return self.purse.admit(
            Candidate(architecture.with_widths(widths), share, "not projected", int(costs["params"]), macs)
        )


@dataclass(frozen=True)
class Penalised:
    """Validation accuracy after a short training, less what the network costs beyond the budget."""

    space: PlainSpace
    data: DataSet
    recipe: Recipe

    def __call__(self, trial: optuna.Trial) -> float:
        """Raises TrialPruned and DivergedTraining, as the library's objective does."""
        candidate = self.space.suggest(trial)
        trial.set_user_attr(ARCHITECTURE, json.loads(candidate.architecture.to_json()))
        for name in ("macs", "share"):
            trial.set_user_attr(name, getattr(candidate, name))
        fine = PENALTY * max(0.0, candidate.share - 1)

        def report(epoch: int, accuracy: float) -> None:
            trial.report(accuracy - fine, epoch)
            trial.set_user_attr("epochs", epoch)
            if epoch < self.recipe.epochs and trial.should_prune():
                raise optuna.TrialPruned

        model = begin(candidate.architecture, self.recipe.seed, None)
        return fit(model, self.data, self.recipe, on_epoch=report).val_accuracy - fine


def carry_out(run: Run) -> dict[str, Any]:
    """Search, train the winner by the final recipe, test it once; the line that is kept."""
    data = load_data(DATA / run.dataset, subset=run.setting.images, seed=run.seed)
    purse = Purse(
        run.setting.trials * run.setting.trial_epochs * run.setting.epoch_images * run.limit,
        run.setting.epoch_images,
        run.setting.trial_epochs,
    )
    plan = Plan(
        run.setting.model,
        data,
        Budget(macs=run.limit),
        run.setting.trials,
        storage=optuna.storages.InMemoryStorage(),
        seed=run.seed,
        recipe=run.setting.final_recipe.with_settings(seed=run.seed),
        trial_recipe=run.setting.trial_recipe.with_settings(seed=run.seed),
        sampler=sampler_of(run),
    )
    started = time.perf_counter()
    trials = search(run, plan, purse) if run.arm in SEARCHING else []
    winner = best_of(trials) if trials else Space(plan.base, plan.budget).uniform.architecture
    searched = time.perf_counter()
    model = begin(winner, run.seed, None)
    fit(model, data, plan.final_recipe)
    accuracy = evaluate(model.cpu(), data.test, data.info).accuracy
    trained = [trial for trial in trials if "epochs" in trial.user_attrs]
    macs = winner.with_widths(None).graph().price(winner.widths).macs
    return {
        "dataset": run.dataset,
        "seed": run.seed,
        "arm": run.arm,
        "test_accuracy": accuracy,
        "macs": macs,
        "share": macs / run.limit,
        "trials": len(trained),
        "pruned": sum(trial.state == TrialState.PRUNED for trial in trained),
        "over_budget": sum(trial.user_attrs["share"] > 1 for trial in trained),
        "spent": purse.spent / purse.total,
        "search_seconds": round(searched - started, 1),
        "final_seconds": round(time.perf_counter() - searched, 1),
        "architecture": json.loads(winner.to_json()),
        "data_hash": data.hash,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": versions("pocketzoo", "torch", "optuna"),
        "machine": machine(),
        "setting": asdict(run.setting),
    }


def sampler_of(run: Run) -> optuna.samplers.BaseSampler | None:
    """None is the library's own."""
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=run.seed),
        "plain": lambda: optuna.samplers.TPESampler(seed=run.seed),
    }
    return samplers[run.arm]() if run.arm in samplers else None


def search(run: Run, plan: Plan, purse: Purse) -> list[FrozenTrial]:
    """All trials of an arm, the uniform network's first, until the purse is empty."""
    data = plan.data_at(None)
    short = replace(data, train=data.train.take(torch.arange(min(run.setting.trial_images, len(data.train)))))
    objective: Callable[[optuna.Trial], float]
    if run.arm == "plain":
        space: PaidSpace = (plain := PlainSpace(plan.base, plan.budget, purse))
        objective = Penalised(plain, short, plan.short_recipe)
    else:
        space = PaidSpace(plan.base, plan.budget, purse)
        objective = Objective(space, lambda _: short, plan.short_recipe)
    study = study_of(plan, "")
    with quiet():
        study.enqueue_trial(space.default_parameters)
        for _ in range(PROPOSALS * run.setting.trials):
            study.optimize(objective, n_trials=1, catch=(DivergedTraining,))
            purse.charge(study.get_trials(deepcopy=False)[-1])
            if purse.refused >= REFUSALS:
                break
    return study.get_trials(deepcopy=False)


def best_of(trials: Iterable[FrozenTrial]) -> Architecture:
    """The network with the highest value of those within the budget."""
    complete = [t for t in trials if t.value is not None and t.state == TrialState.COMPLETE]
    best = max((t for t in complete if t.user_attrs["share"] <= 1), key=lambda trial: trial.value or 0.0)
    return Architecture.from_json(json.dumps(best.user_attrs[ARCHITECTURE]))


def run_all(runs: list[Run], path: Path, jobs: int) -> None:
    """Carry out what is missing, a process for each of `jobs` runs at a time, and append each line as it comes."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # read by the processes that start now
    finished = {(line["dataset"], line["seed"], line["arm"]) for line in read(path)}
    missing = [run for run in runs if run.identity not in finished]
    note(f"{len(runs) - len(missing)} of {len(runs)} runs are there already; {len(missing)} to go, {jobs} at a time")
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=begin_worker)
    started, done, whole = time.monotonic(), 0, sum(run.work for run in missing)
    try:
        futures = {pool.submit(carry_out, run): run for run in missing}
        for count, future in enumerate(as_completed(futures), 1):
            line, run = future.result(), futures[future]
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            done += run.work
            left = (time.monotonic() - started) / done * (whole - done) / 60
            note(
                f"[{count}/{len(missing)}] {run.dataset} seed {run.seed} {run.arm}: {line['test_accuracy']:.2%} test,"
                f" {line['search_seconds'] + line['final_seconds']:.0f} s; about {left:.0f} min left"
            )
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def begin_worker() -> None:
    """One thread a process; Ctrl-C ends it at once, for finished runs are kept by the parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def table(lines: list[dict[str, Any]], setting: Setting, command: str) -> str:
    """The page, from the lines of all runs."""
    last = max(lines, key=lambda line: line["date"])
    seeds = sorted({line["seed"] for line in lines})
    trial, images = setting.trial_recipe, setting.images
    parts = [
        "# Search under a budget against its rivals\n",
        f"{last['date']}; seeds {', '.join(map(str, seeds))}; {last['versions']}; {last['machine']}; `{command}`\n",
        f"{setting.model}; subsets of {images:,} training images (a tenth for validation); {setting.trials} full trials"
        f" of {trial.epochs} epochs on {setting.trial_images:,} images, so that each search may spend {setting.trials}"
        f" x {trial.epochs} x {setting.epoch_images:,} x budget in forward MACs x images; every winner is then trained"
        f" on all training images by one recipe (epochs {setting.final_epochs}, batch {setting.batch_size}, peak lr"
        f" {setting.lr:g}) from the same seed, and tested once on 10,000 images. Means over seeds; intervals are 95 %,"
        " Student's t over the seeds' paired differences. `benchmarks/search_evidence.py` describes the arms.",
    ]
    for dataset, limit in setting.macs:
        of = {arm: sorted_lines(lines, dataset, arm) for arm in ARMS}
        parts += [
            f"\n## {DATASETS[dataset]}: at most {limit / 1e6:g}M MACs\n",
            "| arm | test accuracy % | ours minus it, points | trials (pruned, over budget) | search spent |"
            " winner's MACs | of the budget | seconds: search + final |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
            *(row(arm, of[arm], of["ours"]) for arm in ARMS),
        ]
    return "\n".join(parts) + "\n"


def sorted_lines(lines: list[dict[str, Any]], dataset: str, arm: str) -> list[dict[str, Any]]:
    """The arm's lines in the order of the seeds."""
    return sorted((e for e in lines if (e["dataset"], e["arm"]) == (dataset, arm)), key=lambda line: line["seed"])


def row(arm: str, own: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """One arm's line of the table, its means over the seeds."""

    def mean(name: str) -> float:
        return float(statistics.mean(line[name] for line in own))

    difference = "" if arm == "ours" else paired([a["test_accuracy"] for a in ours], [b["test_accuracy"] for b in own])
    searches = arm in SEARCHING
    cells = [
        ARMS[arm],
        f"{100 * mean('test_accuracy'):.2f}",
        difference,
        f"{mean('trials'):.1f} ({mean('pruned'):.1f}, {mean('over_budget'):.1f})" if searches else "none",
        f"{mean('spent'):.1%}" if searches else "0",
        f"{mean('macs'):,.0f}",
        f"{mean('share'):.1%}",
        f"{mean('search_seconds'):.0f} + {mean('final_seconds'):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def paired(first: list[float], second: list[float]) -> str:
    """First minus second in points, with the t interval of the differences, and what it says."""
    differences = [100 * (a - b) for a, b in zip(first, second, strict=True)]
    mean = statistics.mean(differences)
    half = T_975[len(differences) - 2] * statistics.stdev(differences) / len(differences) ** 0.5
    verdict = "no clear difference" if abs(mean) <= half else "ours is better" if mean > 0 else "ours is worse"
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f}): {verdict}"


def main() -> int:
    """Exit code 2 for what cannot be done, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--quick", action="store_true", help="two seeds, tiny: a smoke test, no evidence")
    parser.add_argument("--out", type=Path, help="the table; default benchmarks/search_evidence.md")
    options = parser.parse_args()
    setting = QUICK if options.quick else Setting()
    default = CHECKOUT / ("runs/search_evidence_quick.md" if options.quick else "benchmarks/search_evidence.md")
    out = (options.out or default).resolve()
    lines = out.with_suffix(".jsonl")
    for dataset, _ in setting.macs:
        if not list((DATA / dataset).glob("*.parquet")):
            note(
                f"no parquet files in ../shared/data/{dataset}; put the Hub's {DATASETS[dataset]} there, and run again"
            )
            return 2
    wanted = json.loads(json.dumps(asdict(setting)))
    without_stump(lines)
    if any(line["setting"] != wanted for line in read(lines)):
        note(f"{lines.name} holds runs of another setting; give another --out, or move it away")
        return 2
    out.parent.mkdir(parents=True, exist_ok=True)
    datasets = [dataset for dataset, _ in setting.macs]
    runs = [Run(d, seed, arm, setting) for seed in range(setting.seeds) for d in datasets for arm in ARMS]
    try:
        run_all(runs, lines, max(1, options.jobs))
    except KeyboardInterrupt:
        note(f"stopped; {len(read(lines))} of {len(runs)} runs are kept in {lines.name}: run again to go on")
        return 130
    flags = f" --jobs {options.jobs}" + (" --quick" if options.quick else "")
    text = table(read(lines), setting, f"python benchmarks/search_evidence.py{flags}")
    out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
