"""GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842) with batch norm, in the form that torchvision trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .checkpoints import conv_norm, tensor_names
from .layers import ConvNorm, fit_strides
from .registry import register


class Row(NamedTuple):
    """A row of Table 1: output widths of the four branches, and what the middle two reduce to."""

    name: str
    direct: int
    reduce3: int
    spatial3: int
    reduce5: int
    spatial5: int
    pooled: int


STEM = (64, 64, 192)  # 7x7, 1x1, 3x3
STAGES = (  # arXiv:1409.4842, Table 1; a max pool of stride 2 lies between stages
    (  # 28x28 for a 224 x 224 image
        Row("inception3a", 64, 96, 128, 16, 32, 32),
        Row("inception3b", 128, 128, 192, 32, 96, 64),
    ),
    (  # 14x14
        Row("inception4a", 192, 96, 208, 16, 48, 64),
        Row("inception4b", 160, 112, 224, 24, 64, 64),
        Row("inception4c", 128, 128, 256, 24, 64, 64),
        Row("inception4d", 112, 144, 288, 32, 64, 64),
        Row("inception4e", 256, 160, 320, 32, 128, 128),
    ),
    (  # 7x7
        Row("inception5a", 256, 160, 320, 32, 128, 128),
        Row("inception5b", 384, 192, 384, 48, 128, 128),
    ),
)
AUXILIARY = ("inception4a", "inception4d")  # where the two training-only classifiers look
AUXILIARY_MAP, AUXILIARY_WIDTH, AUXILIARY_HIDDEN, AUXILIARY_DROPOUT = 4, 128, 1024, 0.7

Unit = partial(ConvNorm, eps=1e-3)


def _pool(kernel: int, stride: int) -> nn.Module:
    """Max pool that keeps ragged borders; a dropped stride leaves it out."""
    return nn.MaxPool2d(kernel, stride, ceil_mode=True) if stride > 1 else nn.Identity()


class Inception(nn.Module):
    """1x1 | 1x1 -> 3x3 | 1x1 -> kernel x kernel | max pool -> 1x1, concatenated."""

    def __init__(self, c_in: int, row: Row, kernel: int) -> None:
        super().__init__()
        self.direct = Unit(c_in, row.direct)
        self.reduce3 = Unit(c_in, row.reduce3)
        self.spatial3 = Unit(row.reduce3, row.spatial3, 3)
        self.reduce5 = Unit(c_in, row.reduce5)
        self.spatial5 = Unit(row.reduce5, row.spatial5, kernel)
        self.pool = nn.MaxPool2d(3, 1, padding=1)
        self.pooled = Unit(c_in, row.pooled)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, sum of the branches, H, W]."""
        branches = (
            self.direct(x),
            self.spatial3(self.reduce3(x)),
            self.spatial5(self.reduce5(x)),
            self.pooled(self.pool(x)),
        )
        return torch.cat(branches, dim=1)


class Auxiliary(nn.Sequential):
    """Average pool to 4x4 -> 1x1 -> 1024 -> classes: a classifier half way, for its gradient (section 5)."""

    def __init__(self, c_in: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(AUXILIARY_MAP)
        self.reduce = Unit(c_in, AUXILIARY_WIDTH)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(AUXILIARY_WIDTH * AUXILIARY_MAP**2, AUXILIARY_HIDDEN)
        self.act = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(AUXILIARY_DROPOUT)
        self.classifier = nn.Linear(AUXILIARY_HIDDEN, num_classes)


def _torchvision_names(model: nn.Module) -> dict[str, str]:
    modules = {"classifier": "fc"}
    for i in (1, 2, 3):
        modules |= conv_norm(f"stem.conv{i}", f"conv{i}.conv", f"conv{i}.bn")
    branches = {
        "direct": "branch1",
        "reduce3": "branch2.0",
        "spatial3": "branch2.1",
        "reduce5": "branch3.0",
        "spatial5": "branch3.1",
        "pooled": "branch4.1",
    }
    for row in (row for rows in STAGES for row in rows):
        for ours, theirs in branches.items():
            modules |= conv_norm(f"body.{row.name}.{ours}", f"{row.name}.{theirs}.conv", f"{row.name}.{theirs}.bn")
    for i, name in enumerate(AUXILIARY, start=1):
        modules |= conv_norm(f"aux.{name}.reduce", f"aux{i}.conv.conv", f"aux{i}.conv.bn")
        modules |= {f"aux.{name}.hidden": f"aux{i}.fc1", f"aux.{name}.classifier": f"aux{i}.fc2"}
    return tensor_names(model, modules)


class GoogLeNet(nn.Module):
    """Stem of three convolutions -> nine Inception modules -> global average pool -> classifier."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]] = {"torchvision": _torchvision_names}

    def __init__(
        self, num_classes: int, in_channels: int, resolution: int, kernel: int, aux: bool, dropout: float
    ) -> None:
        super().__init__()
        first, pool1, pool2, *pools = fit_strides([2] * (2 + len(STAGES)), resolution)
        self.stem = nn.Sequential()
        self.stem.add_module("conv1", Unit(in_channels, STEM[0], 7, first))
        self.stem.add_module("pool1", _pool(3, pool1))
        self.stem.add_module("conv2", Unit(STEM[0], STEM[1]))
        self.stem.add_module("conv3", Unit(STEM[1], STEM[2], 3))
        self.stem.add_module("pool2", _pool(3, pool2))
        self.body = nn.Sequential()
        self.aux = nn.ModuleDict()
        c_in = STEM[-1]
        for s, rows in enumerate(STAGES):
            if s > 0:  # torchvision's last pool is 2x2
                self.body.add_module(f"pool{s + 2}", _pool(2 if s == len(STAGES) - 1 else 3, pools[s - 1]))
            for row in rows:
                self.body.add_module(row.name, Inception(c_in, row, kernel))
                c_in = row.direct + row.spatial3 + row.spatial5 + row.pooled
                if aux and row.name in AUXILIARY:
                    self.aux[row.name] = Auxiliary(c_in, num_classes)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(c_in, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[N, C, H, W] -> [N, classes]; with auxiliary classifiers in training, a tuple: the output, then theirs."""
        x = self.stem(x)
        auxiliary: list[Tensor] = []
        for name, layer in self.body.named_children():
            x = layer(x)
            if self.training and name in self.aux:
                auxiliary.append(self.aux[name](x))
        x = self.classifier(self.dropout(self.flatten(self.pool(x))))
        return (x, *auxiliary) if auxiliary else x


@register(variants={"googlenet": {}, "googlenet_aux": {"aux": True}}, choices={"kernel": (3, 5)})
def googlenet(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    kernel: int = 3,
    aux: bool = False,
    dropout: float = 0.2,
) -> nn.Module:
    """GoogLeNet; `kernel` is that of the 5x5 branch, where torchvision has 3; `aux` adds classifiers for training."""
    return GoogLeNet(num_classes, in_channels, resolution, kernel, aux, dropout)
