"""CUDA timing: its logic on stand-ins for the pieces of torch.cuda, and, where there is a GPU, the real thing."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import pocketzoo as pz
from pocketzoo.errors import DeviceFailed, InvalidSetting, UnknownDevice
from pocketzoo.profiler import cuda
from pocketzoo.profiler.runner import Protocol
from pocketzoo.profiler.runtimes import Network

QUICK = Protocol(warmup=1, settle=2, burst=3, rounds=6, seconds=0.0, tolerance=0.9)
RUNS = 1 + 6 * (2 + 3)  # of a model: to warm up, then so many rounds, each untimed and timed


class Gpu:
    """Remembers what was asked of it; every recorded event is 2 ms after the one before."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now_ms = 0.0
        self.capturing = False
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing
                self.waited = False

            def record(self) -> None:
                gpu.now_ms += 2.0
                self.at = gpu.now_ms
                gpu.log.append("event")

            def synchronize(self) -> None:
                self.waited = True

            def elapsed_time(self, end: Any) -> float:
                assert end.waited, "the times are not there before the end has been waited for"
                return float(end.at - self.at)

        class Stream:
            def __init__(self, name: str = "side") -> None:
                self.name = name

            def wait_stream(self, other: Any) -> None:
                gpu.log.append(f"{self.name} waits for {other.name}")

        class CUDAGraph:
            def replay(self) -> None:
                gpu.log.append("replay")

        self.Event, self.Stream, self.CUDAGraph = Event, Stream, CUDAGraph
        self._main = Stream("main")

    def is_available(self) -> bool:
        return True

    def current_stream(self) -> Any:
        return self._main

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append(f"on {stream.name}")
        yield
        self.log.append("back")

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.log.append("capture")
        yield
        self.log.append("captured")

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def get_device_name(self) -> str:
        return "Stand-in 1"


class Spy(nn.Module):
    """Notes how it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.seen: list[tuple[torch.dtype, bool, Any]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((images.dtype, torch.is_grad_enabled(), torch.backends.cuda.matmul.fp32_precision))
        return self.layer(images)  # type: ignore[no-any-return]


def settings() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.benchmark


def run(runtime: str, dtype: str, gpu: Gpu) -> tuple[dict[str, Any], Spy]:
    spy = Spy()
    networks = [Network(name, lambda: spy, (2, 3, 5, 5), 0) for name in ("ref", "own")]
    result = cuda.run_cuda(runtime, dtype, networks, QUICK, "ref", lambda text: None, cuda=gpu, place="cpu")
    return result, spy


@pytest.mark.parametrize(
    ("dtype", "numbers", "precision"),
    [
        ("fp32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
        ("fp16", torch.float16, "ieee"),
        ("bf16", torch.bfloat16, "ieee"),
    ],
)
def test_numbers_are_of_the_asked_kind_and_settings_come_back(dtype: str, numbers: torch.dtype, precision: str) -> None:
    before = settings()
    _, spy = run("eager", dtype, Gpu())
    assert set(spy.seen) == {(numbers, False, precision)}
    assert spy.layer.weight.dtype == numbers
    assert settings() == before


def test_settings_come_back_after_a_failure() -> None:
    before = settings()
    with contextlib.suppress(InterruptedError), cuda.precision("tf32"):
        assert settings() == ("tf32", "tf32", True) != before
        raise InterruptedError
    assert settings() == before


def test_time_is_what_the_events_say() -> None:
    result, spy = run("eager", "fp32", Gpu())
    figures = result["models"]["own"]
    assert figures["median_ms"] == figures["low_ms"] == 2.0
    assert figures["ratio"] == 1.0
    assert len(spy.seen) == 2 * (1 + RUNS)
    assert result["stamp"]["accelerator"] == "Stand-in 1"
    assert result["versions"].keys() == {"torch", "cuda"}


def test_a_graph_is_captured_after_a_warm_up_beside_and_then_replayed() -> None:
    gpu = Gpu()
    runs: list[int] = []

    def work() -> int:
        gpu.log.append("run")
        runs.append(len(runs))
        return runs[-1]

    replay = cuda.captured(work, gpu)
    warmed = ["side waits for main", "on side", *["run"] * cuda.CAPTURE_WARMUP, "back", "main waits for side"]
    assert gpu.log == [*warmed, "capture", "run", "captured"]
    assert replay() == replay() == cuda.CAPTURE_WARMUP, "the output of the captured run"
    assert gpu.log[-2:] == ["replay", "replay"]
    assert len(runs) == cuda.CAPTURE_WARMUP + 1


def test_rounds_of_graphs_replay_and_never_run_the_module() -> None:
    gpu = Gpu()
    _, spy = run("graph", "fp32", gpu)
    assert gpu.log.count("replay") == 2 * RUNS
    assert len(spy.seen) == 2 * (1 + cuda.CAPTURE_WARMUP + 1)


def test_a_model_that_does_not_run_is_named() -> None:
    networks = [Network("ref", lambda: nn.Linear(7, 2), (2, 3, 5, 5), 0)]
    with pytest.raises(DeviceFailed, match=r"ref does not run on input 2x3x5x5: .*shapes"):
        cuda.run_cuda("eager", "fp32", networks, QUICK, "ref", lambda text: None, cuda=Gpu(), place="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said() -> None:
    with pytest.raises(DeviceFailed, match="finds no CUDA GPU"):
        pz.measure(["lenet5"], device="cuda", protocol=QUICK)


def test_what_there_is_on_cuda_is_said() -> None:
    with pytest.raises(InvalidSetting, match="computes in fp32, tf32, fp16, bf16, not in 'fp8'"):
        pz.measure(["lenet5"], device="cuda", dtype="fp8")
    with pytest.raises(UnknownDevice, match="there: eager, graph"):
        pz.measure(["lenet5"], device="cuda", runtime="onnxruntime")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("runtime", ["eager", "graph"])
@pytest.mark.parametrize("dtype", ["fp32", "tf32", "fp16", "bf16"])
def test_on_a_real_gpu(runtime: str, dtype: str) -> None:
    before = settings()
    for batch in (1, 16):
        (found,) = pz.measure(["lenet5"], device="cuda", runtime=runtime, dtype=dtype, batch=batch, protocol=QUICK)
        assert (found.runtime, found.dtype, found.input_shape[0]) == (runtime, dtype, batch)
        assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert settings() == before
