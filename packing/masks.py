"""Where a sparse tensor's weights stand: gaps between them, or a map of bits.

Gaps are Deep Compression's relative indices (Han et al. 2016, arXiv:1510.00149, section 2): a gap too long for its
bits is split by a padding zero. A small tensor's map has each bit priced by several opinions (`mixing`), which takes
4 us a bit; that of a larger one is priced row by row (a row is an output filter), each bit by how often its column has
been taken in the rows before. The largest ones have only gaps, which are read fastest.
"""

from __future__ import annotations

import constriction
import numpy as np
import numpy.typing as npt

from ..errors import CorruptFile
from . import coders, mixing
from .bytestream import Reader, varint

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]
GAPS, MAP, MIXED = range(3)
GAP_BITS = range(2, 13)
MIXED_SIZE = 1 << 19  # positions
MAP_SIZE = 1 << 22
TRUSTS = (1, 2, 4, 8, 16, 32)  # rows that the density of all columns counts for against a column's own
LEAST = 1e-6  # probability


def encode(mask: Mask, coder: str | None = None) -> bytes:
    """The smallest coding of a mask [rows, columns]; or gaps by that coder."""
    flat = np.flatnonzero(mask)
    bits = min(GAP_BITS, key=lambda bits: _estimate(gap_symbols(flat, bits)))
    found = [bytes([GAPS]) + _encode_gaps(flat, bits, coder)]
    if coder is None and mask.size <= MIXED_SIZE:
        found += [bytes([MIXED, side]) + mixing.encode(mask, side) for side in mixing.likely_sides(mask)]
    elif coder is None and mask.size <= MAP_SIZE:
        found += [bytes([MAP, trust]) + _encode_map(mask, trust) for trust in TRUSTS]
    return min(found, key=len)


def decode(data: bytes, rows: int, columns: int) -> Positions:
    """Where `encode`'s mask is set, row after row; raises CorruptFile."""
    reader = Reader(data)
    kind = reader.byte()
    if kind == GAPS:
        return _decode_gaps(reader, rows * columns)
    if kind == MAP and rows * columns <= MAP_SIZE:
        return np.flatnonzero(_decode_map(reader, rows, columns))
    if kind == MIXED and rows * columns <= MIXED_SIZE:
        return np.flatnonzero(mixing.decode(reader, rows, columns))
    raise CorruptFile(f"no mask of kind {kind} and {rows} x {columns}")


def gap_symbols(positions: Positions, bits: int) -> npt.NDArray[np.int64]:
    """Gaps before each position; the largest symbol stands for so many positions without a weight (a padding zero)."""
    most = (1 << bits) - 1
    gaps = np.diff(positions, prepend=-1) - 1
    fillers = gaps // most
    symbols = np.full(len(gaps) + int(fillers.sum()), most, np.int64)
    symbols[np.cumsum(fillers + 1) - 1] = gaps % most
    return symbols


def _estimate(symbols: npt.NDArray[np.int64]) -> float:
    """Bits of the symbols at their entropy, and of a table of them."""
    counts = np.bincount(symbols)
    used = counts[counts > 0]
    return float(-(used * np.log2(used / max(1, len(symbols)))).sum() + 8 * len(counts))


def _encode_gaps(positions: Positions, bits: int, coder: str | None) -> bytes:
    symbols = gap_symbols(positions, bits)
    return bytes([bits]) + varint(len(symbols)) + coders.encode(symbols, coder)


def _decode_gaps(reader: Reader, size: int) -> Positions:
    bits = reader.byte()
    if bits not in GAP_BITS:
        raise CorruptFile(f"gaps of {bits} bits")
    count = reader.varint(size)  # a filler stands for at least three positions, a weight for one
    symbols = coders.decode(reader.rest(), count)
    most = (1 << bits) - 1
    is_weight = symbols < most
    if (symbols > most).any():
        raise CorruptFile("a gap longer than its bits")
    ends = np.cumsum(symbols + is_weight) - 1
    positions: Positions = ends[is_weight]
    if len(ends) and ends[-1] >= size:
        raise CorruptFile("a weight beyond its tensor")
    return positions


def _encode_map(mask: Mask, trust: int) -> bytes:
    coder, prices = constriction.stream.queue.RangeEncoder(), _Prices(mask.shape[1], trust)
    family = constriction.stream.model.Bernoulli(perfect=False)
    for row in mask:
        coder.encode(row.astype(np.int32), family, prices.next_row())
        prices.seen(row)
    return coders.sealed(coder)


def _decode_map(reader: Reader, rows: int, columns: int) -> Mask:
    trust = reader.byte()
    if trust not in TRUSTS:
        raise CorruptFile(f"a map with trust {trust}")
    coder, prices = coders.opened(reader.rest()), _Prices(columns, trust)
    family = constriction.stream.model.Bernoulli(perfect=False)
    mask = np.zeros((rows, columns), dtype=bool)
    for i in range(rows):
        mask[i] = coders.decoded(lambda: coder.decode(family, prices.next_row())).astype(bool)
        prices.seen(mask[i])
    return mask


class _Prices:
    """The probability of a weight in each column of the next row, from the rows before."""

    def __init__(self, columns: int, trust: int) -> None:
        self.trust, self.rows, self.taken = trust, 0, np.zeros(columns)

    def next_row(self) -> npt.NDArray[np.float64]:
        """[columns]."""
        density = (self.taken.sum() + 0.5) / (self.rows * len(self.taken) + 1.0)
        likely = (self.taken + self.trust * density) / (self.rows + self.trust)
        return np.asarray(np.clip(likely, LEAST, 1 - LEAST))

    def seen(self, row: Mask) -> None:
        """Learn from a row."""
        self.taken += row
        self.rows += 1
