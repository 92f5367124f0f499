"""What memory layout and bf16 autocast do to a training step on this machine, as ratios to fp32 contiguous.

Run: python benchmarks/training_precision.py [--threads N] > benchmarks/training_precision.txt
Speed: forward, backward and optimiser step on random images, rounds interleaved over the four settings; the median of
each round's ratio, with its quartiles. Accuracy: validation errors on the embedded digits, paired by seed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch
from torch.nn import functional as F

import pocketzoo
from pocketzoo import Architecture
from pocketzoo.training.data import load_data
from pocketzoo.training.loop import fit
from pocketzoo.training.recipe import recipe_for

MODELS = (("lenet5", 1, 28, {}), ("mobilenet_v2", 3, 32, {"multiplier": 0.35}))
BATCH = 128
ROUNDS = 15
SEEDS = range(6)
T_95 = 2.571  # Student's t, 5 degrees of freedom, two-sided
SETTINGS = (("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True))  # precision, channels last


def stepper(
    name: str, channels: int, side: int, settings: dict[str, float], precision: str, last: bool
) -> Callable[[], None]:
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    model = Architecture.of(name, num_classes=10, in_channels=channels, resolution=side, **settings).build().train()
    model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
    images = torch.randn(BATCH, channels, side, side).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (BATCH,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def seconds_of(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def print_speed() -> None:
    print(f"{'model':14} {'precision':9} {'layout':14} {'step ms':>8} {'time / fp32 contiguous (quartiles)':>36}")
    for name, channels, side, settings in MODELS:
        steps = [stepper(name, channels, side, settings, *setting) for setting in SETTINGS]
        for step in steps:
            step()
        rounds = [[seconds_of(step) for step in steps] for _ in range(ROUNDS)]
        for i, (precision, last) in enumerate(SETTINGS):
            low, middle, high = statistics.quantiles([times[i] / times[0] for times in rounds], n=4)
            milliseconds = 1e3 * statistics.median(times[i] for times in rounds)
            layout = "channels last" if last else "contiguous"
            print(f"{name:14} {precision:9} {layout:14} {milliseconds:8.1f} {middle:20.2f} ({low:.2f} .. {high:.2f})")


def print_accuracy() -> None:
    """Half of train is held out, another half per seed: the default tenth is 143 images that lenet5 gets all right."""
    runs = {setting: [accuracy_of(*setting, seed) for seed in SEEDS] for setting in SETTINGS}
    images = len(SEEDS) * len(load_data("digits", val_share=0.5).val)
    print(f"\nlenet5 on digits, 10 epochs, half of train held out, {len(SEEDS)} seeds and splits, {images} validations")
    print(f"{'precision':9} {'layout':14} {'error %':>8} {'minus fp32 contiguous, points (95 %, paired)':>46}")
    for (precision, last), accuracies in runs.items():
        error = 100 * (1 - statistics.mean(accuracies))
        differences = [100 * (a - b) for a, b in zip(runs[SETTINGS[0]], accuracies, strict=True)]
        half = T_95 * statistics.stdev(differences) / len(SEEDS) ** 0.5
        layout = "channels last" if last else "contiguous"
        print(f"{precision:9} {layout:14} {error:8.2f} {statistics.mean(differences):+30.2f} +- {half:.2f}")


def accuracy_of(precision: str, last: bool, seed: int) -> float:
    data = load_data("digits", val_share=0.5, seed=seed)
    torch.manual_seed(seed)
    model = Architecture.of("lenet5", num_classes=10, in_channels=1, resolution=8).build()
    recipe = recipe_for(len(data.train), epochs=10, precision=precision, channels_last=last, seed=seed)
    return fit(model, data, recipe).val_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    versions = f"pocketzoo {pocketzoo.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, seeds 0 to {SEEDS[-1]}, {versions}, {torch.get_num_threads()} thread(s)")
    print(f"{cpu_name()}; mkldnn bf16: {torch.ops.mkldnn._is_mkldnn_bf16_supported()}\n")
    print_speed()
    print_accuracy()


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
