"""Which channels go together: labels that follow every channel through a pass, and the pairs that share a position.

A label is the number of the parameter entry that made a channel. Label tensors have the full shape of the tensor whose
channels they number, with stride 0 along every other side; -1 where a channel has no label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .record import FIRST_OUTPUT, Info, Shape, Sides


class Labels:
    """The labels of a pass, and what it found out about them; without `labelled` nothing is labelled."""

    def __init__(self, labelled: Mapping[str, Sequence[bool]] | None) -> None:
        self.labelled = labelled  # parameter -> which of its sides vary; None: no labels
        self.edges: list[tuple[Tensor, Tensor]] = []  # labels that go together
        self.marks: list[tuple[int, int, Tensor]] = []  # (operator, group of a grouped operator, labels it handles)
        self.grouped: dict[str, tuple[int, Tensor, int]] = {}  # weight -> (groups, labels of its input, operator)
        self.label_start: dict[tuple[str, int], int] = {}
        self._label_of_side: dict[int, int] = {}  # id of a parameter's side -> its first label
        self._next_label = 0

    def parameter_labels(self, name: str, shape: Shape, sides: Sides) -> Sequence[Tensor]:
        """New labels for each varying side of a parameter."""
        if self.labelled is None:
            return ()
        labels = []
        for d, varies in enumerate(self.labelled.get(name, ())):
            if varies:
                self.label_start[name, d] = self._label_of_side[id(sides[d])] = self._next_label
                ids = torch.arange(self._next_label, self._next_label + shape[d], device="cpu")
                self._next_label += shape[d]
                labels.append(_along_one_side(ids, shape, d))
        return labels

    def tie(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Labels at the same position of two aligned label tensors go together."""
        for x in a:
            for y in b:
                x_, y_ = torch.broadcast_tensors(x, y)
                self._tie_aligned(x_, y_)

    def _tie_aligned(self, x: Tensor, y: Tensor) -> None:
        if not _same_axis(x, y):
            return
        for d in range(x.dim()):
            if x.shape[d] > 1 and x.stride(d) == 0 and y.stride(d) == 0:
                x, y = x.narrow(d, 0, 1), y.narrow(d, 0, 1)
        x, y = x.reshape(-1), y.reshape(-1)
        both = (x >= 0) & (y >= 0)
        self.edges.append((x[both], y[both]))

    def along(self, info: Info, dim: int) -> Tensor | None:
        """One label a position along `dim`, tying labels that share a position; None when that side does not vary."""
        if not info.labels:
            return None
        candidates = [labels for labels in info.labels if _may_vary(labels, dim)]
        if len(candidates) > 1:  # sides of one channel look alike: go by which parameter's side this is
            first = self._label_of_side.get(id(info.sides[dim]))
            candidates = [labels for labels in candidates if int(labels.reshape(-1)[0]) == first]
        for labels in candidates:
            rows = labels.movedim(dim, 0)
            if all(n == 1 or s == 0 for n, s in zip(rows.shape[1:], rows.stride()[1:], strict=True)):
                while rows.dim() > 1:
                    rows = rows.select(1, 0)
                return rows
            flat = rows.reshape(rows.shape[0], -1)
            for column in range(1, flat.shape[1]):
                if not torch.equal(flat[:, column], flat[:, 0]):
                    self.edges.append((flat[:, 0], flat[:, column]))
            return flat[:, 0]
        return None

    def channels_like(self, line: Tensor | None, shape: Sequence[int], dim: int = 1) -> Sequence[Tensor]:
        """Labels of a tensor of that shape whose positions along `dim` are labelled by `line`."""
        return () if line is None else [_along_one_side(line, shape, dim % len(shape))]

    def mark(self, number: int, group: int, labels: Tensor) -> None:
        """Note that the operator (one group of it) handles these channels."""
        for d in range(labels.dim()):
            if labels.shape[d] > 1 and labels.stride(d) == 0:
                labels = labels.narrow(d, 0, 1)
        self.marks.append((number, group, labels.reshape(-1)))

    def mark_outputs(self, number: int, outputs: Sequence[Info]) -> None:
        """Note the channels that the operator makes; after the last one: those that leave the model."""
        for output, info in enumerate(outputs):
            for labels in info.labels:
                self.mark(number, FIRST_OUTPUT + output, labels)


def _along_one_side(line: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    return line.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(tuple(shape))


def _may_vary(labels: Tensor, dim: int) -> bool:
    """Whether labels may run along `dim`: they do, or it has one position and they run along no other."""
    if labels.shape[dim] > 1:
        return labels.stride(dim) != 0
    return all(n == 1 or s == 0 for d, (n, s) in enumerate(zip(labels.shape, labels.stride(), strict=True)) if d != dim)


def _same_axis(x: Tensor, y: Tensor) -> bool:
    """Whether two label tensors vary along a common side."""
    return (
        any(x.shape[d] == 1 or (x.stride(d) != 0 and y.stride(d) != 0) for d in range(x.dim()))
        if x.numel() > 1
        else True
    )
