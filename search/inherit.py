"""Candidates that begin from a trained parent's most important channels, or are judged by them without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..errors import WeightsMismatch
from ..graph.channel_graph import Keep, Widths, trace
from ..graph.importance import l1_importance
from ..training.result import Result
from ..training.saved import RESULT_NAME, load_unedited, weights_file
from ..zoo.architecture import Architecture
from ..zoo.create import HUB, create_model

IMAGENET_CLASSES = 1000
SUPERNET = "supernet"  # in a run's provenance: trained to be cut, its first channels the ones to keep


class Parent:
    """A trained network whose channels its descendants share out: those with the largest L1 norms first.

    One that was trained to be cut gives its first channels first, as in that training (`cut_first`).
    """

    def __init__(self, model: nn.Module, architecture: Architecture, *, cut_first: bool = False) -> None:
        self.architecture = architecture
        self._model = model.eval()
        self._graph = trace(model, architecture.input_shape, whole_groups=architecture.whole_groups)
        self._scores = {} if cut_first else l1_importance(self._graph, model)

    @classmethod
    def load(cls, source: str | Path, base: Architecture) -> Parent:
        """From a run's folder, a safetensors file of ours, or `hf_hub:org/repo` for the base network.

        Weights from the Hub are taken to be for the base's own classes and channels, or else ImageNet's.
        Raises WeightsMismatch, InvalidRun.
        """
        if not str(source).startswith(HUB):
            model, architecture, _ = load_unedited(source, trust=[base.family])
            return cls(model, architecture, cut_first=_is_supernet(source))
        plain = base.with_widths(None)
        try:
            return cls(create_model(plain, weights=str(source)), plain)
        except WeightsMismatch:
            imagenet = replace(plain, num_classes=IMAGENET_CLASSES, in_channels=3)
            return cls(create_model(imagenet, weights=str(source)), imagenet)

    def fits(self, architecture: Architecture) -> bool:
        """Whether the network is the parent's but for widths, classes and input."""
        own = self.architecture
        return (own.family, dict(own.settings), own.whole_groups) == (
            architecture.family, dict(architecture.settings), architecture.whole_groups,
        )  # fmt: skip

    @torch.no_grad()
    def hand_down(self, model: nn.Module, architecture: Architecture) -> None:
        """Copy the kept channels into the model in place; a network of another structure keeps its fresh weights.

        So do layers of another shape, such as the classifier of a parent with other classes.
        """
        if not self.fits(architecture) or architecture.widths is None:
            return
        _, keep = self._kept(architecture.widths)
        resized = self._graph.resize(self._model, architecture.widths, keep=keep)
        inherited = resized.state_dict()
        for name, tensor in model.state_dict().items():
            if name in inherited and inherited[name].shape == tensor.shape:
                tensor.copy_(inherited[name])

    def cut(self, widths: Mapping[str, int]) -> nn.Module:
        """A copy of the parent that keeps its most important channels, all of them where it has fewer than asked."""
        narrowed, keep = self._kept(widths)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # joint constraints can leave channels without a source
            return self._graph.resize(self._model, narrowed, keep=keep).eval()

    def _kept(self, widths: Mapping[str, int]) -> tuple[Widths, Keep]:
        narrowed = {name: min(width, self._graph.groups[name]) for name, width in widths.items()}
        return narrowed, self._graph.select(self._scores, narrowed, strict=False)


def begin(architecture: Architecture, seed: int, parent: Parent | None) -> nn.Module:
    """The network as its training begins: fresh weights from the seed, over them what a parent hands down."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = architecture.build()
        if parent is not None:
            parent.hand_down(model, architecture)
    return model


def check_descent(parent: Architecture, architecture: Architecture) -> None:
    """Raises WeightsMismatch unless a descendant of that form can be judged without training."""
    for name in ("family", "settings", "whole_groups", "num_classes", "in_channels"):
        own, asked = getattr(parent, name), getattr(architecture, name)
        if own != asked:
            raise WeightsMismatch(
                f"the parent does not fit: its {name} is {_plain(own)}, the search needs {_plain(asked)}; inherit"
                " takes a parent of the same network, trained on data of the same form"
            )


def _is_supernet(source: str | Path) -> bool:
    record = weights_file(source).with_name(RESULT_NAME)
    return record.exists() and SUPERNET in Result.from_json(record.read_text(encoding="utf-8")).provenance


def _plain(value: object) -> object:
    return dict(value) if hasattr(value, "keys") else value  # type: ignore[call-overload]
