"""Calibration: measure a plan of networks on a device, operator by operator, and keep every measurement as it comes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DeviceFailed, InvalidRun, UnknownDevice
from ..graph.channel_graph import ChannelGraph
from ..zoo.architecture import Architecture
from .export import onnx_for_timing
from .hosts import host
from .measure import REFERENCE, built, reference
from .plan import probes
from .runner import Protocol, pinned, timed
from .runtimes import torch_threads
from .timeline import Timeline, eager_timeline, finished, onnx_timeline

Tell = Callable[[int, float], None]  # networks measured, seconds since the start
Plan = Iterable[tuple[int, tuple[Architecture, ChannelGraph]]]
JOB = 6  # networks that one job of another process or machine measures in common rounds
CUTS = 8  # passes of ONNX Runtime that are cut into nodes
ROUNDS = 4
RUNTIMES = ("eager", "onnxruntime")


@dataclass(frozen=True)
class Sample:
    """One network of the plan as measured: milliseconds of its operators in their order, and of the whole pass."""

    number: int  # in the plan
    architecture: Architecture
    operator_ms: tuple[float, ...]
    besides: Mapping[str, float]  # kind -> ms that the runtime spends on operators that cannot be told apart
    total_ms: float
    reference_ms: float  # of measure's reference network in the same rounds

    def to_json(self) -> str:
        """One line."""
        operator_ms = [round(ms, 6) for ms in self.operator_ms]
        times = {"total_ms": round(self.total_ms, 6), "reference_ms": round(self.reference_ms, 6)}
        record = {"number": self.number, "operator_ms": operator_ms, "besides": dict(self.besides), **times}
        return json.dumps({**record, "architecture": json.loads(self.architecture.to_json())})

    @classmethod
    def from_json(cls, text: str) -> Sample:
        """Read `to_json`'s line; raises InvalidRun."""
        try:
            record = json.loads(text)
            arch = Architecture.from_json(json.dumps(record["architecture"]))
            return cls(int(record["number"]), arch, tuple(map(float, record["operator_ms"])),
                       {str(kind): float(ms) for kind, ms in record["besides"].items()}, float(record["total_ms"]),
                       float(record["reference_ms"]))  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRun(f"not a line of a calibration's samples: {error}") from None


def samples(device: str, runtime: str, threads: int, seconds: float, path: Path, seed: int = 0,
            tell: Tell | None = None) -> list[Sample]:  # fmt: skip
    """Measure networks of the plan until the time is up, adding each to the file `path` as soon as it is measured.

    What the file holds already counts, so that a stopped calibration goes on where it was. Raises UnknownDevice,
    DeviceFailed.
    """
    known = read_samples(path)
    start = time.perf_counter()
    first = known[-1].number + 1 if known else 0
    found = _measured(device, runtime, threads, enumerate(probes(seed, first), first))
    measured = list(known)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for sample in found:
            file.write(sample.to_json() + "\n")
            file.flush()
            measured.append(sample)
            if tell is not None:
                tell(len(measured), time.perf_counter() - start)
            if time.perf_counter() - start >= seconds:
                break
    return measured


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file; a last line that was cut off by a kill is left out. Raises InvalidRun."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        path.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
        lines = lines[:-1]
    return [Sample.from_json(line) for line in lines]


def _measured(device: str, runtime: str, threads: int,
              plan: Plan) -> Iterator[Sample]:  # fmt: skip
    if runtime == "eager" and device in ("cpu", "cuda"):
        return _eager(device, threads, plan)
    if runtime == "onnxruntime" and device != "cuda":
        return _onnx(device, threads, plan)
    raise UnknownDevice(
        f"no calibration of {runtime} on {device}: eager on cpu or cuda, onnxruntime on cpu, ssh:// or adb"
    )


def _eager(device: str, threads: int, plan: Plan) -> Iterator[Sample]:
    wait: Callable[[], None] = lambda: None
    if device == "cuda":
        if not torch.cuda.is_available():
            raise DeviceFailed("cuda: PyTorch finds no CUDA device here; calibrate on the machine that has it")
        wait = torch.cuda.synchronize
    arch = reference()
    beside, images = built(arch).to(device), torch.randn(*arch.input_shape, device=device)
    with torch_threads(threads), pinned(threads), torch.inference_mode():
        time_reference = timed(partial(finished, partial(beside, images), wait), threads)
    for number, (arch, graph) in plan:
        module = built(arch).to(device)
        with torch_threads(threads), pinned(threads):
            timeline = eager_timeline(module, graph, time_reference, threads, wait=wait)
        yield _sample(number, arch, timeline)


def _onnx(device: str, threads: int, plan: Plan) -> Iterator[Sample]:
    machine = host(device)
    protocol = Protocol(threads=threads, rounds=ROUNDS, seconds=0)
    plan, first = iter(plan), reference()
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        beside = Path(folder) / "reference.onnx"
        beside.write_bytes(onnx_for_timing(built(first), first.input_shape))
        while part := list(islice(plan, JOB)):
            files, graphs = {beside.name: beside}, {}
            models: dict[str, Any] = {REFERENCE: {"file": beside.name, "shape": list(first.input_shape)}}
            for number, (arch, graph) in part:
                name = arch.key
                file = Path(folder) / f"{name}.onnx"
                file.write_bytes(onnx_for_timing(built(arch), arch.input_shape))
                files[file.name], graphs[name] = file, (number, arch, graph)
                models[name] = {"file": file.name, "shape": list(arch.input_shape)}
            job = {"runtime": "onnxruntime", "protocol": asdict(protocol), "reference": REFERENCE,
                   "models": models, "cut": CUTS}  # fmt: skip
            result = machine.run(job, files)
            for name, (number, arch, graph) in graphs.items():
                found = result["models"][name]
                timeline = onnx_timeline(result["nodes"][name], graph, found["median_ms"], found["reference_ms"])
                yield _sample(number, arch, timeline)
                (Path(folder) / f"{name}.onnx").unlink()


def _sample(number: int, arch: Architecture, timeline: Timeline) -> Sample:
    operator_ms = tuple(np.asarray(timeline.operator_ms).tolist())
    return Sample(number, arch, operator_ms, timeline.besides, timeline.total_ms, timeline.reference_ms)
