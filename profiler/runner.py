"""The measuring engine; as a program, the runner that is copied to other machines.

One file that needs nothing but Python's library (and, as a program, the runtime that it measures), so that this
machine, a board over SSH and a phone measure by one protocol:

- every model is warmed up, then rounds visit all models, each time in another order, so that a slow minute of the
  machine falls on all of them; in its turn a model runs a few times untimed, because its predecessor has emptied the
  caches (the first run takes up to a quarter longer, the fifth a few percent), and then a few times timed;
- the figure is the median over the rounds, with a 95 % interval from order statistics (no normality assumed);
- one thread's work is timed by the thread's own clock (see `timed`);
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
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Callable, Iterator, Mapping, Sequence  # noqa: UP035 - runs on Python 3.8 too

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
    settle: int = 4  # untimed runs at the start of a turn
    burst: int = 3  # timed runs of a turn, of which the median counts
    rounds: int = 10  # at least
    seconds: float = 30.0  # at most, all models together; the least rounds are finished first
    tolerance: float = 0.02  # half the 95 % interval over the median at which a model is known well enough


@dataclass
class Rounds:
    """What came out: milliseconds by model, a number a round, and what a reader must know of the machine meanwhile."""

    samples: dict[str, list[float]]
    warnings: list[str] = field(default_factory=list)
    stopped: str = "tolerance"  # or "seconds"


def timed(run: Callable[[], object], threads: int = 0) -> Call:
    """A call that runs and returns milliseconds.

    What one thread does alone is timed by that thread's own clock, which stands still while another program has the
    processor: on a busy machine it tells the same from run to run where the clock on the wall is off by a third. On a
    machine of our own both say the same. Other runs, and what hands its work to other threads, go by the wall.
    """
    clock = clock_for(run, threads)

    def call() -> float:
        start = clock()
        run()
        return 1e3 * (clock() - start)

    return call


def clock_for(run: Callable[[], object], threads: int) -> Callable[[], float]:
    """The clock, in seconds, by which a run is timed."""
    return time.thread_time if threads == 1 and _stays_in_its_thread(run) else time.perf_counter


def settled(call: Call, settle: int, burst: int) -> float:
    """Milliseconds of a model that has the caches to itself again: the median of a burst after untimed runs."""
    for _ in range(settle):
        call()
    return quantile(sorted(call() for _ in range(burst)), 0.5)


def _stays_in_its_thread(run: Callable[[], object]) -> bool:
    """Whether the thread's clock advances with the wall's, allowing for other programs: it stands still if it waits."""
    wall, own = time.perf_counter(), time.thread_time()
    for _ in range(5):
        run()
    return time.thread_time() - own > 0.2 * (time.perf_counter() - wall)


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
            samples[name].append(settled(calls[name], protocol.settle, protocol.burst))
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
        skip = math.floor(n / 2 - 0.5 - 0.98 * math.sqrt(n))
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
    ratios = sorted(own / other for own, other in zip(samples, reference))  # noqa: B905 - runs on Python 3.8 too
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


class UnusableModel(Exception):
    """The runtime cannot read or run a model."""


def open_onnxruntime(path: str, shape: Sequence[int], threads: int) -> Callable[[], object]:
    """A session of ONNX Runtime on the processor, and one fixed image batch."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on it sends usage data, beside what is measured
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


def opened(name: str, runtime: str, path: str, shape: Sequence[int], threads: int) -> Callable[[], object]:
    """A model that has run once; raises MissingRuntime, and UnusableModel that names the model."""
    try:
        run = RUNTIMES[runtime](path, shape, threads)
        run()
    except MissingRuntime:
        raise
    except Exception as error:  # a runtime raises what it likes for a model that it cannot run
        raise UnusableModel(f"{name}: {type(error).__name__}: {error}") from None
    return run


def cut(path: str, shape: Sequence[int], threads: int, runs: int) -> list[dict[str, object]]:
    """One pass of ONNX Runtime cut into its nodes by its own profiler: name, op, shapes, median milliseconds."""
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: numpy.ones(shape, dtype=numpy.float32)}
        for _ in range(runs + 2):
            session.run(None, feed)
        with open(session.end_profiling()) as file:
            events = json.load(file)
    nodes: dict[str, dict[str, object]] = {}
    times: dict[str, list[float]] = {}
    for event in events:
        name = event["name"]
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        read, made = ([next(iter(own.values())) for own in event["args"][side]]
                      for side in ("input_type_shape", "output_type_shape"))  # fmt: skip
        nodes.setdefault(name, {"name": name[: -len("_kernel_time")], "op": event["args"]["op_name"],
                                "inputs": read, "output": made[0] if made else []})  # fmt: skip
        times.setdefault(name, []).append(event["dur"] / 1e3)
    return [{**node, "ms": quantile(sorted(times[name][2:]), 0.5)} for name, node in nodes.items()]


def run_job(job: Mapping[str, object], folder: str, progress: Progress | None = None) -> dict[str, object]:
    """Measure the files of a job: {"runtime", "protocol", "reference", "models": {name: {"file", "shape"}}}.

    With "cut": runs, each model's pass is also cut into its nodes (ONNX Runtime), the median of that many runs.
    """
    runtime, reference = str(job["runtime"]), job["reference"]
    protocol = Protocol(**job["protocol"])  # type: ignore[arg-type]
    models: Mapping[str, Mapping[str, object]] = job["models"]  # type: ignore[assignment]
    with pinned(protocol.threads):
        runs = {
            name: opened(name, runtime, os.path.join(folder, str(m["file"])), m["shape"], protocol.threads)  # type: ignore[arg-type]
            for name, m in models.items()
        }
        calls = {name: timed(run, protocol.threads) for name, run in runs.items()}
        rounds = interleave(calls, protocol, str(reference), progress)
        nodes = {
            name: cut(os.path.join(folder, str(m["file"])), m["shape"], protocol.threads, int(job["cut"]))  # type: ignore[arg-type, call-overload]
            for name, m in models.items()
            if job.get("cut")
        }
    module = sys.modules[runtime]
    return {
        "nodes": nodes,
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
    except UnusableModel as error:
        print(json.dumps({"error": str(error)}))
        return UNUSABLE_MODEL
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
