"""Numbers of 16 bits for all that nothing else has made small: biases, normalisation, levels of codebooks, factors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...packing.forms import Book, Books, Scaled
from ...packing.packed import unique_state
from ..compression import Compression
from ..tied import assembled

NOTE = "half_whole"  # what has numbers beyond the halves' largest, 65504


@dataclass(frozen=True)
class Half:
    """Round parameters and buffers to the nearest numbers that IEEE half precision has; the packer stores two bytes.

    They are computed with as before. Levels of codebooks and their vectors are rounded, whole numbers times a scale
    are left alone; a tensor with a number too large for a half stays as it is and is named in the notes.
    """

    @torch.no_grad()
    def apply(self, compression: Compression) -> Compression:
        """A later training gives numbers of 32 bits again."""
        model = compression.copied()
        codebooks, hints = dict(compression.codebooks), dict(compression.hints)
        too_large = []
        for name, tensor in unique_state(model).items():
            if tensor.dtype != torch.float32 or isinstance(hints.get(name), Scaled):
                continue
            if not torch.equal(rounded(tensor).isfinite(), tensor.isfinite()):
                too_large.append(name)
            elif name in codebooks:
                codebooks[name] = replace(codebooks[name], levels=rounded(codebooks[name].levels))
                tensor.copy_(codebooks[name].weight())
            elif isinstance(books := hints.get(name), Books):
                hints[name] = books = in_halves(books)
                tensor.copy_(assembled(books, tensor.shape))
            else:
                tensor.copy_(rounded(tensor))
        notes = {**compression.notes, **({NOTE: ", ".join(too_large)} if too_large else {})}
        return compression.changed(model=model, codebooks=codebooks, hints=hints, notes=notes)


def rounded(tensor: Tensor) -> Tensor:
    """The nearest halves, as float32."""
    return tensor.half().float()


def in_halves(books: Books) -> Books:
    """The same with vectors of halves."""
    return Books(tuple(Book(b.vectors.astype(np.float16).astype(np.float32), b.indices) for b in books.books))
