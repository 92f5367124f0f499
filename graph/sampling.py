"""Random width vectors that meet every constraint, and that channels can be selected for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .cells import match
from .record import Operator, Side
from .sizes import WIDTH
from .tracer import Tracer

if TYPE_CHECKING:
    from .channel_graph import ChannelGraph

LOWEST = 0.25  # of the present width
ROUNDS = 12  # labelled traces that look for widths whose joint constraints can be met


def sample_widths(graph: ChannelGraph, n: int, seed: int) -> npt.NDArray[np.int64]:
    """[n, G] width vectors: groups that a split, shuffle or grouped operator joins come from ones found feasible."""
    if not graph.groups:
        return np.empty((n, 0), dtype=np.int64)
    rng = np.random.default_rng(seed)
    widths = np.array([_independent(graph, rng) for _ in range(n)], dtype=np.int64).reshape(n, len(graph.groups))
    joined = joined_groups(graph)
    if joined:
        found = _feasible(graph, joined, rng)
        columns = {name: i for i, name in enumerate(graph.groups)}
        for component, options in zip(joined, found, strict=True):
            at = [columns[name] for name in component]
            widths[:, at] = np.array(options)[rng.integers(len(options), size=n)]
    invalid = ~graph.valid(widths)
    widths[invalid] = list(graph.groups.values())
    return widths


def _independent(graph: ChannelGraph, rng: np.random.Generator) -> list[int]:
    return [_multiple(rng.uniform(LOWEST, 1), w, graph.steps[name]) for name, w in graph.groups.items()]


def _multiple(ratio: float, width: int, step: int) -> int:
    return min(width, max(step, round(ratio * width / step) * step))


def joined_groups(graph: ChannelGraph) -> list[list[str]]:
    """Sets of groups whose kept channels depend on each other through grouped operators, parts, views or padding."""
    tracer = graph._tracer
    parent = {s: s for s in graph._symbols}

    def root(s: int) -> int:
        while parent[s] != s:
            s = parent[s]
        return s

    touched: set[int] = set()
    for op in tracer.ops:
        for sides in _dividing(tracer, op):
            symbols = [s for side in sides if isinstance(side, Side) for s in tracer.sizes.reduce(side.form).terms
                       if s in parent]  # fmt: skip
            touched.update(symbols)
            for other in symbols[1:]:
                parent[root(other)] = root(symbols[0])
    for solved, form in tracer.sizes.solved.items():  # sums that a residual addition equates
        if tracer.sizes.symbols[solved].kind != WIDTH:
            continue
        form = tracer.sizes.reduce(form)
        symbols = [s for s in form.terms if s in parent]
        if len(symbols) > 1 or (symbols and (form.constant or min(form.terms.values()) < 0)):
            touched.update(symbols)
            for other in symbols[1:]:
                parent[root(other)] = root(symbols[0])
    components: dict[int, list[str]] = {}
    for s in graph._symbols:
        if s in touched:
            components.setdefault(root(s), []).append(graph._names[s])
    return list(components.values())


def _dividing(tracer: Tracer, op: Operator) -> list[tuple[int | Side, ...]]:
    """Sides along which the operator treats channels differently by their position."""
    if op.is_view and not op.inputs:
        return []
    if op.kind == "grouped conv":
        return [op.in_sides[0][1:2], op.out_sides[0][1:2]]
    if op.name in {"split", "slice", "split_with_sizes", "chunk", "narrow", "channel_shuffle", "native_channel_shuffle",
                   "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle"}:  # fmt: skip
        inside, outside = op.in_sides[0], op.out_sides[0]
        return [(a, *(side for o in op.out_sides for side in o[d : d + 1]))
                for d, (a, b) in enumerate(zip(inside, outside, strict=True)) if a is not b]  # fmt: skip
    if op.name in {"view", "_unsafe_view", "reshape"} and len(op.in_sides[0]) < len(op.out_sides[0]):
        return [tuple(s for s in op.in_sides[0] if isinstance(s, Side))]
    return []


def _feasible(graph: ChannelGraph, joined: list[list[str]], rng: np.random.Generator) -> list[list[list[int]]]:
    """For each set of joined groups, widths at which every cell has the channels it needs; at least the present."""
    found = [[[graph.groups[name] for name in component]] for component in joined]
    for i in range(ROUNDS):
        trial = dict(graph.groups)
        for component in joined:
            ratio = rng.uniform(LOWEST, 1)
            together = i % 2 == 0  # half of the time in proportion: shuffled stages only fit that way
            for name in component:
                own = ratio if together else rng.uniform(LOWEST, 1)
                trial[name] = _multiple(own, graph.groups[name], graph.steps[name])
        for component, works in zip(joined, _works(graph, joined, trial), strict=True):
            if works:
                found[joined.index(component)].append([trial[name] for name in component])
    return found


def _works(graph: ChannelGraph, joined: list[list[str]], trial: dict[str, int]) -> list[bool]:
    if not graph.valid([list(trial.values())])[0]:
        return [False] * len(joined)
    target = graph._channels_at(trial)
    result = match(graph._channels, target, np.zeros(len(graph._channels.cell)))
    lacking = {channel for channel, _, _ in result.lacking}
    bad = np.isin(target.of_label, list(lacking))
    groups_of_label: set[str] = set()
    for (name, side), start in target.tracer.label_start.items():
        if bad[start : start + target.tracer.parameters[name].shape[side]].any():
            entry = graph._tracer.parameter_sides[name][side]
            assert isinstance(entry, Side)
            groups_of_label.update(graph._names[s] for s in graph._tracer.sizes.reduce(entry.form).terms)
    return [not groups_of_label & set(component) for component in joined]
