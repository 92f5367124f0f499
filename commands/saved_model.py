"""MODEL as the folder or file of a run, for the commands that count and measure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UnknownModel

if TYPE_CHECKING:
    from torch import nn

    from ..packing.edits import Edit
    from ..profiler.measurement import Measurement
    from ..zoo.architecture import Architecture

SUFFIXES = (".pz", ".safetensors")
TRUST = click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")


@dataclass(frozen=True)
class SavedModel:
    """A network that was saved, with the shape of an image, [1, C, H, W].

    `identity` is what records of it say that it is: the Architecture's JSON as a dict, with the recipes of a
    compression; None for a lone file whose structure is no Architecture's any more.
    """

    name: str  # folder or file, as it was given
    module: nn.Module
    input_shape: tuple[int, ...]
    identity: Mapping[str, Any] | None

    @property
    def with_shape(self) -> tuple[nn.Module, tuple[int, ...]]:
        """The module and what it reads."""
        return self.module, self.input_shape

    def build(self) -> nn.Module:
        """The network as it was saved."""
        return self.module

    def at(self, resolution: int | None) -> SavedModel:
        """The same network for images of another side."""
        if resolution is None:
            return self
        identity = self.identity and {**self.identity, "resolution": resolution}
        return replace(self, input_shape=(*self.input_shape[:2], resolution, resolution), identity=identity)

    def said_in(self, measurement: Measurement) -> Measurement:
        """A measurement of the module as one of this network."""
        return replace(measurement, model=self.name, architecture=self.identity)


def saved_model(name: str, trust: Sequence[str] = ()) -> SavedModel | None:
    """What a run's folder, safetensors or packed file holds; None for the name of a network that is to be built.

    A zoo name is one whatever files there are. Raises InvalidRun, WeightsMismatch, CorruptFile.
    """
    if _is_zoos(name) or not _is_path(name):
        return None
    from ..compress.run import opened

    module, architecture, edits = opened(name, trust)
    assert architecture is not None  # without one, nothing could have been built
    return SavedModel(name, module, architecture.input_shape, _identity(name, architecture, edits))


def _is_zoos(name: str) -> bool:
    from ..zoo.registry import find

    try:
        find(name)
    except UnknownModel:
        return False
    return True


def _is_path(name: str) -> bool:
    return os.sep in name or name.endswith(SUFFIXES) or Path(name).exists()


def _identity(name: str, architecture: Architecture, edits: Sequence[Edit]) -> Mapping[str, Any] | None:
    from ..leaderboards.networks import identity
    from ..training.saved import RESULT_NAME, weights_file

    dense = json.loads(architecture.to_json())
    result = weights_file(name).with_name(RESULT_NAME)
    if result.exists():
        return identity(dense, json.loads(result.read_text(encoding="utf-8"))["provenance"])
    return None if edits else dense
