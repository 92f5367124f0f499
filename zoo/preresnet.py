"""Pre-activation ResNets for CIFAR with bottlenecks: 9n + 2 layers (He et al. 2016, arXiv:1603.05027)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InvalidSetting
from .layers import Chain, fit_strides
from .registry import register

STEM = 16
WIDTHS = (16, 32, 64)  # inner widths; output sides 32, 16, 8 for a 32x32 image
STRIDES = (1, 2, 2)
EXPANSION = 4
BLOCKS = {56: 6, 110: 12, 164: 18}  # depth -> n, blocks a stage


class PreConv(nn.Sequential):
    """Batch norm -> ReLU -> convolution."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(c_in)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)


class PreBottleneck(nn.Module):
    """1x1 reduce -> 3x3 -> 1x1 expand, plus x, or a 1x1 convolution of it where a stage begins."""

    def __init__(self, c_in: int, width: int, stride: int, projects: bool) -> None:
        super().__init__()
        c_out = EXPANSION * width
        self.reduce = PreConv(c_in, width)
        self.spatial = PreConv(width, width, 3, stride)
        self.expand = PreConv(width, c_out)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D, H / stride, W / stride]."""
        out: Tensor = self.shortcut(x) + self.expand(self.spatial(self.reduce(x)))
        return out


class PreResNet(Chain):
    """3x3 stem -> three stages of pre-activation bottlenecks -> norm, ReLU -> global average pool -> classifier."""

    def __init__(self, num_classes: int, in_channels: int, resolution: int, repeats: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        c_in = STEM
        for width, stride, n in zip(WIDTHS, fit_strides(STRIDES, resolution), repeats, strict=True):
            stage = nn.Sequential()
            for b in range(n):
                stage.append(PreBottleneck(c_in, width, stride if b == 0 else 1, projects=b == 0))
                c_in = EXPANSION * width
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(c_in)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c_in, num_classes)


@register(
    variants={f"preresnet{depth}": {"repeats": (n, n, n)} for depth, n in BLOCKS.items()},
    choices={f"repeats[{stage}]": (1, 2, 3, 6, 12, 18) for stage in range(len(WIDTHS))},
)
def preresnet(
    *, num_classes: int = 10, in_channels: int = 3, resolution: int = 32, repeats: tuple[int, ...] = (18, 18, 18)
) -> nn.Module:
    """Pre-activation ResNet of 3 * sum(repeats) + 2 layers."""
    if len(repeats) != len(WIDTHS) or min(repeats) < 1:
        raise InvalidSetting(f"preresnet: repeats are {len(WIDTHS)} numbers of at least 1, not {repeats}")
    return PreResNet(num_classes, in_channels, resolution, repeats)
