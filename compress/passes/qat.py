"""Quantisation-aware training: the network learns with the roundings that 8-bit integers will do to it.

Krishnamoorthi 2018 (arXiv:1806.08342, sections 2 and 3): weights symmetric with a scale for each output channel,
activations affine with one for each tensor; Jacob et al. 2018 (arXiv:1712.05877, section 3): batch norms are folded
first, ranges of activations are moving averages, gradients go straight through the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.onnx.ops import symbolic

from ...errors import InvalidSetting
from ...graph.channel_graph import trace
from ...graph.sparsity import Masks
from ...packing.edits import put
from ...packing.forms import Hint, Scaled
from ...training.evaluate import evaluate
from ..compression import Compression
from .fold import Fold

NOTE = "qat"  # of the ranges of activations: a table with a row per quantiser
IMAGES, BATCH = 512, 64  # of the training split, from which ranges start
MOMENTUM = 0.99  # of the moving averages
LARGEST = 127  # of a weight's integers: symmetric
STEPS = 255  # between an activation's lowest and highest value
BEFORE, AFTER = "input", "output"  # of a layer: where a quantiser is
PLACES = {BEFORE: "0", AFTER: "2"}  # and its name in the sequence with the layer
LAYERS: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
PASSES_ON = ("activation", "pool", "view")  # operators behind which the next layer's quantiser does the work


@dataclass(frozen=True)
class QAT:
    """Train convolutions and linear layers with 8-bit weights and activations, and leave the weights on their grids.

    The ranges of the activations are in the notes; `fake_quantised` puts them back beside the weights, and
    `compress.export.export_integers` writes both as ONNX. Raises InvalidSetting for a network with a batch norm that
    cannot be folded: integer kernels have no place for it.
    """

    epochs: int = 3
    lr: float | None = None  # None: a tenth of the recipe's, for a network that is trained

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise InvalidSetting(f"qat: epochs is {self.epochs}; expected 0 or more, 0 only finds the ranges")

    def apply(self, compression: Compression) -> Compression:
        """Pruned weights stay zero."""
        data = compression.the_data("qat")
        if compression.shared():
            raise InvalidSetting("qat: tied weights cannot keep their levels on grids of their own; leave one pass out")
        compression = Fold().apply(compression)
        _refuse_norms(compression.model)
        model = compression.copied()
        places = _places(model, compression.input_shape)
        _wrap(model, places, compression.masks)
        _watch(model, data.info.normalise(data.train.images[:IMAGES]))
        if self.epochs:
            lr = compression.recipe.lr / 10 if self.lr is None else self.lr
            recipe = compression.recipe.with_settings(epochs=self.epochs, lr=lr)
            compression.changed(masks={}).train(model, recipe)  # the grids hold the masks
        accuracy = evaluate(model, data.val, data.info).accuracy
        ranges, hints = _unwrap(model, places)
        notes = {**compression.notes, NOTE: ranges, "qat_accuracy": accuracy}
        return compression.changed(model=model, hints={**compression.hints, **hints}, notes=notes)


def fake_quantised(compression: Compression) -> nn.Module:
    """The network in eval mode as integers will compute it, for `export_onnx` to write with the integers themselves.

    Raises InvalidSetting where `qat` was not among the passes, or another one has changed weights since.
    """
    if NOTE not in compression.notes:
        raise InvalidSetting("there are no ranges of activations: put qat in the recipe")
    model = compression.copied()
    for path, rows in compression.notes[NOTE].groupby("layer", sort=False):
        layer = model.get_submodule(path)
        grid = _Integers(*_integers(layer, compression.hints.get(f"{path}.weight"), path))
        parametrize.register_parametrization(layer, "weight", grid)
        settled = {row.place: _Rounded(row.scale, row.zero_point) for row in rows.itertuples()}
        put(model, path, nn.Sequential(*filter(None, (settled[BEFORE], layer, settled.get(AFTER)))))
    return model.eval()


class Quantiser(nn.Module):
    """Rounds a tensor to 256 values between the moving averages of its least and largest, zero among them."""

    low: Tensor
    high: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("low", "high"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.begun = False

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; in training mode the ranges follow."""
        if self.training:
            self._follow(x.detach())
        rounded: Tensor = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, STEPS)
        return rounded

    def _follow(self, x: Tensor) -> None:
        low, high = torch.aminmax(x.float())
        if self.begun:
            low, high = (torch.lerp(new, old, MOMENTUM) for new, old in ((low, self.low), (high, self.high)))
        self.take(low, high)

    def take(self, low: Tensor, high: Tensor) -> None:
        """Set the range; zero is always in it, so that padding and what a ReLU cuts off are exact."""
        self.begun = True
        self.low.copy_(low.clamp(max=0))
        self.high.copy_(high.clamp(min=0))
        width = self.high - self.low
        self.scale.copy_(torch.where(width > 0, width / STEPS, 1.0))
        self.zero_point.copy_((-self.low / self.scale).round().clamp(0, STEPS))


class _Rounded(nn.Module):
    """A quantiser that has settled."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if torch.onnx.is_in_onnx_export():
            own = self.scale, self.zero_point
            whole = symbolic("QuantizeLinear", (x, *own), dtype=torch.uint8, shape=x.shape)
            return symbolic("DequantizeLinear", (whole, *own), dtype=torch.float32, shape=x.shape)
        zero_point = self.zero_point.to(torch.int32)
        rounded: Tensor = torch.fake_quantize_per_tensor_affine(x, self.scale, zero_point, 0, STEPS)
        return rounded


class _OnGrid(nn.Module):
    """A parametrisation: the weight in 8-bit steps of its output channel, with the gradient of the weight itself."""

    mask: Tensor | None

    def __init__(self, mask: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """[outputs, ...]."""
        masked = self.masked(weight)
        scales = scales_of(masked)
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        on_grid: Tensor = torch.fake_quantize_per_channel_affine(masked, scales, zeros, 0, -LARGEST - 1, LARGEST)
        return on_grid

    def masked(self, weight: Tensor) -> Tensor:
        """With zeros where weights are pruned."""
        return weight if self.mask is None else weight * self.mask


class _Integers(nn.Module):
    """A parametrisation: the weight is what whole numbers times their channel's scale give, whatever it was."""

    whole: Tensor
    scales: Tensor

    def __init__(self, whole: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("whole", whole)
        self.register_buffer("scales", scales)

    def forward(self, _: Tensor) -> Tensor:
        """[outputs, ...]."""
        if torch.onnx.is_in_onnx_export():
            numbers = self.whole, self.scales
            return symbolic("DequantizeLinear", numbers, {"axis": 0}, dtype=torch.float32, shape=self.whole.shape)
        return self.whole * _by_channel(self.scales, self.whole)


def scales_of(weight: Tensor) -> Tensor:
    """[outputs]: the steps that let each output channel's largest weight be the largest integer."""
    largest = weight.detach().abs().flatten(1).amax(1)
    return torch.where(largest > 0, largest / LARGEST, 1.0)


def _integers(layer: nn.Module, hint: Hint, path: str) -> tuple[Tensor, Tensor]:
    """(int8 of the weight's shape, scales) of a weight that qat has left; raises InvalidSetting for another."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    if isinstance(hint, Scaled) and len(hint.scales) == len(weight):
        scales = torch.from_numpy(hint.scales)
        steps = _by_channel(scales, weight)
        whole = (weight / steps).round().to(torch.int8)
        if torch.equal(whole * steps, weight):
            return whole, scales
    raise InvalidSetting(f"{path} is no longer as qat left it; let qat be the last pass that changes values")


def _by_channel(scales: Tensor, weight: Tensor) -> Tensor:
    return scales.view(-1, *[1] * (weight.dim() - 1))


def _refuse_norms(model: nn.Module) -> None:
    left = [path for path, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    if left:
        raise InvalidSetting(
            f"qat: {len(left)} batch norms stay, such as {left[0]}, because what they read is not made by one"
            " convolution or linear layer for them alone; quantise this network without training: pocketzoo export"
            " --to onnx-int8"
        )


def _places(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, tuple[str, ...]]:
    """Layer -> where its quantisers are: before each, and behind those whose output meets another (an addition)."""
    operators = trace(model, input_shape).operators()
    behind: list[list[str]] = [[] for _ in operators]
    for operator in operators:
        for source in operator.sources:
            if source >= 0:
                behind[source].append(operator.kind if not _is_layer(model, operator.name) else "layer")
    found: dict[str, tuple[str, ...]] = {}
    for operator, readers in zip(operators, behind, strict=True):
        if operator.weight and _is_layer(model, operator.name):
            meets = any(reader not in (*PASSES_ON, "layer") for reader in readers)
            found[operator.name] = (BEFORE, AFTER) if meets else (BEFORE,)
    return found


def _is_layer(model: nn.Module, path: str) -> bool:
    return type(model.get_submodule(path)) in LAYERS


def _wrap(model: nn.Module, places: Mapping[str, tuple[str, ...]], masks: Masks) -> None:
    for path, own in places.items():
        layer = model.get_submodule(path)
        parametrize.register_parametrization(layer, "weight", _OnGrid(masks.get(f"{path}.weight")))
        put(model, path, nn.Sequential(Quantiser(), layer, *([Quantiser()] if AFTER in own else [])))


def _unwrap(model: nn.Module, places: Mapping[str, tuple[str, ...]]) -> tuple[pd.DataFrame, dict[str, Scaled]]:
    """Put the layers back, their weights on the grids; the ranges, and the scales as hints."""
    rows = [
        {"layer": path, "place": place, "low": float(q.low), "high": float(q.high), "scale": float(q.scale),
         "zero_point": int(q.zero_point)}
        for (path, place), q in _quantisers(model, places)
    ]  # fmt: skip
    hints = {}
    for path in places:
        layer = model.get_submodule(f"{path}.1")
        [grid], weight = layer.parametrizations.weight, layer.parametrizations.weight.original  # type: ignore
        hints[f"{path}.weight"] = Scaled(scales_of(grid.masked(weight)).cpu().numpy())
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.register_parameter("bias", layer._parameters.pop("bias"))  # behind the weight, as packed files have it
        put(model, path, layer)
    return pd.DataFrame(rows), hints


def _quantisers(model: nn.Module, places: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[tuple[str, str], Quantiser]]:
    for path, own in places.items():
        wrapped = model.get_submodule(path)
        for place in own:
            yield (path, place), wrapped.get_submodule(PLACES[place])  # type: ignore[misc]


@torch.no_grad()
def _watch(model: nn.Module, images: Tensor) -> None:
    """Let the ranges see images; everything else is in eval mode."""
    model.eval()
    quantisers = [module for module in model.modules() if isinstance(module, Quantiser)]
    for quantiser in quantisers:
        quantiser.train()
    for batch in images.split(BATCH):
        model(batch)
    model.eval()
