"""pick: the most accurate network within a budget, the runners-up, and why the others fell out."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidData, NothingFits, UnknownModel, suggestion
from ..search.budget import Budget
from .figure import Figure
from .latency import OnDevice, on_device
from .limits import LATENCY, Limit, limits_of
from .records import Records, stored
from .table import EFFECTIVE, TOP1, TOP5, Row, rows

if TYPE_CHECKING:
    import pandas as pd

FIGURES = (TOP1, TOP5, LATENCY, "macs", EFFECTIVE, "params", "size_bytes", "peak_memory_bytes", "energy_uj")


@dataclass(frozen=True)
class Verdict:
    """A network against the limits: those that it misses, and those of which nobody knows its figure, with why."""

    row: Row
    missed: tuple[Limit, ...]
    unknown: tuple[tuple[Limit, str], ...]

    @property
    def fits(self) -> bool:
        """Whether every limit is known to be met."""
        return not self.missed and not self.unknown

    @property
    def reasons(self) -> list[str]:
        """Why it fell out, a limit each."""
        over = [limit.says(self.row.cells[limit.column].value) for limit in self.missed]
        return over + [f"{limit.name} unknown: {why}" for limit, why in self.unknown]


@dataclass(frozen=True)
class Picked:
    """Every candidate judged: those that fit, best first, and those that do not."""

    limits: list[Limit]
    dataset: str
    fitting: list[Verdict]
    fallen: list[Verdict]

    @property
    def summary(self) -> str:
        """How many fell out by which limit."""
        counts = Counter(limit.name for v in self.fallen for limit in (*v.missed, *(limit for limit, _ in v.unknown)))
        return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def pick(
    budget: Budget,
    top: int = 5,
    *,
    dataset: str = "imagenet",
    min_top1: float | None = None,
    family: str | None = None,
    runtime: str | None = None,
    records: Sequence[str | Path] | None = None,
) -> pd.DataFrame:
    """The `top` most accurate networks within a budget, best first; of equal ones the one with fewer MACs.

    Columns: model, label, dataset, each figure with `<figure>_source` beside it (counted, measured where, predicted
    with what error, published where), and `create`, the expression that makes the network. A latency is of one image
    on `budget.device`: published, else measured, else predicted. `family` is a shell pattern, `records` folders to
    read instead of pocketzoo's and the user's own. Raises NothingFits, InvalidBudget, InvalidData, UnknownDevice.
    """
    import pandas as pd

    picked = judge(budget, dataset=dataset, min_top1=min_top1, family=family, runtime=runtime, records=records)
    return pd.DataFrame([as_dict(verdict.row) for verdict in best(picked)[:top]])


def best(picked: Picked) -> list[Verdict]:
    """Those that fit; raises NothingFits, which names the limit to relax."""
    if not picked.fitting:
        raise NothingFits(nearest(picked))
    return picked.fitting


def judge(
    budget: Budget,
    *,
    dataset: str = "imagenet",
    min_top1: float | None = None,
    family: str | None = None,
    runtime: str | None = None,
    records: Sequence[str | Path] | None = None,
) -> Picked:
    """Hold every network with an accuracy on the data set against the limits; arguments and errors as of `pick`."""
    limits = limits_of(budget, min_top1)
    held = stored(records)
    rows = candidates(held, dataset, family)
    device = on_device(budget.device, runtime, held) if budget.device else None
    verdicts = [verdict(row, limits, device) for row in rows]
    if not any(v.fits for v in verdicts):  # then the nearest is asked for, and what it takes
        verdicts = [verdict(row, limits, device, thorough=True) for row in rows]
    ranked = sorted(verdicts, key=lambda v: (-v.row.cells[TOP1].value, v.row.value("macs") or math.inf))
    return Picked(limits, dataset, [v for v in ranked if v.fits], [v for v in ranked if not v.fits])


def candidates(records: Records, dataset: str, family: str | None = None) -> list[Row]:
    """Rows with an accuracy on a data set; raises InvalidData and UnknownModel for names that no row has."""
    table = rows(records)
    if dataset not in (known := {row.dataset for row in table if row.dataset}):
        raise InvalidData(
            f"no accuracy is known on {dataset!r}{suggestion(dataset, known)} (there are {', '.join(sorted(known))})"
        )
    on_it = [row for row in table if row.dataset == dataset]
    found = [row for row in on_it if family is None or fnmatch.fnmatch(row.network.family, family)]
    if not found:
        families = sorted({row.network.family for row in on_it})
        raise UnknownModel(
            f"no family {family!r}{suggestion(str(family), families)} has an accuracy on {dataset}"
            f" ({', '.join(families)} have)"
        )
    return found


def verdict(row: Row, limits: Sequence[Limit], device: OnDevice | None, *, thorough: bool = False) -> Verdict:
    """Judge one row; a latency is not worked out for what misses another limit, unless `thorough`."""
    missed = [limit for limit in limits if limit.column != LATENCY and _misses(row, limit)]
    unknown = [
        (limit, "nobody counted it") for limit in limits if limit.column not in row.cells and limit.column != LATENCY
    ]
    if device is None or (not thorough and (missed or unknown)):
        return Verdict(row, tuple(missed), tuple(unknown))
    latency = device.of(row.network)
    if isinstance(latency, Figure):
        row = replace(row, cells={**row.cells, LATENCY: latency})
    for limit in limits:
        if limit.column == LATENCY:
            unknown += [] if isinstance(latency, Figure) else [(limit, latency)]
            missed += [limit] if _misses(row, limit) else []
    return Verdict(row, tuple(missed), tuple(unknown))


def _misses(row: Row, limit: Limit) -> bool:
    value = row.value(limit.column)
    return value is not None and limit.misses(value) > 1


def nearest(picked: Picked) -> str:
    """What to relax, and by how much, when nothing fits: a single limit where one is enough for some network."""
    asked = ", ".join(limit.written(limit.bound) for limit in picked.limits)
    says = f"none of the {len(picked.fallen)} networks with an accuracy on {picked.dataset} meets {asked}"
    known = [v for v in picked.fallen if not v.unknown]
    if not known:
        first = picked.fallen[0]
        return f"{says}; of each something is unknown ({first.row.network.label}: {first.reasons[0]})"
    near = min(known, key=lambda v: (len(v.missed) > 1, _distance(v)))
    relaxed = " and ".join(limit.relaxed(near.row.cells[limit.column].value) for limit in near.missed)
    return (
        f"{says}; nearest is {near.row.network.label} ({near.row.cells[TOP1].value:.1f} % top-1), which fits with"
        f" {relaxed} and all else as asked: {', '.join(near.reasons)}"
    )


def _distance(v: Verdict) -> float:
    return sum(math.log(limit.misses(v.row.cells[limit.column].value)) for limit in v.missed)


def explain(name: str, picked: Picked, records: Sequence[str | Path] | None = None) -> list[tuple[str, list[str]]]:
    """(network, reasons) for every form of a zoo name: its rank, or each limit that it misses and by how much.

    Raises UnknownModel.
    """
    ranks = {v.row.network.key: place for place, v in enumerate(picked.fitting, 1)}
    said = []
    for v in (*picked.fitting, *picked.fallen):
        if v.row.network.model == name:
            rank = ranks.get(v.row.network.key)
            said.append((v.row.network.label, [f"fits: rank {rank} of {len(ranks)}"] if rank else v.reasons))
    if said:
        return said
    every = rows(stored(records))
    forms = [row for row in every if row.network.model == name]
    if not forms:
        raise UnknownModel(f"no model named {name!r}{suggestion(name, {row.network.model for row in every})}")
    reason = f"no accuracy on {picked.dataset} is published or measured, or --family leaves it out"
    return [(label, [reason]) for label in dict.fromkeys(row.network.label for row in forms)]


def as_dict(row: Row) -> dict[str, object]:
    """A row as plain values: figures with their sources beside them."""
    network = row.network
    values: dict[str, object] = {"model": network.model, "label": network.label, "dataset": row.dataset}
    for column in FIGURES:
        if column in row.cells:
            values[column], values[f"{column}_source"] = row.cells[column].value, str(row.cells[column])
    return {**values, "create": network.create}
