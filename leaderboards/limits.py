"""Limits of a pick: a column of the table, its bound, and what a network that misses it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InvalidBudget
from ..search.budget import Budget, human_costs
from .table import TOP1

LATENCY = "latency_ms"
COLUMNS = {  # limit of a Budget -> the table's column, and the limit's unit in that column's
    "params": ("params", 1.0),
    "macs": ("macs", 1.0),
    "size": ("size_bytes", 1.0),
    "memory": ("peak_memory_bytes", 1.0),
    "energy": ("energy_uj", 1e6),
    "latency": (LATENCY, 1e3),
}
ACCURACY = "min-top1"
DIGITS = 3  # of a relaxed limit, rounded so that the network it was relaxed for fits


@dataclass(frozen=True)
class Limit:
    """An upper bound of a column, in its unit; the accuracy's is a lower one."""

    name: str  # as on the command line
    column: str
    bound: float

    def misses(self, value: float) -> float:
        """How many times too much a value is (too little, of accuracy); 1 or less: it fits."""
        if self.name == ACCURACY:
            return self.bound / value if value > 0 else math.inf
        return value / self.bound

    def says(self, value: float) -> str:
        """A value and the bound as people write them: `macs=300.8M is 2.01 times the limit of 150M`."""
        bound = self.written(self.bound).partition("=")[2]
        if self.name == ACCURACY:
            return f"top-1 of {value:.4g} % is {self.bound - value:.3g} below the least of {bound} %"
        return f"{self.written(value)} is {self.misses(value):.3g} times the limit of {bound}"

    def relaxed(self, value: float) -> str:
        """The limit as it would have to be for a value, rounded to the safe side: `macs=301M`."""
        step = 10.0 ** (math.floor(math.log10(value)) + 1 - DIGITS)
        rounded = math.floor(value / step) if self.name == ACCURACY else math.ceil(value / step)
        return self.written(rounded * step)

    def written(self, value: float) -> str:
        """A value as the option of the command line."""
        if self.name == ACCURACY:
            return f"{ACCURACY}={value:.4g}"
        return human_costs({self.name: value / COLUMNS[self.name][1]})


def limits_of(budget: Budget, min_top1: float | None) -> list[Limit]:
    """The limits of a question; raises InvalidBudget for an impossible accuracy."""
    if min_top1 is not None and not 0 <= min_top1 <= 100:
        raise InvalidBudget(f"a top-1 accuracy is 0 to 100 percent, not {min_top1:g}")
    given = ((name, column, unit, getattr(budget, name)) for name, (column, unit) in COLUMNS.items())
    limits = [Limit(name, column, value * unit) for name, column, unit, value in given if value is not None]
    return limits + ([Limit(ACCURACY, TOP1, min_top1)] if min_top1 else [])
