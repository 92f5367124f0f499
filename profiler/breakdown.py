"""Where the time of a pass goes: its run time by kind of operator, as a table and as a picture.

Kinds are grouped as in Figure 2 of ShuffleNet v2 (arXiv:1807.11164): convolutions, element-wise work, data movement,
others. What a runtime fuses into a convolution (batch norm, activation, addition) counts as that convolution, and what
it adds (changes of its blocked layout) has a kind of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import nn

from ..errors import DeviceFailed, UnknownDevice
from ..graph.channel_graph import ChannelGraph, trace
from ..graph.sized import SizedOperator
from .export import onnx_for_timing
from .hosts import host
from .measure import Model, check_protocol, checked, network
from .operator_features import DEPTHWISE, GROUPED, LINEAR, POINTWISE, SPATIAL, kind_of, multiplies
from .runner import Protocol, pinned
from .runtimes import time_limit_s, torch_threads
from .timeline import MULTIPLYING, eager_timeline, onnx_timeline

RUNTIMES = ("eager", "onnxruntime")  # whose passes can be cut into operators
OUTSIDE = "outside operators"
GROUPS = {  # group -> its kinds and their colours, in the order of the table and the picture
    "convolution": {POINTWISE: "#08519c", SPATIAL: "#3182bd", GROUPED: "#6baed6", DEPTHWISE: "#9ecae1",
                    LINEAR: "#c6dbef"},
    "element-wise": {"batch norm": "#a63603", "activation": "#e6550d", "add": "#fd8d3c", "mul": "#fdbe85",
                     "element-wise": "#feedde"},
    "data": {"copy": "#006d2c", "concatenation": "#31a354", "view": "#74c476", "layout change": "#bae4b3"},
    "other": {"pool": "#6a51a3", "other": "#9e9ac8"},
    OUTSIDE: {OUTSIDE: "#bdbdbd"},
}  # fmt: skip
GROUP = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
TRACED = {"sub": "add", "div": "mul", "pad": "copy", "stack": "concatenation"}  # kinds that have no row of their own
NODES = {  # kind -> operators of ONNX Runtime, beside those that multiply
    "batch norm": ("BatchNormalization",),
    "activation": ("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu",
                   "Softmax"),
    "add": ("Add", "Sub", "Sum"),
    "mul": ("Mul", "Div"),
    "copy": ("Transpose", "Split", "Slice", "Pad", "Gather", "Expand", "Identity"),
    "concatenation": ("Concat",),
    "view": ("Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    "layout change": ("ReorderInput", "ReorderOutput"),
    "pool": ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"),
}  # fmt: skip
NODE_KIND = {node: kind for kind, nodes in NODES.items() for node in nodes}
CUTS = 8  # passes of ONNX Runtime that are cut into nodes
MODEL = "model"
LEGEND_PIXELS = 600  # in which all kinds fit

Parts = list[tuple[str, float]]  # kind and milliseconds of every operator that ran


def breakdown(
    model: Model,
    *,
    runtime: str = "eager",
    device: str = "cpu",
    threads: int = 1,
    resolution: int | None = None,
    batch: int = 1,
) -> pd.DataFrame:
    """Run time by kind of operator: a row per kind with kind, group, operators, ms, share; shares add up to 1.

    The last row, "outside operators", is what remains of the whole pass, uncut: calls, allocation, Python. Where the
    cut pass took longer than the uncut one, nothing remains and shares are of the cut one: operators go by the wall's
    clock, so that other programs count in them, and on a GPU each is waited for. `attrs["total_ms"]` is the uncut pass.
    A module alone needs `resolution`. Raises UnknownModel, UnknownDevice, InvalidSetting, DeviceFailed.
    """
    check(device, runtime)
    protocol = Protocol(threads=threads, seconds=0)
    check_protocol(device, threads, protocol)
    found = network(MODEL, model, batch, resolution)
    module = found.build()
    graph = trace(module, found.shape)
    cut = _eager if runtime == "eager" else _onnx
    return _table(*cut(module, graph, device, protocol))


def check(device: str, runtime: str) -> None:
    """Raise UnknownDevice for a runtime that the device has not, or whose passes cannot be cut."""
    checked(device, runtime, None)
    if runtime not in RUNTIMES:
        raise UnknownDevice(f"a pass of {runtime} cannot be cut into operators; choose {' or '.join(RUNTIMES)}")


def figure(breakdowns: Mapping[str, pd.DataFrame]) -> go.Figure:
    """A bar for each of the named tables, from 0 to 100 % of its run time, stacked by kind."""
    plot = go.Figure()
    for kind, group in GROUP.items():
        rows = {name: table[table["kind"] == kind] for name, table in breakdowns.items()}
        if all(row.empty for row in rows.values()):
            continue
        plot.add_bar(
            name=kind, y=list(rows), x=[100 * float(row["share"].sum()) for row in rows.values()], orientation="h",
            marker_color=GROUPS[group][kind], legendgroup=group, legendgrouptitle_text=group if kind != group else None,
            customdata=[[float(row["ms"].sum()), int(row["operators"].sum())] for row in rows.values()],
            hovertemplate="%{y}<br>%{x:.1f} %, %{customdata[0]:.3g} ms, %{customdata[1]} operators",
        )  # fmt: skip
    return plot.update_layout(
        barmode="stack", template="plotly_white", legend_traceorder="grouped",
        height=max(LEGEND_PIXELS, 180 + 60 * len(breakdowns)),
        xaxis={"title": "share of run time (%)", "range": [0, 100]}, yaxis={"autorange": "reversed"},
        legend={"itemsizing": "constant"}, margin={"t": 40}, bargap=0.4,
    )  # fmt: skip


def _table(parts: Parts, total_ms: float) -> pd.DataFrame:
    cut_ms = sum(ms for _, ms in parts)
    parts = [*parts, (OUTSIDE, max(0.0, total_ms - cut_ms))]
    rows = []
    for kind, group in GROUP.items():
        times = [ms for own, ms in parts if own == kind]
        if times:
            rows.append({"kind": kind, "group": group, "operators": len(times), "ms": sum(times),
                         "share": sum(times) / max(total_ms, cut_ms)})  # fmt: skip
    rows[-1]["operators"] = 0
    table = pd.DataFrame(rows)
    table.attrs["total_ms"] = total_ms
    return table


# -- the pass, cut ----------------------------------------------------------------------------------------------------


def _eager(module: nn.Module, graph: ChannelGraph, device: str, protocol: Protocol) -> tuple[Parts, float]:
    wait = (lambda: None) if device == "cpu" else torch.cuda.synchronize
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceFailed("cuda: PyTorch finds no CUDA device here; run this on the machine that has it")
    with torch_threads(protocol.threads), pinned(protocol.threads):
        timeline = eager_timeline(
            module.to(device), graph, lambda: 0.0, protocol.threads, protocol.rounds, wait
        )  # no reference: shares of one pass need none
    return [(_traced(op), float(ms)) for op, ms in zip(timeline.operators, timeline.operator_ms, strict=True)], (
        timeline.total_ms
    )


def _onnx(module: nn.Module, graph: ChannelGraph, device: str, protocol: Protocol) -> tuple[Parts, float]:
    shape = graph.inputs[0]
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(onnx_for_timing(module, shape))
        job = {"runtime": "onnxruntime", "protocol": asdict(protocol), "reference": MODEL, "cut": CUTS,
               "models": {MODEL: {"file": file.name, "shape": list(shape)}}}  # fmt: skip
        result = host(device).run(job, {file.name: file}, None, time_limit_s(protocol, 1))
    total_ms = float(result["models"][MODEL]["median_ms"])
    return node_parts(result["nodes"][MODEL], graph, total_ms), total_ms


def node_parts(nodes: Sequence[dict[str, Any]], graph: ChannelGraph, total_ms: float) -> Parts:
    """Kinds of ONNX Runtime's nodes: those that multiply by the traced operators, the others by their names."""
    timeline = onnx_timeline(nodes, graph, total_ms, total_ms)
    traced = zip(timeline.operators, timeline.operator_ms, strict=True)
    parts = [(kind_of(op), float(ms)) for op, ms in traced if multiplies(op)]
    multiplying = [float(node["ms"]) for node in nodes if node["op"] in MULTIPLYING]
    if alone := len(multiplying) - len(parts):  # batch norms that run as depthwise convolutions of their own
        rest = sum(multiplying) - sum(ms for _, ms in parts)
        parts += [("batch norm", rest / alone)] * alone
    light = [node for node in nodes if node["op"] not in MULTIPLYING]
    return [*parts, *((NODE_KIND.get(node["op"], "other"), float(node["ms"])) for node in light)]


def _traced(operator: SizedOperator) -> str:
    if multiplies(operator):
        return kind_of(operator)
    kind = TRACED.get(operator.kind, operator.kind)
    return kind if kind in GROUP else "other"
