"""How much a measured latency differs from run to run: the same models in fresh processes, one after another.

Run, on a quiet machine: python benchmarks/latency_spread.py
It writes latency_spread.md beside it. The coefficient of variation (standard deviation over mean) is taken over the
runs, of each model's median and of its ratio to the reference model of the same rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

MODELS = ("mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0", "squeezenet1_0", "resnet18")
RUNTIMES = ("eager", "onnxruntime")
RESOLUTION = 224
Record = dict[str, Any]  # a Measurement as a dict


def measured(runtime: str, seconds: float, models: Sequence[str]) -> list[Record]:
    """One run of the whole protocol in a process of its own."""
    command = [sys.executable, "-m", "pocketzoo", "measure", *models, "--runtime", runtime, "--threads", "1",
               "--resolution", str(RESOLUTION), "--seconds", str(seconds), "--json"]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return list(json.loads(done.stdout))


def variation_percent(values: Sequence[float]) -> float:
    return 100 * statistics.stdev(values) / statistics.mean(values)


def table(runs: Sequence[Sequence[Record]]) -> list[str]:
    """A row for each model: over the runs, its median and ratio, and how much they vary."""
    lines = ["| model | median, ms | its variation, % | ratio to the reference | its variation, % |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    for same in zip(*runs, strict=True):
        medians, ratios = [m["median_ms"] for m in same], [m["ratio"] for m in same]
        lines.append(
            f"| {same[0]['model']} | {statistics.median(medians):.3g} | {variation_percent(medians):.2f} "
            f"| {statistics.median(ratios):.3f} | {variation_percent(ratios):.2f} |"
        )
    return lines


def circumstances(runs: Sequence[Sequence[Record]]) -> list[str]:
    """Machine, versions, dates and protocol of the runs, and what they warned of."""
    first, last = runs[0][0], runs[-1][0]
    stamp, protocol = first["stamp"], first["protocol"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines = [
        f"{len(runs)} processes; {stamp['processor']}, {stamp['cores']} processors, {stamp['system']}; {versions}; "
        f"{first['threads']} thread; {stamp['date']} to {last['stamp']['date']}. Reference: {first['reference']}. "
        f"At least {protocol['rounds']} rounds, to {protocol['tolerance']:.1%}, at most {protocol['seconds']:g} s."
    ]
    warned = [f"- run {number}: {text}" for number, run in enumerate(runs, 1) for text in run[0]["warnings"]]
    return [*lines, "", *(["Warnings:", "", *warned] if warned else ["No warnings."])]


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="At most, for a run.")
@click.option("--processes", type=click.IntRange(min=2), default=5, show_default=True, help="Runs of each runtime.")
@click.option("--models", default=",".join(MODELS), show_default=True, help="Names between commas.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).with_suffix(".md"), show_default=True)
def main(seconds: float, processes: int, models: str, out: Path) -> None:
    """Write how much measured latencies vary from process to process."""
    names = models.split(",")
    lines = [f"# Run-to-run spread of measured latencies, {RESOLUTION} pixels, batch 1", "",
             f"Written by `python benchmarks/{Path(__file__).name}`."]  # fmt: skip
    for runtime in RUNTIMES:
        runs = []
        for number in range(1, processes + 1):
            click.echo(f"{runtime}: run {number} of {processes}", err=True)
            runs.append(measured(runtime, seconds, names))
        lines += ["", f"## {runtime}", "", *table(runs), "", *circumstances(runs)]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
