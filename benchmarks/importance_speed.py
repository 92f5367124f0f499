"""How long scoring the channels of MobileNet v2 (224 pixels) takes, and select with resize; and the memory of each.

Run: python benchmarks/importance_speed.py > benchmarks/importance_speed.txt
Each runs in a process of its own, on one thread. Seconds are the processor's own (other programs do not count), memory
is how far the peak of resident memory rises above where it stood before. Images are noise: values do not matter here.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.nn import functional as F

from pocketzoo import Architecture, trace
from pocketzoo.search.methods.activations import batches, reading_layers
from pocketzoo.search.methods.method import Task, method_named
from pocketzoo.search.shrink import absolute, cut
from pocketzoo.training.data import DataInfo, DataSet, Split
from pocketzoo.training.recipe import Recipe

SEED = 0
CRITERIA = ("random", "mean_activation", "apoz", "entropy", "scaled_entropy", "taylor")
PLAIN = ("a batch forward", "a batch forward and backward")
CUT = "select and resize"
MB = 2**20


def task_of(model: str, resolution: int, images: int) -> Task:
    """A fresh network and as many images of noise."""
    torch.manual_seed(SEED)
    network = Architecture.of(model, resolution=resolution).build().eval()
    noise = Split(
        torch.randint(0, 256, (images, 3, resolution, resolution), dtype=torch.uint8), torch.arange(images) % 10
    )
    info = DataInfo("noise", tuple(map(str, range(1000))), 3, resolution, (0.5,) * 3, (0.25,) * 3)
    graph = trace(network, (1, 3, resolution, resolution))
    return Task(network, graph, DataSet(info, noise, noise, noise), absolute("macs=50%", graph), Recipe())


def work_of(what: str, task: Task, images: int) -> Callable[[], object]:
    """What is measured; what it needs is made before."""
    if what in PLAIN:
        batch, labels = next(batches(task.data.train, task.data.info, torch.device("cpu")))

        def forward() -> None:
            with torch.no_grad():
                task.model(batch)

        return forward if what == PLAIN[0] else lambda: F.cross_entropy(task.model(batch), labels).backward()
    if what == CUT:
        proposal = method_named("random").propose(task)
        return lambda: cut(task.graph, proposal)
    if what == "l1":
        from pocketzoo.graph.importance import l1_importance

        return lambda: l1_importance(task.graph, task.model)
    settings = {} if what == "random" else {"images": images}
    return lambda: method_named(what, settings).propose(task)


def measured(what: str, model: str, resolution: int, images: int) -> dict[str, float]:
    """Processor seconds and MB of one of them, in this process."""
    torch.set_num_threads(1)
    task = task_of(model, resolution, images)
    reading_layers(task.graph, task.model)  # the graph's own labels are made once, whoever asks first
    work = work_of(what, task, images)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, started = peak_mb(), time.process_time()
    work()
    seconds = time.process_time() - started
    parameters = sum(p.numel() * p.element_size() for p in task.model.parameters()) / MB
    return {"cpu_s": seconds, "memory_mb": peak_mb() - before, "model_mb": parameters}


def peak_mb() -> float:
    """Peak of this process's resident memory since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", help="measure this alone and print JSON")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--images", type=int, default=20)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.one, given.model, given.resolution, given.images)))
        return
    print(f"{datetime.now(UTC):%Y-%m-%d}, seed {SEED}, torch {torch.__version__}, {platform.machine()}, one thread")
    print(f"{given.model}, {given.resolution} pixels, {given.images} images\n")
    print("| what | CPU s | memory above the start, MB | parameters, MB |\n|---|---|---|---|")
    for what in ("l1", *CRITERIA, CUT, *PLAIN):
        command = [sys.executable, __file__, "--one", what, "--model", given.model]
        command += ["--resolution", str(given.resolution), "--images", str(given.images)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"| {what} | {found['cpu_s']:.2f} | {found['memory_mb']:.0f} | {found['model_mb']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
