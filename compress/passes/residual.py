"""Residual quantisation of weights (Gong et al. 2014, arXiv:1412.6115, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InvalidSetting
from ...packing.forms import MOST_BOOKS, Book, Books
from ..compression import Compression
from .product import Matrix, check, nearest_divisor, quantised, with_books


@dataclass(frozen=True)
class Residual:
    """Make each row of a layer's matrix the sum of vectors from several codebooks, and train these.

    The first codebook of 2^bits vectors stands for the rows, each other one for what those before it left. Without a
    `length` vectors are whole rows, as in the paper; with one, rows are cut as in `product`. What stays as it is, is as
    there.
    """

    bits: int = 4
    books: int = 2
    length: int | None = None
    epochs: int = 0  # of training the vectors, and all that is not shared
    lr: float | None = None  # None: the recipe's

    def __post_init__(self) -> None:
        check("residual", self.bits, self.epochs)
        if not 1 <= self.books <= MOST_BOOKS or (self.length is not None and self.length < 1):
            raise InvalidSetting(
                f"residual: {self.books} codebooks, length {self.length}; expected 1 to {MOST_BOOKS} and at least 1"
            )

    def apply(self, compression: Compression) -> Compression:
        """The same number of codebooks for each layer."""

        def quantise(matrix: Matrix) -> Books:
            length = matrix.shape[1] if self.length is None else nearest_divisor(matrix.shape[1], self.length)
            found: list[Book] = []
            for _ in range(self.books):
                left = matrix - Books(tuple(found)).assembled() if found else matrix
                found.append(quantised(left, length, 2**self.bits, compression.recipe.seed))
            return Books(tuple(found))

        return with_books(compression, "residual", quantise).finetuned(self.epochs, self.lr)
