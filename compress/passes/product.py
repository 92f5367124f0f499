"""Product quantisation of weights (Gong et al. 2014, arXiv:1412.6115, section 3.2; Wu et al. 2016, arXiv:1512.06473).

A layer's matrix [outputs, inputs] is cut along the inputs into parts of a few columns; in each part k-means finds
vectors that stand for the rows of the part. A convolution's inputs are its channels times kernel positions, so that a
part is a piece of a kernel or some kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans as Clustering

from ...errors import InvalidSetting
from ...graph.sparsity import prunable
from ...packing.forms import Book, Books
from ..compression import Compression
from ..granularity import label
from ..tied import assembled

Matrix = npt.NDArray[np.float32]

MOST_BITS = 12
WORD = 32  # bits of a number in a codebook
ROUNDS = 100  # of k-means, at most


@dataclass(frozen=True)
class Product:
    """Put each layer together from 2^bits vectors for every `length` inputs, and train these.

    `length` is rounded to a number that divides the layer's inputs. A layer that would not get smaller, and one with
    pruned weights (vectors from a codebook have no zeros) or codebooks, stays as it is and is named in the notes.
    """

    bits: int = 4
    length: int = 4
    epochs: int = 0  # of training the vectors, and all that is not shared
    lr: float | None = None  # None: the recipe's

    def __post_init__(self) -> None:
        check("product", self.bits, self.epochs)
        if self.length < 1:
            raise InvalidSetting(f"product: vectors of {self.length} numbers; expected at least 1")

    def apply(self, compression: Compression) -> Compression:
        """One codebook a layer."""

        def quantise(matrix: Matrix) -> Books:
            length = nearest_divisor(matrix.shape[1], self.length)
            return Books((quantised(matrix, length, 2**self.bits, compression.recipe.seed),))

        return with_books(compression, "product", quantise).finetuned(self.epochs, self.lr)


def with_books(compression: Compression, name: str, quantise: Callable[[Matrix], Books]) -> Compression:
    """Every layer's matrix put together from codebooks where that is smaller; `<name>_whole` notes the others."""
    model = compression.copied()
    taken, hints, whole = {**compression.shared(), **compression.masks}, dict(compression.hints), []
    for weight_name, weight in prunable(model).items():
        matrix = weight.detach().numpy().reshape(len(weight), -1)
        books = None if weight_name in taken else quantise(matrix)
        if books is None or bits_of(books) >= WORD * matrix.size:
            whole.append(label(weight_name))
            continue
        hints[weight_name] = books
        weight.data.copy_(assembled(books, weight.shape))
    notes = {**compression.notes, **({f"{name}_whole": ", ".join(whole)} if whole else {})}
    return compression.changed(model=model, hints=hints, notes=notes)


def quantised(matrix: Matrix, length: int, count: int, seed: int) -> Book:
    """A codebook for every `length` columns; no more vectors than there are rows."""
    parts = matrix.reshape(len(matrix), -1, length).swapaxes(0, 1)  # [parts, rows, length]
    count = min(count, len(matrix))
    vectors, indices = np.zeros((len(parts), count, length), np.float32), np.zeros((len(parts), len(matrix)), np.int64)
    for part, rows in enumerate(parts):
        different = np.unique(rows, axis=0)
        found = Clustering(min(count, len(different)), n_init=1, max_iter=ROUNDS, random_state=seed).fit(rows)
        vectors[part, : found.n_clusters] = found.cluster_centers_
        indices[part] = found.labels_
    return Book(vectors, indices.T)


def bits_of(books: Books) -> int:
    """What the vectors and the indices take before they are coded (Gong et al., section 3.2)."""
    return sum(
        WORD * book.vectors.size + book.indices.size * math.ceil(math.log2(max(2, book.vectors.shape[1])))
        for book in books.books
    )


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor nearest to the wanted length, by ratio; of two the smaller."""
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: (max(n, wanted) / min(n, wanted), n))


def check(name: str, bits: int, epochs: int) -> None:
    """Raises InvalidSetting."""
    if not 1 <= bits <= MOST_BITS or epochs < 0:
        raise InvalidSetting(
            f"{name}: {bits} bits and {epochs} epochs; expected 1 to {MOST_BITS} bits, 0 epochs or more"
        )
