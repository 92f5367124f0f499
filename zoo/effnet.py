"""EffNet and the networks it is compared with (Freeman et al. 2018, arXiv:1801.06434; not EfficientNet)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..errors import InvalidSetting
from .layers import Chain, channel_shuffle, fit_strides
from .registry import register

BASE = 64  # c of the CIFAR-10 networks; those for SVHN have 12
GROUPS = 4  # of the ShuffleNet
MAP = 4  # side of the map that the classifier reads
EXPANSION = 6  # of the MobileNet v2 forms


class ConvUnit(nn.Sequential):
    """Convolution -> batch norm -> leaky ReLU of slope 0.3; padded so that only strides shrink the map."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__()
        rows, columns = ((k - 1) // 2 for k in kernel)
        spare = [(k - 1) % 2 if s == 1 else 0 for k, s in zip(kernel, stride, strict=True)]
        if any(spare):  # an even kernel that does not stride needs one more pixel at the end
            self.pad = nn.ZeroPad2d((0, spare[1], 0, spare[0]))
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, (rows, columns), groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self.act = nn.LeakyReLU(0.3, inplace=True)


class ChannelShuffle(nn.Module):
    """Channel shuffle between grouped convolutions (arXiv:1707.01083)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return channel_shuffle(x, self.groups)


def _max_pool(height: int, width: int) -> nn.Module:
    """Max pool of that size and stride; ragged borders are kept, size 1 does nothing."""
    return nn.MaxPool2d((height, width), ceil_mode=True) if height * width > 1 else nn.Identity()


def _depthwise(channels: int, kernel: tuple[int, int] = (3, 3), stride: int = 1) -> ConvUnit:
    return ConvUnit(channels, channels, kernel, (stride, stride), groups=channels)


# Each block below makes one row of Table 1; all that differ from the first stem halve the map by `stride`.


def conv_block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """3x3 convolution -> max pool."""
    block = nn.Sequential()
    block.add_module("spatial", ConvUnit(c_in, c_out, (3, 3)))
    block.add_module("pool", _max_pool(stride, stride))
    return block


def mobilenet_block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """Strided depthwise 3x3 -> 1x1."""
    block = nn.Sequential()
    block.add_module("depthwise", _depthwise(c_in, stride=stride))
    block.add_module("project", ConvUnit(c_in, c_out))
    return block


def shufflenet_block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """Grouped 1x1 to half the width -> shuffle -> strided depthwise 3x3 -> grouped 1x1."""
    block, hidden = nn.Sequential(), c_in // 2
    block.add_module("reduce", ConvUnit(c_in, hidden, groups=GROUPS))
    block.add_module("shuffle", ChannelShuffle(GROUPS))
    block.add_module("depthwise", _depthwise(hidden, stride=stride))
    block.add_module("expand", ConvUnit(hidden, c_out, groups=GROUPS))
    return block


def effnet_block(c_in: int, c_out: int, stride: int, hidden: int | None = None) -> nn.Sequential:
    """1x1 -> depthwise 1x3 -> max pool of rows -> depthwise 3x1 -> convolution that strides over columns.

    The last kernel spans the two columns that its stride joins.
    """
    block, hidden = nn.Sequential(), hidden or c_in
    block.add_module("reduce", ConvUnit(c_in, hidden))
    block.add_module("depthwise_row", _depthwise(hidden, (1, 3)))
    block.add_module("pool", _max_pool(stride, 1))
    block.add_module("depthwise_column", _depthwise(hidden, (3, 1)))
    block.add_module("project", ConvUnit(hidden, c_out, (1, 2), (1, stride)))
    return block


def inverted_block(c_in: int, c_out: int, stride: int, expansion: int, pools: bool) -> nn.Sequential:
    """1x1 expand -> depthwise 3x3, strided or max-pooled -> 1x1 project."""
    block, hidden = nn.Sequential(), expansion * c_in
    block.add_module("expand", ConvUnit(c_in, hidden))
    block.add_module("depthwise", _depthwise(hidden, stride=1 if pools else stride))
    if pools:
        block.add_module("pool", _max_pool(stride, stride))
    block.add_module("project", ConvUnit(hidden, c_out))
    return block


BLOCKS: dict[str, Callable[[int, int, int], nn.Sequential]] = {
    "baseline": conv_block,
    "mobilenet": mobilenet_block,
    "shufflenet": shufflenet_block,
    "effnet": effnet_block,
}
INVERTED = {"mobilenet_v2": False, "mob_imp": True}  # Table 5: whether a max pool takes the stride's place


class EffNet(Chain):
    """Stem of width c -> blocks of 2c and 4c -> 4x4 map -> linear classifier (Table 1)."""

    def __init__(
        self, block: str, expansion: int, multiplier: float, num_classes: int, in_channels: int, resolution: int
    ) -> None:
        super().__init__()
        c = round(BASE * multiplier)
        strides = fit_strides((2, 2, 2), resolution)
        if block == "effnet":
            self.stem = effnet_block(in_channels, c, strides[0], hidden=c // 2)
        else:
            self.stem = conv_block(in_channels, c, strides[0])
        self.blocks = nn.Sequential()
        for c_in, c_out, stride in ((c, 2 * c, strides[1]), (2 * c, 4 * c, strides[2])):
            if block in INVERTED:
                self.blocks.append(inverted_block(c_in, c_out, stride, expansion, INVERTED[block]))
            else:
                self.blocks.append(BLOCKS[block](c_in, c_out, stride))
        self.pool = nn.AdaptiveAvgPool2d(MAP)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(4 * c * MAP**2, num_classes)


SVHN = 12 / BASE  # the paper does not print c = 12; its operation counts for SVHN follow from it


@register(
    variants={
        "effnet": {},
        "effnet_svhn": {"multiplier": SVHN},
        "effnet_baseline": {"block": "baseline"},
        "effnet_baseline_svhn": {"block": "baseline", "multiplier": SVHN},
        "effnet_mobilenet": {"block": "mobilenet"},
        "effnet_mobilenet_svhn": {"block": "mobilenet", "multiplier": SVHN},
        "effnet_shufflenet": {"block": "shufflenet"},
        "effnet_mobilenet_v2_e4": {"block": "mobilenet_v2", "expansion": 4},
        "effnet_mobilenet_v2_e6": {"block": "mobilenet_v2"},
        "effnet_mob_imp": {"block": "mob_imp"},
    },
    choices={"block": (*BLOCKS, *INVERTED)},
    multiplier="multiplier",
)
def effnet(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    resolution: int = 32,
    block: str = "effnet",
    expansion: int = EXPANSION,
    multiplier: float = 1.0,
) -> nn.Module:
    """EffNet of width 64 * multiplier, or a network of the same plan with another block.

    `expansion` is for the blocks of Table 5, "mobilenet_v2" and "mob_imp"; "shufflenet" takes widths divisible by 8.
    """
    if block not in BLOCKS and block not in INVERTED:
        raise InvalidSetting(f"effnet: block {block!r} is not one of {[*BLOCKS, *INVERTED]}")
    width = round(BASE * multiplier)
    if width < 2 or (block == "shufflenet" and width % (2 * GROUPS)):
        raise InvalidSetting(
            f"effnet: multiplier {multiplier} gives width {width}; it must be at least 2,"
            f" and for block 'shufflenet' a multiple of {2 * GROUPS}"
        )
    return EffNet(block, expansion, multiplier, num_classes, in_channels, resolution)
