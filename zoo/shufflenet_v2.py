"""ShuffleNet v2 (arXiv:1807.11164)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidSetting
from .checkpoints import conv_norm, tensor_names
from .layers import Chain, ConvNorm, SqueezeExcite, channel_shuffle, fit_strides, relu
from .registry import register


class Layout(NamedTuple):
    """A column of the paper's tables."""

    stem: tuple[int, ...]  # channels of the 3x3 convolutions; the first has stride 2, a max-pool of stride 2 follows
    channels: tuple[int, ...]  # of each stage
    strides: tuple[int, ...]  # of each stage's first unit
    head: int


MOBILE = {  # arXiv:1807.11164, Table 5, by multiplier
    0.5: Layout((24,), (48, 96, 192), (2, 2, 2), 1024),
    1.0: Layout((24,), (116, 232, 464), (2, 2, 2), 1024),
    1.5: Layout((24,), (176, 352, 704), (2, 2, 2), 1024),
    2.0: Layout((24,), (244, 488, 976), (2, 2, 2), 2048),
}
LARGE = {  # arXiv:1807.11164, appendix, Table 2
    "50": Layout((64,), (244, 488, 976, 1952), (1, 2, 2, 2), 2048),
    "164": Layout((64, 64, 128), (340, 680, 1360, 2720), (1, 2, 2, 2), 2048),
}
DOWNSAMPLES = ("half", "authors")


def find_layout(layout: str, multiplier: float) -> Layout:
    """The table's column; between Table 5's multipliers its 1x stages are scaled to even numbers."""
    if layout == "mobile" and multiplier in MOBILE:
        return MOBILE[multiplier]
    if layout not in ("mobile", *LARGE):
        raise InvalidSetting(f"shufflenet_v2: layout is one of {('mobile', *LARGE)}, not {layout!r}")
    base = MOBILE[1.0] if layout == "mobile" else LARGE[layout]
    head = MOBILE[2.0].head if layout == "mobile" and multiplier > 1.5 else base.head
    return base._replace(channels=tuple(max(2, 2 * round(c * multiplier / 2)) for c in base.channels), head=head)


class Unit(nn.Module):
    """Channels split in two halves; the right one goes through a branch, both are joined and shuffled (Figure 3c).

    Branch: 1x1 -> depthwise -> 1x1 -> squeeze-excite, if any -> relu; if `residual`, the right half is added before it.
    """

    def __init__(self, channels: int, kernel: int, se: float, residual: bool) -> None:
        super().__init__()
        half = channels // 2
        self.right = right_branch(half, half, half, kernel, 1, se, act=not residual)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        left, right = x.chunk(2, dim=1)
        out = self.right(right)
        if self.residual:
            out = F.relu(out + right, inplace=True)
        return channel_shuffle(torch.cat((left, out), dim=1), 2)


class DownUnit(nn.Module):
    """Both branches see all channels; the left one is depthwise -> 1x1 (Figure 3d)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, se: float, downsample: str) -> None:
        super().__init__()
        half = c_out // 2
        c_left = c_in if downsample == "authors" else half
        self.left = Chain(
            OrderedDict(depthwise=ConvNorm(c_in, c_in, kernel, stride, c_in, act=None), project=ConvNorm(c_in, c_left))
        )
        self.right = right_branch(c_in, half, c_out - c_left, kernel, stride, se, act=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H / stride, W / stride]."""
        return channel_shuffle(torch.cat((self.left(x), self.right(x)), dim=1), 2)


def right_branch(c_in: int, c_mid: int, c_out: int, kernel: int, stride: int, se: float, act: bool) -> Chain:
    """1x1 -> depthwise without activation -> 1x1 -> squeeze-excite of ratio `se`, unless 0 -> relu, if `act`."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        expand=ConvNorm(c_in, c_mid),
        depthwise=ConvNorm(c_mid, c_mid, kernel, stride, c_mid, act=None),
        project=ConvNorm(c_mid, c_out, act=None),
    )
    if se:
        layers["se"] = SqueezeExcite(c_out, int(c_out * se), nn.Sigmoid)
    if act:
        layers["act"] = relu()
    return Chain(layers)


class ShuffleNetV2(Chain):
    """Stem -> stages of one down unit and further units -> 1x1 head -> global average -> classifier."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]]

    def __init__(
        self,
        layout: Layout,
        repeats: Sequence[int],
        kernel: int,
        se: float,
        residual: bool,
        downsample: str,
        classifier_bias: bool,
        num_classes: int,
        in_channels: int,
        resolution: int,
    ) -> None:
        super().__init__()
        stem, pool, *strides = fit_strides([2, 2, *layout.strides], resolution)
        c_ins = (in_channels, *layout.stem)
        convs = [ConvNorm(c_ins[i], c, 3, stem if i == 0 else 1) for i, c in enumerate(layout.stem)]
        self.stem = convs[0] if len(convs) == 1 else nn.Sequential(*convs)
        self.pool = nn.MaxPool2d(3, pool, 1) if pool > 1 else nn.Identity()
        stages, c_in = [], layout.stem[-1]
        for channels, stride, count in zip(layout.channels, strides, repeats, strict=True):
            first = DownUnit(c_in, channels, kernel, stride, se, downsample)
            stages.append(nn.Sequential(first, *(Unit(channels, kernel, se, residual) for _ in range(count - 1))))
            c_in = channels
        self.stages = nn.Sequential(*stages)
        self.head = ConvNorm(c_in, layout.head)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(layout.head, num_classes, bias=classifier_bias)


_AUTHORS = {"downsample": "authors", "classifier_bias": False}


@register(
    variants={
        "shufflenet_v2_x0_5": {"multiplier": 0.5},
        "shufflenet_v2_x1_0": {},
        "shufflenet_v2_x1_5": {"multiplier": 1.5},
        "shufflenet_v2_x2_0": {"multiplier": 2.0},
        "shufflenet_v2_authors_x0_5": {"multiplier": 0.5, **_AUTHORS},
        "shufflenet_v2_authors_x1_0": {**_AUTHORS},
        "shufflenet_v2_authors_x1_5": {"multiplier": 1.5, **_AUTHORS},
        "shufflenet_v2_authors_x2_0": {"multiplier": 2.0, **_AUTHORS},
        "se_shufflenet_v2_x2_0": {"multiplier": 2.0, "downsample": "authors", "se": 0.5},
        "shufflenet_v2_50": {"layout": "50", "repeats": (3, 4, 6, 3), "downsample": "authors"},
        "se_shufflenet_v2_164": {
            "layout": "164",
            "repeats": (10, 10, 23, 10),
            "downsample": "authors",
            "se": 0.5,
            "residual": True,
        },
    },
    choices={
        "kernel": (3, 5, 7),
        "se": (0.0, 0.5),
        "residual": (False, True),
        "repeats[0]": (1, 2, 4, 6),
        "repeats[1]": (2, 4, 8, 10),
        "repeats[2]": (1, 2, 4, 6),
    },
    multiplier="multiplier",
)
def shufflenet_v2(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    multiplier: float = 1.0,
    layout: str = "mobile",
    repeats: tuple[int, ...] = (4, 8, 4),
    kernel: int = 3,
    se: float = 0.0,
    residual: bool = False,
    downsample: str = "half",
    classifier_bias: bool = True,
) -> nn.Module:
    """ShuffleNet v2, with squeeze-excite of ratio `se` and residuals for the deep nets (section 4, Large Models).

    `layout`: "mobile" (Table 5), "50" or "164" (appendix). `downsample`: what the down unit's left branch makes, "half"
    of the channels (torchvision) or as many as come in ("authors", whose code reproduces the printed MACs).
    Raises InvalidSetting for what no table has, or repeats that do not fit the layout.
    """
    table = find_layout(layout, multiplier)
    if downsample not in DOWNSAMPLES:
        raise InvalidSetting(f"shufflenet_v2: downsample is one of {DOWNSAMPLES}, not {downsample!r}")
    if len(repeats) != len(table.channels) or min(repeats) < 1:
        raise InvalidSetting(
            f"shufflenet_v2: layout {layout!r} wants {len(table.channels)} repeats of at least 1, not {repeats}"
        )
    if multiplier <= 0 or kernel % 2 == 0 or se < 0:
        raise InvalidSetting(
            f"shufflenet_v2: multiplier > 0, an odd kernel and se >= 0 are needed, not {multiplier}, {kernel} and {se}"
        )
    if downsample == "authors" and table.channels[0] <= table.stem[-1]:
        raise InvalidSetting(
            f"shufflenet_v2: at multiplier {multiplier} stage 2 has {table.channels[0]} channels and the authors' down"
            f" unit keeps the stem's {table.stem[-1]}; take a larger multiplier or downsample='half'"
        )
    return ShuffleNetV2(
        table,
        repeats,
        kernel,
        se,
        residual,
        downsample,
        classifier_bias,
        num_classes,
        in_channels,
        resolution,
    )


def _torchvision_names(model: nn.Module) -> dict[str, str]:
    """torchvision's names; what it does not have (squeeze-excite, several stem convolutions) keeps ours."""
    modules = {name: name for name, _ in model.named_modules()} | {"classifier": "fc"}
    modules |= conv_norm("stem", "conv1.0", "conv1.1") | conv_norm("head", "conv5.0", "conv5.1")
    for name, unit in model.named_modules():
        if not isinstance(unit, Unit | DownUnit):
            continue
        _, stage, index = name.split(".")
        theirs = f"stage{int(stage) + 2}.{index}"
        for layer, i in (("depthwise", 0), ("project", 2)):
            modules |= conv_norm(f"{name}.left.{layer}", f"{theirs}.branch1.{i}", f"{theirs}.branch1.{i + 1}")
        for layer, i in (("expand", 0), ("depthwise", 3), ("project", 5)):
            modules |= conv_norm(f"{name}.right.{layer}", f"{theirs}.branch2.{i}", f"{theirs}.branch2.{i + 1}")
    return tensor_names(model, modules)


ShuffleNetV2.checkpoints = {"torchvision": _torchvision_names}
