"""MobileNet v3, large and small (Howard et al. 2019, arXiv:1905.02244), and their minimalistic versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

from torch import Tensor, nn

from ..errors import InvalidSetting, WeightsMismatch
from .checkpoints import conv_norm, tensor_names
from .layers import Chain, ConvNorm, SqueezeExcite, fit_strides, hard_swish, make_divisible, relu
from .registry import register


class Stage(NamedTuple):
    """Consecutive rows of Table 1 or 2 with one width; the first of them has the stride."""

    kernel: int
    expanded: tuple[int, ...]  # one entry a block
    width: int
    squeeze_excite: bool
    hard_swish: bool
    stride: int


STEM = 16
LARGE = (  # arXiv:1905.02244, Table 1; output side for a 224 x 224 image
    Stage(3, (16,), 16, False, False, 1),  # 112
    Stage(3, (64, 72), 24, False, False, 2),  # 56
    Stage(5, (72, 120, 120), 40, True, False, 2),  # 28
    Stage(3, (240, 200, 184, 184), 80, False, True, 2),  # 14
    Stage(3, (480, 672), 112, True, True, 1),  # 14
    Stage(5, (672, 960, 960), 160, True, True, 2),  # 7
)
SMALL = (  # arXiv:1905.02244, Table 2
    Stage(3, (16,), 16, True, False, 2),  # 56
    Stage(3, (72, 88), 24, False, False, 2),  # 28
    Stage(5, (96, 240, 240), 40, True, True, 2),  # 14
    Stage(5, (120, 144), 48, True, True, 1),  # 14
    Stage(5, (288, 576, 576), 96, True, True, 2),  # 7
)
HEAD_RATIO = 6  # the 1x1 head is six times as wide as the last stage
EPS = {"torchvision": 1e-3, "timm": 1e-5}  # of batch norm, by convention


class Scaling(NamedTuple):
    """How widths follow the multiplier.

    "torchvision" scales every entry of the table. "timm" scales the stages' widths, expands a block's input by the
    table's ratio, keeps the hidden layer as it is and, below 0.75, the stem.
    """

    multiplier: float
    convention: str

    def scaled(self, width: float) -> int:
        """A stage's width."""
        return make_divisible(width * self.multiplier)

    def stem(self) -> int:
        """The stem's width."""
        return STEM if self.convention == "timm" and self.multiplier < 0.75 else self.scaled(STEM)

    def expanded(self, expanded: int, table_input: int, c_in: int) -> int:
        """A block's expanded width."""
        return make_divisible(c_in * expanded / table_input) if self.convention == "timm" else self.scaled(expanded)

    def head(self, table_input: int, c_in: int) -> int:
        """The 1x1 head's width."""
        return self.scaled(HEAD_RATIO * table_input) if self.convention == "timm" else HEAD_RATIO * c_in

    def hidden(self, width: int) -> int:
        """The hidden layer's width."""
        return width if self.convention == "timm" else self.scaled(width)


class Bottleneck(nn.Sequential):
    """1x1 expand -> depthwise -> squeeze-excite -> 1x1 project (linear), plus the input where it has the same size."""

    def __init__(
        self, widths: tuple[int, int, int], row: Stage, stride: int, eps: float, expands: bool, residual: bool
    ) -> None:
        super().__init__()
        c_in, hidden, c_out = widths
        act = hard_swish if row.hard_swish else relu
        if expands:
            self.expand = ConvNorm(c_in, hidden, act=act, eps=eps)
        self.depthwise = ConvNorm(hidden, hidden, row.kernel, stride, groups=hidden, act=act, eps=eps)
        if row.squeeze_excite:
            self.squeeze_excite = SqueezeExcite(hidden, make_divisible(hidden / 4))
        self.project = ConvNorm(hidden, c_out, act=None, eps=eps)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H / stride, W / stride]."""
        out = x
        for layer in self:
            out = layer(out)
        return x + out if self.residual else out


class MobileNetV3(Chain):
    """Stem -> stages of bottlenecks -> 1x1 head -> mean over space -> hidden layer -> linear classifier."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]]

    def __init__(
        self,
        table: Sequence[Stage],
        hidden: int,
        scaling: Scaling,
        act: Callable[[], nn.Module],
        num_classes: int,
        in_channels: int,
        resolution: int,
    ) -> None:
        super().__init__()
        self.convention = scaling.convention
        eps = EPS[scaling.convention]
        strides = fit_strides([2, *(row.stride for row in table)], resolution)
        self.stem = ConvNorm(in_channels, scaling.stem(), 3, strides[0], act=act, eps=eps)
        self.stages = nn.Sequential()
        table_in, c_in = STEM, scaling.stem()
        for row, stride in zip(table, strides[1:], strict=True):
            c_out, stage = scaling.scaled(row.width), nn.Sequential()
            for i, expanded in enumerate(row.expanded):
                widths = (c_in, scaling.expanded(expanded, table_in, c_in), c_out)
                # Both conventions repeat where the multiplied widths agree: at 0.5 also between two stages of small.
                residual = c_in == c_out and (i > 0 or row.stride == 1)
                stage.append(Bottleneck(widths, row, stride if i == 0 else 1, eps, expanded != table_in, residual))
                table_in, c_in = row.width, c_out
            self.stages.append(stage)
        head = scaling.head(table_in, c_in)
        self.head = ConvNorm(c_in, head, act=act, eps=eps)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(head, scaling.hidden(hidden))
        self.act = act()
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(scaling.hidden(hidden), num_classes)


def _configured(
    table: Sequence[Stage],
    kernels: tuple[int, ...],
    repeats: tuple[int, ...],
    squeeze_excite: bool,
    hard_swish: bool,
) -> list[Stage]:
    """The paper's table with other kernels, fewer blocks, or without squeeze-excite or hard-swish."""
    if len(kernels) != len(table) or any(kernel % 2 == 0 for kernel in kernels):
        raise InvalidSetting(f"mobilenet_v3: kernels are {len(table)} odd numbers, one a stage, not {kernels}")
    most = tuple(len(row.expanded) for row in table)
    if len(repeats) != len(table) or any(not 1 <= n <= limit for n, limit in zip(repeats, most, strict=True)):
        raise InvalidSetting(f"mobilenet_v3: repeats are 1 to {most} blocks a stage, not {repeats}")
    return [
        row._replace(
            kernel=kernel,
            expanded=row.expanded[:blocks],
            squeeze_excite=row.squeeze_excite and squeeze_excite,
            hard_swish=row.hard_swish and hard_swish,
        )
        for row, kernel, blocks in zip(table, kernels, repeats, strict=True)
    ]


def _scaling(multiplier: float, convention: str) -> Scaling:
    if multiplier <= 0 or convention not in EPS:
        raise InvalidSetting(
            f"mobilenet_v3: multiplier > 0 and convention of {list(EPS)} are needed, not {multiplier}, {convention!r}"
        )
    return Scaling(multiplier, convention)


def _kernels(table: Sequence[Stage]) -> tuple[int, ...]:
    return tuple(row.kernel for row in table)


def _repeats(table: Sequence[Stage]) -> tuple[int, ...]:
    return tuple(len(row.expanded) for row in table)


def _choices(table: Sequence[Stage]) -> dict[str, tuple[int, ...]]:
    kernels = {f"kernels[{i}]": (3, 5, 7) for i in range(len(table))}
    return kernels | {f"repeats[{i}]": tuple(range(1, n + 1)) for i, n in enumerate(_repeats(table)) if n > 1}


def _variants(name: str, table: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    narrow = {f"{name}_x{str(m).replace('.', '_')}": {"multiplier": m} for m in (0.35, 0.5, 0.75, 1.25)}
    plain: dict[str, Any] = {"kernels": (3,) * len(table), "squeeze_excite": False, "hard_swish": False}
    return {name: {}, f"{name}_minimalistic": plain} | narrow


@register(
    variants=_variants("mobilenet_v3_large", LARGE),
    choices=_choices(LARGE),
    multiplier="multiplier",
)
def mobilenet_v3_large(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    multiplier: float = 1.0,
    convention: str = "torchvision",
    kernels: tuple[int, ...] = _kernels(LARGE),
    repeats: tuple[int, ...] = _repeats(LARGE),
    squeeze_excite: bool = True,
    hard_swish: bool = True,
    hidden: int = 1280,
) -> nn.Module:
    """MobileNet v3 large; `convention` "torchvision" or "timm" says how widths follow the multiplier."""
    table = _configured(LARGE, kernels, repeats, squeeze_excite, hard_swish)
    scaling, act = _scaling(multiplier, convention), _act(hard_swish)
    return MobileNetV3(table, hidden, scaling, act, num_classes, in_channels, resolution)


@register(
    variants=_variants("mobilenet_v3_small", SMALL),
    choices=_choices(SMALL),
    multiplier="multiplier",
)
def mobilenet_v3_small(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    multiplier: float = 1.0,
    convention: str = "torchvision",
    kernels: tuple[int, ...] = _kernels(SMALL),
    repeats: tuple[int, ...] = _repeats(SMALL),
    squeeze_excite: bool = True,
    hard_swish: bool = True,
    hidden: int = 1024,
) -> nn.Module:
    """MobileNet v3 small; the paper's first version has 1280 hidden channels. Settings are those of the large one."""
    table = _configured(SMALL, kernels, repeats, squeeze_excite, hard_swish)
    scaling, act = _scaling(multiplier, convention), _act(hard_swish)
    return MobileNetV3(table, hidden, scaling, act, num_classes, in_channels, resolution)


def _act(hard: bool) -> Callable[[], nn.Module]:
    return hard_swish if hard else relu


def _blocks(model: nn.Module) -> list[tuple[int, int, list[str]]]:
    """Stage, position and children of every bottleneck."""
    return [
        (s, b, [name for name, _ in block.named_children()])
        for s, stage in enumerate(cast(nn.Sequential, model.get_submodule("stages")))
        for b, block in enumerate(cast(nn.Sequential, stage))
    ]


def _require(model: nn.Module, convention: str) -> None:
    """Shapes can agree where the epsilon of batch norm does not: outputs would be silently wrong."""
    if cast(MobileNetV3, model).convention != convention:
        raise WeightsMismatch(f"{convention} weights need a mobilenet_v3 built with convention={convention!r}")


def _torchvision_names(model: nn.Module) -> dict[str, str]:
    _require(model, "torchvision")
    modules = conv_norm("stem", "features.0.0", "features.0.1")
    last = 0
    for last, (s, b, children) in enumerate(_blocks(model), 1):
        for i, name in enumerate(children):
            ours, theirs = f"stages.{s}.{b}.{name}", f"features.{last}.block.{i}"
            if name == "squeeze_excite":
                modules |= {f"{ours}.reduce": f"{theirs}.fc1", f"{ours}.expand": f"{theirs}.fc2"}
            else:
                modules |= conv_norm(ours, f"{theirs}.0", f"{theirs}.1")
    modules |= conv_norm("head", f"features.{last + 1}.0", f"features.{last + 1}.1")
    return tensor_names(model, modules | {"hidden": "classifier.0", "classifier": "classifier.3"})


def _timm_names(model: nn.Module) -> dict[str, str]:
    _require(model, "timm")
    modules = conv_norm("stem", "conv_stem", "bn1")
    stages = 0
    for s, b, children in _blocks(model):
        ours, theirs, stages = f"stages.{s}.{b}", f"blocks.{s}.{b}", s + 1
        if "squeeze_excite" in children:
            gate = f"{ours}.squeeze_excite"
            modules |= {f"{gate}.reduce": f"{theirs}.se.conv_reduce", f"{gate}.expand": f"{theirs}.se.conv_expand"}
        names = [name for name in children if name != "squeeze_excite"]
        convs = ("conv_pw", "conv_dw", "conv_pwl") if "expand" in names else ("conv_dw", "conv_pw")
        for i, (name, conv) in enumerate(zip(names, convs, strict=True), 1):
            modules |= conv_norm(f"{ours}.{name}", f"{theirs}.{conv}", f"{theirs}.bn{i}")
    modules |= conv_norm("head", f"blocks.{stages}.0.conv", f"blocks.{stages}.0.bn1")
    return tensor_names(model, modules | {"hidden": "conv_head", "classifier": "classifier"})


MobileNetV3.checkpoints = {"torchvision": _torchvision_names, "timm": _timm_names}
