"""How one tensor is stored: the smallest of several forms, all of them exact to the bit.

| form | a tensor that | what is stored |
|---|---|---|
| fill | has one value everywhere | the value |
| raw | has nothing to exploit | its numbers, halves where they are halves; deflated, or coded byte by byte |
| levels | has few different numbers, zeros among them | where weights stand, the levels, a level for each weight |
| integers | is whole numbers times a scale, one or one a row | the scales and the whole numbers |
| product | is put together from a codebook's vectors, once or as a sum | the codebooks and which vector stands where |

The first four are found in the numbers themselves, so that a pass has only to leave such numbers; what a pass knows and
nobody can see (the scales, the codebooks) comes as a hint.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import CorruptFile
from . import coders, masks
from .bytestream import Reader, varint

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

FILL, RAW, LEVELS, INTEGERS, PRODUCT = range(5)
FULL, HALF = 0, 1  # 32-bit numbers, or 16-bit ones that are the same
PLAIN, DEFLATED, PLANES = range(3)
DEFLATED_SIZE = 1 << 20  # bytes up to which deflating is tried: it is slow, and only helps where numbers repeat
MOST_LEVELS = 1 << 12
SAMPLE = 1 << 15  # weights that are looked at before all of them are sorted
MOST_INTEGER = 1 << 15
MOST_BOOKS = 16


@dataclass(frozen=True)
class Scaled:
    """A hint: whole numbers times these scales, one or one a row, each as float32."""

    scales: Floats


@dataclass(frozen=True)
class Book:
    """A codebook [parts, size, length] and which vector [rows, parts] stands where, side by side in a row."""

    vectors: Floats
    indices: npt.NDArray[np.int64]

    def assembled(self) -> Floats:
        """[rows, parts * length]."""
        parts = np.arange(self.vectors.shape[0])
        return self.vectors[parts, self.indices].reshape(len(self.indices), -1)


@dataclass(frozen=True)
class Books:
    """A hint: the sum of what codebooks assemble, first to last."""

    books: tuple[Book, ...]

    def assembled(self) -> Floats:
        """[rows, columns]."""
        total = self.books[0].assembled()
        for book in self.books[1:]:
            total = total + book.assembled()
        return total


Hint = Scaled | Books | None


def encode(tensor: Tensor, hint: Hint = None, coder: str | None = None) -> bytes:
    """The smallest form; a hint that does not give these very numbers is not used. `coder`: as `coders.encode`."""
    array = _array(tensor)
    if array.size and (array.view(_bits(array)) == array.reshape(-1)[:1].view(_bits(array))[0]).all():
        return bytes([FILL]) + _little_endian(array.reshape(-1)[:1])
    candidates = []
    if array.dtype == np.float32 and array.size:
        candidates = [_levels(array, coder), _integers(array, hint, coder), _product(array, hint, coder)]
    found = [form for form in candidates if form is not None]
    if not found or min(map(len, found)) > array.nbytes // 3:  # otherwise it wins, and raw takes time
        found.append(_raw(array))
    return min(found, key=len)


def decode(data: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """`encode`'s tensor; raises CorruptFile, and takes memory for that shape only."""
    reader = Reader(data)
    form = reader.byte()
    kind = _array(torch.empty(0, dtype=dtype)).dtype
    if form >= len(DECODERS) or (form > RAW and kind != np.float32):
        raise CorruptFile(f"there is no form {form} of {kind}")
    array = DECODERS[form](reader, shape, kind)
    return torch.from_numpy(np.ascontiguousarray(array)).view(dtype).reshape(shape)


def _array(tensor: Tensor) -> Array:
    """The tensor's numbers; as whole numbers of its size where NumPy has no such kind (bfloat16, bool)."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in (torch.float64, torch.float32, torch.float16) or not tensor.dtype.is_floating_point:
        array = (tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor).numpy()
    else:
        array = tensor.view({1: torch.uint8, 2: torch.int16}[tensor.element_size()]).numpy()
    return array


def _little_endian(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _bits(array: Array) -> str:
    return f"u{array.dtype.itemsize}"


# -- one value, or all of them -------------------------------------------------------------------------------------


def _decode_fill(reader: Reader, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    return np.full(shape, np.frombuffer(reader.take(kind.itemsize), kind.newbyteorder("<"))[0], kind)


def _raw(array: Array) -> bytes:
    return bytes([RAW]) + _numbers(array)


def _decode_raw(reader: Reader, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    return _read_numbers(reader, prod(shape), kind)


def _numbers(array: Array) -> bytes:
    """Numbers as halves where nothing is lost: plain, deflated, or coded byte by byte, the highest first."""
    width, narrow = FULL, array
    if array.dtype == np.float32:
        with np.errstate(over="ignore", invalid="ignore"):
            half = array.astype(np.float16)
            same = (half.astype(np.float32).view(np.uint32) == array.view(np.uint32)).all()
        if same:
            width, narrow = HALF, half
    plain = _little_endian(narrow)
    found = [bytes([width << 2 | PLAIN]) + plain]
    if len(plain) <= DEFLATED_SIZE:
        found.append(bytes([width << 2 | DEFLATED]) + _sized(deflate(plain)))
    if narrow.dtype.kind == "f":
        planes = np.frombuffer(plain, np.uint8).reshape(-1, narrow.itemsize).T[::-1]
        found.append(bytes([width << 2 | PLANES]) + b"".join(_sized(coders.encode(plane)) for plane in planes))
    return min(found, key=len)


def _read_numbers(reader: Reader, count: int, kind: np.dtype[Any]) -> Array:
    how = reader.byte()
    width, packing = how >> 2, how & 3
    if width > HALF or packing > PLANES or (width == HALF and kind != np.float32):
        raise CorruptFile(f"numbers of kind {how}")
    stored = np.dtype(np.float16) if width == HALF else kind
    size = count * stored.itemsize
    if packing == PLANES:
        planes = np.empty((count, stored.itemsize), np.uint8)
        for place in reversed(range(stored.itemsize)):
            plane = coders.decode(_unsized(reader), count)
            if plane.max(initial=0) > 0xFF:
                raise CorruptFile("a byte above 255")
            planes[:, place] = plane
        body: Any = planes
    else:
        body = inflate(_unsized(reader), size) if packing == DEFLATED else reader.take(size)
        if len(body) != size:
            raise CorruptFile(f"{len(body)} bytes for {count} numbers of {stored.itemsize}")
    with np.errstate(invalid="ignore"):  # a half that is no number
        return np.frombuffer(body, stored.newbyteorder("<")).astype(kind)


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def _unsized(reader: Reader) -> bytes:
    return reader.take(reader.varint(reader.left))


def deflate(data: bytes, dictionary: bytes = b"") -> bytes:
    """Deflated without a frame: whoever stores it has a checksum of their own."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, dictionary)
    return deflater.compress(data) + deflater.flush()


def inflate(data: bytes, most: int, dictionary: bytes = b"") -> bytes:
    """Deflated bytes, `most` of them at the most; raises CorruptFile."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, dictionary)
    try:
        body = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise CorruptFile(f"deflated bytes that are damaged ({error})") from None
    if len(body) > most or not inflater.eof:
        raise CorruptFile(f"deflated bytes that are not {most} bytes or fewer")
    return body


# -- few levels, and zeros -----------------------------------------------------------------------------------------


def _levels(array: Floats, coder: str | None) -> bytes | None:
    bits = array.reshape(-1).view(np.uint32)
    stands = bits != 0
    weights = bits[stands]
    if len(np.unique(weights[:: 1 + len(weights) // SAMPLE])) > MOST_LEVELS:
        return None
    levels, which = np.unique(weights, return_inverse=True)
    if len(levels) > MOST_LEVELS:
        return None
    values = levels.view(np.float32)
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    where = masks.encode(stands.reshape(len(array), -1), coder) if not stands.all() else b""
    chosen = coders.encode(rank[which], coder) if len(levels) > 1 else b""
    return bytes([LEVELS]) + varint(len(levels)) + _numbers(values[order]) + _sized(where) + chosen


def _decode_levels(reader: Reader, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    count = reader.varint(MOST_LEVELS)
    values = _read_numbers(reader, count, kind)
    where = _unsized(reader)
    rows, size = (shape[0] if shape else 1), prod(shape)
    stands = masks.decode(where, rows, size // rows) if where else slice(None)
    n = size if isinstance(stands, slice) else len(stands)
    if n and not count:
        raise CorruptFile("weights without a level")
    which = coders.decode(reader.rest(), n) if count > 1 else np.zeros(n, np.int64)
    result = np.zeros(size, np.float32)
    result[stands] = _looked_up(values, which)
    return result


def _looked_up(values: Array, which: npt.NDArray[np.int64]) -> Array:
    if which.max(initial=0) >= max(1, len(values)):
        raise CorruptFile("an index beyond its codebook")
    return values[which]


# -- whole numbers times a scale -----------------------------------------------------------------------------------


def _integers(array: Floats, hint: Hint, coder: str | None) -> bytes | None:
    if not isinstance(hint, Scaled) or len(hint.scales) not in (1, len(array)) or not hint.scales.all():
        return None
    rows = array.reshape(len(array), -1)
    whole = np.rint(rows / hint.scales.reshape(-1, 1))
    if not ((whole >= -MOST_INTEGER) & (whole < MOST_INTEGER)).all():
        return None
    if (_scaled(whole.astype(np.int64), hint.scales).view(np.uint32) != rows.view(np.uint32)).any():
        return None
    least = int(whole.min())
    return (
        bytes([INTEGERS]) + varint(len(hint.scales)) + _numbers(hint.scales) + varint(least + MOST_INTEGER)
        + coders.encode(whole.astype(np.int64) - least, coder)
    )  # fmt: skip


def _decode_integers(reader: Reader, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    rows = shape[0] if shape else 1
    count = reader.varint(rows)
    if count not in (1, rows):
        raise CorruptFile(f"{count} scales for {rows} rows")
    scales = _read_numbers(reader, count, kind)
    least = reader.varint(2 * MOST_INTEGER) - MOST_INTEGER
    whole = coders.decode(reader.rest(), prod(shape)) + least
    return _scaled(whole.reshape(rows, -1), scales)


def _scaled(whole: npt.NDArray[np.int64], scales: Floats) -> Floats:
    return np.asarray(whole.astype(np.float32) * scales.reshape(-1, 1).astype(np.float32))


# -- codebooks of vectors ------------------------------------------------------------------------------------------


def _product(array: Floats, hint: Hint, coder: str | None) -> bytes | None:
    if not isinstance(hint, Books):
        return None
    assembled = hint.assembled()
    if (
        assembled.size != array.size
        or (assembled.reshape(-1).view(np.uint32) != array.reshape(-1).view(np.uint32)).any()
    ):
        return None
    stored = bytes([PRODUCT]) + varint(len(hint.books))
    for book in hint.books:
        parts, size, length = book.vectors.shape
        chosen = b"".join(_sized(coders.encode(column, coder)) for column in book.indices.T)
        stored += varint(parts) + varint(size) + varint(length) + _numbers(book.vectors.reshape(-1)) + chosen
    return stored


def _decode_product(reader: Reader, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    rows, size = (shape[0] if shape else 1), prod(shape)
    books = []
    for _ in range(reader.varint(MOST_BOOKS)):
        parts, count, length = (reader.varint(max(1, size)) for _ in range(3))
        if parts * length * rows != size or parts * count * length > max(size, reader.left):
            raise CorruptFile(f"codebooks of {parts} x {count} x {length} for {size} numbers")
        vectors = _read_numbers(reader, parts * count * length, kind).reshape(parts, count, length)
        chosen = [coders.decode(_unsized(reader), rows) for _ in range(parts)]
        indices = np.stack(chosen, axis=1)
        if indices.max(initial=0) >= count:
            raise CorruptFile("an index beyond its codebook")
        books.append(Book(vectors, indices))
    if not books:
        raise CorruptFile("no codebook")
    return Books(tuple(books)).assembled()


DECODERS: tuple[Callable[[Reader, tuple[int, ...], np.dtype[Any]], Array], ...] = (
    _decode_fill, _decode_raw, _decode_levels, _decode_integers, _decode_product,
)  # fmt: skip
