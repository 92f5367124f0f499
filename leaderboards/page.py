"""The page: one self-contained file with the table, filters and plots, which a browser opens without a network."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from .figure import Figure
from .limits import LATENCY
from .places import Latencies, Place
from .table import EFFECTIVE, TOP1, TOP5, Row

COLUMNS: tuple[dict[str, Any], ...] = (  # scale: of the figure, in the unit shown; least: a filter of it is a minimum
    {"key": "label", "label": "network", "text": True, "says": "zoo name and settings"},
    {"key": "family", "label": "family", "text": True, "says": "family of the zoo"},
    {"key": "resolution", "label": "pixels", "unit": "pixels", "scale": 1, "digits": 0, "says": "side of the image"},
    {
        "key": TOP1,
        "label": "top-1, %",
        "unit": "%",
        "scale": 1,
        "digits": 1,
        "least": True,
        "says": "top-1 accuracy, %",
    },
    {
        "key": TOP5,
        "label": "top-5, %",
        "unit": "%",
        "scale": 1,
        "digits": 1,
        "least": True,
        "says": "top-5 accuracy, %",
    },
    {
        "key": LATENCY,
        "label": "latency, ms",
        "unit": "ms",
        "scale": 1,
        "says": "median milliseconds on the chosen device",
    },
    {"key": "macs", "label": "MACs, M", "unit": "million MACs", "scale": 1e6, "says": "multiply-accumulates, millions"},
    {
        "key": EFFECTIVE,
        "label": "effective MACs, M",
        "unit": "million MACs",
        "scale": 1e6,
        "says": "multiply-accumulates of weights that are not zero, millions",
    },
    {
        "key": "params",
        "label": "params, M",
        "unit": "million parameters",
        "scale": 1e6,
        "says": "parameters, millions",
    },
    {
        "key": "size_bytes",
        "label": "size, MB",
        "unit": "MB",
        "scale": 1e6,
        "says": "32-bit parameters or the packed file, MB",
    },
    {
        "key": "peak_memory_bytes",
        "label": "memory, MB",
        "unit": "MB",
        "scale": 1e6,
        "says": "peak activation memory, MB",
    },
    {"key": "energy_uj", "label": "energy, mJ", "unit": "mJ", "scale": 1e3, "says": "energy by operation counts, mJ"},
)


def page(rows: Sequence[Row], places: Mapping[Place, Latencies], phones: frozenset[str]) -> str:
    """The page's HTML; `phones`: the devices whose latencies were published or predicted rather than measured."""
    data = {
        "columns": _columns(rows),
        "rows": [_row(row, places) for row in rows],
        "places": {_id(n): {"label": place.label, "kind": "predicted" if place.device in phones else "measured"}
                   for n, place in enumerate(places)},
        "datasets": _datasets(rows),
    }  # fmt: skip
    parts = {
        "STYLE": _file("page.css"),
        "SCRIPT": _file("page.js"),
        "PLOTLY": get_plotlyjs(),
        "DATA": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub("@@([A-Z]+)@@", lambda marker: parts[marker[1]], _file("page.html"))


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8").rstrip("\n")


def _columns(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All but those of figures that only some networks have, and none of these."""
    return [c for c in COLUMNS if c["key"] != EFFECTIVE or any(EFFECTIVE in row.cells for row in rows)]


def _id(number: int) -> str:
    return f"place{number}"


def _row(row: Row, places: Mapping[Place, Latencies]) -> dict[str, Any]:
    network = row.network
    cells = {name: _cell(figure) for name, figure in row.cells.items()}
    if row.others:
        also = "; also ".join(f"{figure.value:g} ({figure})" for figure in row.others)
        cells[TOP1][2] += f"; also {also}"
    latencies = {_id(n): known.get(network.key) for n, known in enumerate(places.values())}
    return {
        "label": network.label, "family": network.family, "resolution": network.resolution,
        "num_classes": network.num_classes, "dataset": row.dataset, "create": network.create, "cells": cells,
        "latencies": {place: _cell(figure) for place, figure in latencies.items() if isinstance(figure, Figure)},
    }  # fmt: skip


def _cell(figure: Figure) -> list[Any]:
    return [figure.value, figure.kind, str(figure)]


def _datasets(rows: Sequence[Row]) -> dict[str, list[int | None]]:
    """Data set -> the numbers of classes of networks with an accuracy on it, most networks first."""
    classes: dict[str, list[int | None]] = defaultdict(list)
    for row in rows:
        if row.dataset:
            classes[row.dataset].append(row.network.num_classes)
    return {name: sorted(set(own), key=str) for name, own in sorted(classes.items(), key=lambda item: -len(item[1]))}
