"""How much faster INT8 and structured pruning make networks on this processor in ONNX Runtime, and where not, why.

Run: python benchmarks/int8.py             (about five minutes of one quiet core; writes int8.md)
     python benchmarks/int8.py RUN DATA    (INT8 accuracy of a trained run by calibration, printed;
                                            int8_calibration.txt holds two parents of pruning_evidence.py)

Six files of each network run in common rounds, fp32 and INT8 of each of three: the network, its channels of largest L1
norm at half its multiply-accumulates, and the same in multiples of 16 (`--multiple 16`). Batch 1, one thread.
Weights are fresh: they do not change the time. The last column is where a file's time goes by ONNX Runtime's profiler:
FusedConv is its slower convolution, for widths that its blocks of channels do not fit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from records import machine, versions
from torch import nn

from pocketzoo import Architecture, trace
from pocketzoo.compress.export import calibrations
from pocketzoo.graph.sparsity import surviving_mass
from pocketzoo.profiler.files import measure_files
from pocketzoo.profiler.measure import built
from pocketzoo.profiler.runner import Protocol
from pocketzoo.profiler.runtimes import FILES
from pocketzoo.search.nearest import uniform_widths
from pocketzoo.search.shrink import absolute

NETWORKS = (("mobilenet_v2", 224), ("resnet18", 224), ("mobilenet_v2", 96), ("cifar_resnet20", 32))  # name, pixels
SHARE = "macs=50%"
STEPS = (1, 16)  # channels; ONNX Runtime's fp32 convolutions work on blocks of 16 where a layer's channels allow
PROTOCOL = Protocol(seconds=60.0)
QUICK = Protocol(rounds=6, seconds=2.0)
CUT_RUNS = 10
WHY = 0.02  # share of the time from which an operator is named
PAGE = Path(__file__).with_suffix(".md")


def pruned(model: nn.Module, shape: Sequence[int], step: int) -> nn.Module:
    """The same share of every group's channels, those of largest L1 norm, in multiples of `step`."""
    graph = trace(model, shape, multiple=step)
    widths = uniform_widths(graph, absolute(SHARE, graph))
    cut: nn.Module = graph.resize(model, keep=graph.select(surviving_mass(graph, model, {}), widths))
    return cut


def measured(name: str, side: int, folder: Path, protocol: Protocol) -> dict[str, Any]:
    """The runner's result for the four files."""
    arch = Architecture.of(name, resolution=side, num_classes=1000 if side == 224 else 10)
    model, shape = built(arch), (1, *arch.input_shape[1:])
    networks = {"dense": model} | {f"pruned in {step}s": pruned(model, shape, step) for step in STEPS}
    macs = trace(model, shape).price().macs
    files: dict[str, Path] = {}
    for title, network in networks.items():
        state = f"{title}, {trace(network, shape).price().macs / macs:.0%} MACs,"
        for precision, runtime in (("fp32", "onnxruntime"), ("INT8", "onnxruntime-int8")):
            files[f"{state} {precision}"] = folder / f"{name}-{side}-{len(files)}.onnx"
            FILES[runtime].write(network, shape, files[f"{state} {precision}"])
    return measure_files(files, shape, protocol, cut=CUT_RUNS)


def rows(title: str, result: Mapping[str, Any]) -> list[str]:
    """A row of the page for each file."""
    return [
        f"| {title} | {file} | {own['median_ms']:.3g} ({own['low_ms']:.3g}-{own['high_ms']:.3g}) |"
        f" {1 / own['ratio']:.2f}x | {where(result['nodes'][file])} |"
        for file, own in result["models"].items()
    ]


def where(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Operators with their share of the time, the largest first."""
    times: Counter[str] = Counter()
    for node in nodes:
        times[node["op"]] += node["ms"]
    total = sum(times.values())
    return ", ".join(f"{op} {ms / total:.0%}" for op, ms in times.most_common() if ms >= WHY * total)


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown page."""
    first = next(iter(results.values()))
    lines = [
        "# INT8 and structured pruning in ONNX Runtime\n",
        f"{first['stamp']['processor']}, one thread, batch 1, ONNX Runtime {first['versions']['onnxruntime']},"
        f" {first['stamp']['date'][:10]}; milliseconds are medians with their 95 % intervals, speedups medians of the"
        " ratios to dense fp32 in the same round.\n",
        "| network | file | ms | speedup | where its time goes |",
        "|---|---|---:|---:|---|",
        *(row for title, result in results.items() for row in rows(title, result)),
        "",
        *(f"- {title}: {file} is not faster than dense fp32 ({1 / own['ratio']:.2f}x)"
          for title, result in results.items() for file, own in result["models"].items() if own["ratio"] > 1),
        *(f"- {title}: {warning}" for title, result in results.items() for warning in result["warnings"]),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="folder of a trained run, for the accuracies")
    parser.add_argument("data", nargs="?", help="the data it was trained on")
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--quick", action="store_true", help="two seconds a network; printed, not written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.run:
        table = calibrations(given.run, given.data, split=given.split)
        quality = " (JPEG q75)" if "cifar" in str(given.data).lower() else ""
        print(f"{datetime.now(UTC):%Y-%m-%d}; {versions('pocketzoo', 'torch', 'onnxruntime')}; {machine()}")
        print(f"{given.run}: {given.split} images of {given.data}{quality}\n{table.to_string(index=False)}")
        return 0
    results = {}
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        for name, side in NETWORKS:
            results[f"{name} @{side}"] = measured(name, side, Path(folder), QUICK if given.quick else PROTOCOL)
            print(f"{name} @{side} done", file=sys.stderr, flush=True)
    text = page(results)
    print(text)
    if not given.quick:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
