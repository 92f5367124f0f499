"""Entropy coders for streams of small whole numbers, and the choice of the smallest.

A coded stream begins with the number of its coder; how many symbols follow is known from elsewhere. Static coders
carry their table, the adaptive one learns it as it goes (no table, but slow: for short streams). The arithmetic of the
last two is the constriction library's (Bamler 2022, arXiv:2201.01741).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import constriction
import numpy as np
import numpy.typing as npt

from ..errors import CorruptFile
from . import huffman
from .bytestream import Reader, varint

Symbols = npt.NDArray[Any]  # whole numbers

MOST_SYMBOLS = 1 << 16  # of an alphabet
LONG = 1 << 20  # symbols from which coding must save a share of LEAST_SAVED to be worth the time it takes to read
LEAST_SAVED = 0.02
ADAPTIVE_LENGTH = 1 << 14  # symbols that the adaptive coder takes; it decodes 150,000 a second
PRIOR = 0.4  # what the adaptive coder's counts begin with; Krichevsky and Trofimov have 1/2, fewer suits skewed streams
WORD = 4  # bytes


class Coder(NamedTuple):
    """Symbols to bytes (None: not for such symbols), and back with their number."""

    encode: Callable[[Symbols], bytes | None]
    decode: Callable[[Reader, int], Symbols]


def encode(symbols: npt.ArrayLike, coder: str | None = None) -> bytes:
    """The smallest coding of nonnegative whole numbers below 2^16; or one coder's, where it takes such symbols."""
    array = np.asarray(symbols).ravel()
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < MOST_SYMBOLS:
        raise ValueError(f"symbols are whole numbers from 0 to {MOST_SYMBOLS - 1}")
    array = array.astype(np.int32)
    if coder is not None and (body := CODERS[coder].encode(array)) is not None:
        return bytes([list(CODERS).index(coder)]) + body
    # Huffman's code only wins by its smaller table, so not where there is much to read with it.
    tried = [name for name in CODERS if name != "huffman" or len(array) <= LONG]
    coded = {name: body for name in tried if (body := CODERS[name].encode(array)) is not None}
    name = min(coded, key=lambda name: len(coded[name]))
    if len(array) > LONG and len(coded[name]) > (1 - LEAST_SAVED) * len(coded["bits"]):
        name = "bits"
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
    if width == 8:
        return bytes([width]) + symbols.astype(np.uint8).tobytes()
    bits = np.empty((len(symbols), width), np.uint8)
    for place in range(width):
        bits[:, place] = symbols >> (width - 1 - place) & 1
    return bytes([width]) + np.packbits(bits).tobytes()


def _decode_bits(reader: Reader, count: int) -> Symbols:
    width = reader.byte()
    if width > MOST_SYMBOLS.bit_length() - 1:
        raise CorruptFile(f"symbols of {width} bits")
    packed = np.frombuffer(reader.take((count * width + 7) // 8), np.uint8)
    if width == 8:
        return packed.astype(np.int32)
    bits = np.unpackbits(packed, count=count * width).reshape(count, width)
    result = np.zeros(count, np.int32)
    for column in bits.T:
        result = result << 1 | column
    return result


# -- asymmetric numeral systems, with a table --------------------------------------------------------------------------


def _encode_ans(symbols: Symbols) -> bytes | None:
    if len(symbols) == 0:
        return None
    counts = np.bincount(symbols)
    coder = constriction.stream.stack.AnsCoder()
    if len(counts) > 1:
        coder.encode_reverse(symbols.astype(np.int32, copy=False), _categorical(counts))
    return varint(len(counts)) + b"".join(varint(int(count)) for count in counts) + to_bytes(coder.get_compressed())


def _decode_ans(reader: Reader, count: int) -> Symbols:
    size = reader.varint(MOST_SYMBOLS)
    counts = [reader.varint(count) for _ in range(size)]
    if sum(counts) != count or size == 0:
        raise CorruptFile("a table of counts that do not add up")
    if size == 1:
        return np.zeros(count, np.int32)
    coder = constriction.stream.stack.AnsCoder(to_words(reader.rest()))
    return decoded(lambda: coder.decode(_categorical(np.array(counts)), count))


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
    return varint(size) + sealed(coder)


def _decode_adaptive(reader: Reader, count: int) -> Symbols:
    size = reader.varint(MOST_SYMBOLS)
    if not 0 < count <= ADAPTIVE_LENGTH or size == 0:
        raise CorruptFile("an adaptive stream of that length")
    result = np.zeros(count, np.int32)
    if size > 1:
        coder, counts = opened(reader.rest()), np.full(size, PRIOR)
        for i in range(count):
            symbol = int(decoded(lambda: coder.decode(_categorical(counts))))
            result[i] = symbol
            counts[symbol] += 1
    return result


# -- words and bytes ---------------------------------------------------------------------------------------------------


def to_bytes(words: npt.NDArray[np.uint32]) -> bytes:
    """An ANS coder's words, little-endian, without the zero bytes at the last one's end, which `to_words` puts back."""
    data = words.astype("<u4").tobytes()
    return data[: max(len(data.rstrip(b"\0")), len(data) - WORD + 1)]


def to_words(data: bytes) -> npt.NDArray[np.uint32]:
    """`to_bytes`'s words."""
    padded = data + bytes(-len(data) % WORD)
    return np.frombuffer(padded, "<u4").astype(np.uint32)


def sealed(coder: constriction.stream.queue.RangeEncoder) -> bytes:
    """A range coder's words, big-endian, without the zero bytes at the end, which `opened` puts back.

    Of the last words that end its range right, it is the one with the most zero bytes.
    """
    words = coder.get_compressed()
    written, (lower, size) = coder.pos()
    if len(words) == written + 1:
        for zeros in (24, 16, 8):
            last = -(-int(words[-1]) >> zeros) << zeros
            if last < 1 << 8 * WORD and ((last << 8 * WORD) - lower) % (1 << 16 * WORD) < size:
                words[-1] = last
                break
    data: bytes = words.astype(">u4").tobytes()
    return data.rstrip(b"\0")


def opened(data: bytes) -> constriction.stream.queue.RangeDecoder:
    """The decoder of `sealed`'s bytes."""
    padded = data + bytes(-len(data) % WORD + 2 * WORD)
    return constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))


def decoded(decode: Callable[[], object]) -> Symbols:
    """What constriction decodes; raises CorruptFile where it finds the data impossible."""
    try:
        return np.asarray(decode())
    except (AssertionError, ValueError) as error:
        raise CorruptFile(f"a coded stream that its table does not fit ({error})") from None


CODERS = {
    "bits": Coder(_encode_bits, _decode_bits),
    "huffman": Coder(huffman.encode, huffman.decode),
    "ans": Coder(_encode_ans, _decode_ans),
    "adaptive": Coder(_encode_adaptive, _decode_adaptive),
}
