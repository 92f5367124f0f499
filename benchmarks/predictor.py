"""How well latencies are predicted: the whole zoo at widths and resolutions that no calibration has seen.

    python benchmarks/predictor.py --runtime eager       # about fifteen minutes; then onnxruntime
    python benchmarks/predictor.py --runtime eager --repeat 60
    python benchmarks/predictor.py --table               # writes benchmarks/predictor.md from what was measured

Needs a calibration of the machine (`pocketzoo calibrate`). Every model is measured as it is at its own resolution and
at 0.7 of its widths at another resolution; networks that the calibration happens to have measured are left out. The
speed of a machine changes from hour to hour, so predictions are judged twice: against the milliseconds that were
measured, and against these at the speed that the machine had in the calibration, read from the reference network that
joins the rounds of both. `--repeat` measures some networks a second time, in other processes and other company: how
far two measurements are apart is as far as a prediction can get. Beside it stand two baselines: MACs, and an additive
table of operators that are timed alone, each also with a factor fitted to the measurements, which flatters them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import nn

import pocketzoo as pz
from pocketzoo.errors import OutsideCalibration, PocketzooError
from pocketzoo.graph.sized import SizedOperator
from pocketzoo.profiler.latency import calibration_path
from pocketzoo.profiler.measure import REFERENCE, measure_in_batches, network, reference
from pocketzoo.profiler.operator_features import multiplies
from pocketzoo.profiler.runner import Protocol, stamp
from pocketzoo.profiler.runtimes import FILES, TORCH, run_files, run_torch
from pocketzoo.profiler.samples import read_samples
from pocketzoo.zoo.architecture import Architecture

HERE = Path(__file__).parent
RAW = HERE / "predictor.jsonl"
PAGE = HERE / "predictor.md"
NARROW, EIGHT = 0.7, 8
OTHER = {224: 160, 227: 176, 299: 224, 32: 32, 28: 28}  # resolution -> the other one; small images have none
PROTOCOL = Protocol(seconds=0.0, rounds=6)
RUNTIMES = ("eager", "onnxruntime")
TABLED = 24  # networks whose operators are timed one by one
TABLE_PROTOCOL = Protocol(seconds=0.0, rounds=3)
FOLDED = {"batch norm", "activation"}  # what ONNX Runtime folds into the convolution before


def narrowed(name: str) -> Architecture | None:
    """The model at 0.7 of its widths, multiples of eight where they may be, at another resolution."""
    arch = Architecture.of(name)
    arch = arch.with_settings(resolution=OTHER.get(arch.resolution, arch.resolution))
    graph = arch.graph()
    steps = {group: int(np.lcm(step, EIGHT)) if width >= 4 * EIGHT else step
             for (group, width), step in zip(graph.groups.items(), graph.steps.values(), strict=True)}  # fmt: skip
    widths = {g: max(steps[g], round(NARROW * w / steps[g]) * steps[g]) for g, w in graph.groups.items()}
    return arch.with_widths(widths) if graph.valid([list(widths.values())])[0] else None


def candidates() -> dict[str, str | Architecture]:
    models: dict[str, str | Architecture] = {}
    for name in pz.list_models("*"):
        models[name] = name
        if (narrow := narrowed(name)) is not None:
            models[f"{name} narrow"] = narrow
    return models


def measured(runtime: str, models: dict[str, str | Architecture], seconds: float) -> None:
    """Measure and append to the file, six networks in common rounds."""
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


class Joined(nn.Module):
    """An operator of one input that varies; the others are held."""

    def __init__(self, join: Callable[[Sequence[torch.Tensor]], torch.Tensor], others: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.join = join
        self.others = nn.ParameterList([nn.Parameter(torch.randn(*map(int, shape))) for shape in others])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The operator's output."""
        return self.join([images, *self.others])


JOINS: dict[str, Callable[[Sequence[torch.Tensor]], torch.Tensor]] = {
    "activation": lambda tensors: torch.relu(tensors[0]), "add": lambda tensors: tensors[0] + tensors[-1],
    "mul": lambda tensors: tensors[0] * tensors[-1], "concatenation": lambda tensors: torch.cat(list(tensors), 1),
    "copy": lambda tensors: tensors[0] + 0.0,
}  # fmt: skip


def lone(operator: SizedOperator) -> nn.Module | None:
    """The operator by itself; None where it moves no data."""
    shape = operator.inputs[0] if operator.inputs else ()
    if operator.aten == "convolution":
        kernel = tuple(operator.weight[2:])
        stride = max(1, round(shape[2] / int(operator.output[2])))
        return nn.Conv2d(int(shape[1]), int(operator.output[1]), kernel, stride, [k // 2 for k in kernel],
                         groups=int(shape[1] // operator.weight[1]), bias=operator.biased)  # fmt: skip
    if multiplies(operator):
        return nn.Linear(int(shape[-1]), int(operator.output[-1]))
    if operator.kind == "batch norm":
        return (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(int(shape[1]))
    if operator.aten == "mean":
        return Joined(lambda tensors: tensors[0].mean((2, 3)), [])
    if operator.kind == "pool":
        return nn.MaxPool2d(3, 2, 1)
    return Joined(JOINS[operator.kind], operator.inputs[1:]) if operator.kind in JOINS else None


def table_ms(runtime: str, arch: Architecture) -> float:
    """The sum of the network's operators, each timed alone; equal operators once."""
    operators = arch.graph().operators()
    wanted: list[str] = []
    networks = {}
    for operator in operators:
        folded = operator.kind in FOLDED and operators[operator.sources[0]].kind.endswith("conv")
        if (runtime == "onnxruntime" and folded) or (module := lone(operator)) is None:
            continue
        key = f"{operator.aten} {operator.inputs} {operator.output} {operator.weight}"
        wanted.append(key)
        if key not in networks:
            networks[key] = network(key, module.eval(), 1, shape=tuple(map(int, operator.inputs[0])))
    beside = network(REFERENCE, reference(), 1)
    every = [beside, *networks.values()]
    if runtime in TORCH:
        found = run_torch(TORCH[runtime], every, TABLE_PROTOCOL, REFERENCE, lambda text: None)
    else:
        found = run_files(FILES[runtime], "cpu", every, TABLE_PROTOCOL, REFERENCE, lambda text: None)
    return sum(found["models"][key]["median_ms"] for key in wanted)


# -- the page ---------------------------------------------------------------------------------------------------------


def score(predicted: np.ndarray, actual: np.ndarray) -> str:
    off = np.abs(predicted / actual - 1)
    rank = spearmanr(predicted, actual).statistic
    return f"{100 * (off <= 0.1).mean():.0f} % | {100 * off.mean():.1f} % | {100 * np.median(off):.1f} % | {rank:.4f}"


def one_factor(estimate: np.ndarray, actual: np.ndarray) -> np.ndarray:
    return estimate * np.median(actual / estimate)


def records(runtime: str) -> dict[str, list[dict]]:
    """What was measured of each network, in its order."""
    found: dict[str, list[dict]] = {}
    for record in read():
        if record["runtime"] == runtime:
            found.setdefault(record["model"], []).append(record)
    return found


def predictions(runtime: str) -> pd.DataFrame:
    """A row a network: predicted, measured as it was, and at the speed that the machine had in the calibration."""
    model = pz.latency_model("cpu", runtime)
    samples = read_samples(calibration_path("cpu", runtime).with_suffix(".samples.jsonl"))
    seen = {sample.architecture.key for sample in samples}
    rows = []
    for name, (record, *others) in records(runtime).items():
        arch = Architecture.from_json(json.dumps(record["architecture"]))
        if arch.key in seen:
            print(f"{runtime}: {name} was measured in the calibration")
            continue
        graph = arch.graph()
        try:
            ms = float(model.predict(graph)[0])
        except OutsideCalibration as error:
            print(f"{runtime}: {name} is not predicted: {error}")
            ms = float("nan")
        then, *again = (r["median_ms"] * model.reference_ms / r["reference_ms"] for r in [record, *others])
        rows.append({"model": name, "predicted": ms, "measured": record["median_ms"], "then": then,
                     "again": again[0] if again else None, "macs": graph.price().macs, "arch": arch})  # fmt: skip
    return pd.DataFrame(rows)


def estimates(runtime: str, every: pd.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(what it is, estimated, measured) for each line of the table."""
    known = every.dropna(subset="predicted")
    narrow = known["model"].str.endswith("narrow")
    yield "**calibrated model**, at the machine's speed in the calibration", known["predicted"], known["then"]
    yield "the same, models as they are", known["predicted"][~narrow], known["then"][~narrow]
    yield "the same, 0.7 of the widths and another resolution", known["predicted"][narrow], known["then"][narrow]
    slow = known["measured"] > 1
    yield "the same, above one millisecond", known["predicted"][slow], known["then"][slow]
    yield "**calibrated model**, milliseconds as measured", known["predicted"], known["measured"]
    yield "MACs times one factor", one_factor(known["macs"], known["measured"]), known["measured"]
    some = known.sample(min(TABLED, len(known)), random_state=0)
    summed = np.array([table_ms(runtime, arch) for arch in some["arch"]])
    yield "operators timed alone, summed", summed, some["measured"]
    yield "the same, times one factor", one_factor(summed, some["measured"]), some["measured"]
    yield "calibrated model on these", some["predicted"], some["then"]
    twice = known.dropna(subset="again")
    if len(twice):
        yield "calibrated model, networks measured a second time", twice["predicted"], twice["again"]
        yield "the first measurement of these", twice["then"], twice["again"]


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
        off = every["predicted"] / every["then"] - 1
        for at in off.abs().sort_values(ascending=False).index[:12]:
            row = every.loc[at]
            worst.append(
                f"| {runtime} | {row['model']} | {row['then']:.3g} | {row['predicted']:.3g} | {off[at]:+.0%} |"
            )
    return "\n".join([*lines, *worst, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=RUNTIMES)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--repeat", type=int, metavar="NETWORKS", help="Measure so many a second time.")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.runtime:
        models, done = candidates(), records(given.runtime)
        left = [name for name in models if name not in done]
        if given.repeat:
            once = [name for name in models if len(done.get(name, [])) == 1]
            left = np.random.default_rng(0).choice(once, given.repeat, replace=False).tolist()
        measured(given.runtime, {name: models[name] for name in left}, given.seconds)
    if given.table:
        PAGE.write_text(page(), encoding="utf-8")
        print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
