"""The headline tables of network compression on MNIST. Writes them as the runs come out.

Run: python benchmarks/compression_evidence.py [--only STUDY] [--quick] [--runs DIR]
Needs MNIST as parquet in ../shared/data/mnist (beside the checkout). Every network is a file below
runs/compression_evidence and a line of compression_evidence.jsonl: stopped at any moment, the same command goes on.
`--quick` is a smoke test on digits and writes to runs/. The studies are data: compression_studies.py.

Recipes, ranks and stopping points are chosen on 5,000 images held out of train, with seed 0: of the recipes within the
study's error the one with the smallest file (or the fewest weights). The chosen one then runs from the parents of all
seeds, and only then is the test split read, once for each seed. What trains or chooses has no test split to read: there
it gets the validation images again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from compression_columns import deep_compression_columns
from compression_pages import PARENT, candidates, chosen, page
from compression_studies import (
    CURVES,
    DIGITS,
    SHRUNK,
    STUDIES,
    TRIALS,
    Curve,
    Study,
    Trial,
    parent_training,
    trial_training,
)
from records import machine, note, read, versions, without_stump
from torch import nn

from pocketzoo.compress.compression import Compression
from pocketzoo.compress.recipes import passes
from pocketzoo.compress.run import Packed, compress_model
from pocketzoo.graph.channel_graph import trace
from pocketzoo.graph.importance import l1_importance
from pocketzoo.graph.sparsity import prunable
from pocketzoo.search.shrink import shrink
from pocketzoo.training.data import DataSet, Split, load_data
from pocketzoo.training.evaluate import evaluate
from pocketzoo.training.loop import fit
from pocketzoo.training.run import fitted
from pocketzoo.training.saved import load, load_with_info, save_weights
from pocketzoo.zoo.architecture import Architecture

CHECKOUT = Path(__file__).resolve().parents[1]
MNIST = CHECKOUT.parent / "shared" / "data" / "mnist"
HELD_OUT = 5_000 / 60_000
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Held:
    """A recipe's first step after another's file: what is zero there stays zero."""

    def apply(self, compression: Compression) -> Compression:
        """Masks from the zeros of layers that have any."""
        masks = {name: weight.detach() != 0 for name, weight in prunable(compression.model).items()}
        return compression.changed(masks={name: mask for name, mask in masks.items() if not mask.all()})


@dataclass(frozen=True)
class Evidence:
    """Where the networks and the lines are, and the data."""

    data: DataSet
    trials: Sequence[Trial]
    runs: Path
    lines: Path

    @cached_property
    def blind(self) -> DataSet:
        """Without a test split."""
        return replace(self.data, test=self.data.val)

    def parent(self, model: str, seed: int) -> Path:
        """The dense network that a study's trials begin with."""
        file = self.runs / "parents" / f"{model}-{seed}.safetensors"
        if not file.exists():
            started = time.perf_counter()
            recipe = parent_training(model, self.blind, seed)
            architecture = fitted(model, self.blind)
            torch.manual_seed(seed)
            network = architecture.build()
            history = fit(network, self.blind, recipe)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_weights(file, network, architecture, self.data.info)
            error = 100 * (1 - history.val_accuracy)
            self.write({
                "kind": "parent", "model": model, "trial": PARENT, "seed": seed, "val_error": error,
                "training": json.loads(recipe.to_json()), "bytes": file.stat().st_size,
                "params": trace(network, architecture.input_shape).price().params,
                "seconds": round(time.perf_counter() - started, 1),
            })  # fmt: skip
        return file

    def shrunk(self, trial: Trial, seed: int) -> Path:
        """The parent with fewer channels, trained on."""
        name = f"{trial.model}-{trial.shrunk.replace(' ', '-')}-{trial.teacher or 'alone'}-{seed}"
        file = self.runs / "shrunk" / f"{name}.safetensors"
        if not file.exists():
            recipe = trial_training(trial, self.blind, seed).with_settings(**{**SHRUNK, **trial.training})
            parent = self.parent(trial.model, seed)
            if trial.shrunk[0].isdigit():
                network, architecture = narrowed(parent, [int(width) for width in trial.shrunk.split("-")])
                fit(network, self.blind, recipe, teacher=self.teacher(trial, seed))
            else:
                method, *words, budget = trial.shrunk.split()
                settings = {name: float(value) for name, value in (word.split("=") for word in words)}
                small = shrink(parent, self.blind, budget, method, settings=settings, recipe=recipe, finetune=recipe)
                assert small.architecture is not None  # the parent is one of the zoo's
                network, architecture = small.model, small.architecture
            file.parent.mkdir(parents=True, exist_ok=True)
            save_weights(file, network, architecture, self.data.info)
            error = 100 * (1 - evaluate(network, self.blind.val, self.data.info).accuracy)
            note(f"{name}: {error:.2f} % error, {architecture.graph().groups}")
        return file

    def start(self, trial: Trial, seed: int) -> Path:
        """The network that a trial's recipe begins with."""
        if trial.after:
            return self.carried_out(self.trial(trial.model, trial.after), seed)
        return self.shrunk(trial, seed) if trial.shrunk else self.parent(trial.model, seed)

    def trial(self, model: str, name: str) -> Trial:
        """The trial of that name."""
        return next(trial for trial in self.trials if (trial.model, trial.name) == (model, name))

    def carried_out(self, trial: Trial, seed: int) -> Path:
        """A trial's packed file; its line is written when it is made."""
        file = self.runs / trial.model / f"{trial.name.replace(' ', '-')}-{seed}.pz"
        key = {"kind": "trial", "model": trial.model, "trial": trial.name, "seed": seed}
        if not file.exists() or not self.has(key):
            source = self.start(trial, seed)
            started = time.perf_counter()
            packed = compress_model(
                source, [*([Held()] if trial.after else []), *passes(trial.recipe)], self.blind,
                training=trial_training(trial, self.blind, seed), teacher=self.teacher(trial, seed),
            )  # fmt: skip
            file.parent.mkdir(parents=True, exist_ok=True)
            packed.save(file)
            self.write({
                **key, "recipe": trial.recipe, "after": trial.after, "shrunk": trial.shrunk, "teacher": trial.teacher,
                "training": dict(trial.training),
                "val_error": self.error(file, self.data.val), "seconds": round(time.perf_counter() - started, 1),
                **figures(packed),
            })  # fmt: skip
        return file

    def teacher(self, trial: Trial, seed: int) -> nn.Module | None:
        """The parent that a trial's trainings distil from."""
        return load(self.parent(trial.teacher, seed)) if trial.teacher else None

    def error(self, file: Path, split: Split) -> float:
        """Percent of wrong answers of the network as anybody loads it."""
        return 100 * (1 - evaluate(load(file), split, self.data.info).accuracy)

    def test(self, model: str, trial: str, seed: int, file: Path) -> None:
        """Read the test split for a network, unless that has been done."""
        key = {"kind": "test", "model": model, "trial": trial, "seed": seed}
        if not self.has(key):
            self.write({**key, "test_error": self.error(file, self.data.test)})

    def has(self, key: dict[str, Any]) -> bool:
        """Whether there is such a line."""
        return any(key.items() <= line.items() for line in read(self.lines))

    def write(self, line: dict[str, Any]) -> None:
        """Append a finished run."""
        stamp = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "versions": versions("pocketzoo", "torch", "constriction"),
            "machine": machine(),
        }
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, **stamp}) + "\n")
        error = line.get("val_error", line.get("test_error", 0.0))
        sizes = f"{line['bytes']:,} bytes, {line['params']:,} parameters" if "bytes" in line else ""
        note(f"{line['model']}, {line['trial']}, seed {line['seed']}: {error:.2f} % error ({line['kind']}) {sizes}")

    def study(self, study: Study, seeds: Sequence[int]) -> None:
        """All trials with the first seed, the chosen one with all, and the one reading of the test split."""
        for trial in candidates(study, self.trials):
            self.carried_out(trial, seeds[0])
        best = self.trial(study.model, chosen(study, self.trials, read(self.lines))["trial"])
        files = {seed: self.carried_out(best, seed) for seed in seeds}
        for seed, file in files.items():
            self.test(study.model, best.name, seed, file)
            self.test(study.model, PARENT, seed, self.parent(study.model, seed))

    def curve(self, curve: Curve, seeds: Sequence[int]) -> None:
        """All trials with all seeds, validation only."""
        for seed in seeds:
            for trial in candidates(curve, self.trials):
                self.carried_out(trial, seed)


def narrowed(parent: Path, widths: Sequence[int]) -> tuple[nn.Module, Architecture]:
    """A network's channels with the largest filters, that many of each group."""
    model, architecture, _ = load_with_info(parent)
    graph = architecture.graph()
    by_group = dict(zip(graph.groups, widths, strict=True))
    keep = graph.select(l1_importance(graph, model), by_group)
    return graph.resize(model, keep=keep), architecture.with_widths(by_group)


def figures(packed: Packed) -> dict[str, Any]:
    """What a packed network takes, in total and by layer."""
    layers = packed.report()
    total = layers.iloc[-1]
    return {
        "bytes": packed.nbytes, "header_bytes": packed.packed.header_bytes, "params": int(total["params"]),
        "nonzeros": int(total["nonzeros"]), "macs": int(total["macs"]), "effective_macs": int(total["effective_macs"]),
        "layers": deep_compression_columns(packed),
        "widths": dict(trace(packed.compression.model, packed.compression.input_shape).groups),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Exit code 2 for what cannot be done, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="STUDY", help="a study by its name; may be given again")
    parser.add_argument("--quick", action="store_true", help="digits and few epochs: a smoke test, no evidence")
    parser.add_argument("--runs", type=Path, default=CHECKOUT / "runs", help="folder of the networks")
    options = parser.parse_args(arguments)
    trials, studies, curves = DIGITS if options.quick else (TRIALS, STUDIES, CURVES)
    known = {own.name: own for own in (*studies, *curves)}
    if unknown := set(options.only or ()) - known.keys():
        note(f"no study {sorted(unknown)[0]!r}; there are {'; '.join(known)}")
        return 2
    if not options.quick and not list(MNIST.glob("*.parquet")):
        note("no parquet files in ../shared/data/mnist; put the Hub's ylecun/mnist there, and run again")
        return 2
    name = "compression_evidence_quick" if options.quick else "compression_evidence"
    out = (options.runs if options.quick else CHECKOUT / "benchmarks") / f"{name}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = out.with_suffix(".jsonl")
    without_stump(lines)
    torch.set_num_threads(1)
    data = load_data("digits") if options.quick else load_data(MNIST, val_share=HELD_OUT)
    evidence = Evidence(data, trials, options.runs / name, lines)
    seeds = SEEDS[:1] if options.quick else SEEDS
    try:
        for own in known.values():
            if not options.only or own.name in options.only:
                evidence.study(own, seeds) if isinstance(own, Study) else evidence.curve(own, seeds)
                out.write_text(page(studies, curves, trials, read(lines)), encoding="utf-8")
    except KeyboardInterrupt:
        note("stopped; what was finished is kept: run again to go on")
        return 130
    print(out.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
