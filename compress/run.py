"""compress_model: a model through a recipe, packed; and the report of what each pass did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from ..errors import InvalidSetting
from ..packing.edits import Edit
from ..packing.packed import PackedModel, pack_model, unpack_model
from ..profiler.measure import measure
from ..profiler.runner import Protocol
from ..training.data import DataSet, load_data
from ..training.packed_file import is_packed, read_packed, write_packed
from ..training.recipe import Recipe, recipe_for
from ..training.saved import load_with_edits, weights_file
from ..zoo.architecture import Architecture
from .compression import Compression, Pass
from .recipes import name_of, passes, text_of
from .report import TOTAL, layer_table

START = "as it was"
LEFT_OUT = ("hash",)  # of what is said about the data: it is as long as a small layer, and stands in the Result


@dataclass(frozen=True)
class Packed:
    """A compressed model as the bytes of its file, with the record of how it came about.

    `steps` has a row for the start and for each pass: bytes of the file, params, nonzeros, bits a parameter, MACs,
    effective MACs, accuracy on the validation images before the pass's last training and in the end, and what passes
    noted in a word or number. `layers` is what `report` says after each, `structures` the models of steps that left
    another structure.
    """

    compression: Compression
    packed: PackedModel
    recipe: str
    steps: pd.DataFrame
    layers: pd.DataFrame
    structures: Mapping[int, nn.Module]

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

    def timed_steps(self, seconds: float = 10.0) -> pd.DataFrame:
        """The steps, with `latency_ms` where there are several structures: an image in PyTorch on one thread."""
        if len(self.structures) < 2:
            return self.steps
        named = {str(number): model for number, model in self.structures.items()}
        found = measure(named, input_shape=self.compression.input_shape, protocol=Protocol(seconds=seconds))
        latencies = {number: m.median_ms for number, m in zip(self.structures, found, strict=True)}
        return self.steps.assign(latency_ms=self.steps.index.map(latencies))


@dataclass(frozen=True)
class Watched(Compression):
    """A Compression that writes down how accurate a model is before each training."""

    before: list[float | None] = field(default_factory=list)

    def train(self, model: nn.Module, recipe: Recipe, **hooks: Any) -> Any:
        """As every Compression does."""
        self.before.append(self.accuracy(model))
        return super().train(model, recipe, **hooks)


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
    edits: tuple[Edit, ...] = ()
    if not isinstance(model, nn.Module):
        model, architecture, edits = opened(model, trust)
    side = architecture.resolution if architecture else None
    dataset = load_data(data, resolution=side) if isinstance(data, str | Path) else data
    shape = _shape(architecture, dataset, input_shape)
    training = training or (recipe_for(len(dataset.train)) if dataset else Recipe())
    state: Compression = Watched(
        model.eval(), shape, training, dataset, architecture, edits, teacher=teacher, progress=progress
    )
    text = text_of(steps)
    rows, tables, structures = [], [], {}
    for number, step in enumerate([None, *steps]):
        before: list[float | None] = []
        known, state = state, state if step is None else step.apply(state.changed(before=before))
        name = START if step is None else name_of(step)
        current = packed(state, {"recipe": text})
        layers = layer_table(state.model, shape, current)
        rows.append({"pass": name, **_figures(layers), "before": (before or [None])[-1], "accuracy": state.accuracy()})
        rows[-1] |= {note: value for note, value in state.notes.items() if isinstance(value, str | int | float)}
        tables.append(layers.assign(step=number, **{"pass": name}))
        if step is None or state.edits != known.edits:
            structures[number] = state.model
    return Packed(state, current, text, pd.DataFrame(rows), pd.concat(tables, ignore_index=True), structures)


def opened(source: str | Path, trust: Sequence[str]) -> tuple[nn.Module, Architecture | None, tuple[Edit, ...]]:
    """The model of a run's folder or file, and what was done to its structure before."""
    file = weights_file(source)
    if is_packed(file):  # which may have been packed without data
        unpacked = read_packed(file, trust=trust)
        return unpacked.model, unpacked.architecture, unpacked.edits
    model, architecture, _, edits = load_with_edits(file, trust=trust)
    return model, architecture, edits


def packed(state: Compression, header: Mapping[str, Any] | None = None) -> PackedModel:
    """The state's file."""
    about = dict(header or {})
    if state.data is not None:
        about["data"] = {name: value for name, value in state.data.info.to_dict().items() if name not in LEFT_OUT}
    return pack_model(
        state.model, state.architecture, edits=state.edits, hints=state.hints, header=about, coder=state.coder
    )


def _figures(layers: pd.DataFrame) -> dict[str, Any]:
    total = layers[layers["layer"] == TOTAL].iloc[0]
    return {str(name): value for name, value in total.drop("layer").to_dict().items()}


def _shape(architecture: Architecture | None, data: DataSet | None, given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        return tuple(given)
    if architecture is not None:
        return tuple(architecture.input_shape)
    if data is None:
        raise InvalidSetting("a bare module needs data= or input_shape=(1, 3, 32, 32)")
    return (1, data.in_channels, data.resolution, data.resolution)
