"""Calibrate: measure, fit, and leave the model where `latency_model` finds it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from ..errors import UnknownDevice
from .calibrated import CalibratedModel
from .fit import fit
from .latency import calibration_path, write_calibration
from .runner import stamp
from .samples import RUNTIMES, Tell, samples

PACKAGES = {"eager": "torch", "onnxruntime": "onnxruntime"}


def calibrate(
    device: str = "cpu",
    runtime: str | None = None,
    *,
    threads: int = 1,
    seconds: float = 720.0,
    again: bool = False,
    tell: Tell | None = None,
) -> tuple[CalibratedModel, Path]:
    """The latency model of a device and runtime, and the file that keeps it; for `seconds` networks are measured.

    What earlier calibrations of the same device, runtime and threads measured is used too, unless `again`. Raises
    UnknownDevice, DeviceFailed, and InvalidRun when too few networks were measured for a fit.
    """
    runtime = runtime or ("eager" if device in ("cpu", "cuda") else "onnxruntime")
    if runtime not in RUNTIMES:
        raise UnknownDevice(f"no calibration for {runtime!r}; expected {' or '.join(RUNTIMES)}")
    path = calibration_path(device, runtime, threads)
    measured = path.with_suffix(".samples.jsonl")
    if again:
        measured.unlink(missing_ok=True)
    found = samples(device, runtime, threads, seconds, measured, tell=tell)
    package = PACKAGES[runtime]
    model = fit(found, device, runtime, threads, stamp(), {package: importlib.metadata.version(package)})
    write_calibration(model, path)
    return model, path
