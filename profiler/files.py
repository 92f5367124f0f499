"""Latencies of ONNX files as they lie on disk, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from .hosts import host
from .runner import Protocol
from .runtimes import Result, time_limit_s


def measure_files(
    files: Mapping[str, Path],
    input_shape: Sequence[int],
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    cut: int = 0,
) -> Result:
    """The runner's result: {"models": {name: {"median_ms", "low_ms", "high_ms", "ratio", ...}}, "stamp", "warnings"}.

    ONNX Runtime runs all files on this machine in common rounds, on input of this shape, [N, C, H, W]; `ratio` is to
    the first file's time in the same rounds. With `cut` runs more, "nodes" says where each file's time goes. Raises
    DeviceFailed.
    """
    sent = {f"{number}.onnx": path for number, path in enumerate(files.values())}
    models = {name: {"file": file, "shape": list(input_shape)} for name, file in zip(files, sent, strict=True)}
    job = {
        "runtime": "onnxruntime", "protocol": asdict(protocol), "reference": next(iter(files)), "models": models,
        "cut": cut,
    }  # fmt: skip
    return host("cpu").run(job, sent, timeout_s=time_limit_s(protocol, len(files)))
