"""SqueezeNet (Iandola et al. 2016, arXiv:1602.07360) and its version 1.1, with the metaparameters of section 5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting
from .checkpoints import tensor_names
from .layers import SMALL_IMAGE, Chain, fit_strides
from .registry import register


class Version(NamedTuple):
    """The stem's width and kernel, and the layers (1 is the stem) that a pool follows."""

    stem: int
    kernel: int
    pools: tuple[int, ...]


VERSIONS = {
    "1.0": Version(96, 7, (1, 4, 8)),  # arXiv:1602.07360, Table 1
    "1.1": Version(64, 3, (1, 3, 5)),  # the authors' later release: 2.4 times fewer MACs
}
FIRES = range(2, 10)  # the paper's numbers of the fire modules
BYPASSES = ("none", "simple", "complex")  # arXiv:1602.07360, figure 2


class FireWidths(NamedTuple):
    """The widths of a fire module and what goes round it: nothing, the input, or a 1x1 convolution of it."""

    squeeze: int
    expand1x1: int
    expand3x3: int
    bypass: str  # "none", "identity", "conv"


class Fire(nn.Module):
    """1x1 squeeze -> 1x1 and 3x3 expand side by side, each with ReLU, plus the bypass if there is one."""

    def __init__(self, c_in: int, widths: FireWidths) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, widths.squeeze, 1)
        self.expand1x1 = nn.Conv2d(widths.squeeze, widths.expand1x1, 1)
        self.expand3x3 = nn.Conv2d(widths.squeeze, widths.expand3x3, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.bypass: nn.Module | None = None
        if widths.bypass == "identity":
            self.bypass = nn.Identity()
        elif widths.bypass == "conv":
            self.bypass = nn.Conv2d(c_in, widths.expand1x1 + widths.expand3x3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, expand1x1 + expand3x3, H, W]."""
        squeezed = self.act(self.squeeze(x))
        out = torch.cat([self.act(self.expand1x1(squeezed)), self.act(self.expand3x3(squeezed))], dim=1)
        return out if self.bypass is None else self.bypass(x) + out


class SqueezeNet(Chain):
    """Stem -> eight fire modules with pools between -> 1x1 convolution to the classes -> mean over space."""

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]]

    def __init__(
        self, version: Version, fires: list[FireWidths], num_classes: int, in_channels: int, resolution: int
    ) -> None:
        super().__init__()
        stem_stride, *pool_strides = fit_strides([2] * (1 + len(version.pools)), resolution)
        pools = iter(pool_strides)
        padding = version.kernel // 2 if resolution <= SMALL_IMAGE else 0
        self.stem = nn.Conv2d(in_channels, version.stem, version.kernel, stem_stride, padding)
        self.act = nn.ReLU(inplace=True)
        self.features = nn.Sequential()
        self.features.add_module("pool1", _pool(next(pools)))
        c_in = version.stem
        for number, widths in zip(FIRES, fires, strict=True):
            self.features.add_module(f"fire{number}", Fire(c_in, widths))
            c_in = widths.expand1x1 + widths.expand3x3
            if number in version.pools:
                self.features.add_module(f"pool{number}", _pool(next(pools)))
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(c_in, num_classes, 1)
        self.classifier_act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()


def _pool(stride: int) -> nn.Module:
    return nn.MaxPool2d(3, stride, ceil_mode=True) if stride > 1 else nn.Identity()


def _fire_widths(
    base_e: int, incr_e: int, freq: int, pct_3x3: float, squeeze_ratio: float, bypass: str
) -> Iterator[FireWidths]:
    """Section 5.1: e_i = base_e + incr_e * floor(i / freq) filters, a share of them 3x3, squeezed by a ratio."""
    previous = 0  # the stem's width never counts as equal
    for i in range(len(FIRES)):
        expand = base_e + incr_e * (i // freq)
        expand3x3 = min(max(round(pct_3x3 * expand), 1), expand - 1)
        around = "none"
        if bypass != "none" and expand == previous:
            around = "identity"
        elif bypass == "complex":
            around = "conv"
        yield FireWidths(max(round(squeeze_ratio * expand), 1), expand - expand3x3, expand3x3, around)
        previous = expand


@register(
    variants={
        f"squeezenet{version.replace('.', '_')}" + ("" if bypass == "none" else f"_{bypass}_bypass"): {
            "version": version,
            "bypass": bypass,
        }
        for version in VERSIONS
        for bypass in BYPASSES
    },
    choices={
        "base_e": (64, 96, 128, 192),
        "incr_e": (0, 64, 96, 128),
        "freq": (1, 2, 4),
        "pct_3x3": (0.25, 0.5, 0.75),
        "squeeze_ratio": (0.125, 0.25, 0.5, 0.75),
        "bypass": BYPASSES,
    },
)
def squeezenet(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    version: str = "1.0",
    bypass: str = "none",
    base_e: int = 128,
    incr_e: int = 128,
    freq: int = 2,
    pct_3x3: float = 0.5,
    squeeze_ratio: float = 0.125,
) -> nn.Module:
    """SqueezeNet "1.0" or "1.1" with bypass "none", "simple" or "complex" and the paper's five metaparameters."""
    if version not in VERSIONS or bypass not in BYPASSES:
        raise InvalidSetting(
            f"squeezenet: version is one of {list(VERSIONS)} and bypass of {list(BYPASSES)},"
            f" not {version!r} and {bypass!r}"
        )
    if base_e < 2 or incr_e < 0 or freq < 1 or not 0 < pct_3x3 < 1 or squeeze_ratio <= 0:
        raise InvalidSetting(
            "squeezenet: base_e >= 2, incr_e >= 0, freq >= 1, 0 < pct_3x3 < 1 and squeeze_ratio > 0 are needed,"
            f" not {base_e}, {incr_e}, {freq}, {pct_3x3}, {squeeze_ratio}"
        )
    fires = list(_fire_widths(base_e, incr_e, freq, pct_3x3, squeeze_ratio, bypass))
    return SqueezeNet(VERSIONS[version], fires, num_classes, in_channels, resolution)


def _torchvision_names(model: nn.Module) -> dict[str, str]:
    modules = {"stem": "features.0", "classifier": "classifier.1"}
    for i, (name, _) in enumerate(model.get_submodule("features").named_children(), 2):
        for conv in ("squeeze", "expand1x1", "expand3x3"):
            modules[f"features.{name}.{conv}"] = f"features.{i}.{conv}"
    return tensor_names(model, modules)


SqueezeNet.checkpoints = {"torchvision": _torchvision_names}
