"""Budget: upper limits in human units, read once into plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal

from ..errors import InvalidBudget, suggestion

Units = dict[str, Decimal]

COUNT: Units = {"": Decimal(1), "k": Decimal(10**3), "K": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9)}
BYTES: Units = {
    "": Decimal(1),
    "B": Decimal(1),
    "kB": Decimal(10**3),
    "KB": Decimal(10**3),
    "MB": Decimal(10**6),
    "GB": Decimal(10**9),
    "KiB": Decimal(2**10),
    "MiB": Decimal(2**20),
    "GiB": Decimal(2**30),
}
JOULES: Units = {
    "": Decimal(1),
    "pJ": Decimal("1e-12"),
    "nJ": Decimal("1e-9"),
    "uJ": Decimal("1e-6"),
    "mJ": Decimal("1e-3"),
    "J": Decimal(1),
}
SECONDS: Units = {"": Decimal(1), "us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1)}
SPELLINGS = {"", "K", "kB", "KiB", "MiB", "GiB"}  # read, but not written

UNITS = {"macs": COUNT, "params": COUNT, "size": BYTES, "memory": BYTES, "energy": JOULES, "latency": SECONDS}
EXAMPLES = {"macs": "30M", "params": "1.5M", "size": "500KB", "memory": "256KB", "energy": "2mJ", "latency": "8ms"}
WEIGHT_BYTES = 4  # float32
COLUMNS = {  # limit -> column of `price_many`, and the limit's units in one of the column's
    "macs": ("macs", 1.0), "params": ("params", 1.0), "size": ("params", float(WEIGHT_BYTES)),
    "memory": ("peak_memory_bytes", 1.0), "energy": ("energy_uj", 1e-6), "latency": ("latency_ms", 1e-3),
}  # fmt: skip


@dataclass(frozen=True, init=False)
class Budget:
    """Upper limits, any subset of them.

    macs and params are counts; size is bytes of float32 parameters (batch-norm statistics are not counted); memory is
    bytes of float32 activations alive at the worst moment for one image; energy is joules and latency seconds for one
    image. Text carries a unit (`"30M"`, `"500KB"`, `"2mJ"`); a plain number is in the unit just named. Prefixes are
    decimal: KB is 1000 bytes, KiB is 1024. Raises InvalidBudget.
    """

    macs: float | None
    params: float | None
    size: float | None
    memory: float | None
    energy: float | None
    latency: float | None
    device: str | None  # whose latency: "cpu", or a published device such as "pixel1"
    runtime: str | None  # of that device

    def __init__(
        self,
        macs: str | float | None = None,
        params: str | float | None = None,
        size: str | float | None = None,
        memory: str | float | None = None,
        energy: str | float | None = None,
        latency: str | float | None = None,
        device: str | None = None,
        runtime: str | None = None,
    ) -> None:
        given = {"macs": macs, "params": params, "size": size, "memory": memory, "energy": energy, "latency": latency}
        if all(limit is None for limit in given.values()):
            raise InvalidBudget(f"a budget needs at least one limit of {', '.join(given)}, for example macs=30M")
        for name, limit in given.items():
            object.__setattr__(self, name, None if limit is None else _quantity(name, limit))
        if latency is None and (device or runtime):
            raise InvalidBudget("a device or runtime is for a latency; add one such as latency=8ms")
        object.__setattr__(self, "device", device or ("cpu" if latency is not None else None))
        object.__setattr__(self, "runtime", runtime)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `"macs=30M,params=1.5M"`; raises InvalidBudget."""
        return cls(**_split(text))

    @classmethod
    def relative(cls, limits: str | Mapping[str, str], costs: Mapping[str, float]) -> Budget:
        """Read limits of which some are shares, such as `macs=40%`, of what a network costs now, by column.

        Raises InvalidBudget.
        """
        given = _split(limits) if isinstance(limits, str) else dict(limits)
        return cls(**{name: _share(name, limit, costs) if "%" in limit else limit for name, limit in given.items()})  # type: ignore[arg-type]

    @property
    def limits(self) -> dict[str, float]:
        """Column of `ChannelGraph.price_many`, or `latency_ms` of search/latency.py -> its upper limit."""
        params = [limit for limit in (self.params, self.size and self.size / WEIGHT_BYTES) if limit is not None]
        columns = {
            "macs": self.macs,
            "params": min(params) if params else None,
            "peak_memory_bytes": self.memory,
            "energy_uj": None if self.energy is None else self.energy * 1e6,
            "latency_ms": None if self.latency is None else self.latency * 1e3,
        }
        return {column: limit for column, limit in columns.items() if limit is not None}

    def replaced(self, **limits: str | float | None) -> Budget:
        """This budget with other limits on top."""
        return Budget(**{**self.to_dict(), **limits})  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, float | str]:
        """The limits given, as plain numbers: `Budget(**budget.to_dict())` is the same budget."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in given.items() if limit is not None}

    def __str__(self) -> str:
        """`macs=30M,params=1.5M`, which `parse` reads."""
        return ",".join(f"{name}={_human(name, limit)}" for name, limit in self.to_dict().items())


def _split(text: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in text.split(","):
        name, equals, limit = (piece.strip() for piece in part.partition("="))
        known = [field.name for field in fields(Budget)]
        if not equals:
            raise InvalidBudget(f"{part.strip()!r} is no limit; expected name=value, for example macs=30M")
        if name not in known:
            raise InvalidBudget(f"no limit named {name!r}{suggestion(name, known)} (there are {', '.join(known)})")
        if name in given:
            raise InvalidBudget(f"{name} is given twice in {text!r}; give each limit once")
        given[name] = limit
    return given


def _share(name: str, text: str, costs: Mapping[str, float]) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%", text.strip())
    if match is None or not 0 < float(match[1]) <= 100 or name not in COLUMNS:
        raise InvalidBudget(f"{name}={text!r} is no share of what the network costs; expected such as macs=40%")
    column, scale = COLUMNS[name]
    return float(match[1]) / 100 * costs[column] * scale


def human_costs(costs: Mapping[str, float]) -> str:
    """Costs by column of `price_many` in the units of a budget: `macs=30M, memory=256KB`."""
    limits = {column: (name, scale) for name, (column, scale) in COLUMNS.items() if name != "size"}
    scaled = {}
    for column, value in costs.items():
        name, scale = limits.get(column, (column, 1.0))  # a limit's own name stays
        scaled[name] = value * scale
    return ", ".join(f"{name}={_human(name, value, digits=4)}" for name, value in scaled.items())


def _quantity(name: str, limit: str | float) -> float:
    if isinstance(limit, str):
        value = _read(name, limit)
    elif isinstance(limit, bool) or not isinstance(limit, int | float):
        raise InvalidBudget(f"{name}={limit!r} is no limit; expected a number or text such as {EXAMPLES[name]!r}")
    else:
        value = float(limit)
    if not math.isfinite(value) or value <= 0:
        raise InvalidBudget(f"{name}={limit} is no limit; expected a number above 0 such as {EXAMPLES[name]}")
    return int(value) if value == int(value) else value


def _read(name: str, text: str) -> float:
    units = UNITS[name]
    match = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Zµ]*)", text.strip())
    if match is None:
        raise InvalidBudget(f"{name}={text!r} is no quantity; expected a number with a unit, such as {EXAMPLES[name]}")
    number, unit = match[1], match[2].replace("µ", "u")
    if unit not in units:
        near = [known for known in units if known.lower() == unit.lower()]
        hint = f"; did you mean {number}{near[-1]}?" if near else ""
        known = ", ".join(u for u in units if u)
        raise InvalidBudget(
            f"{name}={text!r}: no unit {unit!r}{hint} (expected one of {known}; such as {EXAMPLES[name]})"
        )
    return float(Decimal(number) * units[unit])


def _human(name: str, value: float | str, digits: int = 12) -> str:
    if isinstance(value, str) or name not in UNITS:
        return str(value)
    exact = Decimal(str(value))
    written = sorted((scale, unit) for unit, scale in UNITS[name].items() if unit not in SPELLINGS)
    for scale, unit in reversed(written):
        if exact >= scale:
            return f"{float(exact / scale):.{digits}g}{unit}"
    if UNITS[name] is COUNT:
        return f"{value:.{digits}g}"
    scale, unit = written[0]
    return f"{float(exact / scale):.{digits}g}{unit}"
