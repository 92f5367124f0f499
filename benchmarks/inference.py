"""How fast our networks run beside torchvision's and timm's own, and the shift operator beside what it replaces.

Run: python benchmarks/inference.py

inference.jsonl gets a line for each finished pair, and inference.md is written anew after each: stopped at any moment,
the same command goes on where it was. Move the .jsonl away to begin anew. About 20 minutes of one quiet core.

Both networks of a pair (tests/facts/checkpoints names them, tests/test_pretrained.py shows that their outputs are
equal) run in common rounds: eager PyTorch, fp32, NCHW, batch 1, one thread. They read the same weights in memory: where
copies of the weights lie is worth up to six percent, more than what is asked. A second network of theirs runs in the
same rounds: its ratio to the first is what chance alone does. Every pair has a process of its own: what large networks
freed before changes how the allocator gives memory back, which is up to a fifth of the time.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

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
    interleave,
    interval,
    pinned,
    quantile,
    stamp,
)
from pocketzoo.zoo.shiftnet import Shift  # noqa: E402

CHECKPOINTS = HERE.parent / "tests" / "facts" / "checkpoints"
TARGET = 1.02  # ours over theirs
TOLERANCE = 0.004  # half the interval of a ratio at which a pair is known well enough
LEAST_ROUNDS, MOST_SECONDS = 15, 16.0  # of a pair, whose ratio is looked at after every slice
SLICE = Protocol(warmup=3, settle=1, burst=1, rounds=3, seconds=2.0, tolerance=0.0)
SHIFT = Protocol(warmup=20, settle=1, burst=1, rounds=201, seconds=5.0, tolerance=0.005)
RECORDS, PAGE = HERE / "inference.jsonl", HERE / "inference.md"
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
    def known(self) -> bool:
        """Whether the interval is narrow enough."""
        return (self.high - self.low) / 2 <= TOLERANCE

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


def pairs() -> list[Row]:
    """All of them, the first of every family before the second of any."""
    families = [list(csv.DictReader(path.open())) for path in sorted(CHECKPOINTS.glob("*.csv"))]
    return [row for row in chain.from_iterable(zip_longest(*families)) if row is not None]


def foreign(row: Row) -> nn.Module:
    """Their network, as tests/test_pretrained.py builds it."""
    settings = json.loads(row["foreign_kwargs"] or "{}")
    if row["source"] == "torchvision":
        return torchvision.models.get_model(
            row["foreign"].removeprefix("torchvision.models."), weights=None, **settings
        )
    return timm.create_model(row["foreign"], pretrained=False, **settings)


def networks(row: Row) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
    """Ours, theirs and theirs again on the same tensors; the shape of an image."""
    arch = Architecture.of(row["model"], **json.loads(row["settings"] or "{}"))
    theirs, again = foreign(row), foreign(row)
    weights = theirs.state_dict()
    again.load_state_dict(weights, assign=True)
    ours = load_weights(arch.build(), weights, source=row["source"])
    own, names = ours.state_dict(), ours.checkpoints[row["source"]](ours)
    shared = {key: weights[name].view_as(own[key]) for key, name in names.items() if name in weights}
    ours.load_state_dict(shared, strict=False, assign=True)
    return {"ours": ours.eval(), "theirs": theirs.eval(), "theirs again": again.eval()}, arch.input_shape


def measured(row: Row) -> dict[str, Any]:
    """The record of a pair, measured in slices until the ratio is known or the time is up; runs in a fresh process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    both, shape = networks(row)
    image = torch.randn(shape)
    calls = {name: run(network, image) for name, network in both.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    warnings: list[str] = []
    start = time.perf_counter()
    with torch.inference_mode(), pinned(1):
        while True:
            found = interleave(calls, replace(SLICE, warmup=0 if times["ours"] else SLICE.warmup))
            warnings += found.warnings
            for name, samples in found.samples.items():
                times[name] += samples
            ours = Ratio.of(times["ours"], times["theirs"])
            enough = len(times["ours"]) >= LEAST_ROUNDS
            if enough and (ours.known or time.perf_counter() - start > MOST_SECONDS):
                break
    return {
        "row": row, "theirs_ms": median(times["theirs"]), "ours": asdict(ours),
        "again": asdict(Ratio.of(times["theirs again"], times["theirs"])), "rounds": len(times["ours"]),
        "busy": any("busy" in warning for warning in warnings), "where": where(),
    }  # fmt: skip


def run(network: Callable[[Tensor], object], image: Tensor) -> Callable[[], float]:
    """A call that returns milliseconds of this thread, which does all the work: other programs do not count."""

    def call() -> float:
        start = time.thread_time()
        network(image)
        return 1e3 * (time.thread_time() - start)

    return call


def where() -> dict[str, str]:
    """What a record holds for: the machine and the versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    own = stamp()
    return {**{key: str(own[key]) for key in ("processor", "cores", "system", "python")}, "packages": packages}


def network_table(records: Sequence[Mapping[str, Any]], wanted: int) -> Iterator[str]:
    yield "| model | theirs | theirs, ms | ours / theirs | target | theirs again / theirs | rounds |"
    yield "|---|---|---|---|---|---|---|"
    verdicts: dict[str, list[str]] = {"holds": [], "undecided": [], "slower": []}
    for record in sorted(records, key=lambda record: record["row"]["model"]):
        row, ours, control = record["row"], Ratio(**record["ours"]), Ratio(**record["again"])
        settings = "" if row["settings"] in ("", "{}") else f" {row['settings']}"
        verdicts[ours.verdict].append(row["model"] + settings)
        name = f"{row['source']} {row['foreign'].removeprefix('torchvision.models.')}"
        yield (f"| {row['model']}{settings} | {name} | {record['theirs_ms']:.2f} | {ours} | {ours.verdict} "
               f"| {control} | {record['rounds']} |")  # fmt: skip
    yield f"\nOf {len(records)} pairs, {len(verdicts['holds'])} hold the target with their whole interval."
    for verdict in ("undecided", "slower"):
        yield f"{verdict.capitalize()}: {', '.join(verdicts[verdict]) or 'none'}."
    busy = [record["row"]["model"] for record in records if record["busy"]]
    yield f"Measured while other programs were busy: {', '.join(busy) or 'none'}."
    if len(records) < wanted:
        yield f"{wanted - len(records)} pairs are still to be measured."


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


def page(records: Sequence[Mapping[str, Any]], wanted: int, shifts: Sequence[str]) -> Iterator[str]:
    own = where()
    yield "# Inference: our networks and the originals, the shift and what it replaces\n"
    yield f"{stamp()['date']}, {own['processor']}, {own['cores']} cores, {own['system']}, Python {own['python']},"
    yield f"{own['packages']}.\n"
    yield "Eager PyTorch, fp32, NCHW, batch 1, one thread, on the same weights in memory, each pair in its own process"
    yield f"and in common rounds of random order: at least {LEAST_ROUNDS}, until the ratio is known to {TOLERANCE:.1%}"
    yield f"or for {MOST_SECONDS:g} s. Ratios are medians over the rounds, with the 95 % interval."
    yield f"Target: ours / theirs at most {TARGET}; it holds where the whole interval does. `theirs again` is a second"
    yield "network of theirs, and its ratio chance.\n"
    yield "## Networks\n"
    yield from network_table(records, wanted)
    if shifts:
        yield "\n## The shift operator, kernel 3\n"
        yield from shifts


def write(lines: Iterator[str]) -> None:
    part = PAGE.with_name(f".{PAGE.name}.new")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(PAGE)


def finished() -> list[dict[str, Any]]:
    """The records of an earlier run; they must be of this machine and these versions."""
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    if others := [record["where"] for record in records if record["where"] != where()]:
        raise SystemExit(f"{RECORDS.name} holds measurements of {others[0]}: move it away to begin anew")
    return records


def main() -> None:
    torch.set_num_threads(1)
    records, rows, start = finished(), pairs(), time.monotonic()
    known = [record["row"] for record in records]
    waiting = [row for row in rows if row not in known]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])  # the imports take as long as a pair
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        for done, row in enumerate(waiting, start=1):
            record = processes.submit(measured, row).result()
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            records.append(record)
            write(page(records, len(rows), []))
            ours, left = Ratio(**record["ours"]), (time.monotonic() - start) / done * (len(waiting) - done)
            print(
                f"{done}/{len(waiting)} {row['model']}: {ours} {ours.verdict}; about {left / 60:.0f} min left",
                flush=True,
            )
    with torch.inference_mode(), pinned(1):
        shifts = list(shift_table(SHIFT))
    write(page(records, len(rows), shifts))


if __name__ == "__main__":
    main()
