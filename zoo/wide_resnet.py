"""Wide residual networks for CIFAR: 6n + 4 layers, k times wider (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InvalidSetting
from .layers import Chain, fit_strides
from .registry import register

STEM = 16
WIDTHS = (16, 32, 64)  # Table 1, times k; output sides 32, 16, 8 for a 32x32 image
STRIDES = (1, 2, 2)


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, plus x, or a 1x1 convolution where a stage begins."""

    def __init__(self, c_in: int, c_out: int, stride: int, projects: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D, H / stride, W / stride]."""
        active = self.act1(self.norm1(x))
        out: Tensor = self.conv2(self.act2(self.norm2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Chain):
    """3x3 stem -> three stages of wide blocks -> norm, ReLU -> global average pool -> classifier."""

    def __init__(
        self, num_classes: int, in_channels: int, resolution: int, repeats: Sequence[int], multiplier: float
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        c_in = STEM
        for width, stride, n in zip(WIDTHS, fit_strides(STRIDES, resolution), repeats, strict=True):
            c_out, stage = max(1, round(width * multiplier)), nn.Sequential()
            for b in range(n):
                stage.append(WideBlock(c_in, c_out, stride if b == 0 else 1, projects=b == 0))
                c_in = c_out
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(c_in)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c_in, num_classes)


@register(
    variants={
        "wide_resnet16_8": {"repeats": (2, 2, 2)},
        "wide_resnet22_8": {"repeats": (3, 3, 3)},
        "wide_resnet28_10": {"repeats": (4, 4, 4), "multiplier": 10.0},
    },
    choices={f"repeats[{stage}]": (1, 2, 3, 4) for stage in range(len(WIDTHS))},
    multiplier="multiplier",
)
def wide_resnet(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    resolution: int = 32,
    repeats: tuple[int, ...] = (2, 2, 2),
    multiplier: float = 8.0,
) -> nn.Module:
    """WRN of 2 * sum(repeats) + 4 layers; `multiplier` is the paper's k, which leaves the stem as it is."""
    if len(repeats) != len(WIDTHS) or min(repeats) < 1:
        raise InvalidSetting(f"wide_resnet: repeats are {len(WIDTHS)} numbers of at least 1, not {repeats}")
    return WideResNet(num_classes, in_channels, resolution, repeats, multiplier)
