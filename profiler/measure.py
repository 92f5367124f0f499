"""Measure models on a device: which models, which runtime, in which rounds, and the records that come out."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import InvalidSetting, UnknownDevice, suggestion
from ..zoo.architecture import Architecture
from . import cuda
from .measurement import Measurement
from .runner import Protocol
from .runtimes import FILES, TORCH, Network, Result, Tell, run_files, run_torch

Model = str | Architecture | nn.Module | tuple[nn.Module, tuple[int, ...]]  # a module alone, or with its [1, C, H, W]
Models = Sequence[str | Architecture] | Mapping[str, Model]
REFERENCE = "mobilenet_v2@96"  # 96 pixels, ten classes, weights of seed 0, at the batch and precision of the run
WEIGHT_BYTES = 10**9  # of all models that are measured in common rounds
LEAST_ROUNDS = 6  # below, no two of the samples enclose the median with 95 %


def measure(
    models: Models,
    *,
    device: str = "cpu",
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    resolution: int | None = None,
    input_shape: Sequence[int] | None = None,
    dtype: str | None = None,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    progress: Tell | None = None,
) -> list[Measurement]:
    """Latencies of models, in their order.

    `models`: zoo names, `module:factory` and Architectures, or {name: one of these, a module, or a module with the
    shape of an image, [1, C, H, W]}; modules are copied.
    `device`: "cpu", "cuda", or a machine that profiler/hosts.py reaches. `runtime`: by default PyTorch eager, and
    ONNX Runtime on other machines. `input_shape`, [N, C, H, W]: what the models read; a module alone needs it (or
    `resolution`, for three channels), the others have their own. `batch` replaces N. `dtype`: the runtime's own; on
    CUDA "fp32", "tf32", "fp16" or "bf16". `progress` is told in words.
    Raises UnknownDevice, UnknownModel, InvalidSetting, DeviceFailed, MissingExtra.
    """
    parts = measure_in_batches(models, device=device, runtime=runtime, threads=threads, batch=batch,
                               resolution=resolution, input_shape=input_shape, dtype=dtype, protocol=protocol,
                               progress=progress)  # fmt: skip
    return [measurement for part in parts for measurement in part]


def measure_in_batches(
    models: Models, *, device: str, runtime: str | None, threads: int, batch: int, resolution: int | None,
    input_shape: Sequence[int] | None, dtype: str | None, protocol: Protocol, progress: Tell | None,
) -> Iterator[list[Measurement]]:  # fmt: skip
    """The measurements of each part of the models that fits in memory, as soon as its rounds are over."""
    runtime = runtime or default_runtime(device)
    dtype = checked(device, runtime, dtype)
    check_protocol(device, threads, protocol)
    shape = _checked_shape(input_shape)
    batch = shape[0] if shape and batch == 1 else batch
    networks = [network(name, model, batch, resolution, shape) for name, model in _named(models).items()]
    beside = network(REFERENCE, reference(), batch)
    parts = list(in_batches(networks, WEIGHT_BYTES - beside.weight_bytes))
    for number, part in enumerate(parts, 1):
        share = replace(protocol, threads=threads, seconds=protocol.seconds * len(part) / len(networks))
        tell = partial(_tell, progress, f"part {number} of {len(parts)}: " if len(parts) > 1 else "")
        result = _run(device, runtime, dtype, [beside, *part], share, tell)
        yield [_measurement(own, result, device, runtime, dtype) for own in part]


def _tell(progress: Tell | None, prefix: str, text: str) -> None:
    if progress is not None:
        progress(prefix + text)


# -- where and how ----------------------------------------------------------------------------------------------------


def runtimes_of(device: str) -> list[str]:
    """The runtimes that a device can be measured with."""
    return {"cpu": [*TORCH, *FILES], "cuda": [*cuda.RUNTIMES]}.get(device, [*FILES])


def default_runtime(device: str) -> str:
    """PyTorch eager where this process can run it."""
    return runtimes_of(device)[0]


def checked(device: str, runtime: str, dtype: str | None) -> str:
    """The precision of a run; raises UnknownDevice and InvalidSetting for what there is not."""
    if runtime not in (known := runtimes_of(device)):
        raise UnknownDevice(
            f"{device} has no runtime {runtime!r}{suggestion(runtime, known)} (there: {', '.join(known)})"
        )
    own = FILES[runtime].dtype if runtime in FILES else "fp32"
    allowed = [*cuda.DTYPES] if device == "cuda" else [own]
    if dtype is not None and dtype not in allowed:
        raise InvalidSetting(f"{runtime} on {device} computes in {', '.join(allowed)}, not in {dtype!r}")
    return dtype or own


def check_protocol(device: str, threads: int, protocol: Protocol) -> None:
    """Raise InvalidSetting for rounds, turns or threads that cannot be."""
    if protocol.rounds < LEAST_ROUNDS:
        raise InvalidSetting(
            f"rounds is {protocol.rounds}; a 95 % interval of the median needs at least {LEAST_ROUNDS}"
        )
    if protocol.burst < 1:
        raise InvalidSetting(f"burst is {protocol.burst}; a turn needs at least one timed run")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1 or (device == "cpu" and threads > processors):
        raise InvalidSetting(f"threads is {threads}; expected 1 to the {processors} processors that we may use here")


def _run(device: str, runtime: str, dtype: str, networks: Sequence[Network], protocol: Protocol, tell: Tell) -> Result:
    if device == "cuda":
        return cuda.run_cuda(runtime, dtype, networks, protocol, REFERENCE, tell)
    if runtime in TORCH:
        return run_torch(TORCH[runtime], networks, protocol, REFERENCE, tell)
    return run_files(FILES[runtime], device, networks, protocol, REFERENCE, tell)


def _measurement(network: Network, result: Result, device: str, runtime: str, dtype: str) -> Measurement:
    return Measurement(
        model=network.name,
        architecture=json.loads(network.architecture.to_json()) if network.architecture else None,
        input_shape=network.shape, device=device, runtime=runtime, dtype=dtype,
        layout=TORCH[runtime].layout if runtime in TORCH else "nchw",
        threads=result["protocol"]["threads"], reference=REFERENCE,
        protocol=result["protocol"], stamp=result["stamp"], versions=result["versions"],
        warnings=tuple(result["warnings"]), **result["models"][network.name],
    )  # fmt: skip


# -- which models -----------------------------------------------------------------------------------------------------


def in_batches(networks: Sequence[Network], weight_bytes: int) -> Iterator[list[Network]]:
    """Neighbours whose weights fit in so many bytes together; one that alone does not fit stands alone."""
    part: list[Network] = []
    for network in networks:
        if part and sum(held.weight_bytes for held in part) + network.weight_bytes > weight_bytes:
            yield part
            part = []
        part.append(network)
    if part:
        yield part


def reference() -> Architecture:
    """The network that joins the rounds of every run."""
    return Architecture.of("mobilenet_v2", resolution=96, num_classes=10)


def _named(models: Models) -> Mapping[str, Model]:
    """Every model under a name of its own."""
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        listed = [models] if isinstance(models, str | Architecture | nn.Module) else list(models)
        known = [model.family if isinstance(model, Architecture) else model for model in listed]
        named = {_name(model, known): model for model in listed}
        if len(named) < len(listed):
            raise InvalidSetting("a model is there twice; give each once, or a mapping of names to models")
    if not named or REFERENCE in named:
        raise InvalidSetting(f"give at least one model, and none under the reference's name {REFERENCE}")
    return named


def _name(model: str | Architecture, known: Sequence[str]) -> str:
    """An Architecture is called by its family, and by its key where the family alone could be another's name."""
    if isinstance(model, str):
        return model
    if not isinstance(model, Architecture):
        raise InvalidSetting("a module needs a name to be measured under: give {name: module}")
    return model.family if known.count(model.family) == 1 else f"{model.family}-{model.key}"


def _checked_shape(input_shape: Sequence[int] | None) -> tuple[int, ...] | None:
    if input_shape is None:
        return None
    if len(input_shape) != 4 or any(not isinstance(side, int) or side < 1 for side in input_shape):
        raise InvalidSetting(f"an input shape is positive whole numbers [N, C, H, W], not {list(input_shape)}")
    return tuple(input_shape)


def network(name: str, model: Model, batch: int, resolution: int | None = None,
            shape: tuple[int, ...] | None = None) -> Network:  # fmt: skip
    """What is measured under a name; raises UnknownModel, InvalidSetting."""
    if isinstance(model, tuple):
        model, own = model
        shape = shape or (own if resolution is None else (*own[:2], resolution, resolution))
    if isinstance(model, nn.Module):
        if shape is None and resolution is None:
            raise InvalidSetting(f"the module {name} does not say what it reads: give input_shape=(N, C, H, W)")
        sides = shape[1:] if shape else (3, int(resolution or 0), int(resolution or 0))
        return Network(name, partial(_copied, model), (batch, *sides), _weight_bytes(model))
    given: dict[str, Any] = {} if resolution is None else {"resolution": resolution}
    arch = Architecture.of(model, **given) if isinstance(model, str) else model.with_settings(**given)
    with torch.device("meta"):
        weight_bytes = _weight_bytes(arch.build())
    return Network(name, partial(built, arch), (batch, *(shape or arch.input_shape)[1:]), weight_bytes, arch)


def _weight_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())


def _copied(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).cpu().eval()


def built(arch: Architecture) -> nn.Module:
    """The network in eval mode with real weights of seed 0; other seeds are left as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return arch.build().eval()
