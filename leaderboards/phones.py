"""Published devices: phones.csv, what was published of the known networks there, and what is predicted of the others.

`python -m pocketzoo.leaderboards.phones` writes leaderboards/phones.csv anew; a test fails when it is stale.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..errors import OutsideCalibration
from .figure import Figure, Kind
from .networks import Network, networks
from .places import Latencies, Place

if TYPE_CHECKING:
    from ..graph.channel_graph import ChannelGraph
    from ..profiler.latency import LatencyModel

COLUMNS = ("model", "settings", "device", "runtime", "latency_ms", "kind", "source")


@cache
def phones() -> Mapping[Place, Latencies]:
    """Latencies of the known networks on the published devices, of leaderboards/phones.csv."""
    keys = {_form(network): network.key for network in networks().values()}
    found: dict[Place, dict[str, Figure | str]] = {}
    text = (files(__package__) / "phones.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        latencies = found.setdefault(Place(row["device"], row["runtime"]), {})
        latencies[keys[row["model"], row["settings"]]] = _read(row)
    return found


def _read(row: Mapping[str, str]) -> Figure | str:
    """The figure of a line, or why there is none."""
    return Figure(float(row["latency_ms"]), cast(Kind, row["kind"]), row["source"]) if row["kind"] else row["source"]


def _form(network: Network) -> tuple[str, str]:
    return network.model, json.dumps(network.settings, sort_keys=True) if network.settings else ""


# -- what it holds ----------------------------------------------------------------------------------------------------


def on_phones(wanted: Iterable[Network]) -> Iterator[tuple[Network, str, str, Figure | str]]:
    """(network, device, runtime, milliseconds or why not) for every published device: published, else predicted."""
    from ..profiler.published import DEVICES, published

    models = {device: published(device) for device in DEVICES}
    figures = {device: printed(device) for device in DEVICES}
    for network in wanted:
        graph = traced(network)
        for device, model in models.items():
            yield network, device, model.runtime, figures[device].get(network.key) or predicted(model, graph)


def printed(device: str) -> dict[str, Figure]:
    """What was published of the known networks on a device, one image at a time."""
    from ..profiler.published import figures

    table = figures()
    rows = table[(table["device"] == device) & (table["batch"] == 1)].to_dict("records")
    form = {(str(r["model"]), int(r["resolution"]), str(r["settings"])): r for r in rows}
    found = {}
    for network in networks().values():
        settings = {name: value for name, value in network.settings.items() if name != "resolution"}
        row = form.get((network.model, network.resolution or 0, json.dumps(settings) if settings else ""))
        if row is not None:
            found[network.key] = Figure(float(row["latency_ms"]), "published", str(row["source"]))
    return found


def predicted(model: LatencyModel, graph: ChannelGraph) -> Figure | str:
    """What a latency model says of a network, with its error; or why it says nothing."""
    try:
        value = float(model.predict(graph)[0])
    except OutsideCalibration as outside:
        return str(outside)
    error = model.error
    says = f"for {model.device}, {model.runtime}, with mean error {error.mape_percent:.0f} % ({error.judged_on})"
    return Figure(value, "predicted", says)


def traced(network: Network) -> ChannelGraph:
    """The channel graph of a network of the zoo."""
    from ..zoo.architecture import Architecture

    return Architecture.from_json(json.dumps(network.architecture)).graph()


def main() -> None:
    """Write the file."""
    with (Path(__file__).parent / "phones.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for network, device, runtime, figure in on_phones(networks().values()):
            said = (
                (f"{figure.value:.4g}", figure.kind, figure.source) if isinstance(figure, Figure) else ("", "", figure)
            )
            writer.writerow([*_form(network), device, runtime, *said])


if __name__ == "__main__":
    main()
