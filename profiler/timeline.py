"""Where the time goes: every operator timed where it stands in the network, with the caches as it finds them.

An operator alone in a loop is a different operator: its input lies in the cache and its weights are laid out already.
So one pass is cut into its operators instead: PyTorch's by a dispatch mode, ONNX Runtime's by its own profiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import DeviceFailed
from ..graph.channel_graph import ChannelGraph
from ..graph.sized import SizedOperator
from .operator_features import MOVES, TO_BLOCKED, TO_PLAIN, multiplies
from .runner import Call, clock_for, settled, timed

INSIDE = {"empty", "t", "detach", "alias"}  # calls that belong to the operator after them
MULTIPLYING = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
BLOCK = 16  # channels that ONNX Runtime's blocked layout is padded to
BESIDES = {
    "ReorderInput": TO_BLOCKED, "ReorderOutput": TO_PLAIN, "Add": "add", "FusedAdd": "add", "Mul": "mul",
    "Concat": "concatenation", "MaxPool": "pool", "AveragePool": "pool", "ReduceMean": "pool",
    "GlobalAveragePool": "pool", "BatchNormalization": "batch norm", "Conv": "batch norm", "FusedConv": "batch norm",
    "Relu": "activation", "Clip": "activation", "HardSigmoid": "activation", "HardSwish": "activation",
    "Sigmoid": "activation", "LeakyRelu": "activation",
}  # fmt: skip
IMPOSSIBLE = 1e6
SETTLE, BURST, CUTS = 4, 3, 3  # passes of a round: untimed, timed whole, cut
SAME = {"native_batch_norm": "batch_norm", "addmm": "mm", "_native_batch_norm_legit_no_training": "batch_norm"}


@dataclass(frozen=True)
class Timeline:
    """One pass cut into operators: milliseconds of each of `graph.operators()`, and of the whole pass uncut."""

    operators: list[SizedOperator]
    operator_ms: np.ndarray[Any, np.dtype[np.float64]]  # [operators]; 0 where it is in `besides`
    besides: dict[str, float]  # kind -> ms of what cannot be told apart by operator
    total_ms: float
    reference_ms: float  # of the reference network in the same rounds


def eager_timeline(
    module: nn.Module,
    graph: ChannelGraph,
    reference: Call,
    threads: int,
    rounds: int = 3,
    wait: Callable[[], None] = lambda: None,
) -> Timeline:
    """Time every operator of PyTorch's eager pass, the median over rounds.

    `reference` times the network that the machine's speed is read from; `wait` makes the device finish. Raises
    DeviceFailed when the pass runs other operators than the traced ones.
    """
    operators = graph.operators()
    images = torch.randn(*graph.inputs[0], device=next(module.parameters()).device)
    run = partial(finished, partial(module, images), wait)
    cut, whole, beside = [], [], []
    with torch.inference_mode():
        clock, time_whole = clock_for(run, threads), timed(run, threads)
    for _ in range(rounds):
        with torch.inference_mode():
            beside.append(settled(reference, SETTLE, BURST))
            whole.append(settled(time_whole, SETTLE, BURST))
        with torch.no_grad():  # takes convolutions and linear layers apart as the trace did
            for _ in range(CUTS):
                with _Stopwatch(wait, clock) as stopwatch:
                    module(images)
                cut.append(_aligned(operators, stopwatch.calls))
    return Timeline(operators, np.median(cut, axis=0), {}, float(np.median(whole)), float(np.median(beside)))


def finished(run: Callable[[], object], wait: Callable[[], None]) -> None:
    """Run, and wait until the device has done it."""
    run()
    wait()


class _Stopwatch(TorchDispatchMode):
    """Notes name, output shape and milliseconds of every operator."""

    def __init__(self, wait: Callable[[], None], clock: Callable[[], float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wait, self.clock = wait, clock
        self.calls: list[tuple[str, tuple[int, ...], float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = self.clock()
        output = func(*args, **(kwargs or {}))
        self.wait()
        ms = 1e3 * (self.clock() - start)
        first = output[0] if isinstance(output, tuple | list) else output
        self.calls.append((func._opname, tuple(first.shape) if isinstance(first, Tensor) else (), ms))
        return output


def _aligned(operators: Sequence[SizedOperator], calls: Sequence[tuple[str, tuple[int, ...], float]]) -> list[float]:
    """Milliseconds by traced operator; calls inside an operator count to it."""
    times: list[float] = []
    carried = 0.0
    for name, shape, ms in calls:
        carried += ms
        if name in INSIDE:
            continue
        at = len(times)
        if at >= len(operators) or operators[at].aten != SAME.get(name, name):
            traced = operators[at].aten if at < len(operators) else "nothing more"
            raise DeviceFailed(f"the pass runs {name} {list(shape)} where {traced} was traced; it cannot be cut up")
        times.append(carried)
        carried = 0.0
    if len(times) != len(operators):
        raise DeviceFailed(f"the pass ended after {len(times)} of {len(operators)} traced operators")
    return times


def onnx_timeline(nodes: Sequence[dict[str, Any]], graph: ChannelGraph, total_ms: float,
                  reference_ms: float) -> Timeline:  # fmt: skip
    """Give the runner's node times to the traced operators: convolutions and linear layers by shape and order.

    What the runtime does besides is summed by kind: layout changes, what it has not fused, a normalisation that it
    runs as a depthwise convolution. Raises DeviceFailed when a traced convolution has no node.
    """
    operators = graph.operators()
    multiplying = [node for node in nodes if node["op"] in MULTIPLYING]
    places = [at for at, op in enumerate(operators) if multiplies(op)]
    if len(multiplying) < len(places):
        raise DeviceFailed(f"the runtime runs {len(multiplying)} convolutions and linear layers, not {len(places)}")
    unlike = np.array([[_unlike(operators[at], node) for node in multiplying] for at in places])
    order = np.subtract.outer(np.linspace(0, 1, len(places)), np.linspace(0, 1, len(multiplying))) ** 2
    own, theirs = linear_sum_assignment(np.minimum(unlike, IMPOSSIBLE) + order)
    if unlike[own, theirs].max() >= IMPOSSIBLE:
        node = multiplying[theirs[unlike[own, theirs].argmax()]]
        raise DeviceFailed(f"the runtime's {node['name']} with output {node['output']} is no traced operator")
    times = np.zeros(len(operators))
    times[[places[at] for at in own]] = [multiplying[at]["ms"] for at in theirs]
    taken = {id(multiplying[at]) for at in theirs}
    besides: dict[str, float] = {}
    for node in nodes:
        if id(node) not in taken:
            kind = BESIDES.get(node["op"], MOVES)
            besides[kind] = besides.get(kind, 0.0) + node["ms"]
    return Timeline(operators, times, besides, total_ms, reference_ms)


def _unlike(operator: SizedOperator, node: dict[str, Any]) -> float:
    """Channels by which a node's output is wider than the operator's; IMPOSSIBLE where it cannot be that operator."""
    output, weight = node["output"], [*node["inputs"], list(operator.weight)][1]  # packed weights are not listed
    if len(operator.output) != len(output) or list(operator.output[2:]) != output[2:]:
        return IMPOSSIBLE
    if list(operator.weight[2:]) != weight[2:]:
        return IMPOSSIBLE
    wider = output[1] - int(operator.output[1])
    return wider if 0 <= wider < BLOCK else IMPOSSIBLE
