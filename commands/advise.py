"""pocketzoo advise: where a network breaks the guidelines for fast networks, and what that costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from .options import AS_JSON, COUNT, example, print_json, print_rich

if TYPE_CHECKING:
    from ..profiler.advise import Advice


@click.command("advise", epilog=example("pocketzoo advise shufflenet_v1_g3_x1_0 --device snapdragon810"))
@click.argument("model")
@click.option("--resolution", type=COUNT, help="Side of the image in pixels; the model's own by default.")
@click.option("--device", help="A published device, or cpu once it is calibrated; without one, by memory access.")
@click.option("--runtime", help="Runtime of the device; its first by default.")
@click.option("--top", type=COUNT, default=15, show_default=True, help="Findings in the table; --json has all.")
@AS_JSON
def advise_command(
    model: str, resolution: int | None, device: str | None, runtime: str | None, top: int, as_json: bool
) -> None:
    """Check a zoo name or module:factory against ShuffleNet v2's four guidelines."""
    from ..profiler.advise import advice

    found = advice(model, device, runtime, resolution=resolution)
    print_json(found.to_dict()) if as_json else print_rich(*_page(found, top))


def _page(found: Advice, top: int) -> list[Any]:
    """Table of the dearest findings, then what was left out and the share of element-wise operations."""
    from rich.box import SIMPLE
    from rich.table import Table

    timed = found.device is not None
    title = f"{found.name}, {found.device} ({found.runtime})" if timed else f"{found.name}, no device chosen"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("guideline", "layer", "figure", "what would remove it"):
        table.add_column(heading, overflow="fold")
    table.add_column("saves", justify="right", no_wrap=True)
    for row in found.frame().head(top).to_dict("records"):
        table.add_row(row["guideline"], row["layer"], row["figure"], row["remedy"], _saving(row, timed))
    return [table, *_notes(found, top)]


def _saving(row: dict[Any, Any], timed: bool) -> str:
    if not timed:
        return f"{row['access_percent']:.1f} %"
    return "not known" if math.isnan(row["cost_ms"]) else f"{row['cost_ms']:.3g} ms"


def _notes(found: Advice, top: int) -> list[str]:
    share = found.elementwise.access / found.total.access
    elementwise = f"element-wise operations: {100 * share:.0f} % of the memory access"
    if found.device is None:
        unit = "savings are shares of the memory access; no device was chosen (--device): no times, no vector widths"
    else:
        part = found.elementwise.ms / found.total.ms
        elementwise += (
            f", {'an unknown part' if math.isnan(part) else f'{100 * part:.0f} %'} of {found.total.ms:.3g} ms"
        )
        unit = "savings are estimates, each by itself: they do not add up"
    shown = f"{min(top, len(found.findings))} of {len(found.findings)} findings"
    lines = [f"{shown}; {elementwise}; {unit}"]
    if found.error is not None:
        lines.append(
            f"times are predicted, off by {found.error.mape_percent:.0f} % on average: {found.error.judged_on}"
        )
    return lines
