"""Weights that are put together from shared values, and their training: each shared value moves as a whole.

A tied weight is a sum of look-ups, one after another, among its levels: one look-up for scalar codebooks (`Codebook`)
and for product quantisation, one for each codebook in residual quantisation (`Books`, whose vectors are levels side by
side). The gradient of a level is the sum of the gradients of all weights that it stands for (Han et al. 2016,
arXiv:1510.00149, eq. 3). A level that n weights share is trained as sqrt(n) times itself: a step of rate lr then moves
it by lr / n times that sum, which is where the step of plain SGD ends when it is projected onto weights that are tied.
So the rate that suits the network suits its levels, and the bound on the gradient's norm means the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..packing.forms import Book, Books


@dataclass(frozen=True)
class Codebook:
    """A weight whose entries are tied: entry i is `levels[assigned[i]]`; -1 stands for a pruned one, which is zero."""

    levels: Tensor  # [K] float32
    assigned: Tensor  # int64, of the weight's shape

    def weight(self) -> Tensor:
        """The weight itself."""
        return torch.cat([self.levels, self.levels.new_zeros(1)])[self.assigned]  # -1 is the last


Shared = Mapping[str, Codebook | Books]  # parameter -> what it is put together from


def assembled(books: Books, shape: torch.Size) -> Tensor:
    """The weight of that shape that the codebooks give, to the bit what an unpacked file gives."""
    return torch.from_numpy(books.assembled()).reshape(shape)


class Ties:
    """A model's shared weights while it is trained; `undo` makes them plain parameters again."""

    def __init__(self, model: nn.Module, shared: Shared) -> None:
        self.model, self.shared = model, shared
        self.hooks = []
        self.order = {path: list(model.get_submodule(path)._parameters) for path in {_path(name) for name in shared}}
        for name, known in shared.items():
            layer, attribute = _place(model, name)
            levels, shape = _levels(known), getattr(layer, attribute).shape
            how = _Tied(_looked_up(known), len(levels), shape)
            parametrize.register_parametrization(layer, attribute, how, unsafe=True)
            tied = _tied(layer, attribute)
            with torch.no_grad():
                tied.original.copy_(levels * tied[0].scale)
            if isinstance(layer, nn.RNNBase):
                self.hooks.append(layer.register_forward_pre_hook(_look_up_again))

    def undo(self) -> Shared:
        """What the weights are put together from after the training."""
        found = {}
        for name, known in self.shared.items():
            layer, attribute = _place(self.model, name)
            tied = _tied(layer, attribute)
            found[name] = _with_levels(known, tied[0].levels(tied.original).detach().cpu().clone())
            parametrize.remove_parametrizations(layer, attribute)
        for hook in self.hooks:
            hook.remove()
        for path, names in self.order.items():
            _reorder(self.model.get_submodule(path), names)
        return found


class _Tied(nn.Module):
    """A parametrisation: the weight is looked up among the levels, which are what is trained."""

    def __init__(self, looked_up: Tensor, count: int, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        uses = torch.bincount(looked_up[looked_up >= 0].flatten(), minlength=count).clamp(min=1)
        self.register_buffer("looked_up", torch.where(looked_up < 0, count, looked_up))  # a zero is behind the levels
        self.register_buffer("scale", (uses * len(looked_up)).float().sqrt())  # terms of a sum step together

    def levels(self, trained: Tensor) -> Tensor:
        """[K], from the numbers that are trained."""
        return trained / cast(Tensor, self.scale)

    def forward(self, trained: Tensor) -> Tensor:
        """[K] -> the weight."""
        levels, looked_up = self.levels(trained), cast(Tensor, self.looked_up)
        values = torch.cat([levels, levels.new_zeros(1)])
        total, *others = (values.index_select(0, term) for term in looked_up)
        for term in others:
            total = total + term  # in the order in which `Books` adds, so that the bits are the same
        return total.view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Room for the levels, which `Ties` sets."""
        return weight.new_zeros(len(cast(Tensor, self.scale)))


def _path(name: str) -> str:
    return name.rpartition(".")[0]


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    return model.get_submodule(_path(name)), name.rpartition(".")[2]


def _reorder(layer: nn.Module, names: Sequence[str]) -> None:
    """Put a layer's parameters back into their order, in which files list them."""
    for name, parameter in [(name, layer._parameters[name]) for name in names]:
        delattr(layer, name)
        layer.register_parameter(name, parameter)


def _tied(layer: nn.Module, attribute: str) -> Any:
    return cast(Any, layer).parametrizations[attribute]


def _look_up_again(layer: nn.Module, _: Any) -> None:
    """Recurrent layers hold on to the weights that they were made with."""
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]  # type: ignore[union-attr,assignment]


def _levels(known: Codebook | Books) -> Tensor:
    if isinstance(known, Codebook):
        return known.levels
    return torch.from_numpy(np.concatenate([book.vectors.ravel() for book in known.books]))


def _looked_up(known: Codebook | Books) -> Tensor:
    """[terms, entries of the weight]: the level of each entry, -1 for a zero."""
    if isinstance(known, Codebook):
        return known.assigned.reshape(1, -1)
    terms, start = [], 0
    for book in known.books:
        parts, size, length = book.vectors.shape
        first = start + (np.arange(parts) * size + book.indices) * length  # [rows, parts]
        terms.append(torch.from_numpy(first[..., None] + np.arange(length)).flatten())
        start += book.vectors.size
    return torch.stack(terms)


def _with_levels(known: Codebook | Books, levels: Tensor) -> Codebook | Books:
    if isinstance(known, Codebook):
        return replace(known, levels=levels)
    sizes = [book.vectors.size for book in known.books]
    parts = [part.numpy() for part in levels.split(sizes)]
    return Books(tuple(Book(v.reshape(b.vectors.shape), b.indices) for b, v in zip(known.books, parts, strict=True)))
