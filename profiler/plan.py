"""What a calibration measures: the zoo's operators where they stand, at widths and resolutions that nobody ships.

An operator's latency depends on its neighbours (layouts, caches, fusion), so the plan is not a list of lone operators
but of networks of the zoo with random widths: every kind of operator in the company it keeps, at sizes between those
that a search asks for. Half of them keep the network's proportions, as networks are sold in several widths; in the
others every group goes its own way. Families with many networks come more often, yet none is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..graph.channel_graph import ChannelGraph
from ..graph.sized import SizedOperator
from ..zoo import registry
from ..zoo.architecture import Architecture

SMALL, LARGE = (24, 32, 40, 48, 64), (32, 64, 96, 128, 144, 160, 176, 192, 208, 224, 240, 256)
LEAST_LARGE = 64  # pixels that a network is made for from which it is measured at the large sides
NARROWEST, WIDEST = 0.25, 1.6  # of the default width, all groups together
PROPORTIONAL = 0.5  # share of networks whose groups all have one multiplier
UNEVEN = 0.35  # deviation of a group from the others, in log widths, where they have not
ALIGNMENTS = (1, 4, 8, 16, 32)  # channels (of each group of a grouped convolution) of which widths are multiples
MOST_MACS = 25e9


def probes(seed: int, first: int = 0) -> Iterator[tuple[Architecture, ChannelGraph]]:
    """Random networks without end from the plan's number `first` on, each with its graph."""
    families = _by_family()
    share = np.sqrt([len(names) for names in families.values()])
    for number in itertools.count(first):
        rng = np.random.default_rng((seed, number))
        probe = None
        while probe is None:
            family = rng.choice(list(families), p=share / share.sum())
            probe = _probe(str(rng.choice(families[family])), rng)
        yield probe


def _by_family() -> dict[str, list[str]]:
    families: dict[str, list[str]] = {}
    for name in registry.list_models("*"):
        families.setdefault(registry.find(name)[0].name, []).append(name)
    return families


def _probe(name: str, rng: np.random.Generator) -> tuple[Architecture, ChannelGraph] | None:
    """The network at a random resolution and random widths; None where they are not valid or too large."""
    arch = Architecture.of(name)
    sides = LARGE if arch.resolution >= LEAST_LARGE else SMALL
    arch = arch.with_settings(resolution=int(rng.choice(sides)))
    graph = arch.graph()
    widths = _random_widths(graph, rng)
    if not graph.valid(widths)[0] or graph.price_many(widths, ("macs",))["macs"][0] > MOST_MACS:
        return None
    if widths.tolist() == list(graph.groups.values()):
        return None  # a network that is shipped
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
    wanted = default * np.exp(rng.uniform(np.log(NARROWEST), np.log(WIDEST)))
    if rng.random() >= PROPORTIONAL:
        wanted = wanted * np.exp(rng.normal(0, UNEVEN, len(default)))
    steps = np.array([graph.steps[name] for name in graph.groups])
    aligned = steps * rng.choice(ALIGNMENTS)
    steps = np.where(wanted >= aligned, aligned, steps)
    return np.asarray(np.maximum(steps, np.rint(wanted / steps).astype(np.int64) * steps))
