"""Latency on a CUDA GPU: between two events on its stream, eager or as a replayed graph.

Functions take the pieces of `torch.cuda` as an argument, so that tests can hand in others where there is no GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..errors import DeviceFailed
from .runner import Call, Protocol, interleave
from .runtimes import Network, Result, Run, Tell, counted, in_process, random_images, told, tried

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CAPTURE_WARMUP = 3  # runs on a side stream before a capture, in which libraries choose algorithms and take memory


def run_cuda(runtime: str, dtype: str, networks: Sequence[Network], protocol: Protocol, reference: str, tell: Tell,
             cuda: Any = torch.cuda, place: str = "cuda") -> Result:  # fmt: skip
    """Measure in common rounds on the current GPU; `runtime` is a key of RUNTIMES, `dtype` of DTYPES.

    Raises DeviceFailed without a GPU, and when a model does not run on it.
    """
    if not cuda.is_available():
        raise DeviceFailed(
            f"PyTorch {torch.__version__} finds no CUDA GPU here: check nvidia-smi and that PyTorch was built for CUDA,"
            " or choose the device cpu"
        )
    with precision(dtype), torch.inference_mode():
        calls: dict[str, Call] = {}
        for network in counted(networks, tell):
            with torch.inference_mode(False):
                module = network.build()
            module = module.to(place, DTYPES[dtype])
            images = random_images(network.shape).to(place, DTYPES[dtype])
            run = tried(network, lambda module=module, images=images: module(images))  # type: ignore[misc]
            calls[network.name] = timed_by_events(RUNTIMES[runtime](run, cuda), cuda)
        cuda.synchronize()
        rounds = interleave(calls, protocol, reference, told(protocol, tell))
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    return in_process(rounds, protocol, reference, versions, accelerator=cuda.get_device_name())


def timed_by_events(run: Run, cuda: Any = torch.cuda) -> Call:
    """A call that runs and returns the milliseconds between events before and after it on the GPU's stream."""

    def call() -> float:
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return call


def captured(run: Run, cuda: Any = torch.cuda) -> Run:
    """A replay of everything that `run` starts on the GPU, without PyTorch's work on the processor in between."""
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(CAPTURE_WARMUP):
            run()
    cuda.current_stream().wait_stream(side)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        output = run()

    def replay() -> object:
        graph.replay()
        return output  # lives in the graph's memory, as long as this function

    return replay


def _eager(run: Run, cuda: Any) -> Run:
    return run


RUNTIMES: dict[str, Callable[[Run, Any], Run]] = {"eager": _eager, "graph": captured}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Multiply 32-bit numbers as TF32 or exactly, with the fastest algorithms; the settings come back afterwards."""
    cudnn: Any = torch.backends.cudnn
    matmul, convolution = torch.backends.cuda.matmul, cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision, cudnn.benchmark
    matmul.fp32_precision = convolution.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.fp32_precision, convolution.fp32_precision, cudnn.benchmark = before
