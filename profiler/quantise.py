"""Static INT8 by ONNX Runtime's own quantiser: QDQ nodes, a scale per output channel of the weights."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InvalidSetting

BATCHES = 4  # of random images, when nobody gives others
BATCH = 32  # images at a time, where the file takes any number
# how the ranges of activations are found: our names, and ONNX Runtime's
CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
LEVELS = 256  # of 8 bits
BINS = 4096  # of the histograms that the entropy is taken of, both signs together: 8 for a level of positive numbers
STEP = 8  # bins from one range that is tried to the next
PERCENTILE = 99.99
SMALLEST = 1e-9  # share of a bin that the candidate leaves empty

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def quantise_onnx(
    source: str | Path, target: str | Path, images: Tensor | None = None, calibration: str = "minmax"
) -> None:
    """Write the ONNX file `source` as INT8 to `target`.

    `images`, float [M, C, H, W], normalised, give the ranges of the activations (whole batches of the file's N, or of
    32 where it takes any; the rest is left out). Without them the ranges come from random numbers: good for timing,
    not for accuracy. `calibration`: minmax takes all that is seen; percentile leaves out 0.01 % of the largest
    magnitudes; entropy takes the range whose 8-bit distribution has the least KL divergence from the one that was
    seen (Migacz 2017, "8-bit Inference with TensorRT"). Weights are signed, activations unsigned 8-bit numbers.
    Raises InvalidSetting for another calibration.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import save_tensors_data
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if calibration not in CALIBRATIONS:
        raise InvalidSetting(f"calibration is {calibration!r}; expected one of {', '.join(CALIBRATIONS)}")
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder, _quiet():
        folded, ranges = Path(folder) / "folded.onnx", Path(folder) / "ranges.json"
        quant_pre_process(source, folded)  # batch norms are in the convolutions, which quantises them together
        found = _ranges(folded, _batches(folded, images), calibration)
        save_tensors_data(found, ranges)
        quantize_static(
            folded, target, None, quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=found.calibration_method, calibration_cache_path=ranges,
        )  # fmt: skip


def _ranges(file: Path, batches: Iterator[_Batch], calibration: str) -> Any:
    """ONNX Runtime's ranges of every tensor that operators with an integer form read or make."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    calibrator = create_calibrator(
        file, list({*QDQRegistry, *QLinearOpsRegistry}), file.with_name("watched.onnx"),
        CalibrationMethod[CALIBRATIONS[calibration]], extra_options={"num_bins": BINS, "percentile": PERCENTILE},
    )  # fmt: skip
    for batch in batches:  # one by one: the calibrator keeps all activations of what it is given
        calibrator.collect_data(batch)
    if calibration != "entropy":
        return calibrator.compute_data()
    histograms = calibrator.collector.get_histogram_dict()
    found = {name: (*least_divergent(*own[:4]), *own[:2]) for name, own in histograms.items()}
    return TensorsData(CalibrationMethod.Entropy, found)


def least_divergent(histogram: Counts, edges: Floats, low: Any, high: Any) -> tuple[Any, Any]:
    """The range within [low, high] whose 256 levels lose least: the KL divergence of what was seen from them is least.

    Migacz 2017: the reference is the part of the histogram inside a range, what is outside put on its ends; the
    candidate shares out each level's count among its bins that are not empty. What empty or full bins say by chance,
    (filled bins - filled levels) / 2N on average, is not counted: small tensors would lose most of their range. Ranges
    have zero in the middle, or at their start where nothing is negative. ONNX Runtime's own search gives both cases as
    many levels, counts the zeros, and takes minutes with this many bins.
    """
    half = len(histogram) // 2
    histogram = histogram.copy()
    histogram[half] = histogram[half + 1]  # zeros, half of what a ReLU makes, lose nothing in any range
    if not histogram.any():
        return low, high
    first = half if low >= 0 else 0
    reach = [*range(LEVELS if low >= 0 else LEVELS // 2, half, STEP), half]
    windows = [(max(first, half - bins), half + bins) for bins in reach]
    divergences = [_divergence(histogram, start, stop, first) for start, stop in windows]
    start, stop = windows[int(np.argmin(divergences))]
    return np.maximum(edges[start], low), np.minimum(edges[stop], high)


def _divergence(histogram: Counts, start: int, stop: int, first: int) -> float:
    """KL divergence, in nats, of the histogram cut to a window from its 256 levels."""
    inside = histogram[start:stop].astype(np.float64)
    reference = inside.copy()
    reference[0] += histogram[first:start].sum()
    reference[-1] += histogram[stop:].sum()
    bounds = np.arange(LEVELS) * len(inside) // LEVELS
    filled = inside > 0
    shares = np.add.reduceat(inside, bounds) / np.maximum(np.add.reduceat(filled, bounds, dtype=np.int64), 1)
    candidate = np.where(filled, np.repeat(shares, np.diff(np.append(bounds, len(inside)))), 0)
    seen = reference > 0
    total = max(candidate.sum(), 1.0)
    chance = (filled.sum() - (shares > 0).sum()) / (2 * max(inside.sum(), 1))
    p, q = reference[seen] / reference.sum(), np.maximum(candidate[seen] / total, SMALLEST)
    return float((p * np.log(p / q)).sum() - chance)


class _Batch:
    """One batch, as the calibrator asks for it."""

    def __init__(self, feed: dict[str, Any]) -> None:
        self._left: dict[str, Any] | None = feed

    def get_next(self) -> dict[str, Any] | None:
        """The batch by the name of the input; None after it."""
        feed, self._left = self._left, None
        return feed


def _batches(file: Path, images: Tensor | None) -> Iterator[_Batch]:
    """The calibration images in batches of a size that the file takes."""
    import onnx

    (entry,) = onnx.load(file, load_external_data=False).graph.input
    size, *sides = [side.dim_value for side in entry.type.tensor_type.shape.dim]
    size = size or min(BATCH, BATCH if images is None else len(images))  # 0: any number
    if images is None:
        images = torch.randn(BATCHES * size, *sides, generator=torch.Generator().manual_seed(0))
    for batch in images[: len(images) // size * size].split(size):
        yield _Batch({entry.name: batch.numpy().astype(np.float32)})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice about preparing the model, which is done, and prints its steps."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
