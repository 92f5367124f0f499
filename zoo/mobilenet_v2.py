"""MobileNet v2 (Sandler et al. 2018, arXiv:1801.04381)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, cast

from torch import Tensor, nn

from ..errors import InvalidSetting
from .checkpoints import conv_norm, tensor_names
from .layers import Chain, ConvNorm, fit_strides, make_divisible, relu6
from .registry import register


class Stage(NamedTuple):
    """A row of Table 2; None stands for the expansion that the setting gives."""

    expansion: int | None
    width: int
    blocks: int
    stride: int


STEM, HEAD = 32, 1280
STAGES = (  # arXiv:1801.04381, Table 2; output side for a 224 x 224 image
    Stage(1, 16, 1, 1),  # 112
    Stage(None, 24, 2, 2),  # 56
    Stage(None, 32, 3, 2),  # 28
    Stage(None, 64, 4, 2),  # 14
    Stage(None, 96, 3, 1),  # 14
    Stage(None, 160, 3, 2),  # 7
    Stage(None, 320, 1, 1),  # 7
)


class InvertedResidual(nn.Sequential):
    """1x1 expand -> depthwise -> 1x1 project (linear), plus the input where stride 1 repeats a stage's block."""

    def __init__(self, c_in: int, c_out: int, expansion: int, kernel: int, stride: int, residual: bool) -> None:
        super().__init__()
        hidden = c_in * expansion
        if expansion != 1:
            self.expand = ConvNorm(c_in, hidden, act=relu6)
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden, act=relu6)
        self.project = ConvNorm(hidden, c_out, act=None)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H / stride, W / stride]."""
        out = x
        for layer in self:
            out = layer(out)
        return x + out if self.residual else out


class MobileNetV2(Chain):
    """Stem -> seven stages of inverted residuals -> 1x1 head -> mean over space -> linear classifier."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]]

    def __init__(
        self,
        repeats: tuple[int, ...],
        expansion: int,
        kernel: int,
        multiplier: float,
        num_classes: int,
        in_channels: int,
        resolution: int,
    ) -> None:
        super().__init__()
        strides = fit_strides([2, *(row.stride for row in STAGES)], resolution)
        c_in = make_divisible(STEM * multiplier)
        self.stem = ConvNorm(in_channels, c_in, 3, strides[0], act=relu6)
        self.stages = nn.Sequential()
        for row, blocks, stride in zip(STAGES, repeats, strides[1:], strict=True):
            c_out, stage = make_divisible(row.width * multiplier), nn.Sequential()
            for i in range(blocks):
                stage.append(
                    InvertedResidual(
                        c_in, c_out, row.expansion or expansion, kernel, stride if i == 0 else 1, residual=i > 0
                    )
                )
                c_in = c_out
            self.stages.append(stage)
        head = make_divisible(HEAD * max(1.0, multiplier))  # never narrower than 1280
        self.head = ConvNorm(c_in, head, act=relu6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(head, num_classes)


@register(
    variants={
        "mobilenet_v2": {},
        "mobilenet_v2_x0_35": {"multiplier": 0.35},
        "mobilenet_v2_x0_5": {"multiplier": 0.5},
        "mobilenet_v2_x0_75": {"multiplier": 0.75},
        "mobilenet_v2_x1_3": {"multiplier": 1.3},
        "mobilenet_v2_x1_4": {"multiplier": 1.4},
    },
    choices={
        "kernel": (3, 5, 7),
        "expansion": (3, 4, 6),
        **{f"repeats[{i}]": tuple(range(1, row.blocks + 1)) for i, row in enumerate(STAGES) if row.blocks > 1},
    },
    multiplier="multiplier",
)
def mobilenet_v2(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    multiplier: float = 1.0,
    kernel: int = 3,
    expansion: int = 6,
    repeats: tuple[int, ...] = tuple(row.blocks for row in STAGES),
) -> nn.Module:
    """MobileNet v2 at any width; `expansion` and `repeats` stand for columns t and n of Table 2."""
    if len(repeats) != len(STAGES) or min(repeats) < 1:
        raise InvalidSetting(f"mobilenet_v2: repeats are {len(STAGES)} numbers of at least 1, not {repeats}")
    if multiplier <= 0 or expansion < 1 or kernel % 2 == 0:
        raise InvalidSetting(
            "mobilenet_v2: multiplier > 0, expansion >= 1 and an odd kernel are needed,"
            f" not {multiplier}, {expansion} and {kernel}"
        )
    return MobileNetV2(repeats, expansion, kernel, multiplier, num_classes, in_channels, resolution)


def _blocks(model: nn.Module) -> list[tuple[int, int, InvertedResidual]]:
    stages = cast(nn.Sequential, model.get_submodule("stages"))
    return [
        (s, b, cast(InvertedResidual, block))
        for s, stage in enumerate(stages)
        for b, block in enumerate(cast(nn.Sequential, stage))
    ]


def _torchvision_names(model: nn.Module) -> dict[str, str]:
    blocks = _blocks(model)
    last = len(blocks) + 1
    modules = conv_norm("stem", "features.0.0", "features.0.1")
    for i, (s, b, block) in enumerate(blocks, 1):
        ours, theirs, layer = f"stages.{s}.{b}", f"features.{i}.conv", 0
        for layer, name in enumerate(list(dict(block.named_children()))[:-1]):
            modules |= conv_norm(f"{ours}.{name}", f"{theirs}.{layer}.0", f"{theirs}.{layer}.1")
        modules |= conv_norm(f"{ours}.project", f"{theirs}.{layer + 1}", f"{theirs}.{layer + 2}")
    modules |= conv_norm("head", f"features.{last}.0", f"features.{last}.1")
    return tensor_names(model, modules | {"classifier": "classifier.1"})


def _timm_names(model: nn.Module) -> dict[str, str]:
    modules = conv_norm("stem", "conv_stem", "bn1")
    for s, b, block in _blocks(model):
        expanded = len(block) == 3
        convs = ("conv_pw", "conv_dw", "conv_pwl") if expanded else ("conv_dw", "conv_pw")
        for i, (name, conv) in enumerate(zip(dict(block.named_children()), convs, strict=True), 1):
            modules |= conv_norm(f"stages.{s}.{b}.{name}", f"blocks.{s}.{b}.{conv}", f"blocks.{s}.{b}.bn{i}")
    modules |= conv_norm("head", "conv_head", "bn2")
    return tensor_names(model, modules | {"classifier": "classifier"})


MobileNetV2.checkpoints = {"torchvision": _torchvision_names, "timm": _timm_names}
