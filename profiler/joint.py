"""Regress operators and whole passes at once.

How long a pass took is known better than how it divides into operators, and errors of operators that point the same
way add up. So the operators are fitted to their own times and, through their sum, to the time of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from .calibrated import Kind, physical_ms
from .operator_features import KINDS

Array = npt.NDArray[np.float64]
Line = tuple[float, float, float]  # ms a call, an element, an element far from the core
LEAST_OPERATORS = 20  # of a kind, below which it is not priced
LEAST_SEEN = 2  # networks in which a light term must occur
HIDDEN = 32
STEPS, LEARNING_RATE, WEIGHT_DECAY = 300, 6e-3, 1e-2
OPERATOR, LIGHT, PASS = 0.1, 4.0, 2.0  # weights of the three errors
EXACT = 0.03  # relative error of a pass up to which it counts by its square, beyond by its size: some passes are odd
FAINT = 1e-3  # root of the share of a pass at which a line starts that has no use yet, so that it may grow


@dataclass(frozen=True)
class Row:
    """One sample as the fit sees it: at the speed of the median sample, operators adding up to the whole pass."""

    kinds: npt.NDArray[np.str_]  # of the multiplying operators
    logs: npt.NDArray[np.float32]  # [multiplying operators, features]
    ms: Array  # [multiplying operators]
    light: Mapping[str, tuple[Any, Any, Any]]
    light_ms: Mapping[str, float]  # by kind
    total_ms: float


def fitted(rows: Sequence[Row]) -> tuple[dict[str, Kind], dict[str, Line]]:
    """The kinds that multiply, and the lines of everything else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        total = torch.tensor([row.total_ms for row in rows], dtype=torch.float32)
        enough = [kind for kind in KINDS if sum((row.kinds == kind).sum() for row in rows) >= LEAST_OPERATORS]
        kinds = {kind: _Kind(kind, rows) for kind in enough}
        lines = _Lines(rows)
        _train(kinds, lines, total)
    return {name: kind.settled() for name, kind in kinds.items()}, lines.settled()


def _train(kinds: Mapping[str, _Kind], lines: _Lines, total: Tensor) -> None:
    learnt = [parameter for kind in kinds.values() for parameter in kind.network.parameters()]
    groups: list[dict[str, Any]] = [{"params": learnt}, {"params": [lines.roots], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.15)
    for _ in range(STEPS):
        shares = lines.shares_of_pass()
        summed, error = shares.sum(dim=1), LIGHT * ((shares - lines.target) ** 2).sum()
        for kind in kinds.values():
            ms, off = kind.priced()
            summed = summed.index_add(0, kind.row, ms / total[kind.row])
            error = error + OPERATOR * (kind.share.sqrt() * off**2).sum()
        off = summed.clamp_min(1e-3).log()
        error = (error + PASS * ((off**2 + EXACT**2).sqrt() - EXACT).sum()) / len(total)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()


class _Kind:
    """A kind of operator while it is fitted: its physical line stands, its network learns."""

    def __init__(self, kind: str, rows: Sequence[Row]) -> None:
        mine = [row.kinds == kind for row in rows]
        logs, ms = (np.concatenate([getattr(row, name)[own] for row, own in zip(rows, mine, strict=True)])
                    for name in ("logs", "ms"))  # fmt: skip
        self.low, self.high = logs.min(axis=0), logs.max(axis=0)
        macs, elements_in, elements_out, weights = np.exp2(logs.T[:4].astype(np.float64))
        columns = np.stack([np.ones(len(ms)), macs, elements_in + elements_out, weights], axis=1)
        self.physical, _ = nnls(columns / ms[:, None], np.ones(len(ms)))
        estimate = physical_ms(self.physical, logs.T.astype(np.float64))
        inputs = np.column_stack([logs, np.log2(estimate)])
        self.mean, self.deviation = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
        self.inputs = _tensor((inputs - self.mean) / self.deviation)
        self.estimate, self.target = _tensor(estimate), _tensor(np.log(ms / estimate))
        self.row = torch.from_numpy(np.repeat(np.arange(len(rows)), [own.sum() for own in mine]))
        self.share = _tensor(ms / np.array([row.total_ms for row in rows])[self.row.numpy()])
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)  # the physical line alone
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Linear(inputs.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), last
        )

    def priced(self) -> tuple[Tensor, Tensor]:
        """Milliseconds of all its operators, and by what factor (its logarithm) they are off."""
        factor = self.network(self.inputs)[:, 0]
        return self.estimate * factor.exp(), factor - self.target

    def settled(self) -> Kind:
        """The data that a calibration keeps; the standardisation goes into the first layer."""
        linear = [layer for layer in self.network if isinstance(layer, nn.Linear)]
        layers = [tuple(own.detach().double().numpy() for own in (layer.weight.T, layer.bias)) for layer in linear]
        weight, bias = layers[0]
        weight = weight / self.deviation[:, None]
        layers[0] = weight, bias - self.mean @ weight
        return Kind(self.physical.tolist(), self.low.tolist(), self.high.tolist(),
                    [(weight.tolist(), bias.tolist()) for weight, bias in layers])  # fmt: skip


class _Lines:
    """What does not multiply: a non-negative line for each term, told apart by kind in the measurements."""

    def __init__(self, rows: Sequence[Row]) -> None:
        seen = Counter(name for row in rows for name in row.light)
        self.names = sorted(name for name, networks in seen.items() if networks >= LEAST_SEEN)
        kinds = sorted({_kind_of(name) for name in self.names})
        total = np.array([row.total_ms for row in rows])
        terms = np.array(
            [[row.light.get(name, (0.0, 0.0, 0.0)) for name in self.names] for row in rows], dtype=np.float64
        )
        shares = terms.reshape(len(rows), 3 * len(self.names)) / total[:, None]
        self.scale = np.maximum(shares.max(axis=0), 1e-30)
        target = np.array([[row.light_ms.get(kind, 0.0) for kind in kinds] for row in rows]) / total[:, None]
        member = np.repeat([[_kind_of(name) == kind for kind in kinds] for name in self.names], 3, axis=0)
        start = np.zeros(len(self.scale))
        for own, measured in zip(member.T, target.T, strict=True):
            start[own] = nnls(shares[:, own] / self.scale[own], measured)[0]
        self.roots = nn.Parameter(_tensor(np.maximum(np.sqrt(start), FAINT) * (shares.max(axis=0) > 0)))
        self.shares, self.member, self.target = _tensor(shares / self.scale), _tensor(member), _tensor(target)

    def shares_of_pass(self) -> Tensor:
        """[rows, kinds] by what the lines say now."""
        return (self.shares * self.roots**2) @ self.member

    def settled(self) -> dict[str, Line]:
        """Milliseconds a call and an element."""
        found = (self.roots.detach().double().numpy() ** 2 / self.scale).reshape(-1, 3).tolist()
        return {name: (call, near, far) for name, (call, near, far) in zip(self.names, found, strict=True)}


def _kind_of(name: str) -> str:
    return name.partition(": ")[0]


def _tensor(values: npt.ArrayLike) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
