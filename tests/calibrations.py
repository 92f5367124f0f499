"""Calibrations made by hand, with costs that a test can work out; and small networks to price with them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import pocketzoo as pz
from pocketzoo.graph.channel_graph import ChannelGraph
from pocketzoo.graph.sized import SizedOperator
from pocketzoo.profiler.calibrated import CalibratedModel, Kind, arranged
from pocketzoo.profiler.operator_features import KINDS, NAMES, TO_BLOCKED, TO_PLAIN, light_terms, multiplies
from pocketzoo.profiler.physical import LatencyError

LARGEST = 30.0  # logarithm of the largest size that was seen
CALL_MS, MAC_MS, ELEMENT_MS, WEIGHT_MS = 1e-3, 2e-7, 3e-6, 5e-7  # of what multiplies
LIGHT_MS = (5e-4, 1e-6, 2e-6)  # a call, an element, an element far from the core


def kind(**changes: Any) -> Kind:
    """A kind that costs what its physical line says: its network adds nothing."""
    features = len(NAMES)
    plain: dict[str, Any] = {
        "physical": [CALL_MS, MAC_MS, ELEMENT_MS, WEIGHT_MS], "low": [-LARGEST] * features,
        "high": [LARGEST] * features, "layers": [([[0.0]] * (features + 1), [0.0])],
    }  # fmt: skip
    return Kind(**{**plain, **changes})


def calibrated(
    graph: ChannelGraph, runtime: str = "eager", kinds: Mapping[str, Kind] | None = None, **changes: Any
) -> CalibratedModel:
    """A model of this machine that prices every kind alike and knows the graph's other operators, whatever layout."""
    operators = graph.operators()
    names = light_terms(operators, arranged(runtime, operators))
    bare = {name.removesuffix(", plain").removesuffix(", blocked") for name in names} - {TO_BLOCKED, TO_PLAIN}
    light = [TO_BLOCKED, TO_PLAIN, *(f"{name}, {layout}" for name in sorted(bare) for layout in ("plain", "blocked"))]
    plain: dict[str, Any] = {
        "device": "cpu", "threads": 1, "reference_ms": 1.0,
        "light": dict.fromkeys(light, LIGHT_MS),
        "error": LatencyError(4.0, 95.0, 0.99, "40 networks", "a test"),
        "stamp": {"processor": "one", "date": "today"}, "versions": {"torch": "2"},
    }  # fmt: skip
    kinds = dict.fromkeys(KINDS, kind()) if kinds is None else kinds
    return CalibratedModel(runtime=runtime, kinds=kinds, **{**plain, **changes})


def multiplying_ms(operator: SizedOperator) -> float:
    """What `calibrated` charges for a convolution without a blocked layout, or a linear layer."""
    moved = int(operator.elements_in) + int(operator.elements_out)
    weights = int(operator.elements_weight)
    assert multiplies(operator)
    return CALL_MS + MAC_MS * int(operator.macs) + ELEMENT_MS * moved + WEIGHT_MS * weights


def moving_ms(operator: SizedOperator) -> float:
    """What `calibrated` charges for what does not multiply, as long as it stays near the core."""
    assert not multiplies(operator)
    return LIGHT_MS[0] + LIGHT_MS[1] * (int(operator.elements_in) + int(operator.elements_out))


class Small(nn.Module):
    """Every kind of convolution but the grouped one, a residual, a branch, a linear layer."""

    def __init__(self, wide: int = 12, narrow: int = 8, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, narrow, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(narrow)
        self.expand, self.project = nn.Conv2d(narrow, wide, 1), nn.Conv2d(wide, narrow, 1)
        self.depthwise = nn.Conv2d(wide, wide, 3, 1, 1, groups=wide)
        self.head = nn.Linear(narrow, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.project(torch.relu(self.depthwise(self.expand(x))))
        pooled: torch.Tensor = self.head(x.mean((2, 3)))
        return pooled


def small(num_classes: int = 10, in_channels: int = 3, wide: int = 12, narrow: int = 8) -> Small:
    """A factory: `calibrations:small`."""
    return Small(wide, narrow, num_classes, in_channels)


def graph_of(model: nn.Module, side: int = 16, channels: int = 3) -> ChannelGraph:
    """The graph of a module at batch one."""
    graph: ChannelGraph = pz.trace(model, (1, channels, side, side))
    return graph


class Branches(nn.Module):
    """Four convolutions that read one tensor: a 1x1, two alike of 3x3, a wider one of 3x3; then a linear layer."""

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, 8, 1)
        self.first, self.second = nn.Conv2d(channels, 8, 3, 1, 1), nn.Conv2d(channels, 8, 3, 1, 1)
        self.wide = nn.Conv2d(channels, 12, 3, 1, 1)
        self.head = nn.Linear(36, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.one(x), self.first(x), self.second(x), self.wide(x)], 1)
        scores: torch.Tensor = self.head(torch.relu(x).mean((2, 3)))
        return scores


def branches(num_classes: int = 10, in_channels: int = 3) -> Branches:
    """A factory: `calibrations:branches`."""
    return Branches(num_classes, in_channels)
