"""ResNet (arXiv:1512.03385); the network class serves ResNeXt too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from ..errors import InvalidSetting
from .checkpoints import conv_norm, tensor_names
from .layers import Chain, ConvNorm, fit_strides, relu
from .registry import register

STEM = 64


class Stage(NamedTuple):
    """A column of Table 1."""

    width: int  # of the 3x3 convolutions
    stride: int  # of the first block


STAGES = (  # arXiv:1512.03385, Table 1; output side for a 224x224 image
    Stage(64, 1),  # 56, after a 7x7 convolution and a 3x3 max-pool of stride 2 each
    Stage(128, 2),  # 28
    Stage(256, 2),  # 14
    Stage(512, 2),  # 7
)
REPEATS = {  # blocks in each stage
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
EXPANSION = {"basic": 1, "bottleneck": 4}  # block outputs per channel of Stage.width
STRIDE_IN = ("3x3", "1x1")


def basic_branch(c_in: int, width: int, c_out: int, stride: int) -> nn.Sequential:
    """3x3 -> 3x3 without activation (Figure 5, left)."""
    first = ConvNorm(c_in, width, 3, stride, act=relu)
    return nn.Sequential(OrderedDict(spatial=first, spatial2=ConvNorm(width, c_out, 3, act=None)))


def bottleneck_branch(
    c_in: int, width: int, c_out: int, stride: int, groups: int = 1, stride_in: str = "3x3"
) -> nn.Sequential:
    """1x1 reduce -> 3x3, grouped in ResNeXt -> 1x1 expand without activation (Figure 5, right)."""
    first, second = (1, stride) if stride_in == "3x3" else (stride, 1)
    return nn.Sequential(
        OrderedDict(
            reduce=ConvNorm(c_in, width, 1, first, act=relu),
            spatial=ConvNorm(width, width, 3, second, groups, act=relu),
            expand=ConvNorm(width, c_out, 1, act=None),
        )
    )


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut is a 1x1 convolution where a stage changes shape, else x itself."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.act = relu()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H / stride, W / stride]."""
        out: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return out


class ResNet(Chain):
    """Stem -> four stages of residual blocks -> global average -> classifier.

    `branch(c_in, width, c_out, stride)` makes a block's residual branch; `widths` and `expansion` give its sizes.
    """

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]]

    def __init__(
        self,
        branch: Callable[[int, int, int, int], nn.Module],
        widths: Sequence[int],
        expansion: int,
        repeats: Sequence[int],
        num_classes: int,
        in_channels: int,
        resolution: int,
    ) -> None:
        super().__init__()
        stem, pool, *strides = fit_strides([2, 2, *(stage.stride for stage in STAGES)], resolution)
        self.stem = ConvNorm(in_channels, STEM, 7, stem, act=relu)
        self.pool = nn.MaxPool2d(3, pool, 1) if pool > 1 else nn.Identity()
        stages, c_in = [], STEM
        for stage, width, stride, count in zip(STAGES, widths, strides, repeats, strict=True):
            blocks, c_out = [], stage.width * expansion
            for i in range(count):
                step = stride if i == 0 else 1
                # by position in the table: only ResNet-18/34's first stage keeps the stem's shape
                changes = i == 0 and (stage.stride > 1 or c_out != STEM)
                shortcut = ConvNorm(c_in, c_out, 1, step, act=None) if changes else nn.Identity()
                blocks.append(ResidualBlock(branch(c_in, width, c_out, step), shortcut))
                c_in = c_out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c_in, num_classes)


@register(
    variants={
        "resnet18": {"block": "basic", "repeats": REPEATS[18]},
        "resnet34": {"block": "basic", "repeats": REPEATS[34]},
        "resnet50": {},
        "resnet101": {"repeats": REPEATS[101]},
        "resnet152": {"repeats": REPEATS[152]},
        "resnet50_v1": {"stride_in": "1x1"},
    },
    choices={
        "block": ("basic", "bottleneck"),
        "repeats[0]": (1, 2, 3),
        "repeats[1]": (1, 2, 3, 4),
        "repeats[2]": (1, 2, 4, 6),
        "repeats[3]": (1, 2, 3),
    },
)
def resnet(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    block: str = "bottleneck",
    repeats: tuple[int, ...] = REPEATS[50],
    stride_in: str = "3x3",
) -> nn.Module:
    """ResNet; `stride_in` is the bottleneck's convolution that strides: "3x3" in v1.5, "1x1" in the paper (v1).

    Raises InvalidSetting for an unknown block or stride_in, or repeats that are not four numbers of at least 1.
    """
    if block not in EXPANSION:
        raise InvalidSetting(f"resnet: block is one of {sorted(EXPANSION)}, not {block!r}")
    if stride_in not in STRIDE_IN:
        raise InvalidSetting(f"resnet: stride_in is one of {STRIDE_IN}, not {stride_in!r}")
    if len(repeats) != len(STAGES) or min(repeats) < 1:
        raise InvalidSetting(f"resnet: repeats are {len(STAGES)} numbers of at least 1, not {repeats}")

    def branch(c_in: int, width: int, c_out: int, stride: int) -> nn.Module:
        if block == "basic":
            return basic_branch(c_in, width, c_out, stride)
        return bottleneck_branch(c_in, width, c_out, stride, stride_in=stride_in)

    widths = [stage.width for stage in STAGES]
    return ResNet(branch, widths, EXPANSION[block], repeats, num_classes, in_channels, resolution)


def _foreign_names(model: nn.Module) -> dict[str, str]:
    """The names that torchvision and timm share."""
    modules = conv_norm("stem", "conv1", "bn1") | {"classifier": "fc"}
    for name, block in model.named_modules():
        if not isinstance(block, ResidualBlock):
            continue
        _, stage, index = name.split(".")
        theirs = f"layer{int(stage) + 1}.{index}"
        for i, layer in enumerate(dict(block.branch.named_children()), 1):
            modules |= conv_norm(f"{name}.branch.{layer}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
        modules |= conv_norm(f"{name}.shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    return tensor_names(model, modules)


ResNet.checkpoints = {"torchvision": _foreign_names, "timm": _foreign_names}
