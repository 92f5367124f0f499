"""Which cheap evaluation orders networks as training does? Writes the table as it comes out.

Run: python benchmarks/proxies.py [--quick] [--out FILE.md]
Needs CIFAR-10 as parquet in ../shared/data (beside the checkout); `--quick` takes the digits and writes to runs/.
Random networks of one family, half of them at one budget of MACs and half at budgets drawn log-uniformly, are judged
untrained by every proxy, judged by two parents cut to their widths (one trained to be cut, one as usual, by one
recipe), and then trained and tested. Each network is appended to FILE.jsonl, the parents are kept in runs/: stopped at
any moment, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from records import note, read, versions, without_stump

from pocketzoo import Architecture, Budget, Recipe, load_data, train
from pocketzoo.search.correlation import RESAMPLES, rank_correlations, verdict
from pocketzoo.search.evaluators import ByInheritance, Untrained
from pocketzoo.search.inherit import Parent, begin
from pocketzoo.search.proxies import COUNTS, PROXIES
from pocketzoo.search.space import HIGHEST, LOWEST, Candidate, Space
from pocketzoo.search.supernet import train_supernet
from pocketzoo.training.data import DataSet
from pocketzoo.training.evaluate import evaluate
from pocketzoo.training.loop import fit

CHECKOUT = Path(__file__).resolve().parents[1]
CIFAR10 = CHECKOUT.parent / "shared" / "data" / "cifar10"
GROUPS = {"equal": "one budget", "mixed": "mixed budgets"}
INHERITED = {"inherit, made to be cut": "supernet", "inherit, ordinary parent": "ordinary"}


@dataclass(frozen=True)
class Setting:
    """The sizes of the whole comparison."""

    data: str = "CIFAR-10, 32 px, JPEG q75"
    family: str = "mobilenet_v2"
    images: int | None = 3_000  # of train, 500 of them for validation; None: all
    macs: int = 2_000_000  # of the equal half
    lowest: int = 500_000  # of the mixed half
    highest: int = 4_000_000
    parent_macs: int = 8_000_000
    networks: int = 30  # in each half
    epochs: int = 4
    parent_epochs: int = 8
    batch_size: int = 32
    lr: float = 0.05

    @property
    def recipe(self) -> Recipe:
        """How every network is trained."""
        return Recipe(epochs=self.epochs, batch_size=self.batch_size, lr=self.lr)

    @property
    def parent_recipe(self) -> Recipe:
        """How both parents are trained."""
        return self.recipe.with_settings(epochs=self.parent_epochs)


QUICK = Setting("digits, 8 px", images=None, macs=600_000, lowest=150_000, highest=1_200_000, parent_macs=2_400_000,
                networks=14, epochs=3, parent_epochs=6)  # fmt: skip

Judge = Callable[[Candidate], float]


def main() -> int:
    """Exit code 2 for what cannot be done, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the digits and few networks: a smoke test")
    parser.add_argument("--out", type=Path, help="the table; default benchmarks/proxies.md")
    options = parser.parse_args()
    setting = QUICK if options.quick else Setting()
    out = (options.out or CHECKOUT / ("runs/proxies_quick.md" if options.quick else "benchmarks/proxies.md")).resolve()
    if not options.quick and not list(CIFAR10.glob("*.parquet")):
        note("no parquet files in ../shared/data/cifar10; put the Hub's CIFAR-10 there, and run again")
        return 2
    lines = out.with_suffix(".jsonl")
    without_stump(lines)
    if any(line["setting"] != asdict(setting) for line in read(lines)):
        note(f"{lines.name} holds networks of another setting; give another --out, or move it away")
        return 2
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        judge_all(setting, lines, options.quick)
    except KeyboardInterrupt:
        note(f"stopped; {len(read(lines))} networks are kept in {lines.name}: run again to go on")
        return 130
    text = page(read(lines), setting, f"python benchmarks/proxies.py{' --quick' if options.quick else ''}")
    out.write_text(text, encoding="utf-8")
    print(text)
    return 0


def judge_all(setting: Setting, lines: Path, quick: bool) -> None:
    """Judge, train and test every network that is not in the file yet, and append it."""
    data = load_data("digits") if quick else load_data(CIFAR10, subset=setting.images)
    base = Architecture.of(
        setting.family, num_classes=data.num_classes, in_channels=data.in_channels, resolution=data.resolution
    )
    finished = {(line["half"], line["number"]) for line in read(lines)}
    names = [(half, number) for number in range(setting.networks) for half in GROUPS]
    judges = judges_of(setting, base, data, CHECKOUT / "runs" / f"proxies_{'digits' if quick else 'cifar10'}")
    for count, (half, number) in enumerate(names, 1):
        if (half, number) in finished:
            continue
        line = judged(draw(setting, base, half, number), judges, data, setting.recipe)
        line |= {"half": half, "number": number, "date": f"{datetime.now(UTC):%Y-%m-%d}", "setting": asdict(setting)}
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        note(f"[{count}/{len(names)}] {half} {line['macs']:,} MACs: {line['accuracy']:.2%} test")


def judges_of(setting: Setting, base: Architecture, data: DataSet, runs: Path) -> dict[str, Judge]:
    """Every proxy, and both parents, which are trained where they are not there yet."""
    untrained = Untrained(lambda _: data, setting.recipe.seed)
    judges: dict[str, Judge] = {name: _by_proxy(untrained, name) for name in PROXIES}
    architecture = Space(base, Budget(macs=setting.parent_macs)).uniform.architecture
    train_supernet(architecture, data, setting.parent_recipe, runs / "supernet", progress=sys.stderr.isatty())
    train(architecture, data, runs / "ordinary", setting.parent_recipe, progress=sys.stderr.isatty())
    for name, run in INHERITED.items():
        judges[name] = ByInheritance(Parent.load(runs / run, base), lambda _: data, setting.recipe.seed).score
    return judges


def _by_proxy(untrained: Untrained, name: str) -> Judge:
    return lambda candidate: untrained.score(name, candidate.architecture)


def draw(setting: Setting, base: Architecture, half: str, number: int) -> Candidate:
    """A network as random search proposes it, projected onto the half's budget."""
    rng = np.random.default_rng([number, half == "mixed"])
    macs = setting.macs if half == "equal" else round(np.exp(rng.uniform(*np.log([setting.lowest, setting.highest]))))
    space = Space(base, Budget(macs=macs))
    proportions = {name: float(np.exp(rng.uniform(*np.log([LOWEST, HIGHEST])))) for name in base.graph().groups}
    return space.candidate(space.default_structure, proportions)


def judged(candidate: Candidate, judges: dict[str, Judge], data: DataSet, recipe: Recipe) -> dict[str, Any]:
    """What every judge says and how long it takes, then the truth."""
    scores, seconds = {}, {}
    for name, judge in judges.items():
        started = time.perf_counter()
        scores[name] = judge(candidate)
        seconds[name] = round(time.perf_counter() - started, 4)
    started = time.perf_counter()
    model = begin(candidate.architecture, recipe.seed, None)
    fit(model, data, recipe)
    return {
        "scores": scores,
        "seconds": seconds,
        "training_seconds": round(time.perf_counter() - started, 2),
        "accuracy": evaluate(model.cpu(), data.test, data.info).accuracy,
        "macs": candidate.macs,
        "architecture": json.loads(candidate.architecture.to_json()),
        "data_hash": data.hash,
    }


def page(lines: list[dict[str, Any]], setting: Setting, command: str) -> str:
    """The page, from the lines of all networks."""
    parts = [
        "# Cheap evaluations against training\n",
        f"{max(line['date'] for line in lines)}; {versions('pocketzoo', 'torch')}; one core; `{command}`\n",
        f"{setting.data}; random networks of {setting.family}, each trained for {setting.epochs} epochs on "
        f"{setting.images or 'all'} training images (validation included; batch {setting.batch_size}, peak lr "
        f"{setting.lr:g}) from one seed, and tested on the whole test split. Kendall's tau-b of each judgement with "
        f"the test accuracy, its 95 % bootstrap interval over the networks ({RESAMPLES} resamples), Spearman's rho, "
        "and the lead: tau minus the best plain count's |tau|, and its lower bound at 5 % over all proxies together "
        "(Bonferroni). A proxy is trusted where that bound is above 0. "
        f"Parents: {setting.parent_macs / 1e6:g}M MACs, {setting.parent_epochs} epochs; a cut parent is scored on "
        "the validation images after its batch norms have taken new statistics. `search/proxies.py` has the formulas.",
    ]
    for half, title in GROUPS.items():
        parts.append(section(title, [line for line in lines if line["half"] == half]))
    return "\n".join(parts) + "\n"


def section(title: str, lines: list[dict[str, Any]]) -> str:
    """One half's table and verdict."""
    scores = pd.DataFrame([line["scores"] for line in lines])
    accuracy = [line["accuracy"] for line in lines]
    macs = [line["macs"] for line in lines]
    table = rank_correlations(scores, accuracy, COUNTS)
    seconds = pd.DataFrame([line["seconds"] for line in lines]).mean()
    training = np.mean([line["training_seconds"] for line in lines])
    rows = [
        f"| {row['proxy']} | {row['tau']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | {row['spearman']:.2f} | "
        + ("the bar" if row["proxy"] in COUNTS else f"{row['lead']:+.2f} (from {row['lead_low']:+.2f})")
        + f" | {'yes' if row['trusted'] else ''} | {seconds[row['proxy']]:.2f} |"
        for _, row in table.iterrows()
    ]
    head = [
        f"\n## {title[0].upper()}{title[1:]}: {len(lines)} networks of {min(macs):,} to {max(macs):,} MACs\n",
        f"Test accuracy {min(accuracy):.2%} to {max(accuracy):.2%}, median {np.median(accuracy):.2%}; training one "
        f"takes {training:.1f} s.\n",
        "| judgement | Kendall's tau (95 % interval) | Spearman | lead on the counts | trusted | seconds |",
        "|---|---:|---:|---:|---|---:|",
    ]
    return "\n".join([*head, *rows, "", verdict(table, COUNTS)])


if __name__ == "__main__":
    sys.exit(main())
