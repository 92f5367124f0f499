"""Which channels are one, and which may replace which: cells of channels that the same operators handle.

A labelled trace ties every parameter entry to the channel it belongs to. Channels handled by exactly the same
operators (and the same groups of grouped ones, the same parts of splits) form a cell. A narrower network computes
what the masked original computes if every one of its channels stands for a kept channel of the same cell; how many
it needs of each cell is read off a labelled trace of the narrower network itself. Shuffles, splits and groups need
no rules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from ..errors import UntraceableModel
from .confirm import run_passes, shapes_at
from .record import Clash, Shape, Side
from .tracer import Tracer

OWN_SIDE = -(1 << 20)  # marks the parameter sides that a channel is part of, beside the operators that handle it

Indices = npt.NDArray[np.int64]


@dataclass
class Channels:
    """The channels of a model at certain widths."""

    tracer: Tracer
    of_label: Indices  # label -> channel
    cell: npt.NDArray[np.uint64]  # channel -> its cell
    first: Indices  # channel -> its first label, which orders the channels of a cell

    def along(self, parameter: str, side: int) -> Indices | None:
        """Channel of each position of a parameter's side; None where that side does not vary."""
        start = self.tracer.label_start.get((parameter, side))
        if start is None:
            return None
        return self.of_label[start : start + self.tracer.parameters[parameter].shape[side]]


def label(model: nn.Module, inputs: Sequence[Shape], reference: Tracer, values: list[int]) -> Channels:
    """Trace with labels at these symbol values."""
    varies = {
        name: [isinstance(s, Side) and bool(reference.sizes.reduce(s.form).terms) for s in sides]
        for name, sides in reference.parameter_sides.items()
    }
    tracer = Tracer(model, shapes_at(reference, values), readings=reference.readings, labelled=varies,
                    reference=reference, values=values)  # fmt: skip
    try:
        run_passes(tracer, inputs)
    except Clash as clash:
        raise UntraceableModel(f"the forward pass does not repeat what it did when it was traced: {clash}") from None
    n = tracer._next_label
    rows = np.concatenate([a.numpy() for a, _ in tracer.edges] or [np.empty(0, np.int64)])
    columns = np.concatenate([b.numpy() for _, b in tracer.edges] or [np.empty(0, np.int64)])
    both = (rows >= 0) & (columns >= 0)
    links = coo_matrix((np.ones(int(both.sum()), np.int8), (rows[both], columns[both])), shape=(n, n))
    count, of_label = connected_components(links, directed=False)
    of_label = of_label.astype(np.int64)
    cell = np.zeros(count, np.uint64)
    for number, group, labels in tracer.marks:
        flat = labels.numpy()
        members = np.unique(of_label[flat[flat >= 0]])
        cell[members] += _scrambled(number, group)
    for number, ((name, side), start) in enumerate(tracer.label_start.items()):
        members = np.unique(of_label[start : start + tracer.parameters[name].shape[side]])
        cell[members] += _scrambled(number, OWN_SIDE)
    first = np.full(count, n, np.int64)
    np.minimum.at(first, of_label, np.arange(n))
    return Channels(tracer, of_label, cell, first)


def _scrambled(number: int, group: int) -> np.uint64:
    """A fixed pseudo-random number for an operator and group, so that sums of them tell sets apart."""
    z = (number * 0x9E3779B97F4A7C15 + group * 0xC2B2AE3D27D4EB4F + 0x165667B19E3779F9) % (1 << 64)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % (1 << 64)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % (1 << 64)
    return np.uint64(z ^ (z >> 31))


@dataclass
class Match:
    """For each channel of the narrower network the original's channel, -1 where there is none, and what was lacking."""

    source: Indices
    lacking: list[tuple[int, int, int]]  # (a channel of the cell, how many it needs, how many there are)


def match(original: Channels, target: Channels, scores: npt.NDArray[np.float64]) -> Match:
    """Let the highest-scoring channels of each cell stand for the target's channels of that cell, in order."""
    source = np.full(len(target.cell), -1, np.int64)
    lacking = []
    have, want = _by_cell(original), _by_cell(target)
    for cell, needed in want.items():
        there = have.get(cell, np.empty(0, np.int64))
        chosen = there
        if len(there) > len(needed):
            best = np.argsort(-scores[there], kind="stable")[: len(needed)]
            chosen = there[np.sort(best)]
        elif len(there) < len(needed):
            lacking.append((int(needed[0]), len(needed), len(there)))
        source[needed[: len(chosen)]] = chosen
    return Match(source, lacking)


def _by_cell(channels: Channels) -> dict[int, Indices]:
    """Channels of each cell, in the order of their first labels."""
    order = np.lexsort((channels.first, channels.cell))
    cells, starts = np.unique(channels.cell[order], return_index=True)
    return dict(zip(cells.tolist(), np.split(order, starts[1:]) if len(cells) else [], strict=True))


def positions(original: Indices, target: Indices, source: Indices) -> Indices:
    """For each position of a target side the original's position: the same occurrence of its source channel, or -1."""
    wanted = np.where(target >= 0, source[target], -1)
    order = np.argsort(original, kind="stable")
    ordered = original[order]
    at = np.searchsorted(ordered, wanted, "left") + _occurrence(wanted)
    found = (wanted >= 0) & (at < len(ordered))
    found[found] = ordered[at[found]] == wanted[found]
    return np.where(found, order[np.minimum(at, len(order) - 1)], -1)


def _occurrence(values: Indices) -> Indices:
    """How many equal values stand before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.r_[0, np.flatnonzero(np.diff(ordered)) + 1]
    counts = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    result = np.empty(len(values), np.int64)
    result[order] = counts
    return result
