"""What a calibration measures: the zoo's operators where they stand, at widths and resolutions that nobody ships.

An operator's latency depends on its neighbours (layouts, caches, fusion), so the plan is not a list of lone operators
but of networks of the zoo with random widths: every kind of operator in the company it keeps, at sizes between those
that a search asks for. Families take turns, so that no operator is seen in one family only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..graph.channel_graph import ChannelGraph
from ..graph.sized import SizedOperator
from ..zoo import registry
from ..zoo.architecture import Architecture

SIDES = (64, 96, 128, 160, 192, 208, 224, 256)  # for networks that are made for 64 pixels or more
NARROWEST, WIDEST = 0.3, 1.5  # of the default width, all groups together
UNEVEN = 0.35  # deviation of a group from the others, in log widths
ALIGNED = 0.5  # share of networks whose widths are multiples of eight where they can be
MOST_MACS = 6e9


def probes(seed: int) -> Iterator[tuple[Architecture, ChannelGraph]]:
    """Random networks without end, the families in turn, each with its graph."""
    rng = np.random.default_rng(seed)
    families = _by_family()
    while True:
        for family in rng.permutation(sorted(families)):
            name = str(rng.choice(families[family]))
            if (probe := _probe(name, rng)) is not None:
                yield probe


def _by_family() -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in registry.list_models("*"):
        families.setdefault(registry.find(name)[0].name, []).append(name)
    return families


def _probe(name: str, rng: np.random.Generator) -> tuple[Architecture, ChannelGraph] | None:
    """The network at a random resolution and random widths; None where they are not valid or too large."""
    arch = Architecture.of(name)
    if arch.resolution >= min(SIDES):
        arch = arch.with_settings(resolution=int(rng.choice(SIDES)))
    graph = arch.graph()
    widths = _random_widths(graph, rng)
    if not graph.valid(widths)[0] or graph.price_many(widths, ("macs",))["macs"][0] > MOST_MACS:
        return None
    if any(map(_pools_unevenly, graph.operators())):
        return None
    arch = arch.with_widths(dict(zip(graph.groups, widths.tolist(), strict=True)))
    return arch, arch.graph()


def _pools_unevenly(operator: SizedOperator) -> bool:
    """Whether it pools to a size that does not divide its input: the quick exporter has no such operator."""
    if operator.aten != "_adaptive_avg_pool2d":
        return False
    sides = zip(operator.inputs[0][2:], operator.output[2:], strict=True)
    return any(int(before) % int(after) != 0 for before, after in sides)


def _random_widths(graph: ChannelGraph, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    default = np.array(list(graph.groups.values()))
    steps = np.array([graph.steps[name] for name in graph.groups])
    if rng.random() < ALIGNED:
        steps = np.lcm(steps, 8)
    multiplier = np.exp(rng.uniform(np.log(NARROWEST), np.log(WIDEST)))
    wanted = default * multiplier * np.exp(rng.normal(0, UNEVEN, len(default)))
    return np.asarray(np.maximum(steps, np.rint(wanted / steps).astype(np.int64) * steps))
