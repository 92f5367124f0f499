"""Runtimes: what runs a model. PyTorch's run in this process; the others read a file that we export, in another.

Only one engine is alive in a process at a time: the waiting threads of a second one would take its processor.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DeviceFailed, MissingExtra
from ..zoo.architecture import Architecture
from .dispatch import TIMEOUT_S
from .export import ExportMismatch, export_onnx, onnx_for_timing
from .hosts import host
from .quantise import quantise_onnx
from .runner import Progress as RoundsDone
from .runner import Protocol, Rounds, interleave, pinned, stamp, statistics, timed

Run = Callable[[], object]
Shape = Sequence[int]  # [N, C, H, W]
Tell = Callable[[str], None]  # what is happening, for people
Result = dict[str, Any]  # as runner.run_job gives it
EXTRAS = {"openvino": "openvino"}  # engine -> extra that installs it
RUN_S = 2.0  # that a slow board may take for one run of a model


@dataclass(frozen=True)
class Network:
    """What is measured: a name, how to get the module in eval mode with real weights, and what it reads."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # [N, C, H, W]
    weight_bytes: int
    architecture: Architecture | None = None


@dataclass(frozen=True)
class TorchRuntime:
    """A way in which PyTorch runs a module in this process."""

    prepare: Callable[[nn.Module, Tensor], Run]
    layout: str = "nchw"
    dtype = "fp32"


@dataclass(frozen=True)
class FileRuntime:
    """An engine of runner.py, and how the file that it reads is made."""

    engine: str
    write: Callable[[nn.Module, Shape, Path], None]
    dtype: str = "fp32"
    layout = "nchw"


# -- in this process --------------------------------------------------------------------------------------------------


def _eager(module: nn.Module, images: Tensor) -> Run:
    return lambda: module(images)


def _eager_channels_last(module: nn.Module, images: Tensor) -> Run:
    layout = torch.channels_last
    module, images = module.to(memory_format=layout), images.contiguous(memory_format=layout)  # type: ignore[call-overload]
    return lambda: module(images)


_numbers = itertools.count()


def _compiled(module: nn.Module, images: Tensor) -> Run:
    """The module compiled through a function of its own.

    Compiled results are kept per code object: through their common `forward`, the ninth ResNet would silently stay
    eager, and each would pay for the guards of the others.
    """

    def forward() -> object:
        return module(images)

    code = forward.__code__.replace(co_name=f"forward_{next(_numbers)}")
    own = types.FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    compiled: Run = torch.compile(own, dynamic=False)
    return compiled


TORCH = {
    "eager": TorchRuntime(_eager),
    "eager-channels-last": TorchRuntime(_eager_channels_last, layout="nhwc"),
    "compile": TorchRuntime(_compiled),
}


def run_torch(runtime: TorchRuntime, networks: Sequence[Network], protocol: Protocol, reference: str,
              tell: Tell) -> Result:  # fmt: skip
    """Measure in this process, in common rounds, with as many threads as the protocol says."""
    with torch_threads(protocol.threads):
        runs: dict[str, Run] = {}
        for network in counted(networks, tell):
            runs[network.name] = tried(network, runtime.prepare(network.build(), random_images(network.shape)))
        with torch.inference_mode(), pinned(protocol.threads):
            calls = {name: timed(run, protocol.threads) for name, run in runs.items()}
            rounds = interleave(calls, protocol, reference, told(protocol, tell))
    return in_process(rounds, protocol, reference, {"torch": torch.__version__})


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch work with that many threads, and then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_images(shape: Shape) -> Tensor:
    """The batch that every measured model reads."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tried(network: Network, run: Run) -> Run:
    """The same after a first run, which compiles what compiles; raises DeviceFailed when the model does not run."""
    try:
        with torch.inference_mode():
            run()
    except Exception as error:  # a forward pass raises what it likes
        if "InvalidCxxCompiler" in f"{type(error).__name__} {error}":
            raise DeviceFailed("torch.compile needs a C++ compiler: install g++ or name one in CXX") from None
        size = "x".join(map(str, network.shape))
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DeviceFailed(f"{network.name} does not run on input {size}: {reason}") from error
    return run


def in_process(rounds: Rounds, protocol: Protocol, reference: str, versions: dict[str, str],
               **stamped: object) -> Result:  # fmt: skip
    """What the runner gives, of rounds in this process."""
    own = rounds.samples[reference]
    return {
        "stamp": {**stamp(), **stamped},
        "versions": versions,
        "protocol": asdict(protocol),
        "warnings": rounds.warnings,
        "models": {name: statistics(samples, own) for name, samples in rounds.samples.items()},
    }


# -- from a file, in another process or on another machine ------------------------------------------------------------


def _write_onnx(module: nn.Module, shape: Shape, path: Path) -> None:
    """Export with the batch as a constant, so that runtimes can fold the arithmetic on shapes."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    try:
        path.write_bytes(onnx_for_timing(module, shape))
        return
    except ExportMismatch:  # pooling to sizes that do not divide the map: only the slow exporter writes it
        export_onnx(module, shape, path)
    model = onnx.load(path)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    make_dim_param_fixed(model.graph, batch, shape[0])
    onnx.save(model, path)


def _write_int8(module: nn.Module, shape: Shape, path: Path) -> None:
    single = path.with_suffix(".fp32.onnx")
    _write_onnx(module, shape, single)
    quantise_onnx(single, path)
    single.unlink()


FILES = {
    "onnxruntime": FileRuntime("onnxruntime", _write_onnx),
    "onnxruntime-int8": FileRuntime("onnxruntime", _write_int8, dtype="int8"),
    "openvino": FileRuntime("openvino", _write_onnx),
}


def run_files(runtime: FileRuntime, device: str, networks: Sequence[Network], protocol: Protocol, reference: str,
              tell: Tell) -> Result:  # fmt: skip
    """Export the models and have the runner measure them where the device says."""
    if device == "cpu":
        require(runtime.engine)
    place = host(device)
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        files: dict[str, Path] = {}
        models: dict[str, dict[str, object]] = {}
        for number, network in enumerate(counted(networks, tell)):
            path = Path(folder) / f"{number}.onnx"
            runtime.write(network.build(), network.shape, path)
            files[path.name], models[network.name] = path, {"file": path.name, "shape": list(network.shape)}
        job = {"runtime": runtime.engine, "protocol": asdict(protocol), "reference": reference, "models": models}
        return place.run(job, files, told(protocol, tell), time_limit_s(protocol, len(networks)))


def time_limit_s(protocol: Protocol, models: int) -> float:
    """Seconds after which a run elsewhere counts as stuck: what is asked for, and the least rounds on a slow board."""
    runs = protocol.warmup + protocol.rounds * (protocol.settle + protocol.burst)
    return TIMEOUT_S + protocol.seconds + RUN_S * runs * models


def require(engine: str) -> None:
    """Raise MissingExtra when this machine lacks an engine."""
    if importlib.util.find_spec(engine) is None:
        package = f"'pocketzoo[{EXTRAS[engine]}]'" if engine in EXTRAS else engine
        raise MissingExtra(f"the runtime {engine} is not installed: pip install {package}")


# -- progress ---------------------------------------------------------------------------------------------------------


def counted(networks: Sequence[Network], tell: Tell) -> Iterator[Network]:
    """Each network, after saying that it is prepared."""
    for number, network in enumerate(networks, 1):
        tell(f"preparing {network.name} ({number} of {len(networks)})")
        yield network


def told(protocol: Protocol, tell: Tell) -> RoundsDone:
    """The engine's progress in words, with the time that is left at most."""

    def done(rounds: int, seconds: float) -> None:
        left = max(protocol.seconds - seconds, (protocol.rounds - rounds) * seconds / rounds, 0)
        tell(f"round {rounds} of at least {protocol.rounds}, {left:.0f} s left at most")

    return done
