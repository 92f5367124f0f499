"""Fit a latency model to a calibration's samples, and say how far it is off on networks that it was not fitted to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from scipy.stats import spearmanr
from sklearn.neural_network import MLPRegressor

from ..errors import InvalidRun
from .calibrated import CalibratedModel, Kind, arranged, physical_ms
from .operator_features import KINDS, kind_of, light_kind, light_terms, multiplies, table
from .physical import LatencyError
from .samples import Sample

Array = npt.NDArray[np.float64]
LEAST_SAMPLES = 30
LEAST_OPERATORS = 20  # of a kind, below which it is not priced
LEAST_SEEN = 2  # networks in which a light kind must occur
HIDDEN = (48, 48)
FOLDS = 5
SHORTEST_MS = 5e-4  # what a profiler's microseconds round to zero


Line = tuple[float, float, float]  # ms a call, an element, an element far from the core


@dataclass(frozen=True)
class Row:
    """One sample as the fit sees it: at the speed of the median sample, operators adding up to the whole pass."""

    kinds: npt.NDArray[np.str_]  # of the multiplying operators
    logs: npt.NDArray[np.float32]  # [multiplying operators, features]
    ms: Array  # [multiplying operators]
    light: Mapping[str, tuple[Any, Any, Any]]
    light_ms: Mapping[str, float]  # by kind
    total_ms: float


def rows(samples: Sequence[Sample], runtime: str) -> list[Row]:
    """Samples with the operators of their networks traced again; times at the median speed of the machine."""
    nominal = float(np.median([sample.reference_ms for sample in samples]))
    return [_row(sample, runtime, nominal / sample.reference_ms) for sample in samples]


def _row(sample: Sample, runtime: str, speed: float) -> Row:
    operators = sample.architecture.graph().operators()
    if len(operators) != len(sample.operator_ms):
        raise InvalidRun("the samples were measured with another pocketzoo: calibrate anew")
    found = arranged(runtime, operators)
    total_ms = sample.total_ms * speed
    cut_ms = sum(sample.operator_ms) + sum(sample.besides.values())
    whole = total_ms / cut_ms  # a pass that is being cut is a little slower, and the machine may be at another speed
    places = [at for at, operator in enumerate(operators) if multiplies(operator)]
    heavy = [operators[at] for at in places]
    ms = whole * np.array([sample.operator_ms[at] for at in places])
    light_ms = {kind: whole * own for kind, own in sample.besides.items()}
    for operator, own in zip(operators, sample.operator_ms, strict=True):
        if not multiplies(operator):
            light_ms[light_kind(operator)] = light_ms.get(light_kind(operator), 0.0) + whole * own
    return Row(np.array([kind_of(operator) for operator in heavy]),
               table(heavy, [found.blocked[at] for at in places])[:, 0], np.maximum(ms, SHORTEST_MS),
               light_terms(operators, found), light_ms, total_ms)  # fmt: skip


def fit(samples: Sequence[Sample], device: str, runtime: str, threads: int, stamp: Mapping[str, Any],
        versions: Mapping[str, str]) -> CalibratedModel:  # fmt: skip
    """The model of all samples, with the error that models of four fifths make on the rest; raises InvalidRun."""
    if len(samples) < LEAST_SAMPLES:
        raise InvalidRun(f"{len(samples)} networks were measured; a fit needs {LEAST_SAMPLES}: calibrate for longer")
    data = rows(samples, runtime)
    fold = np.random.default_rng(0).permutation(len(data)) % FOLDS
    predicted = np.zeros(len(data))
    for held_out in range(FOLDS):
        kinds, light = _fitted([row for row, f in zip(data, fold, strict=True) if f != held_out])
        for at in np.flatnonzero(fold == held_out):
            predicted[at] = _price(data[at], kinds, light)
    kinds, light = _fitted(data)
    measured = np.array([row.total_ms for row in data])
    known = ~np.isnan(predicted)
    judged = f"cross-validation over {int(known.sum())} networks of the plan, a fifth held out at a time"
    return CalibratedModel(
        device, runtime, threads, kinds, light, float(np.median([s.reference_ms for s in samples])),
        error_of(predicted[known], measured[known], judged, f"{runtime} on {stamp['processor']}, {stamp['date']}"),
        dict(stamp), dict(versions),
    )  # fmt: skip


def error_of(predicted: Array, measured: Array, judged_on: str, source: str) -> LatencyError:
    """How far predictions are off."""
    share = np.abs(predicted / measured - 1)
    rank = float(spearmanr(predicted, measured).statistic) if len(measured) > 2 else float("nan")
    return LatencyError(float(100 * share.mean()), float(100 * (share <= 0.1).mean()), rank, judged_on, source)


def _price(row: Row, kinds: Mapping[str, Kind], light: Mapping[str, Line]) -> float:
    if not set(row.kinds.tolist()) <= kinds.keys() or not row.light.keys() <= light.keys():
        return float("nan")
    heavy = [own.ms(row.logs[row.kinds == kind]).sum() for kind, own in kinds.items() if (row.kinds == kind).any()]
    return float(sum(heavy) + sum(np.dot(light[name], term) for name, term in row.light.items()))


def _fitted(data: Sequence[Row]) -> tuple[dict[str, Kind], dict[str, Line]]:
    """The kinds that multiply, and the lines of the others."""
    kinds = {}
    for kind in KINDS:
        mine = [row.kinds == kind for row in data]
        if sum(own.sum() for own in mine) < LEAST_OPERATORS:
            continue
        logs, ms = (np.concatenate([getattr(row, name)[own] for row, own in zip(data, mine, strict=True)])
                    for name in ("logs", "ms"))  # fmt: skip
        total = np.concatenate([np.full(own.sum(), row.total_ms) for row, own in zip(data, mine, strict=True)])
        kinds[kind] = _kind(logs, ms, ms / total)
    return kinds, _lines(data)


def _kind(logs: npt.NDArray[np.float32], ms: Array, share: Array) -> Kind:
    """A kind of operator by itself; what takes much of its network weighs more."""
    macs, elements_in, elements_out, weights = (np.exp2(logs[:, i].astype(np.float64)) for i in range(4))
    columns = np.stack([np.ones(len(ms)), macs, elements_in + elements_out, weights], axis=1)
    physical, _ = nnls(columns / ms[:, None], np.ones(len(ms)))
    estimate = physical_ms(physical, logs.astype(np.float64))
    features = np.column_stack([logs, np.log2(estimate)])
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-3
    network = MLPRegressor(hidden_layer_sizes=HIDDEN, alpha=1e-2, learning_rate_init=4e-3, max_iter=300, tol=1e-5,
                           n_iter_no_change=25, random_state=0)  # fmt: skip
    weight = np.sqrt(share)
    network.fit((features - mean) / deviation, np.log(ms / estimate), sample_weight=weight / weight.mean())
    layers = [(w.tolist(), b.tolist()) for w, b in zip(network.coefs_, network.intercepts_, strict=True)]
    kind = Kind(physical.tolist(), logs.min(axis=0).tolist(), logs.max(axis=0).tolist(), mean.tolist(),
                deviation.tolist(), layers, scale=1.0)  # fmt: skip
    relative = kind.ms(logs) / ms * share  # a sum of medians is less than the median of sums
    return replace(kind, scale=float(np.dot(share, relative) / np.dot(relative, relative)))


def _lines(data: Sequence[Row]) -> dict[str, Line]:
    """What does not multiply: non-negative least squares for each kind, of the error relative to the whole pass."""
    seen = Counter(name for row in data for name in row.light)
    total = np.array([row.total_ms for row in data])
    lines: dict[str, Line] = {}
    for kind in {name.partition(": ")[0] for name in seen}:
        names = sorted(name for name, n in seen.items() if name.partition(": ")[0] == kind and n >= LEAST_SEEN)
        if not names:
            continue
        terms = np.array([[row.light.get(name, (0.0, 0.0, 0.0)) for name in names] for row in data], dtype=np.float64)
        matrix = terms.reshape(len(data), -1) / total[:, None]
        scale = matrix.max(axis=0) + 1e-12
        target = np.array([row.light_ms.get(kind, 0.0) for row in data]) / total
        found = (nnls(matrix / scale, target)[0] / scale).tolist()
        lines |= {name: (found[3 * i], found[3 * i + 1], found[3 * i + 2]) for i, name in enumerate(names)}
    return lines
