"""Shipping: a trained or compressed model as ONNX, INT8 ONNX, safetensors or PyTorch's own exported program.

Every file is read back by what will run it and held against PyTorch on the validation images, and timed beside what it
was before: an INT8 file beside the same network in fp32 by the same runtime, other files beside eager PyTorch.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ..errors import InvalidSetting, suggestion
from ..packing.edits import Edit
from ..profiler.export import ExportMismatch, export_onnx, open_session
from ..profiler.files import measure_files
from ..profiler.quantise import CALIBRATIONS, quantise_onnx
from ..profiler.runner import Protocol
from ..profiler.runtimes import TORCH, Network, run_torch
from ..training.data import DataInfo, DataSet, load_data
from ..training.folder import write_with
from ..training.run import evaluate_run
from ..training.saved import KEY, describe, load, load_with_edits, save_weights, weights_file
from ..zoo.architecture import Architecture
from .compression import Compression
from .passes.qat import fake_quantised

SUFFIXES = {"onnx": ".onnx", "onnx-int8": ".int8.onnx", "safetensors": ".safetensors", "pt2": ".pt2"}
IMAGES = 512  # of the training split, from which an INT8 file has its ranges
EXAMPLES = 32  # validation images on which the fp32 ONNX file must agree before it is written
BATCH = 64
TOLERANCE = 1e-5  # of the largest output, for what PyTorch itself reads back
INTEGER_TOLERANCE = 0.05  # of the largest output: a sum that falls between two steps may be rounded to either
EAGER, ONNXRUNTIME = "PyTorch eager", "ONNX Runtime"
PROTOCOL = Protocol(seconds=10.0)


@dataclass(frozen=True)
class _Model:
    """What is exported, and the images that it is held against."""

    module: nn.Module
    architecture: Architecture
    info: DataInfo
    data: DataSet
    edits: Sequence[Edit] = ()  # since it was the architecture's

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *self.architecture.input_shape[1:])

    @property
    def validation(self) -> Tensor:
        return self.info.normalise(self.data.val.images)


def export_model(
    run: str | Path,
    formats: Sequence[str],
    data: str | Path | DataSet,
    *,
    out: str | Path | None = None,
    calibration: str = "entropy",
    trust: Sequence[str] = (),
    protocol: Protocol = PROTOCOL,
) -> pd.DataFrame:
    """Write a run's model in these formats (`SUFFIXES`) beside its weights, or into the folder `out`.

    A row per file: format, file, bytes; `accuracy` on the validation images by what runs the file, and
    `pytorch_accuracy`; `difference`: the largest from PyTorch's outputs as a share of the largest; `after_ms` a
    validation-sized image of batch 1 by `runtime`, `before_ms` by `before`, their ratio `speedup`. INT8 files have
    their ranges from 512 training images by `calibration` (minmax, percentile, entropy).
    Raises ExportMismatch for a file that computes something else, which is not left behind, InvalidSetting,
    InvalidRun, InvalidData.
    """
    source = weights_file(run)
    targets = _targets(source, formats, Path(out) if out is not None else source.parent)
    if calibration not in CALIBRATIONS:
        raise InvalidSetting(f"no calibration {calibration!r}; expected one of {', '.join(CALIBRATIONS)}")
    module, architecture, info, edits = load_with_edits(source, trust=trust)
    dataset = data if isinstance(data, DataSet) else load_data(data, resolution=architecture.resolution)
    accuracy = evaluate_run(source, dataset, split="val", trust=trust).accuracy
    model = _Model(module, architecture, info, dataset, edits)
    with torch.inference_mode():
        expected = torch.cat([module(batch) for batch in model.validation.split(BATCH)])
    rows = []
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        single = Path(folder) / "single.onnx"
        runs: dict[str, nn.Module] = {}
        for name, target in targets.items():
            forward = _WRITERS[name](model, target, single, calibration, trust)
            if isinstance(forward, nn.Module):
                runs[name] = forward
            found = _held_against(forward, model, expected)
            if isinstance(forward, nn.Module) and not found["difference"] <= TOLERANCE:
                target.unlink()
                raise ExportMismatch(
                    f"{target}: what was read back differs from the model by {found['difference']:g} of its largest"
                    " output; the file was removed"
                )
            rows.append({
                "format": name, "file": str(target), "bytes": target.stat().st_size, **found,
                "pytorch_accuracy": accuracy,
            })  # fmt: skip
        latencies = _latencies(model, targets, runs, single, protocol)
    return pd.DataFrame(rows).merge(latencies, on="format")


def export_integers(compression: Compression, path: str | Path) -> float:
    """Write what `qat` has trained as ONNX with its own ranges and integers; the largest difference from PyTorch.

    Raises InvalidSetting where qat was not the last pass that changed values, ExportMismatch, InvalidRun.
    """
    data, architecture = compression.the_data("export_integers"), compression.architecture
    metadata = {KEY: describe(architecture, data.info, compression.edits)} if architecture is not None else {}
    example = data.info.normalise(data.val.images[:EXAMPLES])
    network = fake_quantised(compression)
    return export_onnx(network, compression.input_shape, path, metadata, example, tolerance=INTEGER_TOLERANCE)


def calibrations(
    run: str | Path, data: str | Path | DataSet, *, images: int = IMAGES, split: str = "val", trust: Sequence[str] = ()
) -> pd.DataFrame:
    """A run's INT8 accuracy by calibration, beside its fp32 accuracy: calibration, accuracy, same (class as fp32)."""
    module, architecture, info, edits = load_with_edits(run, trust=trust)
    dataset = data if isinstance(data, DataSet) else load_data(data, resolution=architecture.resolution)
    own = getattr(dataset, split)
    model = _Model(module, architecture, info, dataset, edits)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        single, whole = Path(folder) / "single.onnx", Path(folder) / "int8.onnx"
        _write_single(model, single)
        classes: Tensor | None = None
        for name in ("fp32", *CALIBRATIONS):
            if name != "fp32":
                quantise_onnx(single, whole, _calibration_images(model, images), name)
            given = _outputs(_session(single if name == "fp32" else whole), info.normalise(own.images)).argmax(1)
            classes = given if classes is None else classes
            rows.append({
                "calibration": name, "accuracy": _share(given == own.labels), "same": _share(given == classes),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _targets(source: Path, formats: Sequence[str], folder: Path) -> dict[str, Path]:
    if not formats:
        raise InvalidSetting(f"nothing to export to; expected some of {', '.join(SUFFIXES)}")
    for name in formats:
        if name not in SUFFIXES:
            raise InvalidSetting(f"no format {name!r}{suggestion(name, SUFFIXES)}; there are {', '.join(SUFFIXES)}")
    targets = {name: folder / f"{source.stem}{SUFFIXES[name]}" for name in formats}
    for target in targets.values():
        if target.resolve() == source.resolve():
            raise InvalidSetting(f"{target} is what is exported; give another folder as out")
    if not folder.is_dir():
        raise InvalidSetting(f"there is no folder {folder}; make it first")
    return targets


# -- the formats: each writes its file and gives what runs it ---------------------------------------------------------

Forward = Callable[[Tensor], Tensor]


def _onnx(model: _Model, target: Path, single: Path, calibration: str, trust: Sequence[str]) -> Forward:
    _write_single(model, target)
    return _session(target)


def _onnx_int8(model: _Model, target: Path, single: Path, calibration: str, trust: Sequence[str]) -> Forward:
    _write_single(model, single)
    images = _calibration_images(model, IMAGES)
    write_with(target, lambda temporary: quantise_onnx(single, temporary, images, calibration))
    return _session(target)


def _safetensors(model: _Model, target: Path, single: Path, calibration: str, trust: Sequence[str]) -> Forward:
    save_weights(target, model.module, model.architecture, model.info, model.edits)
    return load(target, trust=trust)


def _pt2(model: _Model, target: Path, single: Path, calibration: str, trust: Sequence[str]) -> Forward:
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                model.module.eval(), (model.validation[:2],), dynamic_shapes=({0: batch},), strict=False
            )
    except Exception as error:  # the exporter raises many kinds, each for a model that it cannot follow
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportMismatch(f"{type(model.module).__name__} cannot be exported to pt2: {reason}") from error
    write_with(target, lambda temporary: torch.export.save(program, temporary))
    loaded: nn.Module = torch.export.load(target).module()
    return loaded


_WRITERS: Mapping[str, Callable[[_Model, Path, Path, str, Sequence[str]], Forward]] = {
    "onnx": _onnx, "onnx-int8": _onnx_int8, "safetensors": _safetensors, "pt2": _pt2,
}  # fmt: skip


def _write_single(model: _Model, target: Path) -> None:
    record = {KEY: describe(model.architecture, model.info, model.edits)}
    export_onnx(model.module, model.shape, target, record, model.validation[:EXAMPLES])


def _calibration_images(model: _Model, count: int) -> Tensor:
    """Of the training split, shuffled: a source may be sorted by class."""
    train = model.data.train.images
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count]
    return model.info.normalise(train[chosen])


def _session(path: Path) -> Forward:
    session = open_session(path)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


# -- held against PyTorch, and timed ----------------------------------------------------------------------------------


def _held_against(forward: Forward, model: _Model, expected: Tensor) -> dict[str, float]:
    outputs = _outputs(forward, model.validation)
    difference = float((outputs - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    return {"accuracy": _share(outputs.argmax(1) == model.data.val.labels), "difference": difference}


def _outputs(forward: Forward, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([forward(batch) for batch in images.split(BATCH)])


def _share(right: Tensor) -> float:
    return right.double().mean().item()


def _latencies(
    model: _Model, targets: Mapping[str, Path], runs: Mapping[str, nn.Module], single: Path, protocol: Protocol
) -> pd.DataFrame:
    """A row per format: before, before_ms, runtime, after_ms, speedup."""
    eager = _eager_ms({EAGER: model.module, **runs}, model.shape, protocol)
    files = {name: target for name, target in targets.items() if name not in runs}
    if "onnx-int8" in files:
        files.setdefault("onnx", single)
    timed = measure_files(files, model.shape, protocol)["models"] if files else {}
    rows = []
    for name in targets:
        after = eager[name] if name in runs else timed[name]["median_ms"]
        integers = name == "onnx-int8"
        before = timed["onnx"]["median_ms"] if integers else eager[EAGER]
        rows.append({
            "format": name, "before": f"{ONNXRUNTIME} fp32" if integers else EAGER, "before_ms": before,
            "runtime": EAGER if name in runs else ONNXRUNTIME, "after_ms": after, "speedup": before / after,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _eager_ms(modules: Mapping[str, nn.Module], shape: tuple[int, ...], protocol: Protocol) -> dict[str, float]:
    networks = [Network(name, lambda module=module: module, shape, 0) for name, module in modules.items()]  # type: ignore[misc]
    result = run_torch(TORCH["eager"], networks, protocol, EAGER, lambda _: None)
    return {name: found["median_ms"] for name, found in result["models"].items()}
