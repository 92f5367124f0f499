"""ResNets for CIFAR: 6n + 2 layers (He et al. 2015, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidSetting
from .layers import Chain, ConvNorm, fit_strides
from .registry import register

STEM = 16
WIDTHS = (16, 32, 64)  # a stage each; output sides 32, 16, 8 for a 32x32 image
STRIDES = (1, 2, 2)
BLOCKS = {20: 3, 32: 5, 44: 7, 56: 9, 110: 18}  # depth -> n, blocks a stage
PROJECTIONS = ("A", "B")


class ZeroPad(nn.Module):
    """Every stride-th pixel of x, with zero channels appended until there are as many as in `like`.

    The paper does not say where the zeros go; they follow the channels here, and no count depends on it.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """[N, C, H, W], [N, D, h, w] -> [N, D, h, w]."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, like.shape[1] - x.shape[1]))


class BasicBlock(nn.Module):
    """relu(conv 3x3 -> conv 3x3 + shortcut); the shortcut is x, zero-padded x (option A) or a 1x1 convolution (B)."""

    def __init__(self, c_in: int, c_out: int, stride: int, shortcut: str | None) -> None:
        super().__init__()
        self.conv1 = ConvNorm(c_in, c_out, 3, stride)
        self.conv2 = ConvNorm(c_out, c_out, 3, act=None)
        self.zero_pad = ZeroPad(stride) if shortcut == "A" else None
        self.shortcut = ConvNorm(c_in, c_out, 1, stride, act=None) if shortcut == "B" else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D, H / stride, W / stride]."""
        out: Tensor = self.conv2(self.conv1(x))
        if self.zero_pad is not None:
            x = self.zero_pad(x, out)
        elif self.shortcut is not None:
            x = self.shortcut(x)
        return F.relu(out + x)


class CifarResNet(Chain):
    """3x3 stem -> three stages of basic blocks -> global average pool -> classifier."""

    def __init__(
        self, num_classes: int, in_channels: int, resolution: int, repeats: Sequence[int], shortcut: str
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(in_channels, STEM, 3)
        self.stages = nn.Sequential()
        c_in = STEM
        for s, (width, stride, n) in enumerate(zip(WIDTHS, fit_strides(STRIDES, resolution), repeats, strict=True)):
            stage = nn.Sequential(BasicBlock(c_in, width, stride, shortcut if s > 0 else None))
            stage.extend(BasicBlock(width, width, 1, None) for _ in range(n - 1))
            self.stages.append(stage)
            c_in = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c_in, num_classes)


@register(
    variants={
        **{f"cifar_resnet{depth}": {"repeats": (n, n, n)} for depth, n in BLOCKS.items()},
        **{f"cifar_resnet{depth}_b": {"repeats": (n, n, n), "shortcut": "B"} for depth, n in BLOCKS.items()},
    },
    choices={f"repeats[{stage}]": (1, 2, 3, 5, 9) for stage in range(3)},
)
def cifar_resnet(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    resolution: int = 32,
    repeats: tuple[int, ...] = (3, 3, 3),
    shortcut: str = "A",
) -> nn.Module:
    """CIFAR ResNet of 2 * sum(repeats) + 2 layers; `shortcut` "A" pads with zeros, "B" projects where widths change."""
    if shortcut not in PROJECTIONS:
        raise InvalidSetting(f"cifar_resnet: shortcut {shortcut!r} is not one of {PROJECTIONS}")
    if len(repeats) != len(WIDTHS) or min(repeats) < 1:
        raise InvalidSetting(f"cifar_resnet: repeats are {len(WIDTHS)} numbers of at least 1, not {repeats}")
    return CifarResNet(num_classes, in_channels, resolution, repeats, shortcut)
