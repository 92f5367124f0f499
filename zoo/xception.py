"""Xception (arXiv:1610.02357)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from ..errors import InvalidSetting
from .checkpoints import conv_norm, tensor_names
from .layers import SMALL_IMAGE, Chain, ConvNorm, fit_strides, relu
from .registry import register


class Row(NamedTuple):
    """A block of Figure 5: the output channels of its separable convolutions, and its stride."""

    channels: tuple[int, ...]
    stride: int


STEM = (32, 64)  # 3x3 convolutions without padding, the first with stride 2
ENTRY = (Row((128, 128), 2), Row((256, 256), 2), Row((728, 728), 2))
MIDDLE = Row((728, 728, 728), 1)  # eight times
EXIT = Row((728, 1024), 2)
TAIL = (1536, 2048)  # separable convolutions, each followed by relu


class SeparableConv(nn.Sequential):
    """3x3 depthwise -> 1x1 and batch norm, with no activation between (section 4.7)."""

    def __init__(self, c_in: int, c_out: int, act: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False)
        self.pointwise = ConvNorm(c_in, c_out, act=act)


class Block(nn.Module):
    """Separable convolutions, each after a relu, then a max-pool where it strides; plus the shortcut.

    The shortcut is a 1x1 convolution in the entry and exit flow, x itself in the middle flow.
    """

    def __init__(self, c_in: int, row: Row, stride: int, starts_with_relu: bool = True) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        c = c_in
        for i, c_out in enumerate(row.channels):
            if i or starts_with_relu:
                layers[f"act{i}"] = nn.ReLU(inplace=i > 0)  # the shortcut needs what the first one reads
            layers[f"separable{i}"] = SeparableConv(c, c_out)
            c = c_out
        if stride > 1:
            layers["pool"] = nn.MaxPool2d(3, stride, 1)
        self.branch = nn.Sequential(layers)
        self.shortcut = nn.Identity() if row is MIDDLE else ConvNorm(c_in, c, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H / stride, W / stride]."""
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


class Xception(Chain):
    """Two convolutions -> entry, middle, exit flow -> two separable convolutions -> global average -> classifier."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]]

    def __init__(self, middle: int, num_classes: int, in_channels: int, resolution: int) -> None:
        super().__init__()
        rows = (*ENTRY, *[MIDDLE] * middle, EXIT)
        stem, *strides = fit_strides([2, *(row.stride for row in rows)], resolution)
        padding = 0 if resolution > SMALL_IMAGE else 1
        self.stem = ConvNorm(in_channels, STEM[0], 3, stem, act=relu, padding=padding)
        self.stem2 = ConvNorm(STEM[0], STEM[1], 3, act=relu, padding=padding)
        blocks, c_in = [], STEM[-1]
        for i, (row, stride) in enumerate(zip(rows, strides, strict=True)):
            blocks.append(Block(c_in, row, stride, starts_with_relu=i > 0))
            c_in = row.channels[-1]
        self.blocks = nn.Sequential(*blocks)
        self.tail = SeparableConv(c_in, TAIL[0], relu)
        self.tail2 = SeparableConv(*TAIL, relu)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(TAIL[-1], num_classes)


@register(variants={"xception": {}}, choices={"middle": (1, 2, 4, 6, 8)})
def xception(*, num_classes: int = 1000, in_channels: int = 3, resolution: int = 299, middle: int = 8) -> nn.Module:
    """Xception with `middle` blocks in the middle flow; InvalidSetting if negative."""
    if middle < 0:
        raise InvalidSetting(f"xception: middle is a number of blocks, not {middle}")
    return Xception(middle, num_classes, in_channels, resolution)


def _timm_names(model: nn.Module) -> dict[str, str]:
    """timm's names for its `legacy_xception`."""

    def separable(ours: str, conv: str, norm: str) -> dict[str, str]:
        return {f"{ours}.depthwise": f"{conv}.conv1"} | conv_norm(f"{ours}.pointwise", f"{conv}.pointwise", norm)

    modules = conv_norm("stem", "conv1", "bn1") | conv_norm("stem2", "conv2", "bn2") | {"classifier": "fc"}
    modules |= separable("tail", "conv3", "bn3") | separable("tail2", "conv4", "bn4")
    for name, block in model.named_modules():
        if not isinstance(block, Block):
            continue
        theirs = f"block{int(name.rpartition('.')[2]) + 1}"
        modules |= conv_norm(f"{name}.shortcut", f"{theirs}.skip", f"{theirs}.skipbn")
        i = 0  # their position: a batch norm is an entry of its own
        for layer, module in block.branch.named_children():
            if isinstance(module, SeparableConv):
                modules |= separable(f"{name}.branch.{layer}", f"{theirs}.rep.{i}", f"{theirs}.rep.{i + 1}")
                i += 1
            i += 1
    return tensor_names(model, modules)


Xception.checkpoints = {"timm": _timm_names}
