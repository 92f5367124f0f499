"""The frame of the pages that runs leave: one self-contained HTML file of headed plots, drawn without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.express as px
import plotly.graph_objects as go

from .folder import write_text

Section = tuple[str, str, go.Figure]  # heading, one sentence, plot

COLOURS = px.colors.qualitative.D3
# Plotly's own tool bar offers to upload the chart to its makers: these pages keep their data to themselves.
CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
LAYOUT = {"template": "plotly_white", "height": 420, "margin": {"t": 30, "l": 70, "r": 20, "b": 60}}
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "pre{white-space:pre-wrap}h2{margin:2.5rem 0 0}p{margin:.2rem 0 .5rem;color:#444}.wide{overflow-x:auto}"
    "table{border-collapse:collapse}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #ddd}"
)


def write_sections(path: Path, title: str, summary: str, sections: Sequence[Section], end: str = "") -> None:
    """Write the page, `end` (HTML) after the plots; raises InvalidRun."""
    plots = [_plotted(*section, first=number == 0) for number, section in enumerate(sections)]
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>\n'
        f"<h1>{escape(title)}</h1>\n<pre>{escape(summary)}</pre>\n" + "\n".join(plots) + f"{end}\n</html>\n",
    )


def _plotted(heading: str, says: str, figure: go.Figure, first: bool) -> str:
    """Heading, sentence, plot; the first one brings the drawing code for all."""
    plot = figure.to_html(full_html=False, include_plotlyjs=first, config=CONFIG)
    return f'<h2>{heading}</h2>\n<p>{says}</p>\n<div class="wide">{plot}</div>'
