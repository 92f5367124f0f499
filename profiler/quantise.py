"""Static INT8 by ONNX Runtime's own quantiser: QDQ nodes, a scale per output channel of the weights."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BATCHES = 4  # of random images, when nobody gives others


def quantise_onnx(source: str | Path, target: str | Path, images: Tensor | None = None) -> None:
    """Write the ONNX file `source`, of fixed input shape, as INT8 to `target`.

    `images`, float [M, C, H, W], normalised, give the ranges of the activations (MinMax; whole batches of the file's
    N, the rest is left out). Without them the ranges come from random numbers: good for timing, not for accuracy.
    Weights are signed, activations unsigned 8-bit numbers.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder, _quiet():
        folded = Path(folder) / "folded.onnx"  # batch norms are in the convolutions, which quantises them together
        quant_pre_process(source, folded)
        quantize_static(
            folded, target, _Images(folded, images), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip


class _Images:
    """The calibration images in batches of the file's size, as the quantiser asks for them."""

    def __init__(self, file: Path, images: Tensor | None) -> None:
        import onnx

        (entry,) = onnx.load(file, load_external_data=False).graph.input
        shape = [side.dim_value for side in entry.type.tensor_type.shape.dim]
        if images is None:
            images = torch.randn(BATCHES * shape[0], *shape[1:], generator=torch.Generator().manual_seed(0))
        whole = images[: len(images) // shape[0] * shape[0]].numpy().astype(np.float32)
        self._batches = iter({entry.name: batch} for batch in np.split(whole, len(whole) // shape[0]))

    def get_next(self) -> dict[str, Any] | None:
        """The next batch by the name of the input; None after the last."""
        return next(self._batches, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice about preparing the model, which is done."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
