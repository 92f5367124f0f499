"""How fast packed files of AlexNet's size are read: decoded weights (4 bytes each) a second, by thread time and wall.

    python benchmarks/decoding.py

Weights are random numbers with the sparsities of Deep Compression's Table 4 (arXiv:1510.00149), 8 bits for
convolutions and 5 for linear layers; and all weights as 8-bit integers.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from pocketzoo import Architecture
from pocketzoo.packing import forms
from pocketzoo.packing.packed import pack_model, unpack_model

KEPT = (0.84, 0.38, 0.35, 0.37, 0.37, 0.09, 0.09, 0.25)  # by layer, first to last


def weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, own) for name, own in model.named_parameters() if own.dim() > 1]


@torch.no_grad()
def pruned_and_shared(model: nn.Module) -> dict[str, forms.Hint]:
    for (_, weight), kept in zip(weights(model), KEPT, strict=True):
        levels = 2 ** (8 if weight.dim() == 4 else 5)
        values = torch.randn(weight.shape)
        stays = values.abs() > torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - kept / 2))
        weight.copy_(torch.where(stays, torch.round(values * levels / 8) * 8 / levels, 0.0) + 0.0)
    return {}


@torch.no_grad()
def integers(model: nn.Module) -> dict[str, forms.Hint]:
    hints: dict[str, forms.Hint] = {}
    for name, weight in weights(model):
        scales = torch.linspace(0.01, 0.02, len(weight))
        whole = (torch.randn(weight.shape) * 40).round().clamp(-127, 127)
        weight.copy_(whole * scales.reshape(-1, *[1] * (weight.dim() - 1)))
        hints[name] = forms.Scaled(scales.numpy().astype(np.float32))
    return hints


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    architecture = Architecture.of("alexnet")
    cases = {
        "pruned and shared": (pruned_and_shared, None), "pruned and shared, Huffman": (pruned_and_shared, "huffman"),
        "8-bit integers": (integers, None), "as it was": (lambda model: {}, None),
    }  # fmt: skip
    for name, (change, coder) in cases.items():
        model = architecture.build().eval()
        hints = change(model)
        size = sum(4 * own.numel() for own in model.parameters())
        start = time.thread_time()
        packed = pack_model(model, architecture, hints=hints, coder=coder)
        packing = time.thread_time() - start
        start, wall = time.thread_time(), time.perf_counter()
        again = unpack_model(packed.data).model
        reading, wall = time.thread_time() - start, time.perf_counter() - wall
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        print(
            f"{name:28} {len(packed.data) / 1e6:7.2f} MB of {size / 1e6:.0f}; packed in {packing:5.1f} s; read in"
            f" {reading:5.2f} s ({size / reading / 1e6:4.0f} MB/s), wall {wall:5.2f} s ({size / wall / 1e6:4.0f} MB/s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
