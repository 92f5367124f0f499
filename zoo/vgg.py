"""VGG (Simonyan and Zisserman 2014, arXiv:1409.1556), and the forms that the pruning papers train on CIFAR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import nn

from ..errors import InvalidSetting
from .checkpoints import tensor_names
from .layers import Chain, fit_strides
from .registry import register

WIDTHS = (64, 128, 256, 512, 512)  # Table 1: five stages of 3x3 convolutions, each ends in a 2x2 max pool
REPEATS = {  # Table 1: depth -> convolutions a stage
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
HIDDEN = 4096
MAP = 7  # side of the map that the ImageNet classifier reads
CIFAR = 32
CHOICES = {f"repeats[{stage}]": (1, 2, 3, 4) for stage in range(5)}


class ConvUnit(nn.Sequential):
    """3x3 convolution -> batch norm, if asked -> ReLU."""

    def __init__(self, c_in: int, c_out: int, bias: bool, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=bias)
        if batch_norm:
            self.norm = nn.BatchNorm2d(c_out)
        self.act = nn.ReLU(inplace=True)


def make_stages(
    in_channels: int, repeats: Sequence[int], pools: Sequence[int], bias: bool, batch_norm: bool
) -> nn.Sequential:
    """Stages of `repeats` units, each followed by a max pool where its stride is above 1."""
    stages, c_in = [], in_channels
    for width, n, pool in zip(WIDTHS, repeats, pools, strict=True):
        stage: list[nn.Module] = []
        for _ in range(n):
            stage.append(ConvUnit(c_in, width, bias, batch_norm))
            c_in = width
        if pool > 1:
            stage.append(nn.MaxPool2d(pool))
        stages.append(nn.Sequential(*stage))
    return nn.Sequential(*stages)


def _torchvision_names(model: nn.Module) -> dict[str, str]:
    """Ours -> torchvision's, which numbers the layers and pools of all stages in one sequence."""
    modules = {"hidden1": "classifier.0", "hidden2": "classifier.3", "classifier": "classifier.6"}
    index = 0
    for name, layer in model.named_modules():
        if not name.startswith("stages.") or isinstance(layer, nn.Sequential):
            continue
        modules[name] = f"features.{index}"
        index += 1
    return tensor_names(model, modules)


class VGG(Chain):
    """Five stages -> 7x7 map -> 4096 -> 4096 -> classes, with ReLU and dropout between the linear layers."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]] = {"torchvision": _torchvision_names}

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        resolution: int,
        repeats: Sequence[int],
        batch_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        pools = fit_strides((2,) * len(WIDTHS), resolution)
        self.stages = make_stages(in_channels, repeats, pools, True, batch_norm)
        self.pool = nn.AdaptiveAvgPool2d(MAP)
        self.flatten = nn.Flatten()
        self.hidden1 = nn.Linear(WIDTHS[-1] * MAP**2, HIDDEN)
        self.act1 = nn.ReLU(inplace=True)
        self.dropout1 = nn.Dropout(dropout)
        self.hidden2 = nn.Linear(HIDDEN, HIDDEN)
        self.act2 = nn.ReLU(inplace=True)
        self.dropout2 = nn.Dropout(dropout)
        self.classifier = nn.Linear(HIDDEN, num_classes)


class CifarVGG(Chain):
    """Five stages, a global average pool for the last max pool -> [512, batch norm, ReLU ->] classes."""

    def __init__(
        self, num_classes: int, in_channels: int, resolution: int, repeats: Sequence[int], bias: bool, hidden: bool
    ) -> None:
        super().__init__()
        pools = [2] * (len(WIDTHS) - 1)
        if resolution < CIFAR:  # four pools leave a 2x2 map of a CIFAR image, and less of anything smaller
            pools = fit_strides(pools, resolution)
        self.stages = make_stages(in_channels, repeats, [*pools, 1], bias, True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        c = WIDTHS[-1]
        if hidden:
            self.hidden = nn.Linear(c, c)
            self.norm = nn.BatchNorm1d(c)
            self.act = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(c, num_classes)


def check_repeats(repeats: Sequence[int]) -> None:
    """InvalidSetting unless there is a positive number for each stage."""
    if len(repeats) != len(WIDTHS) or min(repeats) < 1:
        raise InvalidSetting(f"vgg: repeats are {len(WIDTHS)} numbers of at least 1, not {tuple(repeats)}")


@register(
    variants={
        **{f"vgg{depth}": {"repeats": repeats} for depth, repeats in REPEATS.items()},
        **{f"vgg{depth}_bn": {"repeats": repeats, "batch_norm": True} for depth, repeats in REPEATS.items()},
    },
    choices=CHOICES,
)
def vgg(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    repeats: tuple[int, ...] = REPEATS[16],
    batch_norm: bool = False,
    dropout: float = 0.5,
) -> nn.Module:
    """VGG of sum(repeats) convolutions and three linear layers (arXiv:1409.1556, Table 1)."""
    check_repeats(repeats)
    return VGG(num_classes, in_channels, resolution, repeats, batch_norm, dropout)


@register(
    variants={
        "cifar_vgg16": {},  # one linear layer
        "cifar_vgg16_hidden": {"hidden": True},  # Li et al., arXiv:1608.08710
        "cifar_vgg19": {"repeats": REPEATS[19]},  # network slimming, arXiv:1708.06519
        "cifar_vgg19_bias": {"repeats": REPEATS[19], "bias": True},  # arXiv:1810.05270, weight-level pruning
    },
    choices=CHOICES,
)
def cifar_vgg(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    resolution: int = 32,
    repeats: tuple[int, ...] = REPEATS[16],
    bias: bool = False,
    hidden: bool = False,
) -> nn.Module:
    """VGG with batch norm for CIFAR; `bias` in the convolutions, `hidden` puts a layer of 512 before the classifier."""
    check_repeats(repeats)
    return CifarVGG(num_classes, in_channels, resolution, repeats, bias, hidden)
