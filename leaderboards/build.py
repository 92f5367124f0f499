"""Building the leaderboard: leaderboard.csv, leaderboard.md and index.html from records, counts and accuracies."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import InvalidRun
from ..training.folder import write_text
from .figure import Figure
from .networks import Network, networks
from .page import page
from .phones import on_phones, phones
from .places import Latencies, Place, measured
from .records import stored
from .table import EFFECTIVE, TOP1, TOP5, Row, measured_networks, rows

CSV, MARKDOWN, PAGE = "leaderboard.csv", "leaderboard.md", "index.html"
FIGURES = (TOP1, TOP5, "macs", EFFECTIVE, "params", "size_bytes", "peak_memory_bytes", "energy_uj")
IN_MARKDOWN = {
    "macs": ("MACs (M)", 1e6), EFFECTIVE: ("effective MACs (M)", 1e6), "params": ("params (M)", 1e6),
    "size_bytes": ("size (MB)", 1e6),
}  # fmt: skip


def build(out: str | Path, folders: Sequence[str | Path] | None = None) -> list[Path]:
    """Write the three files of the leaderboard into a folder, over an older leaderboard only; raises InvalidRun.

    `folders` are the folders of records to read, by default pocketzoo's own and the user's.
    """
    folder = Path(out)
    _checked(folder)
    records = stored(folders)
    table = rows(records, measured_networks(records))
    places: dict[Place, Latencies] = {**measured(records), **_phones(table)}
    texts = {
        CSV: as_csv(table, places),
        MARKDOWN: as_markdown(table, places),
        PAGE: page(table, places, frozenset(place.device for place in phones())),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _checked(folder: Path) -> None:
    """Make the folder, or see that what it holds is a leaderboard."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in folder.iterdir()} & {CSV, MARKDOWN, PAGE}
    except OSError as error:
        raise InvalidRun(f"cannot use {folder} as the output folder: {error.strerror or error}") from None
    if present and present != {CSV, MARKDOWN, PAGE}:
        raise InvalidRun(f"{folder} holds {min(present)} but no leaderboard; give another folder, or remove that file")


def _phones(table: Sequence[Row]) -> dict[Place, dict[str, Figure | str]]:
    """The published devices' latencies, with those of the records' own networks predicted now."""
    found = {place: dict(known) for place, known in phones().items()}
    zoo = {network.family for network in networks().values()}
    own = {row.network.key: row.network for row in table if row.network.key not in networks()}
    new = [network for network in own.values() if network.is_zoos and network.family in zoo]
    for network, device, runtime, figure in on_phones(new) if new and found else ():
        found[Place(device, runtime)][network.key] = figure
    return found


# -- CSV --------------------------------------------------------------------------------------------------------------


def as_csv(table: Sequence[Row], places: Mapping[Place, Latencies]) -> str:
    """A line per row, `<figure>_source` beside every figure; latencies are milliseconds of a batch."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    latencies = [f"latency_ms {place.label}" for place in places]
    named = ["network", "model", "family", "resolution", "num_classes", "dataset"]
    writer.writerow([*named, *(name for figure in (*FIGURES, *latencies) for name in (figure, f"{figure}_source"))])
    for row in table:
        n = row.network
        figures = [*(row.cells.get(name) for name in FIGURES), *_latencies(n, places)]
        said = (text for figure in figures for text in ((_exact(figure.value), str(figure)) if figure else ("", "")))
        writer.writerow([n.label, n.model, n.family, n.resolution, n.num_classes, row.dataset, *said])
    return text.getvalue()


def _exact(value: float) -> str:
    """Counts to the unit, other figures to six digits."""
    return str(int(value)) if value == int(value) else f"{value:.6g}"


def _latencies(network: Network, places: Mapping[Place, Latencies]) -> list[Figure | None]:
    said = (known.get(network.key) for known in places.values())
    return [figure if isinstance(figure, Figure) else None for figure in said]


# -- Markdown ---------------------------------------------------------------------------------------------------------


def as_markdown(table: Sequence[Row], places: Mapping[Place, Latencies]) -> str:
    """A table per data set, without columns that are empty in all; predicted latencies are marked with ≈."""
    counted = {name: shown for name, shown in IN_MARKDOWN.items() if any(name in row.cells for row in table)}
    parts = ["# Leaderboard", *_legend(places)]
    for dataset in dict.fromkeys(row.dataset for row in table):
        own = [row for row in table if row.dataset == dataset]
        parts += [f"## {_plain(dataset) or 'No accuracy known'}", _table(own, places, counted)]
    return "\n\n".join(parts) + "\n"


def _legend(places: Mapping[Place, Latencies]) -> Iterator[str]:
    yield ("Written by `pocketzoo leaderboard build`. MACs and parameters are counted, accuracies published or measured"
           " (the source stands beside them), latencies in milliseconds; ≈ is predicted. Empty: nobody knows."
           f" {CSV} has the source of every figure.")  # fmt: skip
    if places:
        yield "\n".join(f"- L{number}: {_plain(place.label)}" for number, place in enumerate(places, 1))


def _table(own: Sequence[Row], places: Mapping[Place, Latencies], counted: Mapping[str, tuple[str, float]]) -> str:
    heads = ["network", "pixels", "top-1", "top-5", *(head for head, _ in counted.values()),
             *(f"L{number}" for number in range(1, len(places) + 1)), "accuracy from"]  # fmt: skip
    units = {name: unit for name, (_, unit) in counted.items()}
    lines = [heads, ["---", *["---:"] * (len(heads) - 2), "---"], *(_cells(row, places, units) for row in own)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row, places: Mapping[Place, Latencies], units: Mapping[str, float]) -> list[str]:
    accuracies = [f"{row.cells[name].value:.1f}" if name in row.cells else "" for name in (TOP1, TOP5)]
    counted = [_million(row.cells[name].value / unit) if name in row.cells else "" for name, unit in units.items()]
    latencies = [_latency(figure) for figure in _latencies(row.network, places)]
    source = str(row.cells[TOP1]) if TOP1 in row.cells else ""
    return [
        _plain(row.network.label),
        str(row.network.resolution or ""),
        *accuracies,
        *counted,
        *latencies,
        _plain(source),
    ]


def _latency(figure: Figure | None) -> str:
    return "" if figure is None else f"{'≈ ' if figure.kind == 'predicted' else ''}{_short(figure.value)}"


def _million(value: float) -> str:
    """Two decimals, or three digits of what is less than one."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _plain(text: str) -> str:
    """Text of a record as text of a table's cell."""
    escaped = "".join(f"\\{letter}" if letter in "|<>[]`*\\" else letter for letter in text)
    return " ".join(escaped.split())
