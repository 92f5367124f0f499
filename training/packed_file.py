"""Packed files on disk: written whole or not at all, read back to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..errors import CorruptFile, InvalidRun
from ..packing.container import MAGIC
from ..packing.packed import Unpacked, unpack_model
from .folder import write_with


def write_packed(path: str | Path, data: bytes) -> int:
    """Write the file; its size in bytes on disk. Raises InvalidRun."""
    write_with(Path(path), lambda temporary: temporary.write_bytes(data))
    return Path(path).stat().st_size


def is_packed(path: Path) -> bool:
    """Whether the file begins as ours do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_packed(path: str | Path, into: nn.Module | None = None, trust: Sequence[str] = ()) -> Unpacked:
    """The model with all that the file says; raises InvalidRun without a file, CorruptFile for a bad one."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidRun(f"{path} cannot be read ({error.strerror or error}); expected a packed file") from None
    try:
        return unpack_model(data, into=into, trust=trust)
    except CorruptFile as error:
        raise CorruptFile(f"{path}: {error}; copy or pack it again") from None


def load_packed(path: str | Path, into: nn.Module | None = None, trust: Sequence[str] = ()) -> nn.Module:
    """The model of a packed file in eval mode, its weights those that were packed, bit by bit.

    A zoo network is built; another's code is imported where `trust` names its `module:factory`, or its weights go into
    a copy of `into`, the unmodified module, after all that was done to the structure. Raises InvalidRun, CorruptFile.
    """
    return read_packed(path, into, trust).model
