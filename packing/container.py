"""The packed file: a header in JSON and the coded tensors, all with checksums (docs/packed-format.md).

    4 bytes   PZOO
    1 byte    version
    varint    length of the deflated header, then 4 bytes of its CRC-32, then the header
    streams   one after another; the header holds the length and CRC-32 of each

A stream holds tensors one after another, each behind its length; a new stream begins when one has got long, so that a
small file has one checksum and a large one does not lose everything to one bit. A reader takes no length on trust:
everything is checked against what is there before memory is taken.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import CorruptFile
from .bytestream import Reader, varint
from .forms import deflate, inflate

MAGIC = b"PZOO"
VERSION = 1
MOST_HEADER = 1 << 24  # bytes of JSON
STREAM = 1 << 16  # bytes after which a new stream begins
# What headers say again and again, so that it need not be said in each file; a change of it is a new version.
DICTIONARY = (
    b"distil(surgery({'conv1': 0.5, 'conv2': 'hidden': 'hidden1': 'hidden2': 'classifier': 1.0}, svd(rank=fixe"
    b"d(scope='layer', schedule='iterative', rounds=turns=False, lr=0.01, conv_bits=init='linear', \"edits\":[{\""
    b'by":["sequence",["conv",1,["linear",false],true],"replace":"features.classifier."}],"input":[1,3,32,32],'
    b'"widths":{"classes":["0","1","2","3","4","5","6","7","8","9"],"in_channels":3,"mean":[0.13],"name":"digi'
    b'ts cifar10 mnist","resize":"shorter side to resolution (bilinear, antialiased), centre crop","resolution'
    b'":32,"std":[0.3081]},"recipe":"surgery(sparsity=0.9, epochs=10) | prune(0.9) | kmeans(bits=5, epochs=1) '
    b'| half | huffman","streams":[["tensors":["architecture":{"family":"lenet_300_100","format":1,"in_channel'
    b's":1,"num_classes":10,"resolution":28,"settings":{"kernel":5},"widths":null},"data":{"classes":["0","1",'
    b'"2","3","4","5","6","7","8","9"],"in_channels":1,"mean":["family":"lenet5","format":1,"in_channels":1,"n'
    b'um_classes":10,"resolution":28,"settings":{},"widths":null},"data":{'
)


def pack(header: Mapping[str, Any], tensors: Sequence[bytes]) -> bytes:
    """The file's bytes."""
    streams = [b""]
    for tensor in tensors:
        if len(streams[-1]) >= STREAM:
            streams.append(b"")
        streams[-1] += varint(len(tensor)) + tensor
    directory = [[len(stream), zlib.crc32(stream)] for stream in streams]
    text = json.dumps({**header, "streams": directory}, sort_keys=True, separators=(",", ":")).encode()
    body = deflate(text, DICTIONARY)
    return (
        MAGIC + bytes([VERSION]) + varint(len(body)) + zlib.crc32(body).to_bytes(4, "little") + body + b"".join(streams)
    )


def unpack(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """`pack`'s header and tensors; raises CorruptFile."""
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
    tensors: list[bytes] = []
    for number, (size, crc) in enumerate(header.pop("streams")):
        stream = reader.take(size)
        if zlib.crc32(stream) != crc:
            raise CorruptFile(f"stream {number} is damaged (its checksum differs)")
        tensors += _tensors(stream)
    if reader.left:
        raise CorruptFile(f"{reader.left} bytes after the last stream")
    return header, tensors


def _tensors(stream: bytes) -> Iterator[bytes]:
    reader = Reader(stream)
    while reader.left:
        yield reader.take(reader.varint(reader.left))


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
