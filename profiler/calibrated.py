"""The latency model that a calibration fits to a device at hand.

It sums operators. What multiplies is priced by a small network for its kind, fitted to how long it took where it stood
in the networks of the plan; everything else has a line a kind. The times to which they are fitted add up to whole
passes, what a runtime spends between operators included. Nothing larger than what the calibration saw is priced, nor
of another kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import OutsideCalibration
from ..graph.channel_graph import ChannelGraph
from ..graph.sized import SizedOperator
from .layouts import Layouts, layouts, plain
from .operator_features import NAMES, kind_of, light_terms, multiplies, table
from .physical import LatencyError

Array = npt.NDArray[np.float64]
Logs = npt.NDArray[np.float32]  # [..., features]
CHUNK = 16384  # candidates at once: many, so that NumPy's calls cost little beside what they do
ROWS = 4096  # operators that a network prices at once: few, so that its layers stay in the cache
MARGIN = 2.0  # doublings beyond the largest size seen that are still believed
BLOCKED = ("onnxruntime",)  # runtimes with a blocked layout of their own


@dataclass(frozen=True)
class Kind:
    """A kind of multiplying operator: a physical estimate, and a network that says by what factor it is off."""

    physical: Sequence[float]  # ms: fixed, a MAC, an element of the activations, an element of the weights
    low: Sequence[float]  # smallest and largest logarithm of each feature that the calibration saw
    high: Sequence[float]
    mean: Sequence[float]  # of the features and of the physical estimate's logarithm
    deviation: Sequence[float]
    layers: Sequence[tuple[Sequence[Sequence[float]], Sequence[float]]]  # weights [in, out] and biases
    scale: float  # so that sums of this kind come out right

    @cached_property
    def _arrays(self) -> list[tuple[Logs, Logs]]:
        """Layers with the standardisation folded into the first."""
        layers = [(np.array(w, dtype=np.float64), np.array(b, dtype=np.float64)) for w, b in self.layers]
        weight, bias = layers[0]
        scaled = weight / np.array(self.deviation)[:, None]
        layers[0] = scaled, bias - np.array(self.mean) @ scaled
        return [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]

    @cached_property
    def _edges(self) -> tuple[Logs, Logs]:
        """Smallest and largest logarithm seen, [features]."""
        return np.array(self.low, dtype=np.float32), np.array(self.high, dtype=np.float32)

    def ms(self, logs: Logs) -> Logs:
        """[rows, features] -> milliseconds."""
        parts = [self._ms(logs[start : start + ROWS]) for start in range(0, len(logs), ROWS)]
        return np.concatenate(parts)

    def _ms(self, logs: Logs) -> Logs:
        """A few rows.

        What is smaller than all that was seen costs as much as the smallest; beyond the largest the physical estimate
        goes on, and the network says what it says at the edge.
        """
        low, high = (edge[:, None] for edge in self._edges)
        columns = np.maximum(logs.T, low)  # [features, rows], a feature after the other in memory
        physical = physical_ms(np.asarray(self.physical, dtype=np.float32), columns.T)
        values = np.concatenate([np.minimum(columns, high), np.log2(physical)[None]])
        *hidden, (weight, bias) = self._arrays
        for w, b in hidden:
            values = w.T @ values
            values += b[:, None]
            np.maximum(values, 0, out=values)
        return np.asarray(self.scale * physical * np.exp((weight.T @ values)[0] + bias))

    def outside(self, logs: Logs) -> npt.NDArray[np.bool_]:
        """[..., features] -> whether a size is beyond the largest seen."""
        return np.asarray((logs > self._edges[1] + MARGIN).any(axis=-1))


def physical_ms(constants: npt.NDArray[Any], logs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A line in MACs, elements of the activations and of the weights; at least a tenth of a microsecond."""
    fixed, per_mac, per_element, per_weight = constants
    macs, elements_in, elements_out, weights = (np.exp2(logs[..., i]) for i in range(4))
    ms = fixed + per_mac * macs + per_element * (elements_in + elements_out) + per_weight * weights
    return np.asarray(np.maximum(ms, 1e-4))


def arranged(runtime: str, operators: Sequence[SizedOperator]) -> Layouts:
    """The layouts in which a runtime keeps the operators' outputs."""
    return layouts(operators) if runtime in BLOCKED else plain(operators)


@dataclass(frozen=True)
class CalibratedModel:
    """A latency model fitted to measurements of a device (fit.py); milliseconds of one image."""

    device: str
    runtime: str
    threads: int
    kinds: Mapping[str, Kind]
    light: Mapping[str, tuple[float, float, float]]  # ms a call, an element, an element far from the core
    reference_ms: float  # of the reference network when this held
    error: LatencyError
    stamp: Mapping[str, Any]
    versions: Mapping[str, str]

    def predict(self, graph: ChannelGraph, widths: npt.ArrayLike | None = None) -> Array:
        """Milliseconds [N] of [N, G] width vectors, nan where some operator is beyond what was measured; [1] without.

        Raises OutsideCalibration where no candidate can be priced, naming an operator.
        """
        if widths is None:
            operators = graph.operators()
            self._refuse(operators)
            return self._sum(operators, 1)
        vectors = np.atleast_2d(np.asarray(widths))
        parts = [vectors[start : start + CHUNK] for start in range(0, len(vectors), CHUNK)]
        first = self._priced(graph, parts[0])  # alone: what the graph works out once is not worked out by two threads
        with ThreadPoolExecutor() as pool:  # NumPy lets go of the interpreter while it computes
            total = np.concatenate([first, *pool.map(partial(self._priced, graph), parts[1:])])
        if np.isnan(total).all():
            self._refuse(graph.operators(vectors[:1]))
        return total

    def _priced(self, graph: ChannelGraph, vectors: npt.NDArray[Any]) -> Array:
        return self._sum(graph.operators(vectors), len(vectors))

    def _sum(self, operators: Sequence[SizedOperator], candidates: int) -> Array:
        found = arranged(self.runtime, operators)
        total = np.zeros(candidates)
        for kind, places in _by_kind(operators).items():
            heavy, blocked = [operators[at] for at in places], [found.blocked[at] for at in places]
            total += self._heavy(kind, heavy, blocked, candidates)
        for name, term in light_terms(operators, found).items():
            total += self._light(name, term)
        return total

    def _heavy(self, kind: str, operators: Sequence[SizedOperator], blocked: Sequence[Any], candidates: int) -> Array:
        """[candidates] milliseconds of all operators of a kind; nan outside."""
        if kind not in self.kinds:
            runs = [True if operator.present is None else operator.present for operator in operators]
            return np.where(np.logical_or.reduce(np.broadcast_arrays(np.zeros(candidates, bool), *runs)), np.nan, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):  # branches of no channels, which cost nothing
            logs = table(operators, blocked, candidates)
        own = self.kinds[kind]
        ms = own.ms(logs.reshape(-1, logs.shape[-1])).reshape(len(operators), candidates)
        ms[own.outside(logs)] = np.nan
        for row, operator in zip(ms, operators, strict=True):
            if operator.present is not None:
                row[~operator.present] = 0
        return np.asarray(ms.sum(axis=0), dtype=np.float64)

    def _light(self, name: str, term: tuple[Any, Any, Any]) -> Any:
        constants = self.light.get(name) or self._elsewhere(name)
        if constants is None:
            return np.where(np.greater(term[0], 0), np.nan, 0)
        return sum(constant * amount for constant, amount in zip(constants, term, strict=True))

    def _elsewhere(self, name: str) -> tuple[float, float, float] | None:
        """The dearest line of the same operator in other company: it cannot be known to be folded away in this one."""
        same = [line for other, line in self.light.items() if _alone(other) == _alone(name)]
        return max(same, key=lambda line: line[1], default=None)

    def _refuse(self, operators: Sequence[SizedOperator]) -> None:
        """Raise OutsideCalibration for the first operator that cannot be priced."""
        found = arranged(self.runtime, operators)
        for at, operator in enumerate(operators):
            if multiplies(operator) and (why := self._unseen(operator, found.blocked[at])):
                raise OutsideCalibration(f"{operator.name} ({kind_of(operator)}): {why}; {self._advice}")
        for name in light_terms(operators, found):
            if name not in self.light and self._elsewhere(name) is None:
                raise OutsideCalibration(f"{_alone(name)}: the calibration saw no such operator; {self._advice}")

    def _unseen(self, operator: SizedOperator, blocked: Any) -> str | None:
        kind = kind_of(operator)
        if kind not in self.kinds:
            return "the calibration saw no such operator"
        logs, own = table([operator], [blocked])[0, 0], self.kinds[kind]
        for name, value, high in zip(NAMES, logs, own.high, strict=True):
            if value > high + MARGIN:
                return f"{name} is {2**value:.4g}, and the calibration saw at most {2**high:.4g}"
        return None

    @property
    def _advice(self) -> str:
        return f"measure it on {self.device} instead of predicting"

    def by_operator(self, graph: ChannelGraph) -> Array:
        """Milliseconds of each of `graph.operators()`; they add up to the prediction."""
        operators = graph.operators()
        self._refuse(operators)
        found = arranged(self.runtime, operators)
        return np.array([self._of_one(operators, found, at) for at in range(len(operators))])

    def _of_one(self, operators: Sequence[SizedOperator], found: Layouts, at: int) -> float:
        operator = operators[at]
        if multiplies(operator):
            ms = float(self._heavy(kind_of(operator), [operator], [found.blocked[at]], 1)[0])
        else:
            ms = 0.0
        own = light_terms(operators, found, only=at)
        return ms + float(sum(np.asarray(self._light(name, term)).item() for name, term in own.items()))


def _by_kind(operators: Sequence[SizedOperator]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for at, operator in enumerate(operators):
        if multiplies(operator):
            places.setdefault(kind_of(operator), []).append(at)
    return places


def _alone(name: str) -> str:
    """The operator in a light term's name, without its kind, company and layout."""
    return name.partition(": ")[2].partition(",")[0].partition(" after ")[0] or name
