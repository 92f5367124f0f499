"""The few pieces that several families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

SMALL_IMAGE = 64  # images up to this side lose early strides
SMALL_MAP = 4  # ... until the final map has at least this side


def relu() -> nn.Module:
    """ReLU that overwrites its input."""
    return nn.ReLU(inplace=True)


class ConvNorm(nn.Sequential):
    """Convolution (no bias, padded to keep the side at stride 1) -> batch norm -> activation, if there is one."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: Callable[[], nn.Module] | None = relu,
        padding: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            c_in, c_out, kernel, stride, kernel // 2 if padding is None else padding, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(c_out, eps=eps)
        if act is not None:
            self.act = act()


class Chain(nn.Sequential):
    """A Sequential that also runs the layers of the plain Sequentials and ConvNorms inside it, one by one.

    A module that is called keeps its input alive until it returns, as its caller holds it: the stem's output through
    all stages, a tenth of what lives at the peak of MobileNet v2; and every call costs microseconds, which count in
    ShuffleNet v2. A Sequential or ConvNorm that has a hook is called, so that the hook runs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """What the layers make of x in turn."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            for layer in self:
                x = layer(x)
        else:
            for layer in opened(self):
                x = layer(x)
        return x


@torch.jit.unused
def opened(layers: nn.Module) -> list[nn.Module]:
    """Its layers, with those of plain Sequentials and ConvNorms that have no hooks in their place."""
    flat: list[nn.Module] = []
    for layer in layers._modules.values():  # __iter__ and children() cost as much as all the rest
        assert layer is not None
        kind = type(layer)
        if (kind is ConvNorm or kind is nn.Sequential) and not (
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        ):
            flat += layer._modules.values() if kind is ConvNorm else opened(layer)  # type: ignore[arg-type]
        else:
            flat.append(layer)
    return flat


def relu6() -> nn.Module:
    """ReLU6 that overwrites its input."""
    return nn.ReLU6(inplace=True)


def hard_swish() -> nn.Module:
    """x * relu6(x + 3) / 6 (arXiv:1905.02244, section 5.2)."""
    return nn.Hardswish(inplace=True)


class SqueezeExcite(nn.Module):
    """x * gate(expand(relu(reduce(mean of x)))) with 1x1 convolutions that have biases (arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int, gate: Callable[[], nn.Module] = nn.Hardsigmoid) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        gate: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        return x * gate


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor`, at least `divisor`, never below 0.9 of the given (TensorFlow slim's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def fit_strides(strides: Sequence[int], resolution: int) -> list[int]:
    """Strides with the earliest ones dropped to 1 until a small image keeps a sensible final map.

    Images up to 64 pixels keep a final map of at least 4 x 4; larger ones are left alone.
    """
    fitted = list(strides)
    if resolution > SMALL_IMAGE:
        return fitted
    for i, stride in enumerate(strides):
        side = resolution
        for s in fitted:
            side = -(-side // s)
        if side >= SMALL_MAP:
            break
        if stride > 1:
            fitted[i] = 1
    return fitted


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Transpose of the [groups, C / groups] view of the channels (arXiv:1707.01083, section 3.1)."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
