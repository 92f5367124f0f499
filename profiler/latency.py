"""Latency predicted: what search, pick and advise ask of a device, and where its model is found."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRun, UnknownDevice, suggestion
from ..graph.channel_graph import ChannelGraph
from .calibrated import CalibratedModel, Kind
from .home import user_folder
from .operator_features import NAMES
from .physical import LatencyError
from .published import DEVICES, published

Array = npt.NDArray[np.float64]
FORMAT = 2
RUNTIMES = ("onnxruntime", "eager")  # of a calibrated device, the one that is meant where none is named first


class LatencyModel(Protocol):
    """What search, pick and advise ask of a device, calibrated or published."""

    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def runtime(self) -> str: ...  # noqa: D102
    @property
    def error(self) -> LatencyError: ...  # noqa: D102
    def predict(self, graph: ChannelGraph, widths: npt.ArrayLike | None = None) -> Array:
        """Milliseconds [N] of [N, G] width vectors, [1] of the graph as it is; raises OutsideCalibration."""

    def by_operator(self, graph: ChannelGraph) -> Array:
        """Milliseconds of each of `graph.operators()`."""


def latency_model(device: str, runtime: str | None = None, threads: int = 1) -> LatencyModel:
    """The model of a published device, or of one that `pocketzoo calibrate` has measured; raises UnknownDevice."""
    if device in DEVICES:
        model = published(device)
        if runtime not in (None, model.runtime):
            raise UnknownDevice(f"{device} was published for {model.runtime}, not for {runtime}")
        return model
    for known in [runtime] if runtime else RUNTIMES:
        if (path := calibration_path(device, known, threads)).exists():
            return read_calibration(path)
    there = sorted([*DEVICES, *(path.stem for path in calibration_folder().glob("*.json"))])
    asked = f" --runtime {runtime}" if runtime else ""
    asked += f" --threads {threads}" if threads > 1 else ""
    raise UnknownDevice(
        f"no latency model of {device}{f' with {runtime}' if runtime else ''}"
        f"{f' on {threads} threads' if threads > 1 else ''}{suggestion(device, DEVICES)}"
        f" (there: {', '.join(there)}); pocketzoo calibrate --device {device}{asked} makes one"
    )


def calibration_folder() -> Path:
    """Where the user's calibrations are."""
    return user_folder() / "calibrations"


def calibration_path(device: str, runtime: str, threads: int = 1) -> Path:
    """The file of a device's calibration for a runtime on so many threads."""
    return calibration_folder() / f"{re.sub(r'[^A-Za-z0-9.@]+', '-', device)}-{runtime}-{threads}-thread.json"


def write_calibration(model: CalibratedModel, path: Path) -> None:
    """Save a fitted model; the old file stays until the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps({"format": FORMAT, **asdict(model)}), encoding="utf-8")
    temporary.replace(path)


def read_calibration(path: Path) -> CalibratedModel:
    """Load a fitted model; raises InvalidRun for anything that `write_calibration` did not write."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (version := record.pop("format")) != FORMAT:
            raise InvalidRun(f"{path.name} has format {version}, not {FORMAT}: calibrate anew")
        kinds = {name: _kind(own) for name, own in record.pop("kinds").items()}
        light = {name: (float(a), float(b), float(c)) for name, (a, b, c) in record.pop("light").items()}
        error = LatencyError(**record.pop("error"))
        reference_ms = float(record.pop("reference_ms"))
        return CalibratedModel(kinds=kinds, light=light, reference_ms=reference_ms, error=error, **record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRun(f"{path.name} is not a calibration ({error}); calibrate anew") from None


def _kind(record: Mapping[str, Any]) -> Kind:
    """A kind whose layers fit its features and each other."""
    kind = Kind(**record)
    widths = [len(NAMES) + 1]  # the physical estimate beside the features
    for weight, bias in kind.layers:
        if np.shape(weight) != (widths[-1], len(bias)):
            raise ValueError("layers that do not fit")
        widths.append(len(bias))
    if widths[-1] != 1 or {len(kind.low), len(kind.high)} != {len(NAMES)} or len(kind.physical) != 4:
        raise ValueError("features that do not fit")
    return kind
