"""The shift moves what the paper says, for every channel count, and costs nothing."""

from pathlib import Path

import pytest
import torch

from pocketzoo import Architecture
from pocketzoo.errors import InvalidSetting
from pocketzoo.zoo.shiftnet import Shift


def shifted_one_by_one(x: torch.Tensor, kernel: int) -> torch.Tensor:
    """Every pixel by itself: output[y, x] = input[y + dy, x + dx], or 0 beyond the border."""
    channels, height, width = x.shape[1:]
    reach = kernel // 2
    around = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1) if (dy, dx) != (0, 0)]
    group = channels // kernel**2
    out = torch.zeros_like(x)
    for c in range(channels):
        moves = group > 0 and c // group < len(around)
        dy, dx = around[c // group] if moves else (0, 0)
        for row in range(height):
            for column in range(width):
                if 0 <= row + dy < height and 0 <= column + dx < width:
                    out[:, c, row, column] = x[:, c, row + dy, column + dx]
    return out


@pytest.mark.parametrize(("kernel", "channels"), [(1, 4), (3, 5), (3, 9), (3, 18), (3, 31), (5, 24), (5, 25), (5, 53)])
def test_equals_moving_each_channel_alone(kernel: int, channels: int) -> None:
    x = torch.randn(2, channels, 6, 7)
    assert torch.equal(Shift(kernel)(x), shifted_one_by_one(x, kernel))


def test_map_smaller_than_the_kernel() -> None:
    x = torch.randn(3, 26, 1, 2)
    assert torch.equal(Shift(5)(x), shifted_one_by_one(x, 5))


def test_left_over_channels_stay() -> None:
    x = torch.randn(2, 31, 5, 4)  # 8 groups of 3 move, 3 + 31 % 9 = 7 channels stay
    out = Shift(3)(x)
    still = [c for c in range(31) if torch.equal(out[:, c], x[:, c])]
    assert still == list(range(24, 31))


def test_gradient_is_exact() -> None:
    x = torch.randn(2, 11, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Shift(3), x)


def test_has_no_weights() -> None:
    assert not Shift(3).state_dict()


def test_follows_the_channels_that_it_gets() -> None:
    shift = Shift(3)
    for channels in (20, 9, 40):
        x = torch.randn(1, channels, 4, 5)
        assert torch.equal(shift(x), shifted_one_by_one(x, 3))


@pytest.mark.parametrize("kernel", [0, 2])
def test_even_kernel_is_refused(kernel: int) -> None:
    with pytest.raises(InvalidSetting, match="odd"):
        Shift(kernel)


def test_small_shiftnet_trains() -> None:
    model = Architecture.of("shiftnet_b", num_classes=3, resolution=32).build()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_exports_to_onnx_and_computes_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, path = torch.randn(1, 31, 5, 4), tmp_path / "shift.onnx"
    torch.onnx.export(Shift(3).eval(), (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.equal(torch.from_numpy(out), Shift(3)(x))
