"""Distillation: training on a teacher's softened outputs (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ...errors import InvalidSetting
from ...training.data import DataSet
from ...training.evaluate import device_of, evaluating
from ...training.saved import load
from ..compression import Compression


@dataclass(frozen=True)
class Distil:
    """Train on with soft targets; the trainings of later passes are distilled from the same teacher.

    `teacher`: a run's folder, or a safetensors or packed file of ours; by default the one that the compression has.
    `temperature` and `weight` (the teacher's share of the loss) are the recipe's by default. With `epochs=0` nothing
    is trained here, and the passes that follow have the teacher.
    """

    epochs: int = 5
    teacher: str | None = None
    temperature: float | None = None
    weight: float | None = None
    lr: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise InvalidSetting(f"distil: epochs is {self.epochs}; expected 0 or more")

    def apply(self, compression: Compression) -> Compression:
        """Keeps the promises of masks and codebooks as every training does."""
        data = compression.the_data("distil")
        teacher = compression.teacher if self.teacher is None else load(self.teacher)
        if teacher is None:
            raise InvalidSetting("distil has nobody to learn from: give teacher=, such as distil(teacher='runs/big')")
        _check(teacher, data)
        given = {"temperature": self.temperature, "distill_weight": self.weight}
        recipe = compression.recipe.with_settings(**{name: v for name, v in given.items() if v is not None})
        return compression.changed(teacher=teacher, recipe=recipe).finetuned(self.epochs, self.lr)


def _check(teacher: nn.Module, data: DataSet) -> None:
    """Raise InvalidSetting for a teacher of other images or classes."""
    images = data.info.normalise(data.val.images[:1]).to(device_of(teacher))
    try:
        with evaluating(teacher), torch.inference_mode():
            shape = tuple(teacher(images).shape)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InvalidSetting(f"distil: the teacher does not take images of {data.name} ({reason})") from None
    if shape != (1, data.num_classes):
        raise InvalidSetting(
            f"distil: the teacher gives outputs of shape {list(shape)} for an image of {data.name}; expected"
            f" [1, {data.num_classes}], one for each class"
        )
