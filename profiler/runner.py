"""The measuring engine; as a program, the runner that is copied to other machines.

One file that needs nothing but Python's library (and, as a program, the runtime that it measures), so that this
machine, a board over SSH and a phone measure by one protocol:

- every model is warmed up, then rounds visit all models, each time in another order, so that a slow minute of the
  machine falls on all of them; in its turn a model runs once untimed, because its predecessor has emptied the caches;
- the figure is the median, with a 95 % interval of the median from order statistics (no normality assumed);
- rounds end when every interval is narrow enough, or when the time is up;
- one model is the reference of the rounds: ratios to it compare runs that saw the machine at other speeds.

    python3 runner.py job.json > result.json
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

Call = Callable[[], float]  # runs a model once; milliseconds
Progress = Callable[[int, float], None]  # rounds done, seconds since the first

FORMAT = 1
MISSING_RUNTIME, UNUSABLE_MODEL = 3, 4  # exit codes; what is wrong is on standard output as {"error": ...}
PERCENTILES = (5, 25, 75, 95, 99)
BUSY = 0.15  # processors that others may use before the record says so
DRIFT = 0.05  # by which the reference may change between the first and the last third of the rounds


@dataclass(frozen=True)
class Protocol:
    """How a latency is measured."""

    threads: int = 1
    warmup: int = 3  # untimed runs of each model before the first round
    rounds: int = 15  # at least
    seconds: float = 30.0  # at most, all models together; the least rounds are finished first
    tolerance: float = 0.02  # half the 95 % interval over the median at which a model is known well enough


@dataclass
class Rounds:
    """What came out: milliseconds by model, a number a round, and what a reader must know of the machine meanwhile."""

    samples: dict[str, list[float]]
    warnings: list[str] = field(default_factory=list)
    stopped: str = "tolerance"  # or "seconds"


def timed(run: Callable[[], object]) -> Call:
    """A call that runs and returns milliseconds by the monotonic clock."""

    def call() -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    return call


def interleave(
    calls: Mapping[str, Call], protocol: Protocol, reference: str | None = None, progress: Progress | None = None
) -> Rounds:
    """Measure all calls in common rounds; `reference` names the one that a drift of the machine is read from."""
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(protocol.warmup):
            calls[name]()
    order = random.Random(0)
    machine = Machine()
    start = time.perf_counter()
    done = 0
    while True:
        order.shuffle(names)
        for name in names:
            calls[name]()
            samples[name].append(calls[name]())
        done += 1
        seconds = time.perf_counter() - start
        if progress is not None:
            progress(done, seconds)
        narrow = done >= protocol.rounds and all(spread(own) <= protocol.tolerance for own in samples.values())
        if narrow or (done >= protocol.rounds and seconds >= protocol.seconds):
            break
    rounds = Rounds(samples, machine.warnings(), "tolerance" if narrow else "seconds")
    if not narrow:
        wide = {name: spread(own) for name, own in samples.items() if spread(own) > protocol.tolerance}
        worst = max(wide, key=wide.__getitem__)
        rounds.warnings.append(
            f"{len(wide)} of {len(names)} models are not known to {protocol.tolerance:.1%} after {protocol.seconds:g} s"
            f" (widest: {worst}, {wide[worst]:.1%})"
        )
    if reference is not None:
        rounds.warnings += drift(samples[reference])
    return rounds


# -- figures ----------------------------------------------------------------------------------------------------------


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted numbers, interpolated between neighbours."""
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def interval(ordered: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median from order statistics (binomial ranks, normal approximation from 70 numbers)."""
    n = len(ordered)
    if n > 70:
        skip = math.floor(n / 2 - 0.98 * math.sqrt(n))
    else:
        skip, tail = 0, 0.5**n
        while tail + math.comb(n, skip + 1) * 0.5**n <= 0.025:
            skip += 1
            tail += math.comb(n, skip) * 0.5**n
    return ordered[skip], ordered[n - 1 - skip]


def spread(samples: Sequence[float]) -> float:
    """Half the 95 % interval over the median."""
    ordered = sorted(samples)
    low, high = interval(ordered)
    return (high - low) / 2 / quantile(ordered, 0.5)


def statistics(samples: Sequence[float], reference: Sequence[float]) -> dict[str, object]:
    """Median with its interval, percentiles, and the ratio to the reference of the same rounds."""
    ordered = sorted(samples)
    low, high = interval(ordered)
    ratios = sorted(own / other for own, other in zip(samples, reference, strict=True))
    return {
        "median_ms": quantile(ordered, 0.5),
        "low_ms": low,
        "high_ms": high,
        "percentiles_ms": {f"p{p}": quantile(ordered, p / 100) for p in PERCENTILES},
        "rounds": len(samples),
        "reference_ms": quantile(sorted(reference), 0.5),
        "ratio": quantile(ratios, 0.5),
    }


def drift(samples: Sequence[float]) -> list[str]:
    """A warning when the reference was faster or slower at the end than at the start."""
    third = len(samples) // 3
    if third < 3:
        return []
    first, last = (quantile(sorted(part), 0.5) for part in (samples[:third], samples[-third:]))
    if abs(last / first - 1) <= DRIFT:
        return []
    return [f"the machine's speed drifted: the reference took {first:.3g} ms at the start and {last:.3g} ms at the end"]


# -- the machine ------------------------------------------------------------------------------------------------------


class Machine:
    """What the machine did beside us since this was made."""

    def __init__(self) -> None:
        self.start, self.own, self.busy = time.perf_counter(), _own_seconds(), _busy_seconds()

    def warnings(self) -> list[str]:
        """Other programs' share of the processors, where the system tells (Linux)."""
        if self.busy is None:
            return []
        seconds = time.perf_counter() - self.start
        now = _busy_seconds()
        if seconds < 0.5 or now is None:  # too short for the system's clock ticks
            return []
        others = (now - self.busy - (_own_seconds() - self.own)) / seconds
        if others <= BUSY:
            return []
        return [f"the machine was busy: other programs used {others:.2f} of its {os.cpu_count()} processors meanwhile"]


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _busy_seconds() -> float | None:
    """Seconds that all processors together have worked or were taken away by the host, since the machine started."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def processor() -> str:
    """The processor's name as the system knows it."""
    names = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        names = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in file)}
    for key in ("model name", "Hardware", "Model", "CPU part"):
        if names.get(key):
            return names[key]
    return platform.processor() or platform.machine()


def stamp() -> dict[str, object]:
    """Where and when: processor, cores, architecture, system, Python, date."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017 - runs on Python 3.8 too
    }


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this thread on as many processors as it may use, the last ones: the first serve the system's interrupts."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


# -- runtimes that read model files -----------------------------------------------------------------------------------


class MissingRuntime(Exception):
    """The runtime is not installed on this machine."""


def open_onnxruntime(path: str, shape: Sequence[int], threads: int) -> Callable[[], object]:
    """A session of ONNX Runtime on the processor, and one fixed image batch."""
    try:
        import numpy
        import onnxruntime
    except ImportError as error:
        raise MissingRuntime(f"onnxruntime ({error})") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = numpy.random.default_rng(0).standard_normal(shape, dtype=numpy.float32)
    feed = {session.get_inputs()[0].name: images}
    return lambda: session.run(None, feed)


def open_openvino(path: str, shape: Sequence[int], threads: int) -> Callable[[], object]:
    """A compiled OpenVINO model at fp32 (its default precision is lower where the processor has one)."""
    try:
        import numpy
        import openvino
    except ImportError as error:
        raise MissingRuntime(f"openvino ({error})") from None
    model = openvino.Core().read_model(path)
    model.reshape(list(shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY"}  # fmt: skip
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    images = numpy.random.default_rng(0).standard_normal(shape, dtype=numpy.float32)
    return lambda: request.infer([images])


RUNTIMES = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def run_job(job: Mapping[str, object], folder: str, progress: Progress | None = None) -> dict[str, object]:
    """Measure the files of a job: {"runtime", "protocol", "reference", "models": {name: {"file", "shape"}}}."""
    runtime, reference = str(job["runtime"]), job["reference"]
    protocol = Protocol(**job["protocol"])  # type: ignore[arg-type]
    models: Mapping[str, Mapping[str, object]] = job["models"]  # type: ignore[assignment]
    with pinned(protocol.threads):
        calls = {
            name: timed(RUNTIMES[runtime](os.path.join(folder, str(m["file"])), m["shape"], protocol.threads))  # type: ignore[arg-type]
            for name, m in models.items()
        }
        rounds = interleave(calls, protocol, str(reference), progress)
    module = sys.modules[runtime]
    return {
        "format": FORMAT,
        "stamp": stamp(),
        "versions": {runtime: module.__version__.split("-")[0]},
        "protocol": asdict(protocol),
        "stopped": rounds.stopped,
        "warnings": rounds.warnings,
        "samples_ms": rounds.samples,
        "models": {name: statistics(own, rounds.samples[str(reference)]) for name, own in rounds.samples.items()},
    }


def main(arguments: Sequence[str]) -> int:
    """Read the job beside which the model files lie, print the result; 3: no runtime, 4: a model it cannot run."""
    (path,) = arguments
    with open(path) as file:
        job = json.load(file)

    def progress(done: int, seconds: float) -> None:
        print(f"round {done} {seconds:.1f}", file=sys.stderr, flush=True)

    try:
        result = run_job(job, os.path.dirname(os.path.abspath(path)), progress)
    except MissingRuntime as error:
        print(json.dumps({"error": str(error)}))
        return MISSING_RUNTIME
    except Exception as error:  # a runtime raises what it likes for a model that it cannot run
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return UNUSABLE_MODEL
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
