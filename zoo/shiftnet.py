"""The shift operation and ShiftNet (Wu et al. 2018, arXiv:1711.08141)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidSetting
from .layers import Chain, fit_strides
from .registry import register


class Shift(nn.Module):
    """Move groups of channels by one offset each, without weights or multiplications (section 2.1).

    The channels fall into kernel * kernel contiguous groups of c // (kernel * kernel). All but the last move by the
    offsets around the centre in raster order, with zeros at the border; the last one is the centre's, stays where it
    is, and takes the channels that are left over.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise InvalidSetting(f"a shift's kernel is an odd number, not {kernel}")
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        reach, (height, width) = self.kernel // 2, x.shape[2:]
        offsets = [(dy, dx) for dy in range(self.kernel) for dx in range(self.kernel) if (dy, dx) != (reach, reach)]
        group = x.shape[1] // (len(offsets) + 1)
        sizes = [*[group] * len(offsets), x.shape[1] - len(offsets) * group]
        parts = F.pad(x, (reach, reach, reach, reach)).split(sizes, dim=1)
        moved = [
            part[:, :, dy : dy + height, dx : dx + width]
            for part, (dy, dx) in zip(parts, [*offsets, (reach, reach)], strict=True)
        ]
        return torch.cat(moved, dim=1)


class Stage(NamedTuple):
    """A row of Table 5: width, and of its modules: kernel, first and later expansion, number."""

    width: int
    kernel: int
    first: int
    later: int
    modules: int


class Table(NamedTuple):
    """Stem width, stages (each starts with stride 2), and whether those starts keep their pooled input."""

    stem: int
    stages: tuple[Stage, ...]
    concatenates: bool


TABLES = {
    "A": Table(  # arXiv:1711.08141, Table 5; output side for a 224 x 224 image, after a 7x7 stem of stride 2
        32,
        (
            Stage(64, 5, 4, 4, 5),  # 56
            Stage(128, 5, 4, 3, 6),  # 28
            Stage(256, 3, 3, 2, 7),  # 14
            Stage(512, 3, 2, 1, 3),  # 7
        ),
        True,
    ),
    # Section 4.2 in words; the printed 0.78 M parameters only come out where strided modules drop their input.
    "C": Table(
        32,
        (Stage(32, 3, 1, 1, 1), Stage(64, 3, 1, 1, 4), Stage(128, 3, 1, 1, 4), Stage(256, 3, 1, 1, 3)),
        False,
    ),
}


class ConvShiftConv(nn.Sequential):
    """Norm, ReLU, 1x1 expand -> shift -> norm, ReLU, 1x1 project; plus x, joined to pooled x, or alone."""

    def __init__(self, c_in: int, c_out: int, kernel: int, expansion: int, stride: int, shortcut: str | None) -> None:
        super().__init__()
        branch = c_out - c_in if shortcut == "concatenate" else c_out
        self.norm1 = nn.BatchNorm2d(c_in)
        self.act1 = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(c_in, expansion * branch, 1, bias=False)
        self.shift = Shift(kernel)
        self.norm2 = nn.BatchNorm2d(expansion * branch)
        self.act2 = nn.ReLU(inplace=True)
        self.project = nn.Conv2d(expansion * branch, branch, 1, stride, bias=False)
        self.stride = stride
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D, H / stride, W / stride]."""
        out = x
        for layer in self:
            out = layer(out)
        if self.shortcut == "add":
            return out + x
        if self.shortcut == "concatenate":
            pooled = F.avg_pool2d(x, 3, self.stride, padding=1) if self.stride > 1 else x
            return torch.cat((pooled, out), dim=1)
        return out


class ShiftNet(Chain):
    """7x7 stem -> four stages of conv-shift-conv modules -> norm, ReLU -> global average pool -> classifier."""

    def __init__(
        self,
        table: Table,
        repeats: Sequence[int],
        kernels: Sequence[int],
        multiplier: float,
        num_classes: int,
        in_channels: int,
        resolution: int,
    ) -> None:
        super().__init__()
        first, *strides = fit_strides([2] * (len(table.stages) + 1), resolution)
        c_in = round(table.stem * multiplier)
        self.stem = nn.Conv2d(in_channels, c_in, 7, first, padding=3, bias=False)
        self.stages = nn.Sequential()
        for row, n, kernel, stride in zip(table.stages, repeats, kernels, strides, strict=True):
            c_out, stage = round(row.width * multiplier), nn.Sequential()
            entry = "concatenate" if table.concatenates else None
            stage.append(ConvShiftConv(c_in, c_out, kernel, row.first, stride, entry))
            stage.extend(ConvShiftConv(c_out, c_out, kernel, row.later, 1, "add") for _ in range(n - 1))
            self.stages.append(stage)
            c_in = c_out
        self.norm = nn.BatchNorm2d(c_in)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(c_in, num_classes)


def _columns(table: Table) -> dict[str, tuple[int, ...]]:
    return {
        "repeats": tuple(row.modules for row in table.stages),
        "kernels": tuple(row.kernel for row in table.stages),
    }


@register(
    variants={
        "shiftnet_a": {},
        "shiftnet_b": {"multiplier": 0.5},
        "shiftnet_c": {"table": "C", **_columns(TABLES["C"])},
    },
    choices={
        **{f"repeats[{s}]": tuple(range(1, row.modules + 1)) for s, row in enumerate(TABLES["A"].stages)},
        **{f"kernels[{s}]": (3, 5) for s in range(4)},
    },
    multiplier="multiplier",
)
def shiftnet(
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    resolution: int = 224,
    table: str = "A",
    multiplier: float = 1.0,
    repeats: tuple[int, ...] = _columns(TABLES["A"])["repeats"],
    kernels: tuple[int, ...] = _columns(TABLES["A"])["kernels"],
) -> nn.Module:
    """ShiftNet of table "A" or "C"; B is A at half width, its stem too."""
    if table not in TABLES:
        raise InvalidSetting(f"shiftnet: table {table!r} is not one of {sorted(TABLES)}")
    if multiplier < 1 / TABLES[table].stem:
        raise InvalidSetting(
            f"shiftnet: multiplier {multiplier} leaves no channel; take 1/{TABLES[table].stem} or more"
        )
    for name, entries in (("repeats", repeats), ("kernels", kernels)):
        if len(entries) != len(TABLES[table].stages) or min(entries) < 1:
            raise InvalidSetting(f"shiftnet: {name} are {len(TABLES[table].stages)} positive numbers, not {entries}")
    return ShiftNet(TABLES[table], repeats, kernels, multiplier, num_classes, in_channels, resolution)
