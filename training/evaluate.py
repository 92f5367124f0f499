"""Accuracy and loss on a split, and batch-norm statistics from data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import DataInfo, Split

BATCH = 512


@dataclass(frozen=True)
class Score:
    """What a model gets right: shares of all images, mean cross-entropy, and which images (bool [N])."""

    accuracy: float
    top5: float | None  # from 10 classes
    loss: float
    correct: Tensor


def evaluate(model: nn.Module, split: Split, info: DataInfo, *, batch_size: int = BATCH) -> Score:
    """Top-1 and top-5 accuracy and loss in eval mode, on the model's device; its mode is restored."""
    device = device_of(model)
    outputs = []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(split), batch_size):
            images = split.images[start : start + batch_size].to(device)
            outputs.append(model(info.normalise(images)).float().cpu())
    logits = torch.cat(outputs)  # [N, classes]
    correct = logits.argmax(1) == split.labels
    top5 = None
    if logits.shape[1] >= 10:
        top5 = (logits.topk(5, 1).indices == split.labels[:, None]).any(1).double().mean().item()
    loss = F.cross_entropy(logits, split.labels).item()
    return Score(correct.double().mean().item(), top5, loss, correct)


def reestimate_batchnorm(model: nn.Module, images: Tensor, *, batch_size: int = 256) -> None:
    """Replace every batch norm's statistics by the mean over batches of normalised images, float [N, C, H, W]."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        for start in range(0, len(images), batch_size):
            model(images[start : start + batch_size].to(device_of(model)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within, each module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
