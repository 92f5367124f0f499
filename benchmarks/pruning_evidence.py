"""Is pruning worth having: for its weights, or for its widths? Writes the tables as they come out.

Run: python benchmarks/pruning_evidence.py [--jobs 2] [--only CASE] [--plan] [--quick | --large] [--runs DIR]
Needs MNIST and CIFAR-10 as parquet in ../shared/data (beside the checkout). Every training has a folder below
runs/pruning_evidence and goes on there; each finished network is a line of pruning_evidence.jsonl. `--plan` measures a
few steps of every case, prints how long all would take, and ends; every run begins with that. `--large` is for a GPU:
the papers' networks and epochs. `--quick` is a smoke test and writes to runs/.

For each case and seed one parent is trained and handed to every method; arms as in docs/shrinking.md. Uniform and
random widths do not depend on the method, so each is trained once for a seed.
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from records import machine, note, read, versions, without_stump

from pocketzoo import Architecture
from pocketzoo.search.findings import ARMS, over_seeds
from pocketzoo.search.methods.method import method_named
from pocketzoo.search.shrink import shrink
from pocketzoo.search.verdict import Account, arm_training, from_scratch, seeded
from pocketzoo.training.data import DataSet, load_data
from pocketzoo.training.loop import fit
from pocketzoo.training.recipe import Recipe
from pocketzoo.training.run import train

CHECKOUT = Path(__file__).resolve().parents[1]
DATA = CHECKOUT.parent / "shared" / "data"
DATASETS = {"mnist": "MNIST, 28 px", "cifar10": "CIFAR-10, 32 px, JPEG q75"}
SHARED, OWN = ("uniform", "random"), ("scratch_e", "scratch_b")
TEST_IMAGES = 10_000
TRAINS = {"slimming": 1.0, "morphnet": 1.0, "l1": 1.0}  # parents' trainings that a method takes, its scan included
SCORES = 0.15  # of a parent's training, what the other methods take, about
TIMED_STEPS = 8


@dataclass(frozen=True)
class Case:
    """A network on a data set under a budget, and the methods that are tried there."""

    name: str
    dataset: str
    model: str
    budget: str
    methods: tuple[str, ...]
    seeds: int
    images: int | None  # of train, validation images included; None: all
    epochs: int
    batch_size: int = 64
    lr: float = 0.05
    narrow: float = 1.0  # all widths of the model times this
    settings: dict[str, Any] = field(default_factory=dict)

    def data(self) -> DataSet:
        """The same images for every seed."""
        return load_data(DATA / self.dataset, subset=self.images)

    def recipe(self, seed: int) -> Recipe:
        """How the parent is trained."""
        return Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, seed=seed)

    def architecture(self, data: DataSet) -> Architecture:
        """The network that is to shrink."""
        form = {"num_classes": data.num_classes, "in_channels": data.in_channels, "resolution": data.resolution}
        whole = Architecture.of(self.model, **form, **self.settings)
        if self.narrow == 1:
            return whole
        return whole.with_widths({name: max(1, round(w * self.narrow)) for name, w in whole.graph().groups.items()})


# Two cores, a little over an hour. LeNet-5 has no batch norm: methods that need it are left out there.
SMALL = (
    Case("LeNet-5", "mnist", "lenet5", "macs=30%", ("l1", "taylor", "thinet", "magnitude", "random"), 3, 3000, 6),
    Case(
        "small VGG", "mnist", "cifar_vgg16", "macs=30%",
        ("slimming", "l1", "morphnet", "taylor", "random", "thinet", "magnitude"), 3, 4000, 5, narrow=0.25,
        settings={"repeats": (1, 1, 2, 2, 2)},
    ),
    Case("CIFAR ResNet-20", "cifar10", "cifar_resnet20", "macs=50%", ("slimming", "l1", "random"), 3, 5000, 8),
    Case("MobileNet v2 x0.5", "cifar10", "mobilenet_v2_x0_5", "macs=50%", ("slimming", "l1"), 3, 3000, 4),
)  # fmt: skip
QUICK = (
    Case("LeNet-5", "mnist", "lenet5", "macs=30%", ("l1", "random"), 2, 600, 1),
    Case("MobileNet v2 x0.35", "cifar10", "mobilenet_v2_x0_35", "macs=50%", ("l1",), 2, 400, 1),
)
# The papers' networks: 70 % of VGG's channels by slimming leave 49 % of its FLOPs (arXiv:1708.06519, Table 1, there of
# VGG-19); L1's configurations "A" leave 65.8 % of VGG-16's and 89.6 % of ResNet-56's (arXiv:1608.08710, Table 1).
PAPER: dict[str, Any] = {"seeds": 3, "images": None, "epochs": 160, "batch_size": 128, "lr": 0.1}
LARGE = (
    Case("VGG-16, slimming 70 %", "cifar10", "cifar_vgg16", "macs=49%", ("slimming", "morphnet", "l1"), **PAPER),
    Case("VGG-16, L1 A", "cifar10", "cifar_vgg16_hidden", "macs=65.8%", ("l1", "morphnet"), **PAPER),
    Case("ResNet-56, slimming", "cifar10", "cifar_resnet56", "macs=49%", ("slimming", "morphnet", "l1"), **PAPER),
    Case("ResNet-56, L1 A", "cifar10", "cifar_resnet56", "macs=89.6%", ("l1", "morphnet"), **PAPER),
)


def clock() -> float:
    """Seconds; on a processor its own, since others may be at work there."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def carry_out(case: Case, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Parent, shared arms and every method from one seed; a line for each trained network."""
    data, recipe = case.data(), case.recipe(seed)
    parent = folder / "parent"
    train(case.architecture(data), data, parent, recipe)
    shared: set[str] = set()
    for method in case.methods:
        started = clock()
        chosen = seeded(method_named(method), seed)
        small = shrink(parent, data, case.budget, chosen, out=folder / method / "shrink", recipe=recipe)
        seconds = clock() - started
        account = Account(small, data)
        validation = {when: small.accuracies[when] for when in ("before", "cut")}
        for row in account.shrunk(seed):
            if row["arm"] == "finetuned":
                yield {**row, "method": method, "seconds": round(seconds, 1), "on_validation": validation}
            elif "parent" not in shared:
                yield row
        for arm in (*SHARED, *OWN):
            if arm in shared:
                continue
            place = folder / arm if arm in SHARED else folder / method / arm
            started = clock()
            row = account.scratch(
                arm, seed, from_scratch(arm, arm_training(arm, small, recipe, data, case.dataset, place)).result
            )
            own = {} if arm in SHARED else {"method": method}
            yield {**row, **own, "seconds": round(clock() - started, 1)}
        shared |= {"parent", *SHARED}


def job(case: Case, seed: int, runs: Path, lines: Path) -> str:
    """Carry out one case from one seed in a process of its own and append what is not there yet."""
    stamp = {"case": case.name, "setting": setting(case), "date": f"{datetime.now(UTC):%Y-%m-%d}",
             "versions": versions("pocketzoo", "torch"), "machine": machine()}  # fmt: skip
    place = runs / case.name.replace(" ", "_").replace(",", "").replace("%", "percent") / f"seed{seed}"
    for row in carry_out(case, seed, place):
        line = json.loads(json.dumps({**stamp, "method": None, **row}))
        if identity(line) not in {identity(there) for there in read(lines)}:
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            note(f"{case.name}, seed {seed}, {line['method'] or ''} {line['arm']}: {line['test']:.2%} test")
    return f"{case.name}, seed {seed}"


def setting(case: Case) -> dict[str, Any]:
    """What may not differ between the runs of a case, as JSON has it; there may always be more seeds."""
    own = asdict(case)
    del own["seeds"]
    return dict(json.loads(json.dumps(own)))


def identity(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells the lines apart."""
    return line["case"], line["seed"], line["method"], line["arm"]


def planned_seconds(case: Case) -> float:
    """One seed on one core, from a few timed steps: trainings in parents' trainings, and readings of the test split."""
    data = case.data()
    torch.manual_seed(0)
    model = case.architecture(data).build()
    few = min(TIMED_STEPS * case.batch_size, len(data.train))
    part = replace(data, train=data.train.take(torch.arange(few)), val=data.val.take(torch.arange(8)))
    started = clock()
    fit(model, part, replace(case.recipe(0), epochs=1, batch_size=min(case.batch_size, few)))
    image = (clock() - started) / few
    parent = len(data.train) * case.epochs * image
    share = float(case.budget.removeprefix("macs=").removesuffix("%")) / 100
    methods = sum(TRAINS.get(method, SCORES) + 1.25 * share + 1 for method in case.methods)
    read_once = TEST_IMAGES * image / 3 * (1 + share * (2 + 3 * len(case.methods)))
    return parent * (3 + methods) + read_once


def plan(cases: tuple[Case, ...], jobs: int) -> list[tuple[Case, int]]:
    """Jobs, the longest first; prints what they take."""
    each = {case.name: planned_seconds(case) for case in cases}
    for case in cases:
        minutes = each[case.name] / 60
        note(f"{case.name:24} {case.seeds} seeds x {minutes:.0f} min: {', '.join(case.methods)}; {case.budget}")
    total = sum(each[case.name] * case.seeds for case in cases) / 60
    note(f"in all {total:.0f} min of one core, about {total / jobs:.0f} min with {jobs} at a time")
    return sorted(((case, seed) for case in cases for seed in range(case.seeds)), key=lambda own: -each[own[0].name])


def run_all(todo: list[tuple[Case, int]], runs: Path, lines: Path, jobs: int, threads: int) -> None:
    """A process for each of `jobs` jobs at a time."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # read by the processes that start now
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=begin_worker, initargs=(threads,))
    started = time.monotonic()
    try:
        futures = [pool.submit(job, case, seed, runs, lines) for case, seed in todo]
        for count, future in enumerate(as_completed(futures), 1):
            note(f"[{count}/{len(todo)}] {future.result()} done after {(time.monotonic() - started) / 60:.0f} min")
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def begin_worker(threads: int) -> None:
    """Ctrl-C ends it at once: what was finished is kept, an epoch at most is lost."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def tables(cases: tuple[Case, ...], lines: list[dict[str, Any]], command: str) -> str:
    """The page."""
    last = max(lines, key=lambda line: line["date"])
    parts = [
        "# Pruning as architecture search: what are its weights worth, and its widths?\n",
        f"{last['date']}; {last['versions']}; {last['machine']}; `{command}`\n",
        "Test accuracy in percent on 10,000 images, read once for each network: means over the seeds ± one standard"
        " deviation. Parents, and every arm but Scratch-E and fine-tuning, took the same training compute; differences"
        " are in points with their 95 % interval, Student's t over the seeds' paired differences; * where it leaves out"
        " 0."
        " [docs/shrinking.md](../docs/shrinking.md) describes the arms.",
    ]
    for case in cases:
        own = [line for line in lines if line["case"] == case.name]
        if own:
            parts += case_table(case, own)
    return "\n".join(parts) + "\n"


def case_table(case: Case, lines: list[dict[str, Any]]) -> list[str]:
    """One case's heading and table."""
    images = f"{case.images:,} training images (validation included)" if case.images else "all training images"
    seeds = sorted({line["seed"] for line in lines})
    tested = {key: accuracies(lines, *key) for key in {(line["method"], line["arm"]) for line in lines}}
    shared = ("parent", *SHARED)
    reference = "; ".join(f"{ARMS[arm]} {shown(tested.get((None, arm), {}))}" for arm in shared)
    head = (
        f"\n## {case.name} on {DATASETS[case.dataset]}: {case.budget}\n\n{images}, parent {case.epochs} epochs, batch"
        f" {case.batch_size}, peak lr {case.lr:g}; seeds {', '.join(map(str, seeds))}. {reference}.\n"
    )
    rows = [
        "| method | cut, before fine-tuning (validation) | fine-tuned | Scratch-E | Scratch-B |"
        " weights: fine-tuned - Scratch-B | widths: Scratch-B - uniform | parameters | seconds of a core |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in case.methods:
        own = [line for line in lines if line["method"] == method]
        cuts = [line["on_validation"]["cut"] for line in own if line["arm"] == "finetuned"]
        if not cuts:
            continue
        tuned, short, long = (tested.get((method, arm), {}) for arm in ("finetuned", "scratch_e", "scratch_b"))
        cells = [
            method, f"{100 * statistics.mean(cuts):.1f}", shown(tuned), shown(short), shown(long), less(tuned, long),
            less(long, tested.get((None, "uniform"), {})), f"{statistics.mean(line['params'] for line in own):,.0f}",
            f"{sum(line['seconds'] for line in own) / len(cuts):.0f}",
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return [head, *rows]


def accuracies(lines: list[dict[str, Any]], method: str | None, arm: str) -> dict[int, float]:
    """Seed -> test accuracy in percent."""
    return {line["seed"]: 100 * line["test"] for line in lines if (line["method"], line["arm"]) == (method, arm)}


def shown(by_seed: dict[int, float]) -> str:
    """Mean and deviation."""
    values = list(by_seed.values())
    if not values:
        return "-"
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def less(first: dict[int, float], second: dict[int, float]) -> str:
    """First minus second over the seeds that both have."""
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    if len(differences) < 2:
        return f"{differences[0]:+.2f}" if differences else "-"
    mean, low, high, _ = over_seeds(differences)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" + (" *" if low > 0 or high < 0 else "")


def main() -> int:
    """Exit code 2 for what cannot be done, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, help="jobs at a time (default: 2 with one thread each; 1 on a GPU)")
    parser.add_argument("--only", action="append", metavar="CASE", help="a case by its name; may be given again")
    parser.add_argument("--plan", action="store_true", help="print what would run and how long it takes, and end")
    parser.add_argument("--quick", action="store_true", help="tiny: a smoke test, no evidence")
    parser.add_argument("--large", action="store_true", help="the papers' networks, for a GPU")
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs" / "pruning_evidence", help="the trainings")
    options = parser.parse_args()
    cases = LARGE if options.large else QUICK if options.quick else SMALL
    if unknown := set(options.only or ()) - {case.name for case in cases}:
        note(f"no case {sorted(unknown)[0]!r}; there are {', '.join(case.name for case in cases)}")
        return 2
    chosen = tuple(case for case in cases if not options.only or case.name in options.only)
    for dataset in {case.dataset for case in chosen}:
        if not list((DATA / dataset).glob("*.parquet")):
            note(f"no parquet files in ../shared/data/{dataset}; put the Hub's {DATASETS[dataset]} there")
            return 2
    kind = "_large" if options.large else "_quick" if options.quick else ""
    out = (CHECKOUT / "runs" if options.quick else CHECKOUT / "benchmarks") / f"pruning_evidence{kind}.md"
    lines, runs = out.with_suffix(".jsonl"), options.runs.with_name(options.runs.name + kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    without_stump(lines)
    on_gpu = torch.cuda.is_available()
    jobs = max(1, options.jobs or (1 if on_gpu else 2))
    torch.set_num_threads(1)
    todo = plan(chosen, jobs)
    if options.plan:
        return 0
    wanted = {case.name: setting(case) for case in cases}
    if any(line["setting"] != wanted.get(line["case"]) for line in read(lines)):
        note(f"{lines.name} holds runs of another setting; move it away, and {runs.name} with it")
        return 2
    try:
        run_all(todo, runs, lines, jobs, os.cpu_count() or 1 if on_gpu else 1)
    except KeyboardInterrupt:
        note("stopped; what was finished is kept: run again to go on")
        return 130
    flag = f" --{kind[1:]}" if kind else ""
    text = tables(cases, read(lines), f"python benchmarks/pruning_evidence.py{flag}")
    out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
