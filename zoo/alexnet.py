"""AlexNet: the one-column form (Krizhevsky 2014, arXiv:1404.5997) and the grouped one of 2012, as Caffe ships it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from torch import nn

from .checkpoints import tensor_names
from .layers import fit_strides
from .registry import register


class Row(NamedTuple):
    """A convolution with ReLU, and whether a 3x3 max pool of stride 2 follows."""

    width: int
    kernel: int
    stride: int
    padding: int
    groups: int
    pool: bool


ONE_COLUMN = (  # arXiv:1404.5997, section 5; output side for a 224 x 224 image
    Row(64, 11, 4, 2, 1, True),  # 27
    Row(192, 5, 1, 2, 1, True),  # 13
    Row(384, 3, 1, 1, 1, False),
    Row(256, 3, 1, 1, 1, False),
    Row(256, 3, 1, 1, 1, True),  # 6
)
CAFFE = (  # Krizhevsky et al. 2012, section 3.5; two groups stand for its two GPUs; output side for 227 x 227
    Row(96, 11, 4, 0, 1, True),  # 27
    Row(256, 5, 1, 2, 2, True),  # 13
    Row(384, 3, 1, 1, 1, False),
    Row(384, 3, 1, 1, 2, False),
    Row(256, 3, 1, 1, 2, True),  # 6
)
MAP = 6  # side of the map that the classifier reads
HIDDEN = 4096


def make_features(rows: Sequence[Row], in_channels: int, resolution: int) -> nn.Sequential:
    """Convolutions with ReLU and pools; small images lose the first stride, then pools."""
    wanted = [stride for row in rows for stride in (row.stride, 2 if row.pool else 1)]
    strides = iter(fit_strides(wanted, resolution))
    features, c_in = nn.Sequential(), in_channels
    for i, row in enumerate(rows, start=1):
        stride, pool = next(strides), next(strides)
        padding = row.padding if stride == row.stride else row.kernel // 2
        conv = nn.Conv2d(c_in, row.width, row.kernel, stride, padding, groups=row.groups)
        features.add_module(f"conv{i}", conv)
        features.add_module(f"act{i}", nn.ReLU(inplace=True))
        if pool > 1:
            features.add_module(f"pool{i}", nn.MaxPool2d(3, pool))
        c_in = row.width
    return features


_TORCHVISION = {
    **{f"features.conv{i}": f"features.{n}" for i, n in zip(range(1, 6), (0, 3, 6, 8, 10), strict=True)},
    "hidden1": "classifier.1",
    "hidden2": "classifier.4",
    "classifier": "classifier.6",
}


class AlexNet(nn.Sequential):
    """Five convolutions -> 6x6 map -> 4096 -> 4096 -> classes, with ReLU and dropout around the linear layers.

    Without local response normalisation, which has no weights and which the one-column form gave up.
    """

    checkpoints: ClassVar[dict[str, Callable[[nn.Module], dict[str, str]]]] = {
        "torchvision": lambda model: tensor_names(model, _TORCHVISION)
    }

    def __init__(
        self, rows: Sequence[Row], num_classes: int, in_channels: int, resolution: int, dropout: float
    ) -> None:
        super().__init__()
        self.features = make_features(rows, in_channels, resolution)
        self.pool = nn.AdaptiveAvgPool2d(MAP)
        self.flatten = nn.Flatten()
        self.dropout1 = nn.Dropout(dropout)
        self.hidden1 = nn.Linear(rows[-1].width * MAP**2, HIDDEN)
        self.act1 = nn.ReLU(inplace=True)
        self.dropout2 = nn.Dropout(dropout)
        self.hidden2 = nn.Linear(HIDDEN, HIDDEN)
        self.act2 = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(HIDDEN, num_classes)


@register(variants={"alexnet": {}})
def alexnet(*, num_classes: int = 1000, in_channels: int = 3, resolution: int = 224, dropout: float = 0.5) -> nn.Module:
    """AlexNet in one column (arXiv:1404.5997), as torchvision has it."""
    return AlexNet(ONE_COLUMN, num_classes, in_channels, resolution, dropout)


@register(variants={"alexnet_caffe": {}})
def alexnet_caffe(
    *, num_classes: int = 1000, in_channels: int = 3, resolution: int = 227, dropout: float = 0.5
) -> nn.Module:
    """AlexNet with grouped convolutions, which the pruning papers start from (Han et al. arXiv:1506.02626, Table 5)."""
    return AlexNet(CAFFE, num_classes, in_channels, resolution, dropout)
