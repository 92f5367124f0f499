"""Batch-norm folding: what a convolution or linear layer and the batch norm behind it do is one layer's work."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...graph.channel_graph import trace
from ...graph.sized import SizedOperator
from ...packing.edits import put, replaced
from ...training.evaluate import evaluating
from ..compression import Compression

LAYERS: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
TOLERANCE = 1e-4  # largest difference of the outputs, relative to the largest output: sums are rounded in another order


@dataclass(frozen=True)
class Fold:
    """Put each batch norm into the layer before it, where nothing else reads that layer's output.

    w' = w gamma / sqrt(var + eps) and b' = (b - mean) gamma / sqrt(var + eps) + beta, in each output channel; the
    batch norm becomes an identity. Raises InvalidSetting where the outputs would change: the network then uses its
    layers in a way that does not show in its operators.
    """

    def apply(self, compression: Compression) -> Compression:
        """Eval outputs stay as they are."""
        model, edits = compression.copied(), list(compression.edits)
        pairs = foldable(model, compression.input_shape)
        for norm, layer in pairs.items():
            merged = _merged(model.get_submodule(layer), model.get_submodule(norm))
            for path, part in ((layer, merged), (norm, nn.Identity())):
                put(model, path, part)
                edits.append(replaced(path, part))
        _check(compression.model, model, compression.input_shape)
        scaled = {f"{layer}.weight" for layer in pairs.values()}  # no longer tied, but what is zero is so still
        codebooks, hints = (
            {name: value for name, value in known.items() if name not in scaled}
            for known in (compression.codebooks, compression.hints)
        )
        return compression.changed(model=model, edits=tuple(edits), codebooks=codebooks, hints=hints)


def foldable(model: nn.Module, input_shape: Sequence[int]) -> dict[str, str]:
    """Batch norm -> the layer that it can go into: both run once, and only it reads what the layer makes."""
    operators = trace(model, tuple(input_shape)).operators()
    readers = Counter(source for operator in operators for source in operator.sources)
    runs = Counter(operator.name for operator in operators if operator.weight)
    weights = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found = {}
    for operator in operators:
        norm = _module(model, operator, NORMS)
        if norm is None or norm.running_mean is None or len(operator.sources) != 1 or operator.sources[0] < 0:
            continue
        before = operators[operator.sources[0]]
        layer = _module(model, before, LAYERS)
        if layer is None or readers[operator.sources[0]] != 1 or not _has_edit(layer, before):
            continue
        if runs[operator.name] == runs[before.name] == 1 and weights[id(layer.weight)] == 1:
            found[operator.name] = before.name
    return found


def _module(model: nn.Module, operator: SizedOperator, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
    """The module that runs an operator, if it is exactly of these kinds: heirs may do more."""
    module = model.get_submodule(operator.name)
    hooked = module._forward_hooks or module._forward_pre_hooks
    return module if type(module) in kinds and operator.weight and not hooked else None


def _has_edit(layer: nn.Module, operator: SizedOperator) -> bool:
    """Whether the layer with a bias can be written down, and its channels are where a batch norm sees them."""
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return len(operator.output) == 2


@torch.no_grad()
def _merged(layer: Any, norm: Any) -> nn.Module:
    """A layer that does what both do in eval mode."""
    mean, variance = _exactly(norm.running_mean), _exactly(norm.running_var)
    gain = (variance + norm.eps).rsqrt() * (1 if norm.weight is None else _exactly(norm.weight))
    shift = 0 if norm.bias is None else _exactly(norm.bias)
    bias = 0 if layer.bias is None else _exactly(layer.bias)
    merged: nn.Module = copy.deepcopy(layer)
    weight = _exactly(layer.weight)
    merged.weight = nn.Parameter((weight * gain.view(-1, *[1] * (weight.dim() - 1))).to(layer.weight.dtype))
    merged.bias = nn.Parameter(((bias - mean) * gain + shift).to(layer.weight.dtype))
    return merged


def _exactly(values: Tensor) -> Tensor:
    return values.detach().double()


def _check(before: nn.Module, after: nn.Module, input_shape: Sequence[int]) -> None:
    images = torch.randn(2, *input_shape[1:], generator=torch.Generator().manual_seed(0))
    with evaluating(before), evaluating(after), torch.inference_mode():
        expected, actual = before(images), after(images)
    difference, largest = float((actual - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(largest, 1e-6):
        raise InvalidSetting(
            f"fold would change the outputs by {difference:g} where they reach {largest:g}: the network uses a layer"
            " before a batch norm in some other way as well"
        )
