"""Costs of many width vectors at once, whatever residual branches their zeros remove."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from .branches import Branch
from .costs import EnergyTable
from .pricing import CHUNK, Floats, Prices, Quadratics, energy
from .tracer import Tracer

COLUMNS = ("params", "macs", "flops", "activations", "peak_memory_bytes", "memory_access", "energy_uj")
MADE_OF = {  # column -> the matrices that it is made of, where these are others
    "flops": ["macs"], "memory_access": ["weight_reads", "activation_access"],
    "energy_uj": ["macs", "weight_reads", "activation_access"],
}  # fmt: skip


class PriceTable:
    """A traced model's prices; the matrices for each set of removed branches are made once."""

    def __init__(
        self, tracer: Tracer, symbols: Sequence[int], branches: Sequence[Branch], parameters: Sequence[str]
    ) -> None:
        column = {symbol: i for i, symbol in enumerate(symbols)}
        self._emptied_by = [[column[symbol] for symbol in branch.emptied_by] for branch in branches]
        self._prices = _prices(tracer, symbols, branches, parameters)
        self._matrices: dict[tuple[tuple[str, ...], frozenset[int]], Quadratics] = {}

    def costs(self, widths: npt.NDArray[Any], columns: Sequence[str], table: EnergyTable) -> pd.DataFrame:
        """[N, G] -> a row of costs each."""
        basic = list(dict.fromkeys(b for c in columns for b in MADE_OF.get(c, [c])))
        result = np.empty((len(basic), len(widths)))
        for removed, rows in self._by_removed(widths):
            self._fill(basic, widths, rows, removed, result)
        by_name = dict(zip(basic, result, strict=True))
        return pd.DataFrame({c: _column(c, by_name, table) for c in columns})

    def _by_removed(self, w: npt.NDArray[Any]) -> list[tuple[frozenset[int], npt.NDArray[np.int64] | slice]]:
        """Rows by which branches are gone."""
        if not self._emptied_by or w.min(initial=1) > 0:
            return [(frozenset(), slice(None))]
        gone = np.column_stack([(w[:, inside] == 0).any(axis=1) for inside in self._emptied_by])
        patterns, which = np.unique(gone, axis=0, return_inverse=True)
        return [
            (frozenset(np.flatnonzero(p).tolist()), np.flatnonzero(which.ravel() == i)) for i, p in enumerate(patterns)
        ]

    def _quadratics(self, columns: tuple[str, ...], removed: frozenset[int]) -> Quadratics:
        if (columns, removed) not in self._matrices:
            self._matrices[columns, removed] = self._prices.quadratics(columns, removed)
        return self._matrices[columns, removed]

    @cached_property
    def _memory_rows(self) -> tuple[Floats, Floats]:
        return self._prices.memory_rows()

    def _fill(self, columns: Sequence[str], w: npt.NDArray[Any], rows: Any, removed: frozenset[int],
              out: npt.NDArray[np.float64]) -> None:  # fmt: skip
        """Write the costs of these rows of `w` into `out`, [columns, N]."""
        memory = [i for i, c in enumerate(columns) if c == "peak_memory_bytes"]
        others = [i for i, c in enumerate(columns) if c != "peak_memory_bytes"]
        quadratics = self._quadratics(tuple(columns[i] for i in others), removed)
        for start in range(0, len(w) if isinstance(rows, slice) else len(rows), CHUNK):
            part = slice(start, start + CHUNK) if isinstance(rows, slice) else rows[start : start + CHUNK]
            chunk = np.ascontiguousarray(w[part].T, dtype=np.float64)  # [G, chunk]
            for i, values in zip(others, quadratics.at(chunk), strict=True):
                out[i, part] = values
            for i in memory:
                matrix, constants = self._memory_rows
                out[i, part] = (matrix @ chunk + constants[:, None]).max(axis=0)


def _prices(tracer: Tracer, symbols: Sequence[int], branches: Sequence[Branch], parameters: Sequence[str]) -> Prices:
    branch_of_op: dict[int, set[int]] = {}
    branch_of_parameter: dict[str, set[int]] = {}
    for i, branch in enumerate(branches):
        for number in branch.operators:
            branch_of_op.setdefault(number, set()).add(i)
        for name in parameters:
            if any(name.startswith(path + ".") for path in branch.modules):
                branch_of_parameter.setdefault(name, set()).add(i)
    return Prices(tracer, symbols, branch_of_op, branch_of_parameter, parameters)


def _column(column: str, basic: dict[str, Any], table: EnergyTable) -> npt.NDArray[Any]:
    if column == "energy_uj":
        return energy(basic["macs"], basic["weight_reads"], basic["activation_access"], table)
    if column == "memory_access":
        values = basic["weight_reads"] + basic["activation_access"]
    else:
        values = 2 * basic["macs"] if column == "flops" else basic[column]
    whole: npt.NDArray[np.int64] = np.rint(values).astype(np.int64)
    return whole
