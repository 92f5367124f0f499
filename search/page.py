"""One self-contained HTML page: optimisation history, Pareto front, parallel coordinates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..training.page import COLOURS, LAYOUT, write_sections
from .outcome import COSTS, pareto
from .space import CHOICE, HIGHEST, LOWEST, WIDTH
from .studies import DUPLICATE_OF

AXES = {"macs": "MACs", "params": "parameters"}
FRONT = {"color": "#222", "width": 1.5}
ACCURACY = "validation accuracy"
PROPORTIONS = {"tickvals": [-1, 0, 1], "ticktext": ["0.5", "1", "2"]}
SYMBOLS = {"pruned": "x"}
HISTORY_SAYS = "Each point is a trial after its short training; the line is the best so far."
FRONT_SAYS = "Trials after their short training; no other trial is both more accurate and cheaper than one on the line."
PARALLEL_SAYS = (
    "Each line is a trial. Axes of channel groups show the proportion that was asked for, before the budget scales all "
    "of them alike; a group that its network lacks lies at 1. Drag along an axis to pick trials; wide plots scroll."
)


def write_page(path: Path, title: str, summary: str, trials: pd.DataFrame, group: str | None = None) -> None:
    """Write the page of one search, or, with the column `group`, of several; raises InvalidRun."""
    complete = trials[trials["state"] == "complete"]
    fronts = [(f"Accuracy against {AXES[cost]}", FRONT_SAYS, _front(complete, cost, group)) for cost in COSTS]
    history = ("Optimisation history", HISTORY_SAYS, _history(trials, group))
    write_sections(
        path, title, summary, [history, *fronts, ("Parallel coordinates", PARALLEL_SAYS, _parallel(complete))]
    )


def _history(trials: pd.DataFrame, group: str | None) -> go.Figure:
    """Validation accuracy by trial, and the best so far."""
    figure = go.Figure()
    for name, rows, colour in _groups(trials, group):
        for state, marked in rows.dropna(subset=["value"]).groupby("state"):
            marker = {"color": colour, "size": 8, "symbol": SYMBOLS.get(str(state), "circle")}
            figure.add_scatter(
                x=marked["trial"], y=marked["value"], mode="markers", name=f"{name}{state}", marker=marker
            )
        complete = rows[rows["state"] == "complete"]
        best = complete["value"].cummax()
        line = {"color": colour, "shape": "hv"}
        figure.add_scatter(x=complete["trial"], y=best, mode="lines", name=f"{name}best so far", line=line)
    return _laid_out(figure, "trial")


def _front(complete: pd.DataFrame, cost: str, group: str | None) -> go.Figure:
    """Validation accuracy against one cost, and the trials that nothing beats."""
    figure = go.Figure()
    for name, rows, colour in _groups(complete, group):
        text = [f"trial {number}" for number in rows["trial"]]
        marker = {"color": colour, "size": 8}
        figure.add_scatter(
            x=rows[cost], y=rows["value"], mode="markers", name=f"{name}trials", text=text, marker=marker
        )
    front = pareto(complete, (cost,))
    line = {**FRONT, "shape": "hv"}
    figure.add_scatter(x=front[cost], y=front["value"], mode="lines", name="Pareto front", line=line)
    return _laid_out(figure, AXES[cost])


def _laid_out(figure: go.Figure, abscissa: str) -> go.Figure:
    return figure.update_layout(
        **LAYOUT, xaxis_title=abscissa, yaxis_title=ACCURACY, yaxis_tickformat=".1%", showlegend=True
    )


def _parallel(complete: pd.DataFrame) -> go.Figure:
    """Every complete trial as a line through its parameters, coloured by accuracy."""
    trained = complete[complete[DUPLICATE_OF].isna()]
    dimensions = [_dimension(trained, name) for name in map(str, trained.columns) if name.startswith((CHOICE, WIDTH))]
    accuracy = trained["value"].astype(float)
    dimensions.append({"label": "accuracy", "values": accuracy, "tickformat": ".1%"})
    line = {"color": accuracy, "colorscale": "Viridis", "showscale": True, "colorbar": {"tickformat": ".0%"}}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line, labelangle=-45))
    room = {**LAYOUT, "height": 600, "margin": {"t": 150, "l": 50, "r": 100, "b": 30}}  # for the slanted names
    return figure.update_layout(**room, width=max(1100, 80 * len(dimensions)))


def _dimension(trained: pd.DataFrame, column: str) -> dict[str, object]:
    """One axis: the proportion of a width on a log scale, choices as ticks; a group that the network lacks is at 1."""
    label = column.partition(" ")[2]
    if column.startswith(WIDTH):
        values = np.log2(trained[column].astype(float).fillna(1.0))
        return {"label": label, "values": values, "range": np.log2([LOWEST, HIGHEST]), **PROPORTIONS}
    codes, names = pd.factorize(trained[column].astype(str), sort=True)
    return {"label": label, "values": codes, "tickvals": list(range(len(names))), "ticktext": list(names)}


def _groups(trials: pd.DataFrame, group: str | None) -> list[tuple[str, pd.DataFrame, str]]:
    """(prefix of the legend, rows, colour) of each group."""
    if group is None:
        return [("", trials, COLOURS[0])]
    named = enumerate(trials.groupby(group, sort=False))
    return [(f"{name}: ", rows, COLOURS[i % len(COLOURS)]) for i, (name, rows) in named]
