"""Fit a latency model to a calibration's samples, and say how far it is off on networks that it was not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from ..errors import InvalidRun
from .calibrated import CalibratedModel, Kind, arranged
from .joint import Line, Row, fitted
from .operator_features import kind_of, light_kind, light_terms, logs, multiplies
from .physical import LatencyError
from .samples import Sample

Array = npt.NDArray[np.float64]
LEAST_SAMPLES = 30
FOLDS = 5
SHORTEST_MS = 5e-4  # what a profiler's microseconds round to zero


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
               np.array([logs(operators[at], found.blocked[at]) for at in places]), np.maximum(ms, SHORTEST_MS),
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
        kinds, light = fitted([row for row, f in zip(data, fold, strict=True) if f != held_out])
        for at in np.flatnonzero(fold == held_out):
            predicted[at] = _price(data[at], kinds, light)
    kinds, light = fitted(data)
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
    heavy = [kinds[kind].ms(row.logs[row.kinds == kind].T).sum() for kind in {*row.kinds.tolist()}]
    return float(sum(heavy) + sum(np.dot(light[name], term) for name, term in row.light.items()))
