"""LeNet-300-100 and LeNet-5 for MNIST (LeCun et al. 1998), in the forms of Caffe and of the pruning papers."""

from __future__ import annotations

from torch import nn

from .layers import fit_strides
from .registry import register

NATIVE = 28  # MNIST's side; smaller images get padded convolutions
HIDDEN = (300, 100)  # LeNet-300-100
CONVOLUTIONS = (20, 50)  # LeNet-5 of Caffe's examples/mnist; each is followed by a 2x2 max pool
FULLY_CONNECTED = 500


class LeNet300100(nn.Sequential):
    """Flattened image -> 300 -> 100 -> classes, with ReLU between."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        first, second = HIDDEN
        self.flatten = nn.Flatten()
        self.hidden1 = nn.Linear(inputs, first)
        self.act1 = nn.ReLU(inplace=True)
        self.hidden2 = nn.Linear(first, second)
        self.act2 = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(second, num_classes)


class LeNet5(nn.Sequential):
    """conv 5x5 -> max pool -> conv 5x5 -> max pool -> 500 -> ReLU -> classes; no activation but that one."""

    def __init__(self, num_classes: int, in_channels: int, resolution: int, kernel: int) -> None:
        super().__init__()
        first, second = CONVOLUTIONS
        padding = kernel // 2 if resolution < NATIVE else 0
        pools = fit_strides((2, 2), resolution)
        side = resolution
        for pool in pools:
            side = (side + 2 * padding - kernel + 1) // pool
        self.conv1 = nn.Conv2d(in_channels, first, kernel, padding=padding)
        self.pool1 = nn.MaxPool2d(pools[0])
        self.conv2 = nn.Conv2d(first, second, kernel, padding=padding)
        self.pool2 = nn.MaxPool2d(pools[1])
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(second * side**2, FULLY_CONNECTED)
        self.act = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(FULLY_CONNECTED, num_classes)


@register(variants={"lenet_300_100": {}})
def lenet_300_100(*, num_classes: int = 10, in_channels: int = 1, resolution: int = 28) -> nn.Module:
    """LeNet-300-100: two hidden layers (LeCun et al. 1998, section III; Han et al. arXiv:1506.02626, Table 3)."""
    return LeNet300100(in_channels * resolution**2, num_classes)


@register(variants={"lenet5": {}}, choices={"kernel": (3, 5)})
def lenet5(*, num_classes: int = 10, in_channels: int = 1, resolution: int = 28, kernel: int = 5) -> nn.Module:
    """LeNet-5 with 20-50-500 units, as Caffe ships it (Han et al. arXiv:1506.02626, Table 4)."""
    return LeNet5(num_classes, in_channels, resolution, kernel)
