"""ChannelGraph: a model seen as channels. Search, pruning and the profiler ask it; it knows no model by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor, nn

from ..errors import InvalidWidths, suggestion
from . import pricing
from .branches import Branch, find_branches, without
from .cells import Channels, Indices, Match, label, match
from .confirm import broken_constraint, confirmed, follow, free_widths, shapes_at, steps_of, values_at
from .costs import Costs, EnergyTable, default_energy
from .masks import Reader, masked, readers
from .price_table import COLUMNS, PriceTable
from .record import Shape, Side
from .resize import Index, grouped_reads, indices, rebuild
from .sampling import sample_widths
from .sized import Evaluator, SizedOperator, sized_operators, value_in
from .sizes import WIDTH, Linear
from .table import operator_table
from .tracer import Tracer

Widths = dict[str, int]
Keep = dict[str, Any]  # group -> kept indices; of a group tied by size only: layer -> kept indices
Scores = dict[str, Any]  # group -> one number a channel; of a group tied by size only: layer -> numbers


def trace(
    model: nn.Module, input_shape: Sequence[int] | Sequence[Sequence[int]], *, multiple: int = 1,
    whole_groups: Collection[str] = (),
) -> ChannelGraph:  # fmt: skip
    """Follow one forward pass of any module on the meta device and return its channel graph.

    `input_shape` is [N, C, H, W] of one input, or a list of shapes. Widths are to be chosen in multiples of `multiple`
    (see `ChannelGraph.steps`). Of the grouped convolutions `whole_groups` a narrower network has fewer groups, of the
    others as many but narrower ones (see cardinality.py). The model is not touched and nothing is computed. Raises
    UntraceableModel when what runs depends on values, with file and line.
    """
    is_single = isinstance(input_shape[0], int)
    shapes = [tuple(input_shape)] if is_single else [tuple(s) for s in input_shape]  # type: ignore[arg-type]
    layers = dict(model.named_modules())
    if unknown := sorted(set(whole_groups) - layers.keys()):
        raise InvalidWidths(f"whole_groups names {unknown[0]!r}, which is no layer{suggestion(unknown[0], layers)}")
    first = follow(model, shapes, whole_groups=whole_groups)  # type: ignore[arg-type]
    return ChannelGraph(model, shapes, first, multiple)  # type: ignore[arg-type]


class ChannelGraph:
    """Groups of tied channels, what constrains them, and what every operator costs as a function of their widths."""

    def __init__(self, model: nn.Module, inputs: Sequence[Shape], first: Tracer, multiple: int = 1) -> None:
        if multiple < 1:
            raise InvalidWidths(f"widths cannot go in multiples of {multiple}; expected at least 1")
        self.model, self.inputs, self._first, self.multiple = model, list(inputs), first, multiple

    def of(self, model: nn.Module) -> ChannelGraph:
        """Another module's graph, traced as this one was."""
        return trace(model, self.inputs, multiple=self.multiple, whole_groups=self.whole_groups)

    # -- what there is ---------------------------------------------------------------------------------------------

    @property
    def whole_groups(self) -> frozenset[str]:
        """The grouped convolutions of which a narrower network has fewer groups."""
        return self._first.whole_groups

    @cached_property
    def _tracer(self) -> Tracer:
        return confirmed(self.model, self.inputs, self._first)

    @cached_property
    def _symbols(self) -> list[int]:
        return free_widths(self._tracer)

    @cached_property
    def _names(self) -> dict[int, str]:
        """Width symbol -> the name of the layer that makes it, a trailing `.conv` dropped where that is unique."""
        made = {s: entry.name for s, entry in enumerate(self._tracer.sizes.symbols) if entry.kind == WIDTH}
        short = {s: name.removesuffix(".conv") for s, name in made.items()}
        taken = pd.Series(list(short.values())).value_counts()
        return {s: short[s] if taken[short[s]] == 1 else made[s] for s in made}

    @cached_property
    def groups(self) -> Widths:
        """Searchable groups: name -> width, in the model's order."""
        return {self._names[s]: self._tracer.sizes.symbols[s].value for s in self._symbols}

    @property
    def widths(self) -> Widths:
        """The present width of every group."""
        return dict(self.groups)

    @cached_property
    def frozen(self) -> dict[str, str]:
        """Layers whose width cannot vary, and why."""
        return {self._names[s]: why for s, why in self._tracer.sizes.frozen.items()}

    @property
    def unknown(self) -> dict[str, str]:
        """Operators that the tracer does not know, and where they were met; the channels they read are frozen."""
        return dict(self._first.unknown)

    @cached_property
    def steps(self) -> Widths:
        """What each width is chosen in multiples of: what it must be, and `multiple` where there are as many channels.

        Runtimes work on blocks of channels; widths that leave a block half full can cost more than the full block.
        """
        must = {self._names[s]: step for s, step in steps_of(self._tracer, self._symbols).items()}
        wanted = {name: lcm(step, self.multiple) for name, step in must.items()}
        return {name: wanted[name] if wanted[name] <= self.groups[name] else must[name] for name in self.groups}

    @cached_property
    def _branches(self) -> list[Branch]:
        free = set(self._symbols)
        branches = find_branches(self._tracer)
        return [Branch(b.operators, b.modules, b.emptied_by & free) for b in branches if b.emptied_by & free]

    @cached_property
    def removable(self) -> frozenset[str]:
        """Groups that may have width 0: the residual branch that they are inside of is gone then."""
        return frozenset(self._names[s] for b in self._branches for s in b.emptied_by)

    @cached_property
    def branches(self) -> list[frozenset[str]]:
        """The groups of each residual branch that may be removed: width 0 of any of them removes it."""
        return [frozenset(self._names[s] for s in b.emptied_by) for b in self._branches]

    @property
    def branch_ends(self) -> list[str]:
        """The layer in which each of `branches` ends."""
        return [branch.modules[-1] for branch in self._branches]

    # -- checking ----------------------------------------------------------------------------------------------------

    def check(self, widths: Mapping[str, int]) -> Widths:
        """All widths, those left out as they are; InvalidWidths names what is wrong."""
        for name, width in widths.items():
            if name not in self.groups:
                frozen = f" (frozen: {self.frozen[name]})" if name in self.frozen else ""
                raise InvalidWidths(f"no group named {name!r}{suggestion(name, self.groups)}{frozen}")
            if int(width) != width or width < 0 or (width == 0 and name not in self.removable):
                zero = "; 0 is for the inner group of a residual branch" if width == 0 else ""
                raise InvalidWidths(f"{name}: {width} is not a number of channels{zero}")
        full = {**self.groups, **{name: int(w) for name, w in widths.items()}}
        positive = {s: full[self._names[s]] or self._tracer.sizes.symbols[s].value for s in self._symbols}
        if broken := broken_constraint(self._tracer, positive):
            steps = {name: step for name, step in self.steps.items() if step > 1 and name in widths}
            raise InvalidWidths(f"widths break a constraint: {broken}" + (f"; steps are {steps}" if steps else ""))
        return full

    @cached_property
    def _constraint_rows(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Linear forms that must be whole and positive: scaled integer rows, constants, and scales."""
        sizes = self._tracer.sizes
        forms = {sizes.reduce_to(f, set(self._symbols)) for f in sizes.whole}
        sides = [s for own in self._tracer.parameter_sides.values() for s in own if isinstance(s, Side)]
        forms |= {sizes.reduce_to(s.form, set(self._symbols)) for s in sides}
        varying = [f for f in forms if f.terms]
        column = {s: i for i, s in enumerate(self._symbols)}
        rows = np.zeros((len(varying), len(self._symbols)))
        for i, f in enumerate(varying):
            for s, c in f.terms.items():
                rows[i, column[s]] = float(c * f.denominator)
        scales = np.array([f.denominator for f in varying], dtype=float)
        return rows, np.array([float(f.constant * f.denominator) for f in varying]), scales

    def valid(self, widths: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """[N, G] width vectors -> whether each meets every constraint."""
        w = np.atleast_2d(np.asarray(widths, dtype=float))
        removable = np.array([name in self.removable for name in self.groups], dtype=bool)
        present = np.array(list(self.groups.values()), dtype=float)
        fine = ((w >= 1) | ((w == 0) & removable)).all(axis=1)
        rows, constants, scales = self._constraint_rows
        values = np.where(w == 0, present, w) @ rows.T + constants
        return np.asarray(fine & ((values % scales == 0) & (values >= scales)).all(axis=1))

    # -- pricing -----------------------------------------------------------------------------------------------------

    @cached_property
    def _price_table(self) -> PriceTable:
        return PriceTable(
            self._tracer, self._symbols, self._branches, [name for name, _ in self.model.named_parameters()]
        )

    def price(self, widths: Mapping[str, int] | None = None, energy: EnergyTable | None = None) -> Costs:
        """Costs at these widths, groups left out as they are; raises InvalidWidths."""
        if widths is None:
            return pricing.costs_now(self._first, energy or default_energy())
        full = self.check(widths)
        row = self.price_many(np.array([list(full.values())]), COLUMNS, energy).iloc[0]
        return Costs(int(row["params"]), int(row["macs"]), int(row["activations"]), int(row["peak_memory_bytes"]),
                     int(row["memory_access"]), float(row["energy_uj"]))  # fmt: skip

    def price_many(
        self, widths: npt.ArrayLike, columns: Sequence[str] = COLUMNS, energy: EnergyTable | None = None
    ) -> pd.DataFrame:
        """[N, G] width vectors, in the order of `groups` -> a row of costs each; widths are not checked (see `valid`).

        Exact: every figure equals what counting the rebuilt model gives.
        """
        w = np.atleast_2d(np.asarray(widths))
        if w.shape[1] != len(self.groups):
            raise InvalidWidths(f"{w.shape[1]} widths a row, but the graph has {len(self.groups)} groups")
        if unknown := set(columns) - set(COLUMNS):
            raise KeyError(f"no cost named {sorted(unknown)}; there are {COLUMNS}")
        return self._price_table.costs(w, columns, energy or default_energy())

    def layers(self, widths: Mapping[str, int] | None = None) -> pd.DataFrame:
        """One row per operator of the evaluation pass: name, op, module, shapes, params, macs, activations and more.

        Parameters that several operators share are counted where they are first read.
        """
        if widths is None:
            tracer, values = self._first, [s.value for s in self._first.sizes.symbols]
        else:
            full = self.check(widths)
            tracer = self._tracer
            values = values_at(tracer, {s: full[self._names[s]] for s in self._symbols})
        return operator_table(tracer, values, {name for name, _ in self.model.named_parameters()})

    def operators(self, widths: npt.ArrayLike | None = None) -> list[SizedOperator]:
        """The operators of the evaluation pass with their sizes: as they are, or at [N, G] width vectors at once.

        Widths are not checked (see `valid`). An operator of a branch that a width of 0 removes is not `present` there.
        """
        parameters = {name for name, _ in self.model.named_parameters()}
        if widths is None:
            values = [s.value for s in self._first.sizes.symbols]
            return sized_operators(self._first, Evaluator(lambda form: int(form.at(values))), {}, parameters)
        w = np.atleast_2d(np.asarray(widths, dtype=np.float64))
        present = np.array(list(self.groups.values()), dtype=np.float64)
        columns = dict(zip(self._symbols, np.where(w == 0, present, w).T.copy(), strict=True))
        sizes, groups = self._tracer.sizes, frozenset(self._symbols)
        solved = Evaluator(lambda form: value_in(form, columns))  # sizes that are the same are one array
        evaluate = Evaluator(lambda form: solved.form(sizes.reduce_to(form, groups)))
        return sized_operators(self._tracer, evaluate, self._absent(w == 0), parameters)

    def _absent(self, removed: npt.NDArray[np.bool_]) -> dict[int, npt.NDArray[np.bool_]]:
        column = {s: i for i, s in enumerate(self._symbols)}
        absent: dict[int, npt.NDArray[np.bool_]] = {}
        for branch in self._branches if removed.any() else []:
            gone = removed[:, [column[s] for s in branch.emptied_by]].any(axis=1)
            for number in branch.operators:
                absent[number] = np.logical_or(absent.get(number, False), gone)
        return absent

    # -- sampling, selecting, resizing -------------------------------------------------------------------------------

    def random_widths(self, n: int, seed: int = 0) -> npt.NDArray[np.int64]:
        """[n, G] valid width vectors between a quarter of each width and the whole; `select` serves each of them."""
        return sample_widths(self, n, seed)

    @cached_property
    def _channels(self) -> Channels:
        present = {s: self._tracer.sizes.symbols[s].value for s in self._symbols}
        return label(self.model, self.inputs, self._tracer, values_at(self._tracer, present))

    def _channels_at(self, full: Widths) -> Channels:
        chosen = {s: full[self._names[s]] for s in self._symbols}
        return label(self.model, self.inputs, self._tracer, values_at(self._tracer, chosen))

    @cached_property
    def _makers(self) -> dict[str, tuple[str, int, list[str]]]:
        """Layer that makes channels -> (parameter, side, groups that its width is made of)."""
        symbol_of = {}
        for name, sides in self._tracer.parameter_sides.items():
            for d, side in enumerate(sides):
                if isinstance(side, Side):
                    symbol_of[next(iter(side.form.terms))] = (name, d)
        makers = {}
        for symbol, maker in self._names.items():
            form = self._tracer.sizes.reduce(Linear({symbol: 1}))
            groups = [self._names[s] for s in self._symbols if s in form.terms]
            if groups:
                makers[maker] = (*symbol_of[symbol], groups)
        return makers

    @cached_property
    def members(self) -> dict[str, list[str]]:
        """Group -> the layers whose channels are chosen one by one: its own, and those tied to it by size only."""
        members: dict[str, list[str]] = {group: [group] for group in self.groups}
        seen = {c for group in self.groups for c in self._channel_list(group).tolist()}
        for maker, (_, _, groups) in self._makers.items():
            channels = set(self._channel_list(maker).tolist())
            if maker not in members and not channels <= seen:
                members[groups[0]].append(maker)
                seen |= channels
        return members

    @property
    def n_channels(self) -> int:
        """How many channels there are, tied ones counted once."""
        return len(self._channels.cell)

    def channels(self, parameter: str, side: int) -> Indices | None:
        """Which channel (0 to `n_channels`) each position of a parameter's side is; None where that side is frozen.

        Tied positions bear one number, also across layers. A grouped convolution's input side is in `readers`.
        """
        return self._channels.along(parameter, side)

    def channels_of(self, layer: str) -> Indices:
        """Which channel each output of a layer of `members` is."""
        return self._channel_list(layer)

    def makers(self) -> dict[str, tuple[str, int]]:
        """Every layer that makes channels -> its weight, and the side of it along which they lie."""
        return {maker: (parameter, side) for maker, (parameter, side, _) in self._makers.items()}

    def readers(self) -> dict[str, Reader]:
        """Every weight of a convolution or linear layer that mixes channels -> which ones it reads."""
        return readers(self._channels)

    def by_group(self, per_channel: npt.ArrayLike) -> Scores:
        """One number a channel, [n_channels] -> the numbers of each group, as `select` takes them."""
        numbers = np.asarray(per_channel, dtype=np.float64)
        found: Scores = {}
        for group, layers in self.members.items():
            own = {layer: numbers[self._channel_list(layer)] for layer in layers}
            found[group] = own[group] if len(layers) == 1 else own
        return found

    def _channel_list(self, maker: str) -> npt.NDArray[np.int64]:
        parameter, side, _ = self._makers[maker]
        channels = self._channels.along(parameter, side)
        assert channels is not None
        return channels

    def select(self, scores: Mapping[str, Any], widths: Mapping[str, int], *, strict: bool = True) -> Keep:
        """The highest-scoring channels at these widths that satisfy every joint constraint.

        `scores`: group -> one number a channel (or layer -> numbers, for groups tied by size only); groups left out
        prefer their first channels. Returns group -> kept indices of the layer that names it (for a group whose
        members are tied by size only: layer -> indices). With `strict`, widths at which no set of channels
        satisfies the constraints raise InvalidWidths; without, `resize` draws fresh what has no source.
        """
        full = self.check(widths)
        gone = self._gone(full)
        if gone:
            return self._select_without(gone, scores, full, strict)
        wider = {name: (w, self.groups[name]) for name, w in full.items() if w > self.groups[name]}
        if strict and wider:
            raise InvalidWidths(f"selecting cannot make channels: {wider} (asked, there)")
        target = self._channels_at(full)
        found = match(self._channels, target, self._channel_scores(scores))
        if strict and found.lacking:
            raise InvalidWidths(self._explain(target, found))
        return self._keep_of(set(found.source[found.source >= 0].tolist()))

    def _channel_scores(self, scores: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        total = np.zeros(len(self._channels.cell))
        for name, given in scores.items():
            if name not in self._makers:
                raise InvalidWidths(f"scores for {name!r}, which is no group{suggestion(name, self.groups)}")
            parts = given if isinstance(given, Mapping) else {name: given}
            for maker, values in parts.items():
                channels = self._channel_list(maker)
                array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)
                if array.shape != channels.shape:
                    raise InvalidWidths(f"{maker} has {len(channels)} channels, its scores {array.shape}")
                np.maximum.at(total, channels, array - array.min(initial=0) + 1e-12)
        return total

    def _keep_of(self, kept: set[int]) -> Keep:
        keep: Keep = {}
        for group, layers in self.members.items():
            lists = {
                layer: [i for i, c in enumerate(self._channel_list(layer).tolist()) if c in kept] for layer in layers
            }
            keep[group] = lists[group] if len(layers) == 1 else lists
        return keep

    def _explain(self, target: Channels, found: Match) -> str:
        channel, needed, there = found.lacking[0]
        at = int(np.flatnonzero(target.of_label == channel)[0])
        starts = sorted((start, name, side) for (name, side), start in target.tracer.label_start.items())
        _, name, side = max(s for s in starts if s[0] <= at)
        divided = sorted(
            {op.path for op in self._tracer.ops if op.kind == "grouped conv" or op.name in ("split", "slice")}
        )
        return (
            f"no set of channels fits: side {side} of {name} needs {needed} channels that are split, grouped or "
            f"shuffled alike, and the model has {there} (joint constraints at {', '.join(divided[:3])}); other widths "
            "may fit, or select(strict=False) draws fresh what has no source"
        )

    def resize(
        self, model: nn.Module, widths: Mapping[str, int] | None = None, *, keep: Mapping[str, Any] | None = None
    ) -> nn.Module:
        """A new module at these widths; `model` is this graph's model or one of the same structure.

        With `keep` (from `select`) weights travel, and the result computes what the masked original computes; other
        sets of channels raise InvalidWidths. With widths alone the first channels travel, and what has no source is
        drawn fresh. Width 0 of a removable group takes its residual branch out.
        """
        full = self.check(widths if widths is not None else self._widths_of(keep or {}))
        gone = self._gone(full)
        if gone:
            rest, model = self._rest(gone, model)
            left = {name: w for name, w in full.items() if name in rest.groups}
            kept = None if keep is None else {name: k for name, k in keep.items() if name in rest.groups}
            return rest.resize(model, left, keep=kept)
        values = values_at(self._tracer, {s: full[self._names[s]] for s in self._symbols})
        has_weights = not all(p.is_meta for p in model.parameters())
        index, reads = self._sources(full, keep, strict=widths is None) if has_weights or keep is not None else ({}, {})
        resized = rebuild(model, shapes_at(self._tracer, values), index, reads, self.whole_groups)
        follow(resized, self.inputs)
        return resized

    def _sources(
        self, full: Widths, keep: Mapping[str, Any] | None, strict: bool
    ) -> tuple[dict[str, Index], dict[str, Indices]]:
        """Where each parameter's entries come from: by side, and row by row for grouped weights."""
        target = self._channels_at(full)
        original = self._channels if keep is None else self._kept_only(keep)
        found = match(original, target, np.zeros(len(original.cell)))
        if keep is not None and strict and found.lacking:
            raise InvalidWidths("these channels cannot be kept together: " + self._explain(target, found))
        index = indices(self._channels, target, found.source)
        reads = {
            name: grouped_reads(self._channels, target, found.source, index[name][0], name)
            for name in target.tracer.grouped
        }
        return index, reads

    def mask(self, model: nn.Module, keep: Mapping[str, Any]) -> nn.Module:
        """A copy of the model at full size in which nothing reads the channels that `keep` leaves out."""
        return masked(model, self._channels, self.dropped(keep))

    def _gone(self, full: Widths) -> list[Branch]:
        symbols = {s for s in self._symbols if full[self._names[s]] == 0}
        return [b for b in self._branches if b.emptied_by & symbols]

    def _rest(self, gone: Sequence[Branch], model: nn.Module) -> tuple[ChannelGraph, nn.Module]:
        emptied = without(model, gone)
        return self.of(emptied), emptied

    def _select_without(self, gone: Sequence[Branch], scores: Mapping[str, Any], full: Widths, strict: bool) -> Keep:
        rest, _ = self._rest(gone, self.model)
        keep = rest.select({name: s for name, s in scores.items() if name in rest.groups},
                           {name: w for name, w in full.items() if name in rest.groups}, strict=strict)  # fmt: skip
        return {name: keep[name] if name in keep else list(range(full[name])) for name in self.groups}

    def _kept_only(self, keep: Mapping[str, Any]) -> Channels:
        """The channels with every one that is not kept moved to a cell of its own."""
        cell = np.where(self.dropped(keep), np.uint64(1), self._channels.cell)
        return Channels(self._channels.tracer, self._channels.of_label, cell, self._channels.first)

    def dropped(self, keep: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
        """[n_channels], True for those that `keep` leaves out; raises InvalidWidths for sets that are none."""
        dropped = np.zeros(len(self._channels.cell), bool)
        for group, given in keep.items():
            for layer, chosen in (given if isinstance(given, Mapping) else {group: given}).items():
                if layer not in self._makers:
                    raise InvalidWidths(
                        f"no layer named {layer!r} to keep channels of{suggestion(layer, self._makers)}"
                    )
                channels = self._channel_list(layer)
                kept = np.asarray(chosen, dtype=np.int64)
                outside = len(kept) and not 0 <= kept.min() <= kept.max() < len(channels)
                if outside or len(np.unique(kept)) != len(kept):
                    raise InvalidWidths(f"{layer}: kept indices must be distinct and within 0..{len(channels) - 1}")
                dropped[np.setdiff1d(channels, channels[kept])] = True
        return dropped

    def _widths_of(self, keep: Mapping[str, Any]) -> Widths:
        if unknown := keep.keys() - self.groups.keys():
            raise InvalidWidths(f"no group named {sorted(unknown)[0]!r}{suggestion(sorted(unknown)[0], self.groups)}")
        return {group: len(given[group] if isinstance(given, Mapping) else given) for group, given in keep.items()}
