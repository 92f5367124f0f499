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
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import OutsideCalibration
from ..graph.channel_graph import ChannelGraph
from ..graph.sized import SizedOperator
from .alike import alike
from .layouts import Layouts, layouts, plain
from .operator_features import NAMES, kind_of, light_terms, logs, multiplies
from .physical import LatencyError

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
CHUNK = 16384  # candidates at once: what NumPy's calls cost and candidates that are alike, against the cache
MARGIN = 2.0  # doublings beyond the largest size seen that are still believed
BLOCKED = ("onnxruntime",)  # runtimes with a blocked layout of their own
OTHER_LAYOUT = {"blocked": "plain", "plain": "blocked"}


@dataclass(frozen=True)
class Kind:
    """A kind of multiplying operator: a physical estimate, and a network that says by what factor it is off."""

    physical: Sequence[float]  # ms: fixed, a MAC, an element of the activations, an element of the weights
    low: Sequence[float]  # smallest and largest logarithm of each feature that the calibration saw
    high: Sequence[float]
    layers: Sequence[tuple[Sequence[Sequence[float]], Sequence[float]]]  # weights [in, out] and biases

    @cached_property
    def _arrays(self) -> list[tuple[Floats, Floats]]:
        return [(np.array(weight, dtype=np.float32), np.array(bias, dtype=np.float32)) for weight, bias in self.layers]

    def ms(self, logs: Sequence[Floats]) -> Floats:
        """Milliseconds [N] by the logarithms of the features, each a number or [N]; [1] where all are numbers.

        What is smaller than all that was seen costs as much as the smallest; beyond the largest the physical estimate
        goes on, and the network says what it says at the edge.
        """
        sizes = [np.maximum(own, np.float32(low)) for own, low in zip(logs, self.low, strict=True)]
        physical = np.atleast_1d(physical_ms(np.asarray(self.physical, dtype=np.float32), sizes))
        inputs = [np.minimum(own, np.float32(high)) for own, high in zip(sizes, self.high, strict=True)]
        inputs.append(np.log2(physical))
        same = [at for at, own in enumerate(inputs) if np.ndim(own) == 0]  # for all candidates: most of them
        varied = [at for at, own in enumerate(inputs) if np.ndim(own) > 0]
        (weight, bias), *others = self._arrays
        values = weight[varied].T @ np.stack([inputs[at] for at in varied])
        values += (bias + np.array([inputs[at] for at in same], dtype=np.float32) @ weight[same])[:, None]
        for weight, bias in others:
            values = weight.T @ np.maximum(values, 0, out=values)
            values += bias[:, None]
        return np.asarray(physical * np.exp(values[0]))

    def within(self, logs: Sequence[Floats]) -> Floats:
        """`ms`, nan where a size is beyond the largest seen."""
        beyond = [own > high + MARGIN for own, high in zip(logs, self.high, strict=True)]
        return np.where(reduce(np.logical_or, beyond), np.float32(np.nan), self.ms(logs))


def physical_ms(constants: npt.NDArray[Any], logs: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A line in MACs, elements of the activations and of the weights; at least a tenth of a microsecond."""
    fixed, per_mac, per_element, per_weight = constants
    macs, elements_in, elements_out, weights = (np.exp2(own) for own in logs[:4])
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
        with np.errstate(divide="ignore", invalid="ignore"):  # branches of no channels, which cost nothing
            for operator, blocked in zip(operators, found.blocked, strict=True):
                if multiplies(operator):
                    total += self._heavy(operator, blocked)
        for name, term in light_terms(operators, found).items():
            total += self._light(name, term)
        return total

    def _heavy(self, operator: SizedOperator, blocked: Any) -> Any:
        """Milliseconds of an operator that multiplies, a number or [N]; nan outside."""
        if (own := self.kinds.get(kind_of(operator))) is None:
            ms: Any = np.nan
        elif (same := alike(operator.varying)) is None:
            ms = own.within(logs(operator, blocked))
        else:
            of_each, which = same
            there = blocked if np.ndim(blocked) == 0 else blocked[of_each]
            ms = own.within(logs(operator.among(of_each), there))[which]
        return ms if operator.present is None else np.where(operator.present, ms, 0.0)

    def _light(self, name: str, term: tuple[Any, Any, Any]) -> Any:
        constants = self.light.get(name) or self._elsewhere(name)
        if constants is None:
            return np.where(np.greater(term[0], 0), np.nan, 0)
        return sum(constant * amount for constant, amount in zip(constants, term, strict=True))

    def _elsewhere(self, name: str) -> tuple[float, float, float] | None:
        """The line that comes nearest: in the other layout, or after a plain convolution for one after another kind.

        Else the dearest of the same operator in other company: it cannot be known to be folded away in this one.
        """
        company, _, layout = name.partition(", ")
        operator, _, before = company.partition(" after ")
        companies = [company, f"{operator} after conv"] if before.endswith(" conv") else [company]
        for near in (f"{own}, {where}" for own in companies for where in (layout, OTHER_LAYOUT.get(layout))):
            if near in self.light:
                return self.light[near]
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
        for name, value, high in zip(NAMES, logs(operator, blocked), self.kinds[kind].high, strict=True):
            if (most := np.max(value)) > high + MARGIN:
                return f"{name} is {2**most:.4g}, and the calibration saw at most {2**high:.4g}"
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
        ms = float(np.squeeze(self._heavy(operator, found.blocked[at]))) if multiplies(operator) else 0.0
        own = light_terms(operators, found, only=at)
        return ms + float(sum(np.asarray(self._light(name, term)).item() for name, term in own.items()))


def _alone(name: str) -> str:
    """The operator in a light term's name, without its kind, company and layout."""
    return name.partition(": ")[2].partition(",")[0].partition(" after ")[0] or name
