"""One self-contained HTML page: optimisation history, Pareto front, parallel coordinates."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..training.folder import write_text
from .outcome import COSTS, pareto
from .space import CHOICE, WIDTH
from .studies import DUPLICATE_OF

AXES = {"macs": "MACs", "params": "parameters"}
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}pre{white-space:pre-wrap}"
)


def write_page(path: Path, title: str, summary: str, trials: pd.DataFrame, group: str | None = None) -> None:
    """Write the page of one search, or, with the column `group`, of several; raises InvalidRun."""
    complete = trials[trials["state"] == "complete"]
    figures = [_history(trials, group)]
    figures += [_front(complete, cost, group) for cost in COSTS]
    figures += [_parallel(complete)]
    scripts = [figure.to_html(full_html=False, include_plotlyjs=i == 0) for i, figure in enumerate(figures)]
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>\n'
        f"<h1>{escape(title)}</h1>\n<pre>{escape(summary)}</pre>\n" + "\n".join(scripts) + "\n</html>\n",
    )


def _history(trials: pd.DataFrame, group: str | None) -> go.Figure:
    """Validation accuracy by trial, and the best so far."""
    figure = go.Figure()
    for name, rows in _groups(trials, group):
        for state, marked in rows.dropna(subset=["value"]).groupby("state"):
            figure.add_scatter(x=marked["trial"], y=marked["value"], mode="markers", name=f"{name}{state}")
        complete = rows[rows["state"] == "complete"]
        figure.add_scatter(x=complete["trial"], y=complete["value"].cummax(), mode="lines", name=f"{name}best so far")
    return figure.update_layout(
        title="Optimisation history", xaxis_title="trial", yaxis_title="validation accuracy", yaxis_tickformat=".1%"
    )


def _front(complete: pd.DataFrame, cost: str, group: str | None) -> go.Figure:
    """Validation accuracy against one cost, and the trials that nothing beats."""
    figure = go.Figure()
    for name, rows in _groups(complete, group):
        figure.add_scatter(
            x=rows[cost], y=rows["value"], mode="markers", name=f"{name}trials", text=rows["key"], opacity=0.6
        )
    front = pareto(complete, (cost,))
    figure.add_scatter(x=front[cost], y=front["value"], mode="lines+markers", name="Pareto front", line_shape="hv")
    return figure.update_layout(
        title=f"Accuracy against {AXES[cost]}",
        xaxis_title=AXES[cost],
        yaxis_title="validation accuracy",
        yaxis_tickformat=".1%",
    )


def _parallel(complete: pd.DataFrame) -> go.Figure:
    """Every complete trial as a line through its parameters, coloured by accuracy."""
    trained = complete[complete[DUPLICATE_OF].isna()]
    dimensions = [_dimension(trained, name) for name in map(str, trained.columns) if name.startswith((CHOICE, WIDTH))]
    dimensions.append({"label": "accuracy", "values": trained["value"].astype(float)})
    line = {"color": trained["value"].astype(float), "colorscale": "Viridis", "showscale": True}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line, labelangle=-45))
    return figure.update_layout(title="Parallel coordinates", height=600, width=max(1000, 90 * len(dimensions)))


def _dimension(trained: pd.DataFrame, column: str) -> dict[str, object]:
    """One axis: widths as log2 of the proportion, choices as ticks; a group that this structure lacks lies at 0."""
    label = column.partition(" ")[2]
    if column.startswith(WIDTH):
        return {"label": label, "values": np.log2(trained[column].astype(float).fillna(1.0))}
    codes, names = pd.factorize(trained[column].astype(str), sort=True)
    return {"label": label, "values": codes, "tickvals": list(range(len(names))), "ticktext": list(names)}


def _groups(trials: pd.DataFrame, group: str | None) -> list[tuple[str, pd.DataFrame]]:
    """(prefix of the legend, rows) of each group."""
    if group is None:
        return [("", trials)]
    return [(f"{name}: ", rows) for name, rows in trials.groupby(group, sort=False)]
