"""Residual branches that may be gone: which inner group empties them, and what is left in their place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .record import Operator, Side
from .tracer import Tracer


class Removed(nn.Module):
    """What is left of a removed residual branch: a zero, so that the addition passes its other side on."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """One zero, whatever the input's shape: a shape would be fixed where other widths follow."""
        return x.new_zeros(())


@dataclass
class Branch:
    """A residual branch beside an identity: its operators, its leaf modules in order, and the groups that empty it."""

    operators: set[int]
    modules: list[str]
    emptied_by: frozenset[int]  # width symbols


def find_branches(tracer: Tracer) -> list[Branch]:
    """Branches whose two ends meet in an addition with their own input."""
    ops = tracer.ops[: tracer.eval_ops]
    made_by, readers = _flow(ops)
    ancestors = _ancestors(ops, made_by)
    branches = []
    for number, op in enumerate(ops):
        sources = made_by[number]
        if op.kind != "add" or len(sources) != 2 or len(op.inputs) != 2:
            continue
        for skip, end in ((sources[0], sources[1]), (sources[1], sources[0])):
            branch = _branch(tracer, ops, made_by, readers, ancestors, number, skip, end)
            if branch is not None:
                branches.append(branch)
                break
    return branches


def _flow(ops: Sequence[Operator]) -> tuple[list[list[int]], list[set[int]]]:
    """For each operator: which operators made its activations (-1: the image), and which read its outputs."""
    last: dict[int, int] = {}
    made_by: list[list[int]] = []
    readers: list[set[int]] = [set() for _ in ops]
    for number, op in enumerate(ops):
        made_by.append([last.get(tensor, -1) for tensor in op.inputs])
        for maker in made_by[-1]:
            if maker >= 0:
                readers[maker].add(number)
        for tensor in op.outputs:
            last[tensor] = number
    return made_by, readers


def _ancestors(ops: Sequence[Operator], made_by: list[list[int]]) -> list[int]:
    """Bit set of all operators that each one depends on, itself included; bit 0 is the image."""
    sets: list[int] = []
    for number in range(len(ops)):
        bits = 1 << (number + 1)
        for maker in made_by[number]:
            bits |= sets[maker] if maker >= 0 else 1
        sets.append(bits)
    return sets


def _branch(
    tracer: Tracer, ops: Sequence[Operator], made_by: list[list[int]], readers: list[set[int]], ancestors: list[int],
    addition: int, skip: int, end: int,
) -> Branch | None:  # fmt: skip
    """The branch that ends in `end` and starts where `skip` was made, if nothing else enters or leaves it."""
    if end < 0 or skip >= end:
        return None
    own = ancestors[end] & ~(ancestors[skip] if skip >= 0 else 1)
    inside = {i for i in range(end + 1) if own >> (i + 1) & 1}
    entries = {maker for i in inside for maker in made_by[i] if maker not in inside}
    if entries != {skip} or any(readers[i] - inside - {addition} for i in inside):
        return None
    if any(reader not in inside and reader != addition and ops[reader].in_place for reader in readers[max(skip, 0)]):
        return None
    leaves = [(path, start, stop) for path, start, stop, _, _ in tracer.calls if start < tracer.eval_ops]
    covered = {i: path for path, start, stop in leaves for i in range(start, stop)}
    loose = [i for i in inside if i not in covered]
    if any(ops[i].in_place or ops[i].weights for i in loose) or end not in covered:
        return None
    modules = list(dict.fromkeys(covered[i] for i in sorted(inside) if i in covered))
    if modules[-1] != covered[end] or _used_elsewhere(tracer, modules, inside):
        return None
    emptied_by = _cuts(tracer, ops, made_by, inside, end)
    return Branch(inside, modules, emptied_by) if emptied_by else None


def _used_elsewhere(tracer: Tracer, modules: list[str], inside: set[int]) -> bool:
    calls = [(start, stop) for path, start, stop, _, _ in tracer.calls if path in modules]
    return any(i not in inside and not _only_weights(tracer.ops[i])
               for start, stop in calls for i in range(start, min(stop, tracer.eval_ops)))  # fmt: skip


def _only_weights(op: Operator) -> bool:
    return not op.inputs


def _cuts(
    tracer: Tracer, ops: Sequence[Operator], made_by: list[list[int]], inside: set[int], end: int
) -> frozenset[int]:
    """Width symbols that live only inside the branch and without which nothing reaches its end."""
    outside = {s for i, op in enumerate(ops) if i not in inside for s in _symbols(tracer, op)}
    candidates = {s for i in inside for s in _symbols(tracer, ops[i])} - outside
    cuts = set()
    for symbol in candidates:
        reached: set[int] = set()
        for i in sorted(inside):
            reads = any(_is_lone(tracer, side, symbol) for sides in ops[i].in_sides for side in sides)
            from_start = any(maker not in inside or maker in reached for maker in made_by[i])
            if from_start and not reads and ops[i].inputs:
                reached.add(i)
        if end not in reached:
            cuts.add(symbol)
    return frozenset(cuts)


def _symbols(tracer: Tracer, op: Operator) -> set[int]:
    return {s for sides in (*op.in_sides, *op.out_sides) for side in sides if isinstance(side, Side)
            for s in tracer.sizes.reduce(side.form).terms}  # fmt: skip


def _is_lone(tracer: Tracer, side: int | Side, symbol: int) -> bool:
    return isinstance(side, Side) and set(tracer.sizes.reduce(side.form).terms) == {symbol}


def without(model: nn.Module, branches: Sequence[Branch]) -> nn.Module:
    """A copy of the model in which these branches give zeros and hold no parameters."""
    emptied = copy.deepcopy(model)
    for branch in branches:
        for path in branch.modules:
            parent = emptied.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], Removed() if path == branch.modules[-1] else nn.Identity())
    return emptied
