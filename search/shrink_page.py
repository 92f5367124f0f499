"""The page of a shrinking: widths before and after, what the method did, and the verdict where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..training.page import COLOURS, LAYOUT, write_sections
from .findings import ARMS

SENSITIVITY = ("group", "ratio", "accuracy")  # columns of a scan: one group narrowed at a time
WIDTHS_SAYS = "Channels of each group before (pale) and after; a group at 0 went with its residual branch."
SCAN_SAYS = "Validation accuracy when one group alone is narrowed by a ratio; a line is a group."
HISTORY_SAYS = "What the method recorded as it went."
VERDICT_SAYS = "Test accuracy of each arm: a point per seed, the mean with one standard deviation beside them."
PLOT, ROW = 420, 220  # heights in pixels


def write_shrink_page(
    path: Path,
    title: str,
    summary: str,
    before: Mapping[str, int],
    after: Mapping[str, int],
    history: pd.DataFrame,
    trainings: pd.DataFrame | None = None,
) -> None:
    """Write one self-contained page; `trainings` has `arm`, `seed` and `test` (share of images). Raises InvalidRun."""
    sections = [("Widths", WIDTHS_SAYS, widths_figure(before, after))]
    if set(SENSITIVITY) <= set(history.columns):
        sections.append(("Sensitivity", SCAN_SAYS, scan_figure(history)))
    elif len(_lines(history)):
        sections.append(("The method's history", HISTORY_SAYS, history_figure(history)))
    if trainings is not None:
        sections.insert(0, ("Verdict", VERDICT_SAYS, verdict_figure(trainings)))
    write_sections(path, title, summary, sections)


def widths_figure(before: Mapping[str, int], after: Mapping[str, int]) -> go.Figure:
    """Channels by group, as MorphNet's Figure 1 (arXiv:1711.06798)."""
    names = list(before)
    figure = go.Figure()
    figure.add_bar(x=names, y=[before[name] for name in names], name="before", marker_color="#c9d6e6")
    figure.add_bar(x=names, y=[after[name] for name in names], name="after", marker_color=COLOURS[0], width=0.5)
    figure.update_layout(**LAYOUT, barmode="overlay", yaxis_title="channels", xaxis_tickangle=-45)
    return figure.update_layout(margin_b=140, width=max(900, 26 * len(names)))


def scan_figure(history: pd.DataFrame) -> go.Figure:
    """Accuracy by ratio, a line for each group, as Figure 2 of arXiv:1608.08710."""
    figure = go.Figure()
    group, ratio, accuracy = SENSITIVITY
    scanned = history.dropna(subset=list(SENSITIVITY))
    for name, rows in scanned.groupby(group, sort=False):
        own = rows.sort_values(ratio)
        figure.add_scatter(x=own[ratio], y=own[accuracy], mode="lines+markers", name=str(name))
    return figure.update_layout(
        **LAYOUT, xaxis_title="share of the channels that is taken away", yaxis_title="validation accuracy",
        yaxis_tickformat=".0%",
    )  # fmt: skip


def history_figure(history: pd.DataFrame) -> go.Figure:
    """Every numeric column against the first one, each with an axis of its own, as MorphNet's Figure 3."""
    lines = _lines(history)
    first = str(history.columns[0])
    figure = make_subplots(rows=len(lines), cols=1, shared_xaxes=True, vertical_spacing=0.25 / len(lines) ** 1.5)
    mode = "lines" if len(history) > 40 else "lines+markers"
    for row, name in enumerate(lines, 1):
        colour = COLOURS[row % len(COLOURS)]
        figure.add_scatter(x=history[first], y=history[name], mode=mode, name=name, line_color=colour, row=row, col=1)
        figure.update_yaxes(title_text=name, row=row, col=1)
    figure.update_xaxes(title_text=first, row=len(lines), col=1)
    height = max(PLOT, ROW * len(lines))
    return figure.update_layout(**{**LAYOUT, "height": height}, showlegend=False)


def verdict_figure(trainings: pd.DataFrame) -> go.Figure:
    """Test accuracy of every training by arm, and means with deviations."""
    figure = go.Figure()
    titles = trainings["arm"].map(ARMS)
    arms = trainings.groupby(titles, sort=False)["test"]
    figure.add_scatter(
        x=titles, y=trainings["test"], mode="markers", name="a seed", text=trainings["seed"],
        marker={"color": "#9aa5b1", "size": 8, "symbol": "circle-open"},
    )  # fmt: skip
    figure.add_scatter(
        x=list(arms.groups), y=arms.mean(), mode="markers", name="mean and deviation",
        error_y={"array": arms.std().fillna(0.0)}, marker={"color": COLOURS[0], "size": 11},
    )  # fmt: skip
    return figure.update_layout(**LAYOUT, yaxis_title="test accuracy", yaxis_tickformat=".1%", showlegend=True)


def _lines(history: pd.DataFrame) -> list[str]:
    """Numeric columns after the first."""
    return [str(name) for name in history.columns[1:] if pd.api.types.is_numeric_dtype(history[name])]
