"""Architecture: the frozen record of one network, from which anyone can build it again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import InvalidSetting, UnknownModel, suggestion
from . import registry
from .initialise import initialise

if TYPE_CHECKING:
    from ..graph.channel_graph import ChannelGraph

FORMAT = 1
INPUT_FIELDS = ("num_classes", "in_channels", "resolution")


@dataclass(frozen=True, eq=False)
class Architecture:
    """Family, settings, input, and optional widths per channel group; equal when their keys are.

    `family` names a family of the zoo, or a user's own network as `"package.module:factory"` with its keyword
    arguments as settings; that module is imported only when the network is built. Widths leave the grouped convolutions
    `whole_groups` fewer groups, others narrower ones.
    """

    family: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    widths: Mapping[str, int] | None = None
    num_classes: int = 1000
    in_channels: int = 3
    resolution: int = 224
    whole_groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in INPUT_FIELDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidSetting(f"{name} is {value!r}; expected a whole number of at least 1")

    @classmethod
    def of(cls, name: str, *, widths: Mapping[str, int] | None = None, **settings: Any) -> Architecture:
        """The record of a zoo name or `module:factory` with settings on top; raises UnknownModel, InvalidSetting."""
        if ":" in name:
            record = {key: settings.pop(key) for key in INPUT_FIELDS if key in settings}
            return cls(name, _frozen(settings), _checked(widths), **record)
        family, variant = registry.find(name)
        merged = {**family.defaults, **variant, **settings}
        if unknown := merged.keys() - family.defaults.keys():
            word = sorted(unknown)[0]
            raise InvalidSetting(
                f"{name} has no setting {word!r}{suggestion(word, family.defaults)} (it has {sorted(family.defaults)})"
            )
        record = {key: merged.pop(key) for key in INPUT_FIELDS}
        return cls(family.name, _frozen(merged), _checked(widths), **record)

    @property
    def is_foreign(self) -> bool:
        """Whether this is a user's own network."""
        return ":" in self.family

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """[1, C, H, W] of one image."""
        return (1, self.in_channels, self.resolution, self.resolution)

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that are the same wherever and whenever the record is."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def with_widths(self, widths: Mapping[str, int] | None) -> Architecture:
        """The same network at other widths; groups left out keep theirs."""
        return replace(self, widths=_checked(widths))

    def with_whole_groups(self, layers: Collection[str]) -> Architecture:
        """The same network, its widths read so that these grouped convolutions have fewer groups."""
        return replace(self, whole_groups=tuple(sorted(layers)))

    def with_settings(self, **settings: Any) -> Architecture:
        """The same network with other settings or input."""
        record = {key: settings.pop(key) for key in INPUT_FIELDS if key in settings}
        return replace(self, settings=_frozen({**self.settings, **settings}), **record)

    def build(self) -> nn.Module:
        """The network with fresh weights (empty ones under `torch.device("meta")`)."""
        if not self.widths:
            return self._build_default()
        from ..graph.channel_graph import trace  # numbers only when widths ask for them

        if self.is_foreign:
            model = self._build_default()
            return trace(model, self.input_shape, whole_groups=self.whole_groups).resize(model, self.widths)
        device = torch.get_default_device()
        with torch.device("meta"):
            model = self._build_default()
        resized = trace(model, self.input_shape, whole_groups=self.whole_groups).resize(model, self.widths)
        if device.type != "meta":
            resized.to_empty(device=device)
            initialise(resized)
        return resized

    def graph(self, *, multiple: int = 1) -> ChannelGraph:
        """The network's channel graph, built without memory where the family is ours; as `graph.trace`."""
        from ..graph.channel_graph import trace

        with contextlib.nullcontext() if self.is_foreign else torch.device("meta"):
            return trace(self.build(), self.input_shape, multiple=multiple, whole_groups=self.whole_groups)

    def _build_default(self) -> nn.Module:
        if self.is_foreign:
            return self._call_factory()
        family, _ = registry.find(self.family)
        record = {key: getattr(self, key) for key in INPUT_FIELDS}
        return registry.build(family, {**self.settings, **record})

    def _call_factory(self) -> nn.Module:
        module_name, _, factory_name = self.family.partition(":")
        try:
            if os.getcwd() not in sys.path:  # a user's module lies where they stand
                sys.path.insert(0, os.getcwd())
            factory = getattr(importlib.import_module(module_name), factory_name)
        except (ImportError, AttributeError) as error:
            raise UnknownModel(
                f"{self.family!r} cannot be imported ({error}); expected package.module:factory"
            ) from None
        taken = inspect.signature(factory).parameters
        accepts_any = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        record = {key: getattr(self, key) for key in INPUT_FIELDS if key in taken or accepts_any}
        model = factory(**{**self.settings, **record})
        if not isinstance(model, nn.Module):
            raise UnknownModel(f"{self.family!r} gave {type(model).__name__}; expected a torch.nn.Module")
        return model

    def to_json(self) -> str:
        """One line of JSON with sorted keys; `from_json` reads it back."""
        record = {"format": FORMAT, **asdict(self)}
        if not self.whole_groups:
            del record["whole_groups"]
        return json.dumps(record, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Read `to_json`'s text; raises InvalidSetting for anything else."""
        try:
            record = json.loads(text)
            version = record.pop("format")
            if version != FORMAT:
                raise InvalidSetting(f"architecture format {version} is not {FORMAT}: written by another pocketzoo")
            record.pop("data", None)  # a run's best.json says beside it what the network was trained on
            settings, widths = record.pop("settings"), record.pop("widths")
            whole = tuple(map(str, record.pop("whole_groups", ())))
            return cls(settings=_frozen(settings), widths=_checked(widths), whole_groups=whole, **record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidSetting(f"not an Architecture in JSON: {error}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())


def _frozen(value: Any) -> Any:
    """Lists as tuples all the way down, as the families' settings have them."""
    if isinstance(value, Mapping):
        return {key: _frozen(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_frozen(entry) for entry in value)
    return value


def _checked(widths: Mapping[str, int] | None) -> dict[str, int] | None:
    if not widths:
        return None
    if wrong := {name: w for name, w in widths.items() if int(w) != w or w < 0}:
        raise InvalidSetting(f"widths are whole numbers of channels, not {wrong}")
    return {name: int(w) for name, w in widths.items()}
