"""ResNeXt (arXiv:1611.05431): ResNet's network with grouped 3x3 convolutions."""

from __future__ import annotations

from torch import nn

from ..errors import InvalidSetting
from .registry import register
from .resnet import EXPANSION, REPEATS, STAGES, ResNet, bottleneck_branch

DEPTHS = (50, 101, 152)
BASE = STAGES[0].width  # base widths are for the first stage and grow with the stages' widths


@register(
    variants={
        "resnext50_32x4d": {},  # arXiv:1611.05431, Table 3, as are those of about the same cost
        "resnext50_2x40d": {"cardinality": 2, "base_width": 40},
        "resnext50_4x24d": {"cardinality": 4, "base_width": 24},
        "resnext50_8x14d": {"cardinality": 8, "base_width": 14},
        "resnext101_2x40d": {"depth": 101, "cardinality": 2, "base_width": 40},
        "resnext101_4x24d": {"depth": 101, "cardinality": 4, "base_width": 24},
        "resnext101_8x14d": {"depth": 101, "cardinality": 8, "base_width": 14},
        "resnext101_32x4d": {"depth": 101},
        "resnext101_2x64d": {"depth": 101, "cardinality": 2, "base_width": 64},  # Table 4: twice the cost
        "resnext101_64x4d": {"depth": 101, "cardinality": 64},
        "resnext101_32x8d": {"depth": 101, "base_width": 8},  # torchvision's, in no table of the paper
    },
    choices={"depth": (50, 101), "cardinality": (1, 2, 4, 8, 16, 32), "base_width": (4, 8, 16)},
)
def resnext(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    depth: int = 50,
    cardinality: int = 32,
    base_width: int = 4,
) -> nn.Module:
    """ResNeXt-`depth` (`cardinality` x `base_width`d): groups of a 3x3 and their channels in the first stage.

    The 3x3 strides, as in the authors' code. Raises InvalidSetting for other depths, or sizes below 1.
    """
    if depth not in DEPTHS:
        raise InvalidSetting(f"resnext: depth is one of {DEPTHS}, not {depth!r}")
    if cardinality < 1 or base_width < 1:
        raise InvalidSetting(f"resnext: cardinality and base_width are at least 1, not {cardinality} and {base_width}")

    def branch(c_in: int, width: int, c_out: int, stride: int) -> nn.Module:
        return bottleneck_branch(c_in, width, c_out, stride, groups=cardinality)

    widths = [base_width * stage.width // BASE * cardinality for stage in STAGES]
    return ResNet(branch, widths, EXPANSION["bottleneck"], REPEATS[depth], num_classes, in_channels, resolution)
