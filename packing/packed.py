"""A model to bytes and back: what it is, what was done to its structure, and every tensor in its smallest form."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CorruptFile, InvalidRun, PocketzooError
from ..zoo.architecture import Architecture
from . import container, forms
from .edits import Edit, apply

MOST_BYTES = 1 << 33  # of a model's tensors: a file that claims more is not opened


@dataclass(frozen=True)
class PackedModel:
    """The bytes of a packed file, and how many of them each tensor takes; the rest is the header."""

    data: bytes
    tensors: Mapping[str, int]

    @property
    def header_bytes(self) -> int:
        """Bytes that are no tensor's."""
        return len(self.data) - sum(self.tensors.values())


@dataclass(frozen=True)
class Unpacked:
    """A model in eval mode, its Architecture (None: the packer did not know it), and the header's other entries."""

    model: nn.Module
    architecture: Architecture | None
    header: Mapping[str, Any]


def pack_model(
    model: nn.Module,
    architecture: Architecture | None = None,
    *,
    edits: Sequence[Edit] = (),
    hints: Mapping[str, forms.Hint] | None = None,
    header: Mapping[str, Any] | None = None,
    coder: str | None = None,
) -> PackedModel:
    """Pack a model that is `architecture` (or the reader's own module) after the edits.

    `hints` says of tensors what their numbers do not show; `header` is what else the file should say, as JSON;
    `coder` one that is to code every stream that it can.
    """
    state = unique_state(model)
    streams = {name: forms.encode(tensor, (hints or {}).get(name), coder) for name, tensor in state.items()}
    record = dict(header or {})
    if architecture is not None:
        record["architecture"] = json.loads(architecture.to_json())
    if edits:
        record["edits"] = list(edits)
    if architecture is None:
        record["tensors"] = list(state)
    data = container.pack(record, list(streams.values()))
    return PackedModel(data, {name: len(stream) for name, stream in streams.items()})


def unpack_model(data: bytes, *, into: nn.Module | None = None, trust: Sequence[str] = ()) -> Unpacked:
    """`pack_model`'s model, bit by bit.

    A zoo network is built, another comes from `trust` or goes into a copy of `into`, the unmodified module: the edits
    are done again. Raises CorruptFile for a damaged or hostile file, InvalidRun where nobody said how the network is
    built.
    """
    header, streams = container.unpack(data)
    recorded = header.pop("architecture", None)
    architecture = None if recorded is None else _architecture(recorded)
    edits = header.pop("edits", [])
    if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
        raise CorruptFile("edits that are no list of edits")
    try:
        model = apply(_skeleton(architecture, into, trust), edits)
    except InvalidRun:
        raise
    except PocketzooError as error:
        raise CorruptFile(f"the network that it describes cannot be built: {error}") from None
    _fill(model, streams, header.pop("tensors", None))
    return Unpacked(model.eval(), architecture, header)


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def _architecture(record: Any) -> Architecture:
    try:
        return Architecture.from_json(json.dumps(record))
    except PocketzooError as error:
        raise CorruptFile(f"it holds no architecture that can be built: {error}") from None


def _skeleton(architecture: Architecture | None, into: nn.Module | None, trust: Sequence[str]) -> nn.Module:
    if into is not None:
        return copy.deepcopy(into)
    if architecture is None:
        raise InvalidRun("the file does not say how its network is built: give the unmodified module as into=")
    if architecture.is_foreign:
        if architecture.family not in trust:
            raise InvalidRun(
                f"the file was made by {architecture.family!r}, whose code would be imported; if you trust it, give"
                f" trust=[{architecture.family!r}]"
            )
        return architecture.build()  # may hold tensors outside its state
    with torch.device("meta"):
        return architecture.build()


def _fill(model: nn.Module, streams: Sequence[bytes], names: Any) -> None:
    """Decode each tensor and put it in its place, where the model may have only its shape."""
    state = unique_state(model)
    if names is not None and names != list(state):
        raise CorruptFile("its tensors are not those of the module that it is to go into")
    if len(streams) != len(state):
        raise CorruptFile(f"{len(streams)} tensors, its network has {len(state)}")
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > MOST_BYTES:
        raise CorruptFile(f"a network of more than {MOST_BYTES >> 30} GiB")
    decoded = {
        name: forms.decode(stream, tuple(tensor.shape), tensor.dtype)
        for (name, tensor), stream in zip(state.items(), streams, strict=True)
    }
    shared = {id(tensor): name for name, tensor in state.items()}
    whole = {name: decoded[shared[id(tensor)]] for name, tensor in model.state_dict(keep_vars=True).items()}
    model.load_state_dict(whole, assign=True)
