"""MobileNet v1 (Howard et al. 2017, arXiv:1704.04861), with the networks of Tables 4 and 5 that it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, cast

from torch import nn

from ..errors import InvalidSetting
from .checkpoints import conv_norm, tensor_names
from .layers import Chain, ConvNorm, fit_strides, relu6
from .registry import register


class Stage(NamedTuple):
    """Consecutive rows of Table 1 with one width; the first of them has the stride."""

    width: int
    blocks: int
    stride: int


STEM = 32
STAGES = (  # arXiv:1704.04861, Table 1 (its last stride is 1: 7 x 7 stays 7 x 7); output side for a 224 x 224 image
    Stage(64, 1, 1),  # 112
    Stage(128, 2, 2),  # 56
    Stage(256, 2, 2),  # 28
    Stage(512, 6, 2),  # 14
    Stage(1024, 2, 2),  # 7
)


class Separable(nn.Sequential):
    """Depthwise -> 1x1, each with batch norm and ReLU6 (as in the authors' code; the paper says ReLU)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(c_in, c_in, kernel, stride, groups=c_in, act=relu6)
        self.pointwise = ConvNorm(c_in, c_out, act=relu6)


class MobileNetV1(Chain):
    """Stem -> five stages -> mean over space -> linear classifier."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]]

    def __init__(
        self,
        repeats: tuple[int, ...],
        separable: bool,
        kernel: int,
        multiplier: float,
        num_classes: int,
        in_channels: int,
        resolution: int,
    ) -> None:
        super().__init__()
        strides = fit_strides([2, *(row.stride for row in STAGES)], resolution)
        c_in = _scaled(STEM, multiplier)
        self.stem = ConvNorm(in_channels, c_in, 3, strides[0], act=relu6)
        self.stages = nn.Sequential()
        for row, blocks, first_stride in zip(STAGES, repeats, strides[1:], strict=True):
            c_out, stage = _scaled(row.width, multiplier), nn.Sequential()
            for i in range(blocks):
                stride = first_stride if i == 0 else 1
                full = None if separable else ConvNorm(c_in, c_out, kernel, stride, act=relu6)
                stage.append(full or Separable(c_in, c_out, kernel, stride))
                c_in = c_out
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c_in, num_classes)


def _scaled(width: int, multiplier: float) -> int:
    return max(int(width * multiplier), 8)  # the authors' rule; the paper's widths need no rounding


@register(
    variants={
        "mobilenet_v1": {},
        "mobilenet_v1_x0_25": {"multiplier": 0.25},
        "mobilenet_v1_x0_5": {"multiplier": 0.5},
        "mobilenet_v1_x0_75": {"multiplier": 0.75},
        "mobilenet_v1_shallow": {"repeats": (1, 2, 2, 1, 2)},  # Table 5: without the five 14 x 14 x 512 layers
        "mobilenet_v1_full_conv": {"separable": False},  # Table 4: "Conv MobileNet"
    },
    choices={
        "kernel": (3, 5, 7),
        **{f"repeats[{i}]": tuple(range(1, row.blocks + 1)) for i, row in enumerate(STAGES) if row.blocks > 1},
    },
    multiplier="multiplier",
)
def mobilenet_v1(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    multiplier: float = 1.0,
    kernel: int = 3,
    separable: bool = True,
    repeats: tuple[int, ...] = tuple(row.blocks for row in STAGES),
) -> nn.Module:
    """MobileNet v1 at any width; without `separable`, a full convolution stands for each separable one."""
    if len(repeats) != len(STAGES) or min(repeats) < 1:
        raise InvalidSetting(f"mobilenet_v1: repeats are {len(STAGES)} numbers of at least 1, not {repeats}")
    if multiplier <= 0 or kernel % 2 == 0:
        raise InvalidSetting(f"mobilenet_v1: multiplier > 0 and an odd kernel are needed, not {multiplier}, {kernel}")
    return MobileNetV1(repeats, separable, kernel, multiplier, num_classes, in_channels, resolution)


def _timm_names(model: nn.Module) -> dict[str, str]:
    modules = conv_norm("stem", "conv_stem", "bn1") | {"classifier": "classifier"}
    for s, stage in enumerate(cast(nn.Sequential, model.get_submodule("stages"))):
        for b in range(len(cast(nn.Sequential, stage))):
            ours, theirs = f"stages.{s}.{b}", f"blocks.{s}.{b}"
            modules |= conv_norm(f"{ours}.depthwise", f"{theirs}.conv_dw", f"{theirs}.bn1")
            modules |= conv_norm(f"{ours}.pointwise", f"{theirs}.conv_pw", f"{theirs}.bn2")
    return tensor_names(model, modules)


MobileNetV1.checkpoints = {"timm": _timm_names}
