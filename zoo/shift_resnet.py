"""ShiftResNet for CIFAR (Wu et al. 2018, arXiv:1711.08141, section 4.1), as the authors' code defines it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InvalidSetting
from .layers import Chain, ConvNorm, fit_strides
from .registry import register
from .shiftnet import Shift

STEM = 16
WIDTHS = (16, 32, 64)  # output sides 32, 16, 8 for a 32x32 image
STRIDES = (1, 2, 2)
BLOCKS = {20: 3, 56: 9, 110: 18}  # depth of the ResNet that it replaces -> blocks a stage
EXPANSIONS = (1, 3, 6, 9)


class ShiftBlock(nn.Module):
    """1x1 expand -> shift -> 1x1 project, plus x, or a 1x1 convolution of it where widths change; no ReLU after."""

    def __init__(self, c_in: int, c_out: int, kernel: int, expansion: float, stride: int, projects: bool) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.expand = ConvNorm(c_in, hidden)
        self.shift = Shift(kernel)
        self.project = ConvNorm(hidden, c_out, 1, stride)
        self.shortcut = ConvNorm(c_in, c_out, 1, stride, act=None) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D, H / stride, W / stride]."""
        out: Tensor = self.shortcut(x) + self.project(self.shift(self.expand(x)))
        return out


class ShiftResNet(Chain):
    """3x3 stem -> three stages of shift blocks -> global average pool -> classifier."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        resolution: int,
        repeats: Sequence[int],
        expansion: float,
        kernel: int,
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(in_channels, STEM, 3)
        self.stages = nn.Sequential()
        c_in = STEM
        for s, (width, stride, n) in enumerate(zip(WIDTHS, fit_strides(STRIDES, resolution), repeats, strict=True)):
            stage = nn.Sequential(ShiftBlock(c_in, width, kernel, expansion, stride, projects=s > 0))
            stage.extend(ShiftBlock(width, width, kernel, expansion, 1, projects=False) for _ in range(n - 1))
            self.stages.append(stage)
            c_in = width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c_in, num_classes)


@register(
    variants={
        f"shift_resnet{depth}_e{expansion}": {"repeats": (n, n, n), "expansion": expansion}
        for depth, n in BLOCKS.items()
        for expansion in EXPANSIONS
    },
    choices={
        "expansion": EXPANSIONS,
        "kernel": (3, 5),
        **{f"repeats[{stage}]": (1, 2, 3, 5, 9) for stage in range(len(WIDTHS))},
    },
)
def shift_resnet(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    resolution: int = 32,
    repeats: tuple[int, ...] = (3, 3, 3),
    expansion: float = 9,
    kernel: int = 3,
) -> nn.Module:
    """ShiftResNet of 2 * sum(repeats) + 2 layers; inner widths are `expansion` times the stage's."""
    if len(repeats) != len(WIDTHS) or min(repeats) < 1:
        raise InvalidSetting(f"shift_resnet: repeats are {len(WIDTHS)} numbers of at least 1, not {repeats}")
    return ShiftResNet(num_classes, in_channels, resolution, repeats, expansion, kernel)
