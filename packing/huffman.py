"""Huffman's code in its canonical form, whole arrays at a time: a stream of a million symbols is read in 0.1 s.

Symbols of equal length are numbered in their order (Schwartz and Kallick 1964), so that a table of lengths says all.
Here and not in a library: constriction decodes a symbol a call, which takes ten times longer.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CorruptFile
from .bytestream import Reader, varint

Symbols = npt.NDArray[Any]  # whole numbers

MOST_SYMBOLS = 1 << 16
LONGEST = 20  # bits of a code word: its table of 2^20 entries is read through at once
RAREST = 1 << 12  # where a code word gets longer, no symbol counts for less than 1 / RAREST of all
BLOCK = 1 << 16  # bytes that are decoded together


def encode(symbols: Symbols) -> bytes | None:
    """The table of lengths, a byte a symbol, and the code words; None for fewer than two different symbols."""
    lengths = code_lengths(np.bincount(symbols)) if len(symbols) else np.zeros(0, np.int64)
    if np.count_nonzero(lengths) < 2:
        return None
    words = _code_words(lengths)
    sizes, own = lengths[symbols], words[symbols]
    ends = np.cumsum(sizes)
    bits = np.zeros(int(ends[-1]), np.uint8)
    for back in range(int(lengths.max())):  # the last bit of every word, the last but one, ...
        long = sizes > back
        bits[ends[long] - 1 - back] = own[long] >> back & 1
    return varint(len(lengths)) + bytes(lengths.tolist()) + np.packbits(bits).tobytes()


def decode(reader: Reader, count: int) -> Symbols:
    """`encode`'s symbols; raises CorruptFile."""
    size = reader.varint(MOST_SYMBOLS)
    lengths = np.frombuffer(reader.take(size), np.uint8).astype(np.int64)
    used = lengths[lengths > 0]
    if len(used) < 2 or used.max() > LONGEST or np.ldexp(1.0, -used).sum() != 1:
        raise CorruptFile("a Huffman table that is no code")
    if count > 8 * reader.left:
        raise CorruptFile(f"{reader.left} bytes cannot hold {count} symbols")
    return _decode_words(reader.rest(), lengths, count)


def code_lengths(counts: Symbols) -> Symbols:
    """Lengths of the code words of symbols with these counts, 0 for a count of 0; at most LONGEST."""
    lengths = _huffman(counts)
    if lengths.max(initial=0) > LONGEST:
        lengths = _huffman(np.where(counts > 0, np.maximum(counts, counts.sum() // RAREST), 0))
    return lengths


def _huffman(counts: Symbols) -> Symbols:
    lengths = np.zeros(len(counts), np.int64)
    heap = [(int(count), i, [i]) for i, count in enumerate(counts) if count]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, _, first), (b, order, second) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[first + second] += 1
        heapq.heappush(heap, (a + b, order, first + second))
    return lengths


def _code_words(lengths: Symbols) -> Symbols:
    """The shortest first, of equal length in the order of the symbols."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    starts = np.cumsum(1 << (LONGEST - lengths[order])) - (1 << (LONGEST - lengths[order]))
    words = np.zeros(len(lengths), np.int64)
    words[order] = starts >> (LONGEST - lengths[order])
    return words


def _decode_words(data: bytes, lengths: Symbols, count: int) -> Symbols:
    """Which word begins at each bit is looked up for a block at once; then the words are followed one by one."""
    longest = int(lengths.max())
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    symbol_at = np.repeat(order, 1 << (longest - lengths[order])).astype(np.int32)  # by the next `longest` bits
    length_at = lengths[symbol_at].astype(np.uint8)
    padded = np.frombuffer(data + bytes(4), np.uint8)
    result = np.empty(count, np.int32)
    done = first = 0  # symbols, and the bit within the block at which the next one begins
    for start in range(0, len(data), BLOCK):
        part = padded[start : start + BLOCK + 4].astype(np.uint32)
        n = min(BLOCK, len(data) - start)
        window = part[:n] << 24 | part[1 : n + 1] << 16 | part[2 : n + 2] << 8 | part[3 : n + 3]
        ahead = np.empty((n, 8), np.uint32)
        for bit in range(8):
            ahead[:, bit] = (window << bit & 0xFFFFFFFF) >> (32 - longest)
        codes = ahead.reshape(-1)
        begins, first = _followed(length_at[codes].tobytes(), first, 8 * n, count - done)
        result[done : done + len(begins)] = symbol_at[codes[begins]]
        done += len(begins)
    if done < count or first > 0:
        raise CorruptFile("a Huffman stream that ends early")
    return result


def _followed(steps: bytes, at: int, end: int, most: int) -> tuple[list[int], int]:
    """Where words begin before `end`, at most so many; and where the next one begins, counted from `end`."""
    begins = []
    for _ in range(most):
        if at >= end:
            break
        begins.append(at)
        at += steps[at]
    return begins, at - end
