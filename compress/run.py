"""compress_model: a model through a recipe, packed; and the report of what each pass did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from ..errors import InvalidSetting
from ..packing.packed import PackedModel, pack_model, unpack_model
from ..training.data import DataSet, load_data
from ..training.packed_file import write_packed
from ..training.recipe import Recipe, recipe_for
from ..training.saved import load_with_info
from ..zoo.architecture import Architecture
from .compression import Compression, Pass
from .recipes import name_of, passes, text_of
from .report import layer_table


@dataclass(frozen=True)
class Packed:
    """A compressed model as the bytes of its file, with the record of how it came about."""

    compression: Compression
    packed: PackedModel
    recipe: str
    steps: pd.DataFrame  # a row per pass: name, bytes, accuracy

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.packed.data)

    def save(self, path: str | Path) -> int:
        """Write the file whole or not at all; its size in bytes. Raises InvalidRun."""
        return write_packed(path, self.packed.data)

    def model(self) -> nn.Module:
        """The model as anybody who loads the file gets it."""
        architecture = self.compression.architecture
        if architecture is None:
            return self.compression.model
        return unpack_model(self.packed.data, trust=(architecture.family,)).model

    def report(self) -> pd.DataFrame:
        """A row per layer and one of all: parameters, nonzeros, bits, bytes in the file, MACs, MACs of nonzeros."""
        return layer_table(self.compression.model, self.compression.input_shape, self.packed)


def compress_model(
    model: nn.Module | str | Path,
    recipe: str | Path | Sequence[Pass],
    data: str | Path | DataSet | None = None,
    *,
    training: Recipe | None = None,
    teacher: nn.Module | None = None,
    input_shape: Sequence[int] | None = None,
    trust: Sequence[str] = (),
    progress: bool = False,
) -> Packed:
    """Send a trained model (a module, or a run's folder or file) through a recipe and pack it.

    `training` is the recipe of the trainings that passes do, apart from their epochs; `teacher` is what they distil
    from. A bare module needs data or its `input_shape`, [1, C, H, W]. Raises what the passes do, all PocketzooError.
    """
    steps = passes(recipe)
    architecture: Architecture | None = None
    if not isinstance(model, nn.Module):
        model, architecture, _ = load_with_info(model, trust=trust)
    side = architecture.resolution if architecture else None
    dataset = load_data(data, resolution=side) if isinstance(data, str | Path) else data
    shape = _shape(architecture, dataset, input_shape)
    training = training or (recipe_for(len(dataset.train)) if dataset else Recipe())
    state = Compression(model.eval(), shape, training, dataset, architecture, teacher=teacher, progress=progress)
    rows = [_row("as it was", state)]
    for step in steps:
        state = step.apply(state)
        rows.append(_row(name_of(step), state))
    text = text_of(steps)
    return Packed(state, packed(state, {"recipe": text}), text, pd.DataFrame(rows))


def packed(state: Compression, header: Mapping[str, Any] | None = None) -> PackedModel:
    """The state's file."""
    about = dict(header or {})
    if state.data is not None:
        about["data"] = state.data.info.to_dict()
    return pack_model(
        state.model, state.architecture, edits=state.edits, hints=state.hints, header=about, coder=state.coder
    )


def _row(name: str, state: Compression) -> dict[str, Any]:
    return {"pass": name, "bytes": len(packed(state).data), "accuracy": state.accuracy(), **dict(state.notes)}


def _shape(architecture: Architecture | None, data: DataSet | None, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        return tuple(given)
    if architecture is not None:
        return tuple(architecture.input_shape)
    if data is None:
        raise InvalidSetting("a bare module needs data= or input_shape=(1, 3, 32, 32)")
    return (1, data.in_channels, data.resolution, data.resolution)
