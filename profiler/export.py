"""ONNX export, checked with ONNX Runtime against PyTorch before the file is there."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.onnx import symbolic_helper, symbolic_opset9
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InvalidRun, PocketzooError

TOLERANCE = 1e-3  # largest difference, relative to the largest output
OPSET = 18
BATCH = 2  # an example of 1 would let the exporter take the batch for a constant


class ExportMismatch(PocketzooError):
    """The exported file does not compute what the model computes, or the model cannot be exported."""


def export_onnx(
    model: nn.Module,
    input_shape: Sequence[int],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    example: Tensor | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Write the model in eval mode as ONNX with any batch size; the largest absolute difference from PyTorch.

    Input `images`, float [N, C, H, W], normalised; output `logits`. `metadata` becomes the file's `metadata_props`.
    ONNX Runtime runs `example` (random numbers by default) first. Raises ExportMismatch above `tolerance` of
    the largest output, and InvalidRun when the file cannot be written.
    """
    module = copy.deepcopy(model).cpu().eval()
    if example is None:
        example = torch.randn(BATCH, *input_shape[1:], generator=torch.Generator().manual_seed(0))
    content = _exported(module, torch.zeros(BATCH, *input_shape[1:]), metadata or {})
    with torch.inference_mode():
        expected = module(example.cpu()).numpy()
    actual = run_onnx(content, example)
    difference = float(np.abs(actual - expected).max())
    scale = float(np.abs(expected).max())
    if not difference <= tolerance * max(scale, 1e-6):
        raise ExportMismatch(
            f"ONNX Runtime and PyTorch differ by {difference:g} where outputs reach {scale:g}; {path} was not written"
        )
    _write(Path(path), content)
    return difference


def onnx_for_timing(module: nn.Module, input_shape: Sequence[int]) -> bytes:
    """The module in eval mode as ONNX for exactly this shape, unchecked, in a tenth of the time: to be timed only.

    PyTorch's older exporter, made to write the same operators as the one that `export_onnx` uses. Raises
    ExportMismatch for what it cannot write.
    """
    with torch.no_grad(), _UnevenPools() as pools:  # type: ignore[no-untyped-call]
        module.eval()(torch.zeros(*input_shape))
    if pools.found:  # this exporter would print its whole graph before it gives up
        raise ExportMismatch(f"{type(module).__name__} pools to a size that does not divide its map")
    file = io.BytesIO()
    try:
        with _quiet(), _written_as_the_newer_exporter_does(), torch.no_grad():
            torch.onnx.export(module.eval(), (torch.zeros(*input_shape),), file, dynamo=False, opset_version=OPSET,  # type: ignore[arg-type]
                              input_names=["images"], output_names=["logits"])  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportMismatch(f"{type(module).__name__} cannot be exported to ONNX: {reason}") from None
    return file.getvalue()


class _UnevenPools(TorchDispatchMode):
    """Watches for adaptive pooling to a size that does not divide the map."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname == "_adaptive_avg_pool2d":
            self.found |= any(side % made for side, made in zip(args[0].shape[2:], args[1], strict=True))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _written_as_the_newer_exporter_does() -> Iterator[None]:
    """Global pooling as ReduceMean (not GlobalAveragePool), chunk as Split (not slices of computed sizes)."""
    writers: dict[str, Callable[..., Any]] = {"aten::adaptive_avg_pool2d": _pool, "prim::ConstantChunk": _chunk}
    for name, writer in writers.items():
        torch.onnx.register_custom_op_symbolic(name, writer, OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in writers:
            torch.onnx.unregister_custom_op_symbolic(name, OPSET)  # type: ignore[attr-defined]


def _pool(g: Any, x: Any, size: Any) -> Any:
    if symbolic_helper._maybe_get_const(size, "is") == [1, 1]:
        return g.op("ReduceMean", x, g.op("Constant", value_t=torch.tensor([2, 3])), keepdims_i=1)
    return symbolic_opset9.adaptive_avg_pool2d(g, x, size)  # type: ignore[attr-defined]


def _chunk(g: Any, x: Any, chunks: int, dim: int) -> Any:
    whole = x.type().sizes()[dim]
    length = -(-whole // chunks)
    lengths = [min(length, whole - start) for start in range(0, whole, length)]
    return g.op("Split", x, g.op("Constant", value_t=torch.tensor(lengths)), axis_i=dim, outputs=len(lengths))


def run_onnx(model: bytes | str | Path, images: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits [N, classes] of normalised images, float [N, C, H, W], by ONNX Runtime on the CPU."""
    session = open_session(model)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.cpu().numpy()})
    return np.asarray(logits, dtype=np.float32)


def open_session(model: bytes | str | Path) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU with as many threads as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _exported(module: nn.Module, example: Tensor, metadata: Mapping[str, str]) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds, each for a model that it cannot follow
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportMismatch(f"{type(module).__name__} cannot be exported to ONNX: {reason}") from error
    if program is None:
        raise ExportMismatch(f"{type(module).__name__} cannot be exported to ONNX: the exporter gave nothing")
    proto = program.model_proto
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return bytes(proto.SerializeToString())


def _write(path: Path, content: bytes) -> None:
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise InvalidRun(f"cannot write {path}: {error.strerror or error}; give a folder with room for it") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and warns about its own internals; errors still come through."""
    disabled = logging.root.manager.disable
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(disabled)
