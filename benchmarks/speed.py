"""How fast counting, pricing and the command line are, as ratios to the alternatives in one run.

Run: python benchmarks/speed.py > benchmarks/speed.txt
Rounds are interleaved over what is compared, and medians of the rounds are printed. Tools that leave hooks or buffers
in a model get a fresh copy each round, made outside the clock. Counting runs on one thread; pricing uses what NumPy
takes of the machine's cores.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import torch
from fvcore.nn import FlopCountAnalysis
from thop import profile as thop_profile
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pocketzoo import Architecture, ChannelGraph, trace
from pocketzoo.errors import UnknownDevice
from pocketzoo.profiler.counters import ptflops_counter
from pocketzoo.profiler.latency import latency_model

SEED = 0
MODELS = ("mobilenet_v2", "resnet50", "shufflenet_v2_x1_0")
SHAPE = (1, 3, 224, 224)
COUNTING_ROUNDS, PRICING_ROUNDS, COMMAND_ROUNDS = 15, 5, 7
CANDIDATES, LOOPED, REBUILT, CHECKED = 1_000_000, 20_000, 5, 20
PREDICTED = 100_000
COMMAND_TARGET_S = 0.5
STAGES = ((1, 1), (2, 2), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))  # blocks, stride: arXiv:1801.04381, Table 2
Work = Callable[[nn.Module], object]
Clock = Callable[[], float]


def ours(model: nn.Module) -> object:
    return trace(model, SHAPE).price()


def fvcore(model: nn.Module) -> object:
    analysis = FlopCountAnalysis(model, torch.zeros(SHAPE))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none").total()


def thop(model: nn.Module) -> object:
    return thop_profile(model, inputs=(torch.zeros(SHAPE),), verbose=False)


def ptflops(backend: str) -> Work:
    counter = ptflops_counter()
    return lambda model: counter(model, SHAPE[1:], as_strings=False, print_per_layer_stat=False, backend=backend)


def flop_counter(model: nn.Module) -> object:
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(SHAPE))
    return counter.get_total_flops()


def counters() -> dict[str, Work]:
    return {
        "pocketzoo": ours,
        "fvcore": fvcore,
        "thop": thop,
        "ptflops (pytorch)": ptflops("pytorch"),
        "ptflops (aten)": ptflops("aten"),
        "FlopCounterMode": flop_counter,
        "bare forward": lambda model: model(torch.zeros(SHAPE)),
    }


def seconds(work: Callable[[], object], clock: Clock) -> float:
    started = clock()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return clock() - started


def medians(
    rounds: int, work: Mapping[str, Callable[[], Callable[[], object]]], clock: Clock = time.perf_counter
) -> dict[str, float]:  # fmt: skip
    """Median seconds of each; an entry is called outside the clock and returns what is timed. One round warms up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, prepare in work.items():
            times[name].append(seconds(prepare(), clock))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def print_counting() -> float:
    """Ratios for each model; returns the seconds of the fastest other counter on MobileNet v2."""
    fastest = {}
    print(f"## Tracing and counting one model, {SHAPE[2]} pixels, one thread: ms, and times pocketzoo's\n")
    tools = counters()
    print("| model | " + " | ".join(tools) + " | fastest other / pocketzoo |")
    print("|---|" + "---|" * (len(tools) + 1))
    for name in MODELS:
        model = Architecture.of(name).build().eval()

        def prepared(work: Work, model: nn.Module = model) -> Callable[[], Callable[[], object]]:
            def prepare() -> Callable[[], object]:
                own = copy.deepcopy(model)
                return lambda: work(own)

            return prepare

        result = medians(COUNTING_ROUNDS, {tool: prepared(work) for tool, work in tools.items()})
        base = result["pocketzoo"]
        fastest[name] = min(s for tool, s in result.items() if tool not in ("pocketzoo", "bare forward"))
        cells = " | ".join(f"{1e3 * s:.1f} ({s / base:.2f}x)" for s in result.values())
        print(f"| {name} | {cells} | {fastest[name] / base:.2f}x |")
    print()
    return fastest["mobilenet_v2"]


def by_hand(widths: list[int], side: int = 112, num_classes: int = 1000) -> tuple[int, int]:
    """Parameters and MACs of MobileNet v2 in plain Python, as one writes the formula by hand."""
    rest = iter(widths)
    c_in = next(rest)
    params, macs = 27 * c_in + 2 * c_in, 27 * c_in * side * side
    for stage, (blocks, stride) in enumerate(STAGES):
        c_out = 0
        for block in range(blocks):
            hidden = next(rest) if stage else c_in
            c_out = c_out or next(rest)
            step = stride if block == 0 else 1
            if stage:
                params += c_in * hidden + 2 * hidden
                macs += c_in * hidden * side * side
            side //= step
            params += 9 * hidden + 2 * hidden + hidden * c_out + 2 * c_out
            macs += (9 + c_out) * hidden * side * side
            c_in = c_out
    head = next(rest)
    params += c_in * head + 2 * head + head * num_classes + num_classes
    macs += c_in * head * side * side + head * num_classes
    return params, macs


def print_pricing(fastest_counter: float) -> None:
    arch = Architecture.of("mobilenet_v2")
    with torch.device("meta"):
        model = arch.build()
    graph = trace(model, SHAPE)
    present = list(graph.groups.values())
    widths = np.random.default_rng(SEED).integers([w // 4 for w in present], [w + 1 for w in present],
                                                  size=(CANDIDATES, len(present)))  # fmt: skip
    looped = widths[:LOOPED].tolist()

    def built() -> None:
        for _ in range(REBUILT):
            with torch.device("meta"):
                fresh = arch.build()
            fresh.to_empty(device="cpu")

    result = medians(PRICING_ROUNDS, {
        "priced": lambda: lambda: graph.price_many(widths, columns=("params", "macs")),
        "with memory": lambda: lambda: graph.price_many(widths, columns=("params", "macs", "peak_memory_bytes")),
        "by hand": lambda: lambda: [by_hand(row) for row in looped],
        "built": lambda: built,
    })  # fmt: skip
    rates = {
        "pocketzoo, params and MACs": CANDIDATES / result["priced"],
        "pocketzoo, peak memory too": CANDIDATES / result["with memory"],
        "hand-written formula, a Python loop": LOOPED / result["by hand"],
        "build on the CPU without initialisation + fastest other counter": 1
        / (result["built"] / REBUILT + fastest_counter),
    }
    print(f"## Pricing candidates of MobileNet v2, {CANDIDATES:,} at once, {os.cpu_count()} cores\n")
    print("| how | candidates a second | pocketzoo is faster by |\n|---|---|---|")
    for how, rate in rates.items():
        print(f"| {how} | {rate:,.0f} | {rates['pocketzoo, params and MACs'] / rate:,.1f}x |")
    print(f"\n{exactness(graph, model, widths)}\n")


def exactness(graph: ChannelGraph, model: nn.Module, widths: npt.NDArray[np.int64]) -> str:
    """Rebuild a sample, count it with FlopCounterMode and trace it again: all must equal the price."""
    sample = widths[np.random.default_rng(SEED).choice(len(widths), CHECKED, replace=False)]
    prices = graph.price_many(sample, columns=("params", "macs", "peak_memory_bytes"))
    for row, price in zip(sample.tolist(), prices.itertuples(), strict=True):
        small = graph.resize(model, dict(zip(graph.groups, row, strict=True))).eval()
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            small(torch.empty(SHAPE))
        counted = sum(p.numel() for p in small.parameters()), counter.get_total_flops() // 2
        if (price.params, price.macs) != counted or by_hand(row) != counted:
            raise SystemExit(f"priced {price}, counted {counted} by FlopCounterMode, {by_hand(row)} by hand: {row}")
        if price.peak_memory_bytes != trace(small, SHAPE).price().peak_memory_bytes:
            raise SystemExit(f"peak memory differs from the rebuilt model's: {row}")
    return f"{CHECKED} of them rebuilt: parameters, MACs (FlopCounterMode / 2) and peak memory equal the price exactly."


def print_predicting() -> None:
    """Latencies of the same candidates, by a calibrated and by a published device's model."""
    arch = Architecture.of("mobilenet_v2")
    with torch.device("meta"):
        graph = trace(arch.build(), SHAPE)
    widths = graph.random_widths(PREDICTED, SEED)
    print(f"## Predicting latencies of MobileNet v2, {PREDICTED:,} candidates at once\n")
    print("| model | candidates a second of one core |\n|---|---|")
    for device, runtime in (("cpu", "eager"), ("cpu", "onnxruntime"), ("pixel1", None)):
        try:
            model = latency_model(device, runtime)
        except UnknownDevice as error:
            print(f"| {device}, {runtime} | not calibrated: {error} |")
            continue
        predicts = partial(model.predict, graph, widths)
        work = {"predicted": lambda predicts=predicts: predicts}
        taken = medians(PRICING_ROUNDS, work, time.process_time)["predicted"]  # of all its threads
        print(f"| {device}, {model.runtime} | {PREDICTED / taken:,.0f} |")
    print()


def print_commands() -> None:
    def runs(*words: str) -> Callable[[], Callable[[], object]]:
        command = [sys.executable, "-m", "pocketzoo", *words]
        return lambda: lambda: subprocess.run(command, check=True, capture_output=True)

    result = medians(COMMAND_ROUNDS, {"pocketzoo --help": runs("--help"), "pocketzoo list": runs("list")})
    print(f"## The command line, s (target: under {COMMAND_TARGET_S})\n\n| command | median |\n|---|---|")
    for command, taken in result.items():
        print(f"| `{command}` | {taken:.2f} |")


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    packages = ("torch", "numpy", "fvcore", "thop", "ptflops")
    print("# Speed: counting, pricing, command line\n")
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, "
          f"load {os.getloadavg()[0]:.1f} at the start, seed {SEED}, Python {platform.python_version()}, "
          + ", ".join(f"{p} {version(p)}" for p in packages))  # fmt: skip
    print(f"\nMedians of {COUNTING_ROUNDS} (counting), {PRICING_ROUNDS} (pricing) and {COMMAND_ROUNDS} (command line) "
          "interleaved rounds after one to warm up.\n")  # fmt: skip
    with torch.no_grad():
        fastest = print_counting()
    print_pricing(fastest)
    print_predicting()
    print_commands()


if __name__ == "__main__":
    main()
