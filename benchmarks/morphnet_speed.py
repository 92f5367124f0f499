"""What MorphNet's regulariser adds to a training step of MobileNet v2 at 32 pixels, batch 128.

Run: python benchmarks/morphnet_speed.py [--rounds N] > benchmarks/morphnet_speed.txt
Rounds are interleaved: a plain step, then one with the regulariser, and so on; ratios are of the medians. What the
regulariser does after a step is also timed alone, steps with and without a look at what lives; a look comes every
ten steps in a training of 2,000 or more. One thread; on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch import nn
from torch.nn import functional as F

import pocketzoo
from pocketzoo import Architecture, Budget, trace
from pocketzoo.search.methods.morphnet import Regulariser
from pocketzoo.training.recipe import Recipe

BATCH, SIDE, STEPS = 128, 32, 2000
TARGETS = ("macs", "memory")


class Training:
    """A model with its optimiser, one step at a time; with a target, under the regulariser."""

    def __init__(self, device: str, target: str | None) -> None:
        torch.manual_seed(0)
        self.model = Architecture.of("mobilenet_v2", num_classes=10, resolution=SIDE).build().train().to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
        self.images = torch.randn(BATCH, 3, SIDE, SIDE, device=device)
        self.labels = torch.randint(0, 10, (BATCH,), device=device)
        self.regulariser = None if target is None else self._regulariser(target)
        self.done = 0

    def _regulariser(self, target: str) -> Regulariser:
        graph = trace(self.model, (1, 3, SIDE, SIDE))
        costs = graph.price()
        whole = {"macs": costs.macs, "params": costs.params, "memory": costs.peak_memory_bytes}[target]
        regulariser = Regulariser(graph, self.model, Budget(**{target: whole // 2}), Recipe(), 0.01, 0.9)
        regulariser.steering.attach(self.model)
        return regulariser

    def step(self) -> None:
        """Forward, backward, bound on the gradient, optimiser, regulariser."""
        loss = F.cross_entropy(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        if self.regulariser is not None:
            self.regularise()

    @torch.no_grad()
    def regularise(self) -> None:
        """What follows the optimiser's step."""
        assert self.regulariser is not None
        self.done = self.done % STEPS + 1
        self.regulariser.after_step(self.model, self.optimizer, self.done, STEPS)


def milliseconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    versions = f"pocketzoo {pocketzoo.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {name}, one thread, {rounds} rounds, {versions}\n", flush=True)
    kinds = [None, *TARGETS]
    trainings = [Training(device, target) for target in kinds]
    times: list[list[float]] = [[] for _ in kinds]
    for training in trainings:
        training.step()
    for _ in range(rounds):
        for own, training in zip(times, trainings, strict=True):
            own.append(milliseconds(training.step))
    plain = statistics.median(times[0])
    print("| target | step ms | / plain | regulariser alone: ms, no look | ms, a look | of a plain step |")
    print("|---|---|---|---|---|---|")
    for target, own, training in zip(kinds, times, trainings, strict=True):
        step = statistics.median(own)
        alone = "| | |" if target is None else alone_of(training, plain)
        print(f"| {target or 'plain'} | {step:.1f} | {step / plain:.3f} | {alone}", flush=True)


def alone_of(training: Training, plain: float) -> str:
    """Medians of the regulariser's own time; every look prices the network anew, as after a channel's death."""
    regulariser = training.regulariser
    assert regulariser is not None
    between, looks = [], []
    for _ in range(100):
        look = regulariser.steering.due(training.done % STEPS + 1, STEPS)
        (looks if look else between).append(milliseconds(training.regularise))
    priced = [milliseconds(lambda: regulariser.charge_at(regulariser.limits.default)) for _ in range(10)]
    quiet, look_ms = statistics.median(between), statistics.median(looks) + statistics.median(priced)
    return f"{quiet:.2f} | {look_ms:.2f} | {(0.9 * quiet + 0.1 * look_ms) / plain:.1%} |"


if __name__ == "__main__":
    main()
