"""A model to bytes and back: what it is, what was done to its structure, and every tensor in its smallest form."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..errors import CorruptFile, InvalidRun, InvalidSetting, PocketzooError
from ..zoo.architecture import Architecture
from . import container, forms
from .edits import Edit, apply

# What a file may ask for before anything of it is known to be right. Larger numbers are no network's.
MOST_BYTES, MOST_RATIO = 1 << 28, 1 << 12  # of its tensors: so many, and so many more for each byte of the file
MOST_SIDE = {"resolution": 1 << 12, "in_channels": 1 << 16, "num_classes": 1 << 20}
MOST_SETTING = 1 << 16
MOST_MODULES, MODULES_A_TENSOR = 1000, 20


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
    """A model in eval mode, its Architecture (None: the packer did not know it), and what was done to its structure.

    `header` holds the file's other entries.
    """

    model: nn.Module
    architecture: Architecture | None
    edits: tuple[Edit, ...]
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
    `coder` one that is to code every stream that it can. Raises InvalidSetting for a file that no reader would trust:
    more than 256 MiB of tensors of which less than a 4096th is left; and for a model that is not the architecture.
    """
    state = unique_state(model) if architecture is None else _in_readers_order(model, architecture, edits)
    streams = {name: forms.encode(tensor, (hints or {}).get(name), coder) for name, tensor in state.items()}
    record = dict(header or {})
    if architecture is not None:
        record["architecture"] = json.loads(architecture.to_json())
    if edits:
        record["edits"] = list(edits)
    if architecture is None:
        record["tensors"] = list(state)
    data = container.pack(record, list(streams.values()))
    if (size := _size(state)) > _most(data):
        raise InvalidSetting(
            f"{size:,} bytes of weights in a file of {len(data):,}: readers take that for an attack; leave more weights"
        )
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
    with _few_modules(MOST_MODULES + MODULES_A_TENSOR * len(streams)):
        model = _edited(_skeleton(architecture, into, trust), edits, _most(data))
    _fill(model, streams, header.pop("tensors", None), _most(data))
    return Unpacked(model.eval(), architecture, tuple(edits), header)


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor
    return state


def _in_readers_order(model: nn.Module, architecture: Architecture, edits: Sequence[Edit]) -> dict[str, Tensor]:
    """The model's tensors as whoever builds its network will list them: training may have registered some anew."""
    state = unique_state(model)
    theirs = unique_state(_edited(_skeleton(architecture, None, (architecture.family,)), edits, MOST_BYTES))
    if odd := sorted(state.keys() ^ theirs.keys()):
        raise InvalidSetting(f"the model is not its architecture after its edits: {odd[0]!r} is in one of them only")
    return {name: state[name] for name in theirs}


def _architecture(record: Any) -> Architecture:
    try:
        architecture = Architecture.from_json(json.dumps(record))
        is_record = isinstance(architecture.family, str) and isinstance(architecture.settings, dict)
        small = all(getattr(architecture, name) <= most for name, most in MOST_SIDE.items())
        if not is_record or not small or not _small(architecture.settings):
            raise CorruptFile("its network is none, or too large")
    except (PocketzooError, RecursionError) as error:
        raise CorruptFile(f"it holds no architecture that can be built: {error}") from None
    return architecture


def _small(value: Any) -> bool:
    if isinstance(value, dict | tuple):
        return all(_small(entry) for entry in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or abs(value) <= MOST_SETTING


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
    try:
        with torch.device("meta"):
            return architecture.build()
    except Exception as error:  # whatever a family says to settings that it was never meant for
        raise CorruptFile(f"the network that it describes cannot be built: {error}") from None


def _edited(model: nn.Module, edits: Sequence[Edit], most_bytes: int) -> nn.Module:
    try:
        return apply(model, edits, most_bytes)
    except PocketzooError as error:
        raise CorruptFile(f"what was done to its network cannot be done again: {error}") from None


@contextmanager
def _few_modules(most: int) -> Iterator[None]:
    """Within, whoever builds more modules than that is stopped: a file of a few tensors has no network of millions."""
    built = 0

    def count(*_: Any) -> None:
        nonlocal built
        built += 1
        if built > most:
            raise CorruptFile(f"the network that it describes has more than {most} modules")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _fill(model: nn.Module, streams: Sequence[bytes], names: Any, most_bytes: int) -> None:
    """Decode each tensor and put it in its place, where the model may have only its shape."""
    state = unique_state(model)
    order = list(state) if names is None else names
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(state):
        raise CorruptFile("its tensors are not those of the module that it is to go into")
    if len(streams) != len(state):
        raise CorruptFile(f"{len(streams)} tensors, its network has {len(state)}")
    if _size(state) > most_bytes:
        raise CorruptFile(f"a network of {_size(state):,} bytes, which so small a file does not hold")
    decoded = {
        name: forms.decode(stream, tuple(state[name].shape), state[name].dtype)
        for name, stream in zip(order, streams, strict=True)
    }
    names_by_id = {id(tensor): name for name, tensor in state.items()}
    whole = {
        name: nn.Parameter(decoded[name], tensor.requires_grad) if isinstance(tensor, nn.Parameter) else decoded[name]
        for name, tensor in state.items()
    }
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in names_by_id:  # each name gets the one tensor, so that what was shared still is
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, whole[names_by_id[id(tensor)]])


def _size(state: Mapping[str, Tensor]) -> int:
    """Bytes of a state's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _most(data: bytes) -> int:
    return MOST_BYTES + MOST_RATIO * len(data)
