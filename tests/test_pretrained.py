"""Weights of torchvision and timm give our networks their own outputs: tests/facts/checkpoints/*.csv."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import torchvision_on_cpu  # noqa: F401

import timm  # isort: skip
import torchvision  # isort: skip
from pocketzoo import Architecture, load_weights

CHECKPOINTS = Path(__file__).parent / "facts" / "checkpoints"
ROWS = [row for path in sorted(CHECKPOINTS.glob("*.csv")) for row in csv.DictReader(path.open())]
SIDE = 96  # pixels; enough for every network, and quick


def foreign_model(row: dict[str, str]) -> nn.Module:
    kwargs = json.loads(row["foreign_kwargs"] or "{}")
    if row["source"] == "torchvision":
        return torchvision.models.get_model(row["foreign"].removeprefix("torchvision.models."), weights=None, **kwargs)
    return timm.create_model(row["foreign"], pretrained=False, **kwargs)


def randomise(model: nn.Module, images: torch.Tensor) -> None:
    """Statistics near the data's, so that no layer fades out, but fresh nowhere: 0 and 1 would hide a swapped layer."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(getattr(module, "bias", None), torch.Tensor):
            nn.init.normal_(module.bias, std=0.1 if module in norms else 0.02)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = 1.0
        norm.train()
    model(images)
    for norm in norms:
        norm.eval()
        norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.5, 1.5))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['source']}-{row['foreign']}")
@torch.no_grad()
def test_outputs_equal_the_originals(row: dict[str, str]) -> None:
    torch.manual_seed(0)
    arch = Architecture.of(row["model"], **json.loads(row["settings"] or "{}"))
    side = min(arch.resolution, SIDE)
    images = torch.randn(4, arch.in_channels, side, side)
    theirs = foreign_model(row).eval()
    randomise(theirs, images)
    ours = load_weights(arch.build(), theirs.state_dict(), source=row["source"]).eval()
    expected, got = theirs(images), ours(images)
    scale = expected.abs().max().item()
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * scale, "the outputs do not depend on the image"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * scale)
