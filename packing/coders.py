"""Entropy coders for streams of small whole numbers, and the choice of the smallest.

A coded stream begins with the number of its coder; how many symbols follow is known from elsewhere. Static coders
carry their table, the adaptive one learns it as it goes (no table, but slow: for short streams). The arithmetic is
the constriction library's (Bamler 2022, arXiv:2201.01741).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

import constriction
import numpy as np
import numpy.typing as npt

from ..errors import CorruptFile
from .bytestream import Reader, varint

Symbols = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_SYMBOLS = 1 << 16  # of an alphabet
HUFFMAN_LENGTH = 1 << 20  # symbols up to which Huffman is tried unasked: it only wins by its smaller table
ADAPTIVE_LENGTH = 1 << 14  # symbols that the adaptive coder takes; it decodes 150,000 a second
LONGEST_CODE = 32  # bits of a Huffman code word
PRIOR = 0.4  # what the adaptive coder's counts begin with; Krichevsky and Trofimov have 1/2, fewer suits skewed streams
WORD = 4  # bytes


class Coder(NamedTuple):
    """Symbols to bytes (None: not for such symbols), and back with their number."""

    encode: Callable[[Symbols], bytes | None]
    decode: Callable[[Reader, int], Symbols]


def encode(symbols: npt.ArrayLike, coder: str | None = None) -> bytes:
    """The smallest coding of nonnegative whole numbers below 2^16; or one coder's, where it takes such symbols."""
    array = np.asarray(symbols, dtype=np.int64).ravel()
    if len(array) and not 0 <= int(array.min()) <= int(array.max()) < MOST_SYMBOLS:
        raise ValueError(f"symbols are whole numbers from 0 to {MOST_SYMBOLS - 1}")
    if coder is not None and (body := CODERS[coder].encode(array)) is not None:
        return bytes([list(CODERS).index(coder)]) + body
    tried = [name for name in CODERS if name != "huffman" or len(array) <= HUFFMAN_LENGTH]
    coded = {name: body for name in tried if (body := CODERS[name].encode(array)) is not None}
    name = min(coded, key=lambda name: len(coded[name]))
    return bytes([list(CODERS).index(name)]) + coded[name]


def decode(data: bytes, count: int) -> Symbols:
    """`encode`'s symbols; raises CorruptFile, and takes no more memory than `count` symbols need."""
    reader = Reader(data)
    number = reader.byte()
    if number >= len(CODERS):
        raise CorruptFile(f"there is no coder {number}")
    return list(CODERS.values())[number].decode(reader, count)


def coder_of(data: bytes) -> str:
    """The name of a stream's coder."""
    return list(CODERS)[data[0]]


# -- plain bits ----------------------------------------------------------------------------------------------------


def _encode_bits(symbols: Symbols) -> bytes:
    width = int(symbols.max(initial=0)).bit_length()
    bits = symbols[:, None] >> np.arange(width)[::-1] & 1
    return bytes([width]) + np.packbits(bits.astype(np.uint8)).tobytes()


def _decode_bits(reader: Reader, count: int) -> Symbols:
    width = reader.byte()
    if width > MOST_SYMBOLS.bit_length():
        raise CorruptFile(f"symbols of {width} bits")
    packed = np.frombuffer(reader.take((count * width + 7) // 8), np.uint8)
    bits = np.unpackbits(packed, count=count * width).reshape(count, width)
    result = np.zeros(count, np.int64)
    for column in bits.T:
        result = result << 1 | column
    return result


# -- Huffman ---------------------------------------------------------------------------------------------------------


def _encode_huffman(symbols: Symbols) -> bytes | None:
    lengths = _code_lengths(np.bincount(symbols)) if len(symbols) else np.zeros(0, np.int64)
    if np.count_nonzero(lengths) < 2 or lengths.max() > LONGEST_CODE:
        return None
    used = np.flatnonzero(lengths)
    rank = np.cumsum(lengths > 0) - 1
    codebook = constriction.symbol.huffman.EncoderHuffmanTree(_dyadic(lengths[used]))
    coder = constriction.symbol.QueueEncoder()
    for symbol in rank[symbols].tolist():
        coder.encode_symbol(symbol, codebook)
    words, _ = coder.get_compressed()
    return varint(len(lengths)) + bytes(lengths.tolist()) + to_bytes(words)


def _decode_huffman(reader: Reader, count: int) -> Symbols:
    size = reader.varint(MOST_SYMBOLS)
    lengths = np.frombuffer(reader.take(size), np.uint8).astype(np.int64)
    used = np.flatnonzero(lengths)
    kraft = np.ldexp(1.0, -lengths[used]).sum()
    if len(used) < 2 or lengths.max() > LONGEST_CODE or kraft != 1:
        raise CorruptFile("a Huffman table that is no code")
    codebook = constriction.symbol.huffman.DecoderHuffmanTree(_dyadic(lengths[used]))
    coder = constriction.symbol.QueueDecoder(to_words(reader.rest()))
    try:
        ranks = [coder.decode_symbol(codebook) for _ in range(count)]
    except (AssertionError, ValueError, IndexError) as error:
        raise CorruptFile(f"a Huffman stream that ends early ({error})") from None
    return np.asarray(used[np.asarray(ranks, dtype=np.int64)])


def _code_lengths(counts: Symbols) -> Symbols:
    """Lengths of the Huffman code words of symbols with these counts, 0 for a count of 0."""
    lengths = np.zeros(len(counts), np.int64)
    heap = [(int(count), i, [i]) for i, count in enumerate(counts) if count]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, _, first), (b, order, second) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[first + second] += 1
        heapq.heappush(heap, (a + b, order, first + second))
    return lengths


def _dyadic(lengths: Symbols) -> Floats:
    return np.ldexp(1.0, -lengths)


# -- asymmetric numeral systems, with a table --------------------------------------------------------------------------


def _encode_ans(symbols: Symbols) -> bytes | None:
    if len(symbols) == 0:
        return None
    counts = np.bincount(symbols)
    coder = constriction.stream.stack.AnsCoder()
    if len(counts) > 1:
        coder.encode_reverse(symbols.astype(np.int32), _categorical(counts))
    return varint(len(counts)) + b"".join(varint(int(count)) for count in counts) + to_bytes(coder.get_compressed())


def _decode_ans(reader: Reader, count: int) -> Symbols:
    size = reader.varint(MOST_SYMBOLS)
    counts = np.array([reader.varint() for _ in range(size)], dtype=np.int64)
    if counts.sum() != count or size == 0 or (counts < 0).any():
        raise CorruptFile("a table of counts that do not add up")
    if size == 1:
        return np.zeros(count, np.int64)
    coder = constriction.stream.stack.AnsCoder(to_words(reader.rest()))
    return decoded(lambda: coder.decode(_categorical(counts), count))


def _categorical(counts: npt.NDArray[np.generic]) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(np.asarray(counts, np.float64), perfect=False)


# -- range coding that learns its table --------------------------------------------------------------------------------


def _encode_adaptive(symbols: Symbols) -> bytes | None:
    if not 0 < len(symbols) <= ADAPTIVE_LENGTH:
        return None
    size = int(symbols.max()) + 1
    coder, counts = constriction.stream.queue.RangeEncoder(), np.full(size, PRIOR)
    if size > 1:
        for symbol in symbols.tolist():
            coder.encode(symbol, _categorical(counts))
            counts[symbol] += 1
    return varint(size) + to_bytes(coder.get_compressed())


def _decode_adaptive(reader: Reader, count: int) -> Symbols:
    size = reader.varint(MOST_SYMBOLS)
    if not 0 < count <= ADAPTIVE_LENGTH or size == 0:
        raise CorruptFile("an adaptive stream of that length")
    result = np.zeros(count, np.int64)
    if size > 1:
        coder, counts = constriction.stream.queue.RangeDecoder(to_words(reader.rest())), np.full(size, PRIOR)
        for i in range(count):
            symbol = int(decoded(lambda: coder.decode(_categorical(counts))))
            result[i] = symbol
            counts[symbol] += 1
    return result


# -- words and bytes ---------------------------------------------------------------------------------------------------


def to_bytes(words: npt.NDArray[np.uint32]) -> bytes:
    """Little-endian, without the zero bytes at the end of the last word, which `to_words` puts back."""
    data = words.astype("<u4").tobytes()
    return data[: max(len(data.rstrip(b"\0")), len(data) - WORD + 1)]


def to_words(data: bytes) -> npt.NDArray[np.uint32]:
    """`to_bytes`'s words."""
    padded = data + bytes(-len(data) % WORD)
    return np.frombuffer(padded, "<u4").astype(np.uint32)


def decoded(decode: Callable[[], object]) -> Symbols:
    """What constriction decodes; raises CorruptFile where it finds the data impossible."""
    try:
        return np.asarray(decode(), dtype=np.int64)
    except (AssertionError, ValueError) as error:
        raise CorruptFile(f"a coded stream that its table does not fit ({error})") from None


CODERS = {
    "bits": Coder(_encode_bits, _decode_bits),
    "huffman": Coder(_encode_huffman, _decode_huffman),
    "ans": Coder(_encode_ans, _decode_ans),
    "adaptive": Coder(_encode_adaptive, _decode_adaptive),
}
