"""ShuffleNet v1 (arXiv:1707.01083)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting
from .layers import Chain, ConvNorm, channel_shuffle, fit_strides, relu
from .registry import register

STEM = 24
BOTTLENECK = 4  # a unit's output channels per inner channel
GROWTH = (1, 2, 4)  # arXiv:1707.01083, Table 1: stages 3 and 4 double the width, each starts with stride 2
WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # Table 1: groups -> output channels of stage 2
REPEATS = (4, 8, 4)  # Table 1: units in each stage
# Tables 2 and 5 give a scale s and MACs, not the stem: these widths meet the MACs (12 at 0.5x is 24 scaled).
STEMS: dict[float, int | str] = {0.25: 12, 0.5: "scaled", 1.0: "scaled", 1.5: STEM, 2.0: "scaled"}


def nearest_multiple(channels: float, divisor: int) -> int:
    """Nearest multiple of the divisor, the larger of two, at least one; the paper's scales do not always divide."""
    return max(1, int(channels / divisor + 0.5)) * divisor


class Branch(nn.Sequential):
    """Grouped 1x1 reduce -> channel shuffle -> depthwise without activation -> grouped 1x1 without activation."""

    def __init__(
        self, c_in: int, c_mid: int, c_out: int, kernel: int, stride: int, groups: int, group_reduce: bool
    ) -> None:
        super().__init__()
        self.reduce = ConvNorm(c_in, c_mid, groups=groups if group_reduce else 1, act=relu)
        self.depthwise = ConvNorm(c_mid, c_mid, kernel, stride, c_mid, act=None)
        self.expand = ConvNorm(c_mid, c_out, groups=groups, act=None)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H / stride, W / stride]."""
        out: Tensor = self.expand(self.depthwise(channel_shuffle(self.reduce(x), self.groups)))
        return out


class Unit(nn.Module):
    """relu(x + branch(x)) (Figure 2b)."""

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.branch = Branch(channels, channels // BOTTLENECK, channels, kernel, 1, groups, group_reduce=True)
        self.act = relu()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        out: Tensor = self.act(x + self.branch(x))
        return out


class DownUnit(nn.Module):
    """relu of the 3x3 average of x beside branch(x), which makes the channels that x lacks (Figure 2c).

    The authors' code takes relu of the branch alone, which is the same: x is never negative, so nor is its average.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, groups: int, group_reduce: bool) -> None:
        super().__init__()
        self.shortcut = nn.AvgPool2d(3, stride, 1)
        self.branch = Branch(c_in, c_out // BOTTLENECK, c_out - c_in, kernel, stride, groups, group_reduce)
        self.act = relu()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H / stride, W / stride]."""
        out: Tensor = self.act(torch.cat((self.shortcut(x), self.branch(x)), dim=1))
        return out


class ShuffleNetV1(Chain):
    """Stem -> stages of one down unit and further units -> global average -> classifier.

    The first 1x1 of stage 2 is not grouped: it sees few channels (section 3.2).
    """

    def __init__(
        self,
        stem: int,
        widths: Sequence[int],
        groups: int,
        repeats: Sequence[int],
        kernel: int,
        classifier_bias: bool,
        num_classes: int,
        in_channels: int,
        resolution: int,
    ) -> None:
        super().__init__()
        stem_stride, pool, *strides = fit_strides([2, 2, 2, 2, 2], resolution)
        self.stem = ConvNorm(in_channels, stem, 3, stem_stride, act=relu)
        self.pool = nn.MaxPool2d(3, pool, 1) if pool > 1 else nn.Identity()
        stages, c_in = [], stem
        for s, (width, stride, count) in enumerate(zip(widths, strides, repeats, strict=True)):
            first = DownUnit(c_in, width, kernel, stride, groups, group_reduce=s > 0)
            stages.append(nn.Sequential(first, *(Unit(width, kernel, groups) for _ in range(count - 1))))
            c_in = width
        self.stages = nn.Sequential(*stages)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c_in, num_classes, bias=classifier_bias)


def _named(groups: int, scale: float) -> dict[str, object]:
    # 8 groups do not divide 12; scaled, they get 8, which come nearest to the printed MACs
    stem = "scaled" if (groups, scale) == (8, 0.25) else STEMS[scale]
    return {"groups": groups, "multiplier": scale, "stem": stem}


@register(
    variants={
        f"shufflenet_v1_g{groups}_x{scale}".replace(".", "_"): _named(groups, scale)
        for groups in WIDTHS
        for scale in STEMS
        if scale <= 1 or groups in (3, 8)  # Table 2 and the authors' code
    },
    choices={
        "groups": tuple(WIDTHS),
        "kernel": (3, 5, 7),
        "repeats[0]": (1, 2, 4, 6),
        "repeats[1]": (2, 4, 6, 8),
        "repeats[2]": (1, 2, 4, 6),
    },
    multiplier="multiplier",
)
def shufflenet_v1(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    groups: int = 3,
    multiplier: float = 1.0,
    stem: int | str = "scaled",
    repeats: tuple[int, ...] = REPEATS,
    kernel: int = 3,
    classifier_bias: bool = True,
) -> nn.Module:
    """ShuffleNet v1; 1 group is the paper's "Xception-like" network, repeats (4, 6, 4) its "arch2".

    `stem`: channels of the first convolution, or "scaled" for 24 x multiplier. Scaled widths go to the nearest that the
    groups divide. Raises InvalidSetting for groups that Table 1 lacks, or a stem that they do not divide.
    """
    if groups not in WIDTHS:
        raise InvalidSetting(f"shufflenet_v1: groups is one of {tuple(WIDTHS)}, not {groups!r}")
    if multiplier <= 0 or kernel % 2 == 0:
        raise InvalidSetting(
            f"shufflenet_v1: multiplier > 0 and an odd kernel are needed, not {multiplier} and {kernel}"
        )
    if len(repeats) != len(GROWTH) or min(repeats) < 1:
        raise InvalidSetting(f"shufflenet_v1: repeats are {len(GROWTH)} numbers of at least 1, not {repeats}")
    width = nearest_multiple(WIDTHS[groups] * multiplier, BOTTLENECK * groups)
    channels = nearest_multiple(STEM * multiplier, groups) if stem == "scaled" else stem
    if not isinstance(channels, int) or not 0 < channels < width or channels % groups:
        raise InvalidSetting(
            f'shufflenet_v1: stem is "scaled" or a multiple of {groups} groups below stage 2\'s {width}, not {stem!r}'
        )
    widths = [width * growth for growth in GROWTH]
    return ShuffleNetV1(
        channels, widths, groups, repeats, kernel, classifier_bias, num_classes, in_channels, resolution
    )
