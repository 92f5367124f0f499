"""What a compressed model weighs, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import nn

from ..graph.channel_graph import trace
from ..packing.packed import PackedModel

TOTAL = "all"
PASS_COLUMNS = [
    "pass", "params", "nonzeros", "bytes", "bits_per_param", "macs", "effective_macs", "before", "accuracy",
    "latency_ms",
]  # fmt: skip
SHARES = ("density", "before", "accuracy", "validation", "parent_validation")  # columns that are printed in percent


def layer_table(model: nn.Module, input_shape: Sequence[int], packed: PackedModel) -> pd.DataFrame:
    """A row per layer with parameters and one of all.

    Columns: params, nonzeros, density, bytes in the file, bits a parameter, MACs, and effective MACs: those of weights
    that are not zero. The header's bytes are in the last row.
    """
    parameters = dict(model.named_parameters())
    layers: dict[str, list[str]] = {}
    for name in packed.tensors:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    macs = trace(model, tuple(input_shape)).layers().groupby("name")["macs"].sum()
    rows = []
    for layer, names in layers.items():
        own = [parameters[name].detach() for name in names if name in parameters]
        kernels = [weight for weight in own if weight.dim() > 1]
        density = sum(int(w.count_nonzero()) for w in kernels) / max(1, sum(w.numel() for w in kernels))
        rows.append({
            "layer": layer, "params": sum(w.numel() for w in own), "nonzeros": sum(int(w.count_nonzero()) for w in own),
            "bytes": sum(packed.tensors[name] for name in names),
            "macs": int(macs.get(layer, 0)), "effective_macs": round(int(macs.get(layer, 0)) * density),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    total = {"layer": TOTAL, **table.drop(columns="layer").sum().to_dict()}
    total["bytes"] += packed.header_bytes
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    table.insert(3, "density", table["nonzeros"] / table["params"].clip(lower=1))
    table.insert(5, "bits_per_param", 8 * table["bytes"] / table["params"].clip(lower=1))
    return table


def printed(title: str, table: pd.DataFrame) -> Any:
    """The table for a terminal: counts with separators, shares in percent, nothing where nothing is known."""
    from rich.box import SIMPLE
    from rich.table import Table

    shown = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for column in table.columns:
        is_number = pd.api.types.is_numeric_dtype(table[column]) and not pd.api.types.is_bool_dtype(table[column])
        shown.add_column(str(column).replace("_", " "), justify="right" if is_number else "left", overflow="fold")
    for row in table.to_dict("records"):
        shown.add_row(*(_cell(str(column), value) for column, value in row.items()))
    return shown


def _cell(column: str, value: Any) -> str:
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, float):
        return f"{value:.2%}" if column in SHARES else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
