"""How well latencies are predicted: the whole zoo at widths and resolutions that no calibration has seen.

    python benchmarks/predictor.py --runtime eager       # about ten minutes; then onnxruntime
    python benchmarks/predictor.py --table               # writes benchmarks/predictor.md from what was measured

Needs a calibration of the machine (`pocketzoo calibrate`). Every model is measured as it is at its own resolution and
at 0.7 of its widths at another resolution; the plan of the calibration has neither. Beside the prediction stand two
baselines with one factor each, fitted to the measurements themselves, which flatters them: MACs, and an additive table
of operators that are timed alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import nn

import pocketzoo as pz
from pocketzoo.errors import OutsideCalibration, PocketzooError
from pocketzoo.graph.sized import SizedOperator
from pocketzoo.profiler.measure import measure_in_batches
from pocketzoo.profiler.operator_features import multiplies
from pocketzoo.profiler.runner import Protocol, settled, stamp, timed
from pocketzoo.zoo.architecture import Architecture

HERE = Path(__file__).parent
RAW = HERE / "predictor.jsonl"
PAGE = HERE / "predictor.md"
NARROW, EIGHT = 0.7, 8
OTHER = {224: 160, 227: 176, 299: 224, 32: 32, 28: 28}  # resolution -> the other one; small images have none
PROTOCOL = Protocol(seconds=0.0, rounds=8)
RUNTIMES = ("eager", "onnxruntime")
TABLED = 24  # networks whose operators are timed one by one


def narrowed(name: str) -> Architecture | None:
    """The model at 0.7 of its widths, multiples of eight where they may be, at another resolution."""
    arch = Architecture.of(name)
    arch = arch.with_settings(resolution=OTHER.get(arch.resolution, arch.resolution))
    graph = arch.graph()
    steps = {group: int(np.lcm(step, EIGHT)) if width >= 4 * EIGHT else step
             for (group, width), step in zip(graph.groups.items(), graph.steps.values(), strict=True)}  # fmt: skip
    widths = {g: max(steps[g], round(NARROW * w / steps[g]) * steps[g]) for g, w in graph.groups.items()}
    return arch.with_widths(widths) if graph.valid([list(widths.values())])[0] else None


def measured(runtime: str, seconds: float) -> None:
    """Measure what is not in the file yet, and append it."""
    done = {(r["runtime"], r["model"]) for r in read()}
    models: dict[str, str | Architecture] = {}
    for name in pz.list_models("*"):
        models[name] = name
        if (narrow := narrowed(name)) is not None:
            models[f"{name} narrow"] = narrow
    models = {name: model for name, model in models.items() if (runtime, name) not in done}
    names = list(models)
    start = time.perf_counter()
    with RAW.open("a", encoding="utf-8") as file:
        for first in range(0, len(names), 6):
            part = {name: models[name] for name in names[first : first + 6]}
            try:
                for found in measure_in_batches(
                    part, device="cpu", runtime=runtime, threads=1, batch=1, resolution=None, input_shape=None,
                    dtype=None, protocol=PROTOCOL, progress=None,
                ):  # fmt: skip
                    for measurement in found:
                        file.write(json.dumps(measurement.to_dict()) + "\n")
                    file.flush()
            except PocketzooError as error:
                print(f"left out: {list(part)}: {error}", flush=True)
            print(f"{first + len(part)}/{len(names)} {time.perf_counter() - start:.0f} s", flush=True)
            if time.perf_counter() - start > seconds:
                break


def read() -> list[dict]:
    if not RAW.exists():
        return []
    return [json.loads(line) for line in RAW.read_text(encoding="utf-8").splitlines()]


# -- baselines --------------------------------------------------------------------------------------------------------


def alone_ms(operator: SizedOperator) -> float:
    """One operator of PyTorch by itself in a loop."""
    run = _runner(operator)
    if run is None:
        return 0.0
    with torch.inference_mode():
        call = timed(run, 1)
        return float(np.median([settled(call, 3, 3) for _ in range(3)]))


def _runner(operator: SizedOperator) -> Callable[[], object] | None:
    inputs = [torch.randn(*map(int, shape)) for shape in operator.inputs]
    if operator.aten == "convolution":
        channels_in, channels_out, kernel = inputs[0].shape[1], int(operator.output[1]), tuple(operator.weight[2:])
        stride = max(1, round(inputs[0].shape[2] / int(operator.output[2])))
        layer = nn.Conv2d(channels_in, channels_out, kernel, stride, [k // 2 for k in kernel],
                          groups=channels_in // int(operator.weight[1]), bias=operator.biased)  # fmt: skip
        return lambda: layer(inputs[0])
    if multiplies(operator):
        layer = nn.Linear(inputs[0].shape[-1], int(operator.output[-1]))
        return lambda: layer(inputs[0])
    images = inputs[0]
    if operator.kind == "batch norm":
        norm = (nn.BatchNorm2d if images.dim() == 4 else nn.BatchNorm1d)(images.shape[1]).eval()
        return lambda: norm(images)
    if operator.aten == "mean":
        return lambda: images.mean((2, 3))
    if operator.kind == "pool":
        return lambda: nn.functional.max_pool2d(images, 3, 2, 1)
    return {"activation": lambda: torch.relu_(images), "add": lambda: images + inputs[-1],
            "mul": lambda: images * inputs[-1], "concatenation": lambda: torch.cat(inputs, 1),
            "copy": lambda: images.clone()}.get(operator.kind)  # fmt: skip


def table_ms(arch: Architecture) -> float:
    """The sum of the network's operators, each timed alone; equal operators once."""
    known: dict[str, float] = {}
    total = 0.0
    for operator in arch.graph().operators():
        key = f"{operator.aten} {operator.inputs} {operator.output} {operator.weight}"
        if key not in known:
            known[key] = alone_ms(operator)
        total += known[key]
    return total


# -- the page ---------------------------------------------------------------------------------------------------------


def score(predicted: np.ndarray, actual: np.ndarray) -> str:
    off = np.abs(predicted / actual - 1)
    rank = spearmanr(predicted, actual).statistic
    return f"{100 * (off <= 0.1).mean():.0f} % | {100 * off.mean():.1f} % | {100 * np.median(off):.1f} % | {rank:.4f}"


def one_factor(estimate: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return estimate * np.median(actual / estimate)


def predictions(runtime: str) -> pd.DataFrame:
    """A row a network: predicted, measured as it was, and at the speed that the machine had in the calibration."""
    model = pz.latency_model("cpu", runtime)
    rows = []
    for record in read():
        if record["runtime"] != runtime:
            continue
        arch = Architecture.from_json(json.dumps(record["architecture"]))
        graph = arch.graph()
        try:
            ms = float(model.predict(graph)[0])
        except OutsideCalibration as error:
            print(f"{runtime}: {record['model']} is not predicted: {error}")
            ms = float("nan")
        then = record["median_ms"] * model.reference_ms / record["reference_ms"]
        rows.append({"model": record["model"], "predicted": ms, "measured": record["median_ms"], "then": then,
                     "macs": graph.price().macs, "arch": arch})  # fmt: skip
    return pd.DataFrame(rows)


def estimates(runtime: str, every: pd.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(what it is, estimated, measured) for each line of the table."""
    known = every.dropna()
    narrow = known["model"].str.endswith("narrow")
    yield "**calibrated model**", known["predicted"], known["measured"]
    yield "the same, after the drift of the reference network is taken out", known["predicted"], known["then"]
    yield "the same, models as they are", known["predicted"][~narrow], known["measured"][~narrow]
    yield "the same, 0.7 of the widths and another resolution", known["predicted"][narrow], known["measured"][narrow]
    slow = known["measured"] > 1
    yield "the same, above one millisecond", known["predicted"][slow], known["measured"][slow]
    yield "MACs times one factor", one_factor(known["macs"], known["measured"]), known["measured"]
    if runtime == "eager":
        some = known.sample(min(TABLED, len(known)), random_state=0)
        summed = np.array([table_ms(arch) for arch in some["arch"]])
        yield "operators timed alone, summed", summed, some["measured"]
        yield "the same, times one factor", one_factor(summed, some["measured"]), some["measured"]
        yield "calibrated model on these", some["predicted"], some["measured"]


def page() -> str:
    lines = [
        "# Predicted and measured latency, every model of the zoo", "",
        f"{stamp()['date']}, {stamp()['processor']}, torch {torch.__version__}, one thread, one image.",
        "Written by `python benchmarks/predictor.py --table` from predictor.jsonl; how is said there.", "",
    ]  # fmt: skip
    worst = [
        "",
        "Furthest off:",
        "",
        "| runtime | network | measured, ms | predicted, ms | off |",
        "|---|---|---|---|---|",
    ]
    for runtime in RUNTIMES:
        every = predictions(runtime)
        refused = int(every["predicted"].isna().sum())
        model = pz.latency_model("cpu", runtime)
        lines += [
            f"## {runtime}", "",
            f"{len(every)} networks, {refused} of them refused as beyond the calibration, whose own estimate of its"
            f" error is {model.error.mape_percent:.1f} %, {model.error.within_10_percent:.0f} % within 10 %"
            f" ({model.error.judged_on}).", "",
            "| estimate | networks | within 10 % | mean error | median error | Spearman |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name, estimated, actual in estimates(runtime, every):
            lines.append(f"| {name} | {len(actual)} | {score(np.asarray(estimated), np.asarray(actual))} |")
        lines.append("")
        off = every["predicted"] / every["measured"] - 1
        for at in off.abs().sort_values(ascending=False).index[:12]:
            row = every.loc[at]
            worst.append(
                f"| {runtime} | {row['model']} | {row['measured']:.3g} | {row['predicted']:.3g} | {off[at]:+.0%} |"
            )
    return "\n".join([*lines, *worst, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=RUNTIMES)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.runtime:
        measured(given.runtime, given.seconds)
    if given.table:
        PAGE.write_text(page(), encoding="utf-8")
        print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
