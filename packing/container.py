"""The packed file: a header in JSON and one coded stream a tensor, each with a checksum (docs/packed-format.md).

    4 bytes   PZOO
    1 byte    version
    varint    length of the deflated header, then 4 bytes of its CRC-32, then the header
    streams   one after another; the header holds the length and CRC-32 of each

A reader takes no length on trust: everything is checked against what is there before memory is taken.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CorruptFile
from .bytestream import Reader, varint
from .forms import inflate

MAGIC = b"PZOO"
VERSION = 1
MOST_HEADER = 1 << 24  # bytes of JSON
# What headers say again and again, so that it need not be said in each file; a change of it is a new version.
DICTIONARY = (
    b'"classes":["0","1","2","3","4","5","6","7","8","9"],"hash":"","in_channels":1,"mean":[0.13],"name":"mnist",'
    b'"resize":"shorter side to resolution, centre crop","resolution":28,"std":[0.3081]},"edits":[{"by":["sequence",'
    b'["conv",1,["linear",false],true],"replace":"features.classifier."}],"input":[1,3,32,32],"widths":{"recipe":"'
    b'prune | kmeans | huffman","streams":[["architecture":{"family":"lenet5","format":1,"in_channels":1,"num_classes":'
    b'10,"resolution":28,"settings":{},"widths":null},"data":{'
)


def pack(header: Mapping[str, Any], streams: Sequence[bytes]) -> bytes:
    """The file's bytes."""
    directory = [[len(stream), zlib.crc32(stream)] for stream in streams]
    text = json.dumps({**header, "streams": directory}, sort_keys=True, separators=(",", ":")).encode()
    deflater = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    body = deflater.compress(text) + deflater.flush()
    return (
        MAGIC + bytes([VERSION]) + varint(len(body)) + zlib.crc32(body).to_bytes(4, "little") + body + b"".join(streams)
    )


def unpack(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """`pack`'s header and streams; raises CorruptFile."""
    reader = Reader(data)
    if reader.left < len(MAGIC) or reader.take(len(MAGIC)) != MAGIC:
        raise CorruptFile("not a packed file of pocketzoo")
    if (version := reader.byte()) > VERSION:
        raise CorruptFile(f"format version {version} is newer than {VERSION}: update pocketzoo")
    length = reader.varint(reader.left)
    checksum = reader.take(4)
    body = reader.take(length)
    if zlib.crc32(body).to_bytes(4, "little") != checksum:
        raise CorruptFile("the header is damaged (its checksum differs)")
    header = _header(inflate(body, MOST_HEADER, DICTIONARY))
    streams = []
    for number, (size, crc) in enumerate(header.pop("streams")):
        stream = reader.take(size)
        if zlib.crc32(stream) != crc:
            raise CorruptFile(f"stream {number} is damaged (its checksum differs)")
        streams.append(stream)
    if reader.left:
        raise CorruptFile(f"{reader.left} bytes after the last stream")
    return header, streams


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"the header is no JSON ({error})") from None
    directory = header.get("streams") if isinstance(header, dict) else None
    if not isinstance(directory, list) or not all(_is_entry(entry) for entry in directory):
        raise CorruptFile("the header has no directory of streams")
    return dict(header)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(type(n) is int and n >= 0 for n in entry)
