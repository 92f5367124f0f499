"""The page of a compression: accuracy against compression rate for each recipe, and bytes by layer, pass by pass."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from ..training.page import COLOURS, LAYOUT, write_sections
from .report import TOTAL

RATE_SAYS = (
    "Validation accuracy after each pass by how many times smaller the file is than 32-bit weights; a line is a recipe,"
    " read from the left. The ring is the one that was kept."
)
LAYERS_SAYS = "Bytes of each layer in the file, after each pass of the recipe that was kept."
SHARES_SAYS = "What each layer has left of its parameters, multiplications and bytes (of 4 bytes a parameter)."


def write_page(
    path: Path, title: str, summary: str, recipes: pd.DataFrame, steps: pd.DataFrame, layers: pd.DataFrame
) -> None:
    """Write one self-contained page; raises InvalidRun.

    `steps` are all recipes' (columns recipe, pass, bytes, accuracy), `layers` the chosen one's after each pass.
    """
    sections = [
        ("Accuracy against compression rate", RATE_SAYS, rate_figure(recipes, steps)),
        ("Bytes by layer", LAYERS_SAYS, layers_figure(layers)),
        ("What is left", SHARES_SAYS, shares_figure(layers)),
    ]
    final = layers[layers["step"] == layers["step"].max()].drop(columns=["step", "pass"])
    table = final.to_html(index=False, border=0, float_format=lambda number: f"{number:.3g}")
    write_sections(path, title, summary, sections, f'\n<h2>Layers</h2>\n<div class="wide">{table}</div>')


def rate_figure(recipes: pd.DataFrame, steps: pd.DataFrame) -> go.Figure:
    """As Deep Compression's Figure 6 (arXiv:1510.00149): the further right at the same height, the better."""
    figure = go.Figure()
    for number, row in enumerate(recipes.to_dict("records")):
        own = steps[steps["recipe"] == row["recipe"]]
        figure.add_scatter(
            x=row["parent_bytes"] / own["bytes"], y=own["accuracy"], text=own["pass"], mode="lines+markers",
            name=row["recipe"], line_color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
    kept = recipes[recipes["chosen"]]
    figure.add_scatter(
        x=kept["rate"], y=kept["validation"], mode="markers", name="kept",
        marker={"symbol": "circle-open", "size": 16, "color": "#222"},
    )  # fmt: skip
    figure.update_xaxes(type="log", title="times smaller than 32-bit weights")
    figure.update_yaxes(title="validation accuracy", tickformat=".1%")
    return figure.update_layout(**LAYOUT, legend={"orientation": "h", "y": -0.2})


def layers_figure(layers: pd.DataFrame) -> go.Figure:
    """Bars stacked by layer, one for the start and one for each pass."""
    own = layers[layers["layer"] != TOTAL]
    figure = go.Figure()
    for number, (layer, rows) in enumerate(own.groupby("layer", sort=False)):
        names = [f"{step}. {name}" for step, name in zip(rows["step"], rows["pass"], strict=True)]
        figure.add_bar(x=names, y=rows["bytes"], name=str(layer), marker_color=COLOURS[number % len(COLOURS)])
    return figure.update_layout(**LAYOUT, barmode="stack", yaxis_title="bytes")


def shares_figure(layers: pd.DataFrame) -> go.Figure:
    """Three bars a layer: nonzeros of parameters, effective of all MACs, bytes of 32-bit weights."""
    final = layers[layers["step"] == layers["step"].max()]
    shares = {
        "parameters": final["nonzeros"] / final["params"].clip(lower=1),
        "MACs": final["effective_macs"] / final["macs"].clip(lower=1),
        "bytes": final["bits_per_param"] / 32,
    }
    figure = go.Figure()
    for number, (name, share) in enumerate(shares.items()):
        figure.add_bar(x=final["layer"], y=share, name=name, marker_color=COLOURS[number])
    return figure.update_layout(**LAYOUT, barmode="group", yaxis_tickformat=".0%", yaxis_title="left")
