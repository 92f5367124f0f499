"""Fit the latency models of published devices, judge them on networks that the fit never saw, write data and report.

    python benchmarks/published_devices.py        # minutes on one thread

Reads `profiler/published_latency.csv`; writes `profiler/published_devices.json` and `published_devices.md` here.
A form of the model is chosen by cross-validation on the rows with the role "fit"; rows with the role "judge" are
priced once, after that.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.stats import spearmanr
from torch import Tensor, nn

import pocketzoo as pz
from pocketzoo.graph.sized import SizedOperator
from pocketzoo.profiler.physical import OperatorClass, Work, total_ms, workload
from pocketzoo.profiler.published import FITTED, figures

REPORT = Path(__file__).with_suffix(".md")
STACKED, SIDE = 10, 56  # a micro-benchmark stacks its block ten times at 56 x 56
Row = Any  # a named tuple of the table of figures
Constants = dict[str, float]

# -- the devices -----------------------------------------------------------------------------------------------------

ASSUMED = {  # operators that the fitted rows never show, and how they are priced all the same
    "conv": "a strided or larger convolution, priced as a 1x1 one",
    "depthwise conv": "priced by the rate and the bandwidth of a 1x1 convolution: few MACs an element",
    "linear": "priced as a 1x1 convolution, its weights as traffic",
    "activation": "traffic only, as an addition",
    "mul": "traffic only, as an addition",
    "concatenation": "traffic only, as an addition",
    "copy": "traffic only, as an addition: a channel shuffle reads and writes everything",
    "pool": "traffic only, as an addition",
    "batch norm": "free: folded into the convolution before it",
    "view": "free: moves nothing",
    "constant": "free: what a removed branch leaves",
}
CLASS_OF = {
    "1x1 conv": "conv", "conv": "conv", "grouped conv": "grouped", "depthwise conv": "depthwise", "linear": "conv",
    "add": "elementwise", "mul": "elementwise", "concatenation": "elementwise", "copy": "elementwise",
    "pool": "elementwise", "activation": "elementwise", "relu": "relu", "batch norm": "free", "view": "free",
    "constant": "free",
}  # fmt: skip
TFLITE = {
    "conv": "priced as a 1x1 convolution: the fitted rows show a strided 3x3 as the first layer only",
    "3x3 conv": "priced as a 1x1 convolution, as the strided ones",
    "linear": "priced as a 1x1 convolution, its weights as traffic",
    "pool": "traffic only, as a convolution's",
    "mul": "traffic only, as a convolution's",
    "activation": "traffic only, as a convolution's: hard-swish and hard-sigmoid are not fused",
    "add": "traffic only, as a convolution's",
    "concatenation": "traffic only, as a convolution's",
    "copy": "traffic only, as a convolution's: a channel shuffle reads and writes everything",
    "relu": "free: clamps are fused into the operator before",
    "batch norm": ASSUMED["batch norm"],
    "view": ASSUMED["view"],
    "constant": ASSUMED["constant"],
}


@dataclass(frozen=True)
class Device:
    """What is known of a machine before any fit."""

    description: str
    runtime: str
    peak: Constants  # data sheet: no fitted constant may exceed it
    always: tuple[str, ...]
    options: tuple[str, ...]  # each may be in a form or not
    operators: tuple[str, ...]  # labels that it prices
    assumed: Mapping[str, str]
    cache_mb: float | None = None  # data sheet: the last cache, beyond which "beyond" is paid


MICRO = tuple(CLASS_OF)
DEVICES = {
    "snapdragon810": Device(
        "Qualcomm Snapdragon 810, one thread, the ShuffleNet v2 authors' own Neon kernels", "neon",
        {"gmacs": 8, "gb": 25.6}, ("conv", "3x3 conv", "traffic", "elementwise", "relu"),
        ("overhead", "beyond", "group"), MICRO, ASSUMED, cache_mb=2.0,
    ),
    "gtx1080ti": Device(
        "NVIDIA GeForce GTX 1080Ti, cuDNN 7.0 with fused tensors", "cudnn",
        {"gmacs": 5670, "gb": 484}, ("conv", "3x3 conv", "traffic", "elementwise"),
        ("overhead", "group", "run"), MICRO, {**ASSUMED, "relu": "free: fused"},
    ),
    "pixel1": Device(
        "Google Pixel 1, one large core, TF-Lite float", "tflite",
        {"gmacs": 8.6, "gb": 28.7}, ("conv",), ("overhead", "depthwise", "traffic"),
        (*(label for label in CLASS_OF if label != "grouped conv"), "3x3 conv"), TFLITE,
    ),
}  # fmt: skip
SCALED = {  # too few figures for a fit of their own: another device's model times one factor
    "pixel2": ("pixel1", "Google Pixel 2, one large core, TF-Lite float"),
    "pixel3": ("pixel1", "Google Pixel 3, one large core, TF-Lite float"),
}
LAUNCH_US = {"overhead": 200.0, "group": 500.0, "run": 2000.0}  # upper bounds of what a start may cost


# -- the networks ----------------------------------------------------------------------------------------------------


class Parallel(nn.Module):
    """k 1x1 convolutions side by side, added up (appendix, Figure 1)."""

    def __init__(self, c: int, fragments: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(pointwise(c, c) for _ in range(fragments))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        first, *others = (branch(x) for branch in self.branches)
        return sum(others, first)


class Bottleneck(nn.Module):
    """ResNet's unit at a quarter of the width inside, with or without relu and short-cut (Table 4)."""

    def __init__(self, c: int, relu: bool, shortcut: bool) -> None:
        super().__init__()
        act = nn.ReLU if relu else nn.Identity
        window = nn.Conv2d(c // 4, c // 4, 3, padding=1, bias=False)
        self.body = nn.Sequential(pointwise(c, c // 4), act(), window, act(), pointwise(c // 4, c))
        self.act, self.shortcut = act(), shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        out = self.body(x)
        return self.act(x + out if self.shortcut else out)


def pointwise(c_in: int, c_out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1, groups=groups, bias=False)


def pair(c1: int, c2: int) -> nn.Module:
    return nn.Sequential(pointwise(c1, c2), pointwise(c2, c1))


def grouped(c: int, groups: int) -> nn.Module:
    c = -(-c // groups) * groups  # one printed width (180 in 8 groups) is not divisible
    return pointwise(c, c, groups)


def series(c: int, fragments: int) -> nn.Module:
    c = round(c / math.sqrt(fragments))  # as many MACs as one fragment of width c
    return nn.Sequential(*(pointwise(c, c) for _ in range(fragments)))


def parallel(c: int, fragments: int) -> nn.Module:
    return Parallel(round(c / math.sqrt(fragments)), fragments)


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "pair": pair, "grouped": grouped, "series": series, "parallel": parallel, "bottleneck": Bottleneck,
}  # fmt: skip


@cache
def operators(model: str, settings: str, batch: int, resolution: int) -> list[SizedOperator]:
    """What a published network runs."""
    chosen = json.loads(settings or "{}")
    with torch.device("meta"):
        if model.startswith("block:"):
            blocks = [BLOCKS[model.removeprefix("block:")](**chosen) for _ in range(STACKED)]
            c_in = next(m.in_channels for m in blocks[0].modules() if isinstance(m, nn.Conv2d))
            return pz.trace(nn.Sequential(*blocks), (batch, c_in, SIDE, SIDE)).operators()
        arch = pz.Architecture.of(model, resolution=resolution, **chosen)
        return pz.trace(arch.build(), (batch, 3, resolution, resolution)).operators()


def works(row: Row, operator_class: Mapping[str, str]) -> dict[str, Work]:
    return workload(operators(row.model, row.settings, row.batch, row.resolution), operator_class)


def fold(row: Row) -> str:
    """Rows that are held out together: one block at all its widths, one network at one resolution."""
    if not row.model.startswith("block:"):
        return f"{row.model}@{row.resolution}"
    chosen = json.loads(row.settings)
    if 1 in (chosen.get("groups"), chosen.get("fragments")):
        return "plain"  # Tables 2 and 3 print the same block
    if "c1" in chosen:
        return f"pair 1:{round(chosen['c2'] / chosen['c1'])}"
    return str((row.model, *(value for key, value in chosen.items() if key != "c")))


# -- the fit ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """How terms combine, and which constants there are."""

    combine: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.combine}: {', '.join(self.names)}"


@dataclass(frozen=True)
class Fit:
    """A form with its constants."""

    device: Device
    form: Form
    constants: Constants

    @property
    def run_us(self) -> float:
        """What a run costs whatever the network."""
        return self.constants.get("run", 0.0)

    def predict(self, cases: Sequence[dict[str, Work]]) -> np.ndarray:
        """Milliseconds of each network."""
        classes = classes_of(self.device, self.constants)
        return np.array([total_ms(case, classes, self.form.combine, self.run_us) for case in cases])


def classes_of(device: Device, constants: Constants) -> dict[str, OperatorClass]:
    get = constants.get
    start, traffic = get("overhead", 0.0), get("traffic")
    far = {"cache_mb": device.cache_mb, "beyond_gb_per_s": get("beyond")} if "beyond" in constants else {}
    bandwidth = get("elementwise", traffic)
    return {
        "conv": OperatorClass(constants["conv"], traffic, start, **far),
        "3x3 conv": OperatorClass(get("3x3 conv", constants["conv"]), traffic, start, **far),
        "grouped": OperatorClass(constants["conv"], traffic, start, get("group", 0.0), **far),
        "depthwise": OperatorClass(get("depthwise", constants["conv"]), traffic, start, **far),
        "elementwise": OperatorClass(None, bandwidth, start),
        "relu": OperatorClass(None, get("relu")),
        "free": OperatorClass(),
    }


def upper_bound(name: str, device: Device) -> float:
    if name in LAUNCH_US:
        return LAUNCH_US[name]
    rate = device.peak["gmacs"] if name in ("conv", "depthwise") else device.peak["gb"]
    return 4 * device.peak["gmacs"] if name == "3x3 conv" else rate  # Winograd's algorithm saves up to three quarters


def fit(device: Device, form: Form, cases: Sequence[dict[str, Work]], measured: Sequence[float]) -> Fit:
    """Constants with the least robust error of log(predicted / measured), from three starts."""
    top = np.log([upper_bound(name, device) for name in form.names])
    target = np.log(measured)

    def made(x: np.ndarray) -> Fit:
        return Fit(device, form, dict(zip(form.names, np.exp(x).tolist(), strict=True)))

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log(made(x).predict(cases)) - target

    bounds = (top - 9, top)
    tries = [least_squares(residuals, top - back, loss="soft_l1", f_scale=0.1, bounds=bounds) for back in (0.5, 2, 4)]
    return made(min(tries, key=lambda t: t.cost).x)


def forms(device: Device) -> Iterator[Form]:
    for combine, n in itertools.product(("sum", "max", "norm"), range(len(device.options) + 1)):
        for extra in itertools.combinations(device.options, n):
            if combine == "sum" or "traffic" in (*device.always, *extra):  # without traffic they are all the same
                yield Form(combine, (*device.always, *extra))


def cross_validated(device: Device, form: Form, rows: Sequence[Row], cases: Sequence[dict[str, Work]]) -> float:
    """Mean |predicted - measured| / measured in per cent, each fold priced by a fit to the others."""
    errors: list[float] = []
    folds = [fold(row) for row in rows]
    for held in dict.fromkeys(folds):
        inside = [i for i, name in enumerate(folds) if name != held]
        outside = [i for i, name in enumerate(folds) if name == held]
        fitted = fit(device, form, [cases[i] for i in inside], [rows[i].latency_ms for i in inside])
        measured = np.array([rows[i].latency_ms for i in outside])
        errors += list(abs(fitted.predict([cases[i] for i in outside]) / measured - 1))
    return 100 * float(np.mean(errors))


def score(predicted: np.ndarray, rows: Sequence[Row]) -> dict[str, float]:
    measured = np.array([row.latency_ms for row in rows])
    error = abs(predicted / measured - 1)
    rank = spearmanr(predicted, measured).statistic if len(rows) > 2 else math.nan
    return {"mape_percent": round(100 * float(error.mean()), 1), "spearman": round(float(rank), 3),
            "within_10_percent": round(100 * float((error <= 0.1).mean()), 1)}  # fmt: skip


# -- the outcome -----------------------------------------------------------------------------------------------------

FITTED_CLASS = {**CLASS_OF, "3x3 conv": "3x3 conv"}


@dataclass(frozen=True)
class Outcome:
    """A device's fit, what else was tried, and the rows with their predictions."""

    name: str
    fitted: Fit
    tried: list[tuple[Form, float]]  # with the cross-validated error in per cent
    rows: dict[str, list[Row]]  # role -> rows
    predicted: dict[str, np.ndarray]

    def scores(self, role: str) -> dict[str, float]:
        """The error on the rows of a role."""
        return score(self.predicted[role], self.rows[role])


def rows_of(device: str) -> dict[str, list[Row]]:
    table = figures()
    table = table[table["device"] == device]
    return {role: list(part.itertuples(index=False)) for role, part in table.groupby("role")}


def fitted_device(name: str) -> Outcome:
    """Choose a form by cross-validation on the fit rows, fit it to all of them, then price the rest."""
    device, rows = DEVICES[name], rows_of(name)
    cases = {role: [works(row, FITTED_CLASS) for row in rows[role]] for role in ("fit", "judge")}
    tried = []
    for form in forms(device):
        tried.append((form, cross_validated(device, form, rows["fit"], cases["fit"])))
        print(f"{name}  {tried[-1][1]:5.1f} %  {form}", file=sys.stderr, flush=True)
    best = min(tried, key=lambda t: (round(t[1], 1), len(t[0].names)))[0]
    fitted = fit(device, best, cases["fit"], [row.latency_ms for row in rows["fit"]])
    return Outcome(name, fitted, tried, rows, {role: fitted.predict(cases[role]) for role in cases})


def baseline_scores(outcome: Outcome) -> dict[str, dict[str, float]]:
    """MACs times one factor, and MACs plus a constant per operator without memory, fitted to the same rows."""
    device = outcome.fitted.device
    compute = tuple(n for n in (*device.always, *device.options) if n in ("conv", "3x3 conv", "depthwise", "overhead"))
    contenders = {
        "MACs times one factor": Form("sum", ("conv",)),
        "MACs and a constant an operator, no memory": Form("sum", compute),
    }
    cases = {role: [works(row, FITTED_CLASS) for row in outcome.rows[role]] for role in ("fit", "judge")}
    measured = [row.latency_ms for row in outcome.rows["fit"]]
    return {
        name: score(fit(device, form, cases["fit"], measured).predict(cases["judge"]), outcome.rows["judge"])
        for name, form in contenders.items()
    }


def scaled_device(name: str, base: Outcome) -> tuple[float, Outcome]:
    """One factor on another device's model: the geometric mean over the fit rows."""
    rows = rows_of(name)
    unscaled = {
        role: base.fitted.predict([works(row, FITTED_CLASS) for row in rows[role]]) for role in ("fit", "judge")
    }
    measured = np.array([row.latency_ms for row in rows["fit"]])
    factor = float(np.exp(np.mean(np.log(measured / unscaled["fit"]))))
    return factor, Outcome(name, base.fitted, [], rows, {role: factor * p for role, p in unscaled.items()})


def record(outcome: Outcome, description: str, factor: float = 1.0) -> dict[str, Any]:
    """What is shipped of a device."""
    device, fitted = outcome.fitted.device, outcome.fitted
    judged = outcome.scores("judge")
    labels = {label: CLASS_OF.get(label, "conv") for label in device.operators}
    classes = classes_of(device, fitted.constants)
    return {
        "description": description,
        "runtime": device.runtime,
        "combine": fitted.form.combine,
        "run_us": rounded(fitted.run_us * factor),
        "classes": {name: shipped(classes[name], factor) for name in dict.fromkeys(labels.values())},
        "operators": {
            label: {"class": name, **({"assumed": device.assumed[label]} if label in device.assumed else {})}
            for label, name in labels.items()
        },
        "error": {
            **{key: None if math.isnan(value) else value for key, value in judged.items()},
            "judged_on": f"{len(outcome.rows['judge'])} published networks at batch "
            f"{outcome.rows['judge'][0].batch} that the fit to {len(outcome.rows['fit'])} other rows never saw",
            "source": "; ".join(dict.fromkeys(row.source for row in outcome.rows["judge"])),
        },
    }


def rounded(value: float) -> float:
    return float(f"{value:.6g}")


def shipped(constants: OperatorClass, factor: float) -> Constants:
    """The constants that exist; a factor makes rates slower and starts longer."""
    slower = {"overhead_us": factor, "group_us": factor, "cache_mb": 1.0}
    return {key: rounded(value * slower.get(key, 1 / factor)) for key, value in asdict(constants).items() if value}


# -- the report ------------------------------------------------------------------------------------------------------


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def scores_table(outcome: Outcome, baselines: Mapping[str, Mapping[str, float]]) -> str:
    lines: dict[str, tuple[int, Mapping[str, float]]] = {
        f"{role} rows": (len(outcome.rows[role]), outcome.scores(role)) for role in ("fit", "judge")
    }
    judged = len(outcome.rows["judge"])
    lines |= {f"judge rows, baseline: {name}": (judged, scores) for name, scores in baselines.items()}
    return table(
        ["", "rows", "mean absolute % error", "within 10 %", "Spearman"],
        [
            [name, n, s["mape_percent"], f"{s['within_10_percent']} %",
             "too few" if math.isnan(s["spearman"]) else s["spearman"]]
            for name, (n, s) in lines.items()
        ],
    )  # fmt: skip


def rows_table(outcome: Outcome, role: str) -> str:
    return table(
        ["network", "settings", "batch", "pixels", "published, ms", "predicted, ms", "error"],
        [
            [row.model, row.settings.strip("{}").replace('"', ""), row.batch, row.resolution, f"{row.latency_ms:.3g}",
             f"{predicted:.3g}", f"{100 * (predicted / row.latency_ms - 1):+.0f} %"]
            for row, predicted in zip(outcome.rows[role], outcome.predicted[role], strict=True)
        ],
    )  # fmt: skip


def tried_table(outcome: Outcome) -> str:
    return table(
        ["form", "cross-validated error", ""],
        [
            [str(form), f"{error:.1f} %", "chosen" if form == outcome.fitted.form else ""]
            for form, error in sorted(outcome.tried, key=lambda t: t[1])
        ],
    )


def section(outcome: Outcome, description: str, baselines: Mapping[str, Mapping[str, float]], note: str) -> str:
    device = outcome.fitted.device
    left_out = [row.note for row in outcome.rows.get("left out", [])]
    constants = ", ".join(f"{name} {value:.4g}" for name, value in outcome.fitted.constants.items())
    parts = [f"## {outcome.name}: {description}", note, scores_table(outcome, baselines)]
    if outcome.tried:
        parts += [f"Constants: {outcome.fitted.form.combine} of {constants}.", "### Networks judged"]
    parts += [rows_table(outcome, "judge"), "### Rows fitted", rows_table(outcome, "fit")]
    if outcome.tried:
        parts += ["### Forms tried, on the fit rows only", tried_table(outcome)]
        assumed = [f"- {label}: {how}" for label, how in device.assumed.items() if label in device.operators]
        parts += ["### Assumed, not fitted", "\n".join(assumed)]
    parts += ["### Left out", "; ".join(left_out) + "."] if left_out else []
    return "\n\n".join(parts)


def main() -> None:
    torch.set_num_threads(1)
    outcomes = {name: fitted_device(name) for name in DEVICES}
    records = {name: record(outcome, DEVICES[name].description) for name, outcome in outcomes.items()}
    pages = [
        section(outcome, DEVICES[name].description, baseline_scores(outcome), NOTES[name])
        for name, outcome in outcomes.items()
    ]
    for name, (base, description) in SCALED.items():
        factor, outcome = scaled_device(name, outcomes[base])
        records[name] = record(outcome, description, factor)
        pages.append(section(outcome, description, {}, NOTES[name].format(factor=factor)))
    FITTED.write_text(json.dumps({"format": 1, "devices": records}, indent=1) + "\n")
    REPORT.write_text("\n\n".join([HEAD, *pages]) + "\n")


HEAD = """# Latency models of published devices

Made by `python benchmarks/published_devices.py` from `profiler/published_latency.csv`, the figures as they were
published. The model (`profiler/physical.py`) adds up operators; an operator costs compute, memory traffic and a fixed
part. In a form's name, `sum`, `max` and `norm` say how compute and traffic combine; the other words are the constants:
`conv`, `3x3 conv`, `depthwise` in 10^9 MACs a second; `traffic`, `elementwise`, `relu`, `beyond` (what exceeds the
data sheet's cache) in 10^9 bytes a second; `overhead` (an operator), `group` (each after the first of a grouped
convolution), `run` (a whole network) in microseconds. None may exceed the machine's data sheet.

The form is the one with the least cross-validated error on the rows with the role "fit" (to 0.1 %, then the fewest
constants), where a block is held out at all its widths at once; the rows with the role "judge" are priced
afterwards. Share within 10 % and Spearman are over rows. Nothing here was measured by us."""

TABLE_8 = """\
Fitted to the micro-benchmarks of ShuffleNet v2's Tables 1 to 4 and to nothing else; judged on those networks of
its Table 8 that the zoo builds with the printed MACs to 2 %. Tables 1 to 4 hold no depthwise convolution, no
pooling, no classifier and no channel shuffle: all networks judged are full of what the fit never saw, and are priced by
the assumptions below. Printed widths give equal MACs only after rounding; a width that its groups do not divide is
rounded up. Table 4's inner width is not published: a quarter is ResNet's; on the Snapdragon a half fits as well and
makes the 3x3 convolution about six times as fast, on the GPU the constant runs into its bound. So it is fitted and not
shipped: a dense 3x3 convolution of stride 1 is refused."""

NOTES = {
    "snapdragon810": TABLE_8
    + """

Where it fails: every network comes out too fast, the ShuffleNets by 3 to 24 %, MobileNet v2 by 31 %, MobileNet v1 by
20 to 58 % and the more the narrower it is. What the MobileNets spend relatively more on is depthwise convolution at
large sides, so the authors' kernel for it is most likely slower than the rate of a 1x1 convolution that is assumed
here. As a ranking it is no better than MACs alone; its milliseconds are.""",
    "gtx1080ti": TABLE_8
    + """

The batch of the micro-benchmarks is not published. It is 1 here: at 2, the fastest printed rows would need more than
the chip's peak of 5.67 x 10^12 MACs a second. Table 8 has batches of 8, which the fit never saw either; milliseconds
are those of the batch.

Where it fails: every network comes out too fast, the narrowest by half. The order is right, where MACs alone have
little to say about it. Take it for comparing networks, not for milliseconds.""",
    "pixel1": """\
Fitted to one half of the published TF-Lite float rows of MobileNet v1, v2 and v3, judged on the other: a row is
"fit" where the first byte of SHA-256 of `model@resolution` is even, which was settled before any fit. A row whose
zoo name needs settings (v3 at 0.75 in TensorFlow's convention) has them beside it. Figures that the paper itself
replaced, detection networks and 8-bit rows (another runtime) are left out.

Where it fails: v3 was published a year after v2, with a faster build of TF-Lite; v3 large is priced 15 to 20 % too
slow, v2 at the smallest images up to 20 % too fast. A constant an operator in place of the memory term does slightly
better on the networks judged, which are near relatives of those fitted; cross-validation on the fit rows did not
choose it. Nothing but MobileNets was ever fitted or judged: other families rest on the assumptions below.""",
    **dict.fromkeys(
        SCALED,
        """The Pixel 1's model times {factor:.3f}, the geometric mean of two rows; judged on two. This is an order of
magnitude with a check, not a fit.""",
    ),
}

if __name__ == "__main__":
    main()
