"""Candidates that begin from a pretrained parent's most important channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..errors import WeightsMismatch
from ..graph.channel_graph import trace
from ..graph.importance import l1_importance
from ..training.saved import load_with_info
from ..zoo.architecture import Architecture
from ..zoo.create import HUB, create_model

IMAGENET_CLASSES = 1000


class Parent:
    """A trained network whose channels its descendants share out, the largest L1 norms first."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self.architecture = architecture
        self._model = model
        self._graph = trace(model, architecture.input_shape)
        self._scores = l1_importance(self._graph, model)

    @classmethod
    def load(cls, source: str | Path, base: Architecture) -> Parent:
        """From a run's folder, a safetensors file of ours, or `hf_hub:org/repo` for the base network.

        Weights from the Hub are taken to be for the base's own classes and channels, or else ImageNet's.
        Raises WeightsMismatch, InvalidRun.
        """
        if not str(source).startswith(HUB):
            model, architecture, _ = load_with_info(source, trust=[base.family])
            return cls(model, architecture)
        plain = base.with_widths(None)
        try:
            return cls(create_model(plain, weights=str(source)).eval(), plain)
        except WeightsMismatch:
            imagenet = replace(plain, num_classes=IMAGENET_CLASSES, in_channels=3)
            return cls(create_model(imagenet, weights=str(source)).eval(), imagenet)

    def fits(self, architecture: Architecture) -> bool:
        """Whether the network is the parent's but for widths, classes and input."""
        return (self.architecture.family, dict(self.architecture.settings)) == (
            architecture.family,
            dict(architecture.settings),
        )

    @torch.no_grad()
    def hand_down(self, model: nn.Module, architecture: Architecture) -> None:
        """Copy the kept channels into the model in place; a network of another structure keeps its fresh weights.

        So do layers of another shape, such as the classifier of a parent with other classes.
        """
        if not self.fits(architecture) or architecture.widths is None:
            return
        narrowed = {name: min(width, self._graph.groups[name]) for name, width in architecture.widths.items()}
        keep = self._graph.select(self._scores, narrowed, strict=False)
        resized = self._graph.resize(self._model, architecture.widths, keep=keep)
        inherited = resized.state_dict()
        for name, tensor in model.state_dict().items():
            if name in inherited and inherited[name].shape == tensor.shape:
                tensor.copy_(inherited[name])
