"""The report: what one network costs, operator by operator and in all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import torch
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from torch import nn

from ..errors import InvalidSetting
from ..graph.channel_graph import ChannelGraph, trace
from ..graph.costs import Costs
from ..zoo.architecture import Architecture
from .measurement import Measurement
from .runner import Protocol

By = Literal["kind", "layer"]
SUMMED = ["params", "macs", "activations", "memory_access"]
TRAINING_ONLY = "only in training"
FIGURES = {"kind": 5, "layer": 3}  # columns of numbers that fit beside the names; the rest is in `layers`
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Profile:
    """The costs of one network at one input shape; what they mean is stated in graph/costs.py."""

    name: str
    input_shape: tuple[int, ...]  # [N, C, H, W]
    graph: ChannelGraph
    costs: Costs  # of the whole batch
    measurement: Measurement | None = None  # of the whole batch, where a device was named

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row per operator of the evaluation pass, in order; constants that operators make inside are left out."""
        rows = self.graph.layers()
        return rows[rows["op"] != "constant"].reset_index(drop=True)

    @cached_property
    def by_kind(self) -> pd.DataFrame:
        """One row per kind of operator, most MACs first: count, params, macs, share, activations, memory_access.

        Shares are of all MACs. Columns add up to `costs`: parameters that no operator of the evaluation pass reads
        (auxiliary heads) have a row of their own.
        """
        grouped = self.layers.groupby("op", sort=False)
        table = grouped[SUMMED].sum()
        table.insert(0, "count", grouped.size())
        rest = self.costs.params - int(table["params"].sum())
        if rest:
            table.loc[TRAINING_ONLY] = {"count": 0, "params": rest, "macs": 0, "activations": 0, "memory_access": 0}
        table.insert(3, "share", table["macs"] / max(1, self.costs.macs))
        return table.rename_axis("kind").sort_values(["macs", "params"], ascending=False, kind="stable")

    @property
    def groups(self) -> dict[str, int]:
        """Searchable channel groups: name -> width (takes a second trace)."""
        return self.graph.groups

    @property
    def frozen(self) -> dict[str, str]:
        """Layers whose width cannot vary, and why (takes a second trace)."""
        return self.graph.frozen

    @property
    def unknown(self) -> dict[str, str]:
        """Operators that the tracer does not know, and where in the model they were met."""
        return self.graph.unknown

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures must know: unknown operators with their places, warnings of the measurement."""
        unknown = [
            f"unknown operator {name} at {where}: it counts no MACs, and the channels it reads are not searched"
            for name, where in self.unknown.items()
        ]
        return [*unknown, *(f"warning: {text}" for text in (self.measurement.warnings if self.measurement else ()))]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "costs": self.costs.to_dict(),
            "by_kind": self.by_kind.reset_index().to_dict("records"),
            "layers": self.layers.to_dict("records"),
            "groups": self.groups,
            "frozen": self.frozen,
            "unknown": self.unknown,
            "measurement": self.measurement.to_dict() if self.measurement else None,
        }

    def table(self, by: By = "layer") -> RenderableType:
        """The report for people: a row per operator or per kind, totals, and notes."""
        if by not in ("kind", "layer"):
            raise InvalidSetting(f"a profile is shown by 'kind' or by 'layer', not by {by!r}")
        shape = "x".join(map(str, self.input_shape))
        table = Table(title=f"{self.name}, input {shape}", show_footer=True, box=SIMPLE, padding=(0, 1, 0, 0))
        table.add_column(by, footer="total", overflow="fold")
        table.add_column("operator" if by == "layer" else "operators", no_wrap=by == "layer")
        if by == "layer":
            table.add_column("output", no_wrap=True)
        for heading, total in self._totals()[: FIGURES[by]]:
            table.add_column(heading, footer=total, justify="right", no_wrap=True)
        for cells in self._layer_cells() if by == "layer" else self._kind_cells():
            table.add_row(*cells)
        return Group(table, self._summary(), *self._latency(), *self.notes)

    def _totals(self) -> list[tuple[str, str]]:
        c = self.costs
        return [("params", human(c.params)), ("MACs", human(c.macs)), ("share", "100 %" if c.macs else ""),
                ("activations", human(c.activations)), ("memory\naccess", human(c.memory_access))]  # fmt: skip

    def _layer_cells(self) -> Iterator[list[str]]:
        for row in self.layers.to_dict("records"):
            out = "x".join(map(str, row["out_shapes"][0]))
            figures = self._figures(row, row["macs"] / max(1, self.costs.macs))
            yield [row["name"], row["op"], out, *figures[: FIGURES["layer"]]]

    def _kind_cells(self) -> Iterator[list[str]]:
        for row in self.by_kind.reset_index().to_dict("records"):
            yield [row["kind"], str(row["count"]) if row["count"] else "", *self._figures(row, row["share"])]

    def _figures(self, row: dict[Any, Any], share: float) -> list[str]:
        params, macs, activations, access = (human(row[column]) if row[column] else "" for column in SUMMED)
        return [params, macs, f"{100 * share:.1f} %" if row["macs"] else "", activations, access]

    def _summary(self) -> str:
        c = self.costs
        return (
            f"{human(c.params)} parameters ({human(c.size_bytes, 'B')}), "
            f"{human(c.macs)} MACs = {human(c.flops)} FLOPs, "
            f"peak activation memory {human(c.peak_memory_bytes, 'B')}, energy {human(c.energy_uj * 1e-6, 'J')}"
        )

    def _latency(self) -> Iterator[str]:
        if (m := self.measurement) is not None:
            place = m.stamp.get("accelerator", m.stamp["processor"])
            versions = ", ".join(f"{name} {version}" for name, version in m.versions.items())
            yield (
                f"{m.median_ms:.4g} ms (95 % interval of the median {m.low_ms:.4g} to {m.high_ms:.4g}) on {m.device} "
                f"with {m.runtime}, {m.dtype}, {m.threads} thread(s), measured: {place}, {versions}, {m.stamp['date']}"
            )


def profile(
    model: str | Architecture | nn.Module,
    *,
    resolution: int | None = None,
    input_shape: Sequence[int] | None = None,
    device: str | None = None,
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    protocol: Protocol | None = None,
    **settings: Any,
) -> Profile:
    """Count what a network costs, and measure it when a device or runtime is named.

    `model` is a zoo name, `module:factory`, Architecture or any module. `input_shape` is [N, C, H, W]; a module needs
    it (or `resolution`, for three channels), a name or Architecture has its own. `batch` replaces N. `settings` go to
    the name or Architecture; the rest is as `measure` takes it. Raises UnknownModel, InvalidSetting, UntraceableModel,
    and what `measure` raises.
    """
    measured = device is not None or runtime is not None
    if not measured and (threads != 1 or protocol is not None):
        raise InvalidSetting("threads and protocol belong to a measurement: name a device, such as device='cpu'")
    if isinstance(model, nn.Module):
        name, network = type(model).__name__, model
        timed: Architecture | nn.Module = model
        shape = _shape_for_module(input_shape, resolution, settings)
    else:
        timed = arch = _architecture(model, resolution, settings)
        name = model if isinstance(model, str) else arch.family
        with torch.device("meta"):
            network = arch.build()
        shape = tuple(input_shape or arch.input_shape)
    shape = _checked(shape, batch)
    graph = trace(network, shape)
    measurement = None
    if measured:
        from .measure import measure  # which loads the exporter's and the runtimes' packages

        (measurement,) = measure({name: timed}, device=device or "cpu", runtime=runtime, threads=threads,
                                 input_shape=shape, protocol=protocol or Protocol())  # fmt: skip
    return Profile(name, shape, graph, graph.price(), measurement)


def _architecture(model: str | Architecture, resolution: int | None, settings: dict[str, Any]) -> Architecture:
    if resolution is not None:
        settings = {**settings, "resolution": resolution}
    return model.with_settings(**settings) if isinstance(model, Architecture) else Architecture.of(model, **settings)


def _shape_for_module(
    input_shape: Sequence[int] | None, resolution: int | None, settings: dict[str, Any]
) -> tuple[int, ...]:
    if settings:
        raise InvalidSetting(f"a built module takes no settings: {sorted(settings)}")
    if input_shape is None and resolution is None:
        raise InvalidSetting("a module does not say what it reads: give input_shape=(N, C, H, W)")
    return tuple(input_shape) if input_shape is not None else (1, 3, int(resolution or 0), int(resolution or 0))


def _checked(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    shape = (batch, *shape[1:]) if batch != 1 else shape
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise InvalidSetting(f"an input shape is positive whole numbers [N, C, H, W], not {list(shape)}")
    return shape


def human(value: float, unit: str = "") -> str:
    """Three to four digits with a decimal prefix: 300774272 -> "300.77 M", 14019488 bytes -> "14.02 MB"."""
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.2f} {prefix}{unit}"
    if 0 < abs(value) < 1:
        return f"{value * 1e3:.2f} m{unit}" if abs(value) >= 1e-3 else f"{value * 1e6:.2f} u{unit}"
    return f"{value:g} {unit}".strip()
