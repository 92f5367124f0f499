"""Latency models of devices that nobody here has, fitted to what papers published about them.

`published_latency.csv` holds the published figures, `published_devices.json` the constants that
`benchmarks/published_devices.py` fitted to some of them, with the error on the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy.typing as npt
import pandas as pd

from ..errors import UnknownDevice, suggestion
from ..graph.channel_graph import ChannelGraph
from .physical import Array, LatencyError, OperatorClass, PhysicalModel

FIGURES = Path(__file__).with_name("published_latency.csv")
FITTED = Path(__file__).with_name("published_devices.json")


@dataclass(frozen=True)
class PublishedModel:
    """A device's fitted model, its error on networks that the fit never saw, and what is assumed rather than fitted."""

    device: str
    runtime: str
    description: str  # the machine and the runtime in words
    error: LatencyError
    physical: PhysicalModel
    assumed: Mapping[str, str]  # label of an operator that the data never shows alone -> how it is priced

    def predict(self, graph: ChannelGraph, widths: npt.ArrayLike | None = None) -> Array:
        """Milliseconds a batch, [N] of [N, G] width vectors, [1] of the graph as it is; raises OutsideCalibration."""
        return self.physical.predict(graph, widths)

    def by_operator(self, graph: ChannelGraph) -> Array:
        """Milliseconds of each of `graph.operators()`, in their order; raises OutsideCalibration."""
        return self.physical.by_operator(graph)


@cache
def _records() -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = json.loads(FITTED.read_text())["devices"]
    return records


def _described() -> Mapping[str, str]:
    return MappingProxyType({name: record["description"] for name, record in _records().items()})


DEVICES: Mapping[str, str] = _described()  # name -> the machine and the runtime in words


def published(device: str) -> PublishedModel:
    """The fitted model of a device in `DEVICES`; raises UnknownDevice."""
    if device not in DEVICES:
        raise UnknownDevice(
            f"no published device {device!r}{suggestion(device, DEVICES)}; expected one of {', '.join(DEVICES)}"
        )
    record = _records()[device]
    operators: dict[str, dict[str, str]] = record["operators"]
    physical = PhysicalModel(
        device, record["combine"],
        {name: OperatorClass(**constants) for name, constants in record["classes"].items()},
        {name: entry["class"] for name, entry in operators.items()},
        record["run_us"],
    )  # fmt: skip
    assumed = {name: entry["assumed"] for name, entry in operators.items() if "assumed" in entry}
    figures_of = record["error"]
    rank = math.nan if figures_of["spearman"] is None else figures_of["spearman"]
    error = LatencyError(**{**figures_of, "spearman": rank})
    return PublishedModel(device, record["runtime"], record["description"], error, physical, assumed)


@cache
def figures() -> pd.DataFrame:
    """Every published figure that is carried, a row each.

    Columns: device, runtime, model, settings, batch, resolution, latency_ms (of a batch), printed (as it was), role
    (fit, judge, left out), source, note. `model` is a zoo name, with `settings` on top, or `block:...`, a
    micro-benchmark; `-` is none of ours.
    """
    return pd.read_csv(FIGURES, keep_default_na=False)


def published_ms(device: str, batch: int = 1) -> pd.DataFrame:
    """Published latencies of zoo networks as the zoo builds them on a device: model, resolution, latency_ms, source.

    A network published twice keeps its latest figure. Empty where nothing was published at that batch.
    """
    rows = figures()
    of_zoo = (rows["model"] != "-") & ~rows["model"].str.startswith("block:") & (rows["settings"] == "")
    rows = rows[of_zoo & (rows["device"] == device) & (rows["batch"] == batch)]
    rows = rows.drop_duplicates(["model", "resolution"], keep="last")
    return rows[["model", "resolution", "latency_ms", "source"]].reset_index(drop=True)


def published_latency(
    model_name: str, device: str, *, batch: int = 1, resolution: int = 224
) -> tuple[float, str] | None:
    """(milliseconds a batch, source) that was published for a zoo network on a device, or None."""
    rows = published_ms(device, batch)
    found = rows[(rows["model"] == model_name) & (rows["resolution"] == resolution)]
    return (float(found["latency_ms"].iloc[0]), str(found["source"].iloc[0])) if len(found) else None
