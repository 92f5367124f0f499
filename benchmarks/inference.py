"""How fast our networks run beside torchvision's and timm's own, and the shift operator beside what it replaces.

Run: python benchmarks/inference.py        (--quick: a model a family, seconds each, printed only)

Both networks of a pair hold the same weights (tests/facts/checkpoints names the pairs, tests/test_pretrained.py shows
that their outputs are equal) and run in common rounds: eager PyTorch, fp32, NCHW, batch 1, one thread. A second copy
of theirs runs in the same rounds: its ratio to the first is what chance alone does. Every pair has a process of its
own: what large networks freed before changes how the allocator gives memory back, which is up to a fifth of the time.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import torchvision_on_cpu  # noqa: E402, F401

import timm  # isort: skip  # noqa: E402
import torchvision  # isort: skip  # noqa: E402
from pocketzoo import Architecture, load_weights  # noqa: E402
from pocketzoo.profiler.runner import (  # noqa: E402
    Protocol,
    Rounds,
    interleave,
    interval,
    pinned,
    quantile,
    stamp,
    timed,
)
from pocketzoo.zoo.shiftnet import Shift  # noqa: E402

CHECKPOINTS = HERE.parent / "tests" / "facts" / "checkpoints"
TARGET = 1.02  # ours over theirs
ROUNDS, SECONDS, TOLERANCE = 41, 25.0, 0.005
QUICK = ("mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1", "resnet18", "googlenet",
         "densenet121", "mobilenet_v1", "alexnet")  # fmt: skip
QUICK_ROUNDS, QUICK_SECONDS = 15, 3.0
SHIFTS = ((64, 56), (128, 28), (256, 14), (512, 7), (256, 56), (144, 112))  # channels, side
Row = dict[str, str]


@dataclass(frozen=True)
class Ratio:
    """A median of ratios within rounds, with its 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, own: Sequence[float], other: Sequence[float]) -> Ratio:
        """Of the times of the same rounds."""
        ordered = sorted(a / b for a, b in zip(own, other, strict=True))
        return cls(quantile(ordered, 0.5), *interval(ordered))

    @property
    def verdict(self) -> str:
        """Against the target: the interval must lie on one side of it."""
        if self.high <= TARGET:
            return "holds"
        return "slower" if self.low > TARGET else "undecided"

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}-{self.high:.3f})"


def median(samples: Sequence[float]) -> float:
    return quantile(sorted(samples), 0.5)


# -- networks ---------------------------------------------------------------------------------------------------------


def pairs(quick: bool) -> list[Row]:
    rows = [row for path in sorted(CHECKPOINTS.glob("*.csv")) for row in csv.DictReader(path.open())]
    if not quick:
        return rows
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row["model"], row)
    return [first[name] for name in QUICK]


def foreign(row: Row) -> nn.Module:
    """Their network, as tests/test_pretrained.py builds it."""
    settings = json.loads(row["foreign_kwargs"] or "{}")
    if row["source"] == "torchvision":
        return torchvision.models.get_model(
            row["foreign"].removeprefix("torchvision.models."), weights=None, **settings
        )
    return timm.create_model(row["foreign"], pretrained=False, **settings)


def measured(row: Row, protocol: Protocol) -> Rounds:
    """Milliseconds by round of "ours", "theirs" and "theirs again"; runs in a fresh process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    arch = Architecture.of(row["model"], **json.loads(row["settings"] or "{}"))
    theirs, again = foreign(row).eval(), foreign(row).eval()
    weights = theirs.state_dict()
    again.load_state_dict(weights)
    ours = load_weights(arch.build(), weights, source=row["source"]).eval()
    image = torch.randn(arch.input_shape)
    networks = {"ours": ours, "theirs": theirs, "theirs again": again}
    with torch.inference_mode(), pinned(1):
        return interleave({name: run(network, image) for name, network in networks.items()}, protocol)


def run(network: Callable[[Tensor], object], image: Tensor) -> Callable[[], float]:
    return timed(lambda: network(image), 1)


def network_table(rows: Sequence[Row], protocol: Protocol) -> Iterator[str]:
    yield "| model | theirs | theirs, ms | ours / theirs | target | theirs again / theirs | rounds |"
    yield "|---|---|---|---|---|---|---|"
    verdicts: dict[str, list[str]] = {"holds": [], "undecided": [], "slower": []}
    busy = []
    processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    for row in rows:
        rounds = processes.submit(measured, row, protocol).result()
        times = rounds.samples
        ours, control = (Ratio.of(times[who], times["theirs"]) for who in ("ours", "theirs again"))
        verdicts[ours.verdict].append(row["model"])
        busy += [row["model"]] if any("busy" in warning for warning in rounds.warnings) else []
        settings = "" if row["settings"] in ("", "{}") else f" {row['settings']}"
        name = f"{row['source']} {row['foreign'].removeprefix('torchvision.models.')}"
        yield (f"| {row['model']}{settings} | {name} | {median(times['theirs']):.2f} | {ours} | {ours.verdict} "
               f"| {control} | {len(times['ours'])} |")  # fmt: skip
    yield f"\nOf {len(rows)} pairs, {len(verdicts['holds'])} hold the target with their whole interval."
    for verdict in ("undecided", "slower"):
        yield f"{verdict.capitalize()}: {', '.join(verdicts[verdict]) or 'none'}."
    yield f"Measured while other programs were busy: {', '.join(busy) or 'none'}."


# -- the shift --------------------------------------------------------------------------------------------------------


def channel_loop(x: Tensor, kernel: int = 3) -> Tensor:
    """The shift as one writes it first: a copy a channel."""
    reach, (height, width) = kernel // 2, x.shape[2:]
    offsets = [(dy, dx) for dy in range(kernel) for dx in range(kernel) if (dy, dx) != (reach, reach)]
    group = x.shape[1] // kernel**2
    padded, out = F.pad(x, (reach, reach, reach, reach)), torch.empty_like(x)
    for c in range(x.shape[1]):
        dy, dx = offsets[c // group] if c < group * len(offsets) else (reach, reach)
        out[:, c] = padded[:, c, dy : dy + height, dx : dx + width]
    return out


def shift_table(protocol: Protocol) -> Iterator[str]:
    yield "| input | shift, ms | shift / depthwise 3x3 | shift / loop over channels |\n|---|---|---|---|"
    for channels, side in SHIFTS:
        x = torch.randn(1, channels, side, side)
        shift, depthwise = Shift(3), nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        if not torch.equal(shift(x), channel_loop(x)):
            raise SystemExit(f"the shift and the loop over channels differ at {tuple(x.shape)}")
        work: Mapping[str, Callable[[Tensor], Tensor]] = {"shift": shift, "depthwise": depthwise, "loop": channel_loop}
        times = interleave({name: run(operator, x) for name, operator in work.items()}, protocol).samples
        ratios = [Ratio.of(times["shift"], times[name]) for name in ("depthwise", "loop")]
        yield f"| 1x{channels}x{side}x{side} | {median(times['shift']):.3f} | {ratios[0]} | {ratios[1]} |"


# -- the page ---------------------------------------------------------------------------------------------------------


def _protocol(warmup: int, rounds: int, seconds: float) -> Protocol:
    """One thread; a turn is one untimed run and one timed one, for the sake of many rounds."""
    return Protocol(warmup=warmup, settle=1, burst=1, rounds=rounds, seconds=seconds, tolerance=TOLERANCE)


def page(quick: bool) -> Iterator[str]:
    if quick:
        networks, shifts = _protocol(3, QUICK_ROUNDS, QUICK_SECONDS), _protocol(5, 31, 1.0)
    else:
        networks, shifts = _protocol(3, ROUNDS, SECONDS), _protocol(20, 201, 5.0)
    where = stamp()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    yield "# Inference: our networks and the originals, the shift and what it replaces\n"
    yield f"{where['date']}, {where['processor']}, {where['cores']} cores, load {os.getloadavg()[0]:.1f} at the start,"
    yield f"{where['system']}, Python {where['python']}, {packages}.\n"
    yield "Eager PyTorch, fp32, NCHW, batch 1, one thread, same weights, each pair in its own process and in common"
    yield f"rounds of random order: at least {networks.rounds}, until known to {networks.tolerance:.1%} or for"
    yield f"{networks.seconds:g} s. Ratios are medians over the rounds, with the 95 % interval. Target: ours / theirs"
    yield f"at most {TARGET}; it holds where the whole interval does. `theirs again` is their second copy: chance.\n"
    yield "## Networks\n"
    yield from network_table(pairs(quick), networks)
    yield "\n## The shift operator, kernel 3\n"
    yield from shift_table(shifts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a model a family, a few seconds each")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    lines = []
    with torch.inference_mode(), pinned(1):
        for line in page(quick):
            print(line, flush=True)
            lines.append(line)
    if quick:
        return
    part = HERE / "inference.md.part"
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(HERE / "inference.md")


if __name__ == "__main__":
    main()
