"""Recipe: everything that decides how a network is trained, apart from the data."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import InvalidSetting

SCHEDULES = ("cosine", "one-cycle")
PRECISIONS = ("fp32", "bf16")
SMALL_SET = 5000  # training images
LEAST_STEPS = 400


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum under a learning-rate schedule; raises InvalidSetting for values that cannot be."""

    epochs: int = 12
    batch_size: int = 128
    lr: float = 0.05  # at the peak of the schedule
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on weights of convolutions and linear layers only
    warmup: float = 0.2  # share of all steps in which lr rises from 0 to its peak
    schedule: str = "cosine"  # how lr falls to 0 afterwards: half a cosine, or one-cycle's straight line
    clip_norm: float = 5.0  # largest norm of the whole gradient
    label_smoothing: float = 0.1
    augment: bool = True
    seed: int = 0
    precision: str = "fp32"
    channels_last: bool = True
    distill_weight: float = 0.5  # share of the loss that is the teacher's, when one is given
    temperature: float = 4.0  # of teacher and student in that share (Hinton et al. 2015, arXiv:1503.02531)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "clip_norm", "temperature"):
            if not getattr(self, name) > 0:
                raise InvalidSetting(f"recipe: {name} is {getattr(self, name)!r}; expected a positive number")
        for name in ("momentum", "warmup", "label_smoothing", "distill_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidSetting(f"recipe: {name} is {getattr(self, name)!r}; expected a number from 0 to 1")
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InvalidSetting(f"recipe: {name} is {getattr(self, name)!r}; expected one of {list(known)}")

    def with_settings(self, **settings: Any) -> Recipe:
        """The same recipe with other settings; raises InvalidSetting for one that does not exist."""
        if unknown := settings.keys() - asdict(self).keys():
            raise InvalidSetting(f"a recipe has no {sorted(unknown)[0]!r}; it has {sorted(asdict(self))}")
        return replace(self, **settings)

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of one step out of all."""
        rising = self.warmup * steps
        if step < rising:
            return self.lr * (step + 1) / math.ceil(rising)
        passed = (step - rising) / max(1, steps - rising)
        return self.lr * (1 - passed if self.schedule == "one-cycle" else (1 + math.cos(math.pi * passed)) / 2)

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Read `to_json`'s text; raises InvalidSetting for anything else."""
        try:
            return cls().with_settings(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise InvalidSetting(f"not a Recipe in JSON: {error}") from None


def recipe_for(train_images: int, *, least_epochs: int | None = None, **settings: Any) -> Recipe:
    """The default recipe for that many training images; `settings` replace what it says.

    Small sets get smaller batches and more epochs (12, small sets 30, or `least_epochs`), a handful of images as many
    epochs as 400 steps take: fewer leave a network where it began.
    """
    small = train_images < SMALL_SET
    batch_size = 32 if small else 128
    least = least_epochs or (30 if small else 12)
    epochs = max(least, math.ceil(LEAST_STEPS / max(1, train_images // batch_size)))
    return Recipe().with_settings(**{"epochs": epochs, "batch_size": batch_size, **settings})
