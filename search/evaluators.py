"""What a candidate is judged by without training it, and how judgements follow each other (`proxy:synflow,train`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import InvalidSetting, suggestion
from ..training.data import DataSet
from ..training.evaluate import evaluate, reestimate_batchnorm
from ..zoo.architecture import Architecture
from .inherit import Parent, begin, check_descent
from .proxies import PROXIES, known_proxy, proxy_score, proxy_scores
from .space import Candidate

DataAt = Callable[[int], DataSet]  # resolution -> the data at it
TRAIN, INHERIT, PROXY = "train", "inherit", "proxy:"
KNOWN = (TRAIN, INHERIT, *(f"{PROXY}{name}" for name in PROXIES))
PROXY_IMAGES = 64  # training images in the batch of the proxies
STATISTICS_IMAGES = 1024  # training images from which a cut network's batch norms take their statistics


class Evaluator(Protocol):
    """Gives a candidate a number without training it; more is better, and the same candidate gets the same number."""

    @property
    def name(self) -> str:
        """As in `--evaluate`."""

    def score(self, candidate: Candidate) -> float:
        """The number."""


@dataclass(frozen=True)
class Stages:
    """What screens the candidates of each trial, if anything does, and what gives the trial its accuracy."""

    screen: str | None
    last: str

    @classmethod
    def parse(cls, text: str) -> Stages:
        """Read `train`, `inherit`, `inherit,train`, `proxy:NAME,train` or `proxy:NAME,inherit`; InvalidSetting."""
        names = [_known(part.strip()) for part in text.split(",")]
        last = names[-1]
        if last.startswith(PROXY):
            raise InvalidSetting(f"{last} gives no accuracy to choose a network by; end with train: {last},{TRAIN}")
        if len(names) > 2 or TRAIN in names[:-1] or names[:-1] == [last]:
            raise InvalidSetting(
                f"cannot evaluate by {text!r}; expected train or inherit, alone or after one cheaper screen: "
                f"{INHERIT},{TRAIN} or {PROXY}NAME,{TRAIN} or {PROXY}NAME,{INHERIT}"
            )
        return cls(names[0] if len(names) == 2 else None, last)

    @property
    def inherits(self) -> bool:
        """Whether a parent is needed."""
        return INHERIT in (self.screen, self.last)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return self.last if self.screen is None else f"{self.screen},{self.last}"


@dataclass(frozen=True)
class Untrained:
    """The proxies of networks as their training from scratch begins, on one batch of training images."""

    data_at: DataAt
    seed: int
    _batches: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def score(self, name: str, architecture: Architecture) -> float:
        """One proxy; raises UndefinedProxy."""
        images, labels = self._batch(architecture.resolution)
        return proxy_score(name, begin(architecture, self.seed, None).to(images.device), images, labels)

    def scores(self, architecture: Architecture, names: Iterable[str] | None = None) -> dict[str, float]:
        """All proxies, or those named; NaN where one is not defined."""
        images, labels = self._batch(architecture.resolution)
        return proxy_scores(begin(architecture, self.seed, None).to(images.device), images, labels, names)

    def _batch(self, resolution: int) -> tuple[Tensor, Tensor]:
        if resolution not in self._batches:
            data, device = self.data_at(resolution), Accelerator().device
            order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(self.seed))
            batch = data.train.take(order[:PROXY_IMAGES])
            self._batches[resolution] = data.info.normalise(batch.images).to(device), batch.labels.to(device)
        return self._batches[resolution]


@dataclass(frozen=True)
class ByProxy:
    """One proxy as an evaluator."""

    proxy: str
    untrained: Untrained

    @property
    def name(self) -> str:
        """As in `--evaluate`."""
        return f"{PROXY}{self.proxy}"

    def score(self, candidate: Candidate) -> float:
        """Raises UndefinedProxy."""
        return self.untrained.score(self.proxy, candidate.architecture)


@dataclass(frozen=True)
class ByInheritance:
    """Validation accuracy of the parent, cut to the candidate's widths, with batch-norm statistics of its own.

    Nothing is trained. Channels that the parent lacks add nothing.
    """

    parent: Parent
    data_at: DataAt
    seed: int
    name: str = INHERIT

    def score(self, candidate: Candidate) -> float:
        """A share of the validation images, the same ones that trained candidates are compared on.

        Raises WeightsMismatch for a candidate that is not the parent's but for widths.
        """
        architecture = candidate.architecture
        check_descent(self.parent.architecture, architecture)
        assert architecture.widths is not None
        data = self.data_at(architecture.resolution)
        model = self.parent.cut(architecture.widths).to(Accelerator().device)
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(self.seed))
        reestimate_batchnorm(model, data.info.normalise(data.train.images[order[:STATISTICS_IMAGES]]))
        return evaluate(model, data.val, data.info).accuracy


def evaluator(name: str, untrained: Untrained, parent: Parent | None) -> Evaluator:
    """The evaluator of that name, `inherit` or `proxy:NAME`."""
    if name.startswith(PROXY):
        return ByProxy(name.removeprefix(PROXY), untrained)
    assert parent is not None
    return ByInheritance(parent, untrained.data_at, untrained.seed)


def _known(name: str) -> str:
    if name.startswith(PROXY):
        known_proxy(name.removeprefix(PROXY))
    elif name not in KNOWN:
        raise InvalidSetting(
            f"no evaluator {name!r}{suggestion(name, KNOWN)} "
            f"(there are {TRAIN}, {INHERIT} and {PROXY}NAME with NAME one of {', '.join(PROXIES)})"
        )
    return name
