"""DenseNet and DenseNet-BC for CIFAR and ImageNet (Huang et al. 2017, arXiv:1608.06993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting
from .checkpoints import tensor_names
from .layers import Chain, ConvNorm, fit_strides
from .registry import register

BOTTLENECK = 4  # inner width of a bottleneck layer, in growth rates
IMAGENET = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}  # Table 1: depth -> layers a block


class DenseLayer(nn.Sequential):
    """x, concatenated with [norm, ReLU, 1x1 convolution ->] norm, ReLU, 3x3 convolution of it."""

    def __init__(self, c_in: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            self.norm1 = nn.BatchNorm2d(c_in)
            self.act1 = nn.ReLU(inplace=True)
            self.reduce = nn.Conv2d(c_in, BOTTLENECK * growth, 1, bias=False)
            c_in = BOTTLENECK * growth
        self.norm2 = nn.BatchNorm2d(c_in)
        self.act2 = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(c_in, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + growth, H, W]."""
        out = x
        for layer in self:
            out = layer(out)
        return torch.cat((x, out), dim=1)


class Transition(nn.Sequential):
    """Norm -> ReLU -> 1x1 convolution -> average pool."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(c_in)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        if stride > 1:
            self.pool = nn.AvgPool2d(stride)


def _torchvision_names(model: nn.Module) -> dict[str, str]:
    assert isinstance(model, DenseNet)
    modules = {"stem.conv": "features.conv0", "stem.norm": "features.norm0"}
    for b, block in enumerate(model.blocks, start=1):
        for i, layer in enumerate(block.children(), start=1):
            theirs = f"features.denseblock{b}.denselayer{i}"
            names = {"norm1": "norm1", "reduce": "conv1", "norm2": "norm2", "conv": "conv2"}
            if isinstance(layer, Transition):
                theirs, names = f"features.transition{b}", {"norm": "norm", "conv": "conv"}
            modules |= {f"blocks.{b - 1}.{i - 1}.{our}": f"{theirs}.{name}" for our, name in names.items()}
    return tensor_names(model, modules | {"norm": "features.norm5", "classifier": "classifier"})


class DenseNet(Chain):
    """Stem -> dense blocks, with a transition after all but the last -> norm, ReLU, average pool -> classifier."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]] = {"torchvision": _torchvision_names}

    def __init__(
        self,
        stem: nn.Module,
        width: int,
        strides: Sequence[int],
        growth: int,
        repeats: Sequence[int],
        bottleneck: bool,
        compression: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential()
        for n, stride in zip(repeats, [*strides, None], strict=True):
            block = nn.Sequential(*(DenseLayer(width + i * growth, growth, bottleneck) for i in range(n)))
            width += n * growth
            if stride is not None:
                block.append(Transition(width, int(width * compression), stride))
                width = int(width * compression)
            self.blocks.append(block)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(width, num_classes)


def _check(repeats: Sequence[int], compression: float) -> None:
    if not repeats or min(repeats) < 1:
        raise InvalidSetting(f"densenet: repeats are numbers of at least 1, not {tuple(repeats)}")
    if not 0 < compression <= 1:
        raise InvalidSetting(f"densenet: compression lies in (0, 1], not {compression}")


@register(
    variants={f"densenet{depth}": {"repeats": repeats} for depth, repeats in IMAGENET.items()},
    choices={"growth": (12, 24, 32), **{f"repeats[{b}]": (2, 4, 6, 12, 16, 24) for b in range(4)}},
)
def densenet(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    growth: int = 32,
    repeats: tuple[int, ...] = IMAGENET[121],
    compression: float = 0.5,
) -> nn.Module:
    """DenseNet-BC for ImageNet (Table 1): 7x7 stem of two growth rates, max pool, a block per entry of `repeats`."""
    _check(repeats, compression)
    first, pool, *strides = fit_strides([2] * (len(repeats) + 1), resolution)
    stem = ConvNorm(in_channels, 2 * growth, 7, first)
    if pool > 1:
        stem.add_module("pool", nn.MaxPool2d(3, pool, padding=1))
    return DenseNet(stem, 2 * growth, strides, growth, repeats, True, compression, num_classes)


@register(
    variants={
        "cifar_densenet40_12": {},
        "cifar_densenet40_12_stem24": {"stem": 24},  # arXiv:1810.05270 starts from two growth rates
        "cifar_densenet_bc100_12": {"stem": 24, "repeats": (16, 16, 16), "bottleneck": True, "compression": 0.5},
    },
    choices={"growth": (12, 24), **{f"repeats[{b}]": (4, 8, 12, 16) for b in range(3)}},
)
def cifar_densenet(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    resolution: int = 32,
    stem: int = 16,
    growth: int = 12,
    repeats: tuple[int, ...] = (12, 12, 12),
    bottleneck: bool = False,
    compression: float = 1.0,
) -> nn.Module:
    """DenseNet for CIFAR (section 3): 3x3 stem; `bottleneck` and `compression` 0.5 make it a BC."""
    _check(repeats, compression)
    strides = fit_strides([2] * (len(repeats) - 1), resolution)
    first = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
    return DenseNet(first, stem, strides, growth, repeats, bottleneck, compression, num_classes)
