"""The counting rules of other tools, as their sources have them: what each counts for one operator of our trace.

Read from fvcore 0.1.5 (nn/flop_count.py, nn/jit_handles.py), thop 0.1.1 (profile.py, vision/basic_hooks.py,
vision/calc_func.py) and ptflops 0.7.5 (pytorch_engine.py, pytorch_ops.py; its default back end).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One operator of our trace, and the module that runs it."""

    kind: str
    aten: str
    module: nn.Module | None
    macs: int
    in_shapes: Sequence[Shape]
    out_shapes: Sequence[Shape]

    @property
    def read(self) -> int:
        """Elements of the first activation that it reads."""
        return prod(self.in_shapes[0]) if self.in_shapes else 0

    @property
    def written(self) -> int:
        """Elements that it puts out."""
        return prod(self.out_shapes[0])

    def has(self, flag: str) -> bool:
        """Whether the module has this setting and it is on."""
        value: Any = getattr(self.module, flag, None)
        return value is not None and value is not False

    def runs(self, *types: type[nn.Module]) -> bool:
        """Whether the module is exactly of one of these types: subclasses do not count, as in the tools."""
        return type(self.module) in types


CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ADAPTIVE_AVERAGE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
ADAPTIVE_MAX = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


def fvcore(row: Row) -> int:
    """By JIT operator, wherever it is called from."""
    if row.macs:
        return 0 if row.kind == "attention" else row.macs
    if row.kind == "batch norm":
        return row.read * (2 if row.has("affine") else 1)
    if row.kind in ("layer norm", "group norm"):
        return row.read * (5 if row.has("affine") or row.has("elementwise_affine") else 4)
    if row.aten == "_adaptive_avg_pool2d" or isinstance(row.module, nn.AdaptiveAvgPool2d):
        return row.read
    return {"upsample_nearest2d": 1, "upsample_bilinear2d": 4}.get(row.aten, 0) * row.written


def thop(row: Row) -> int:
    """By a module's exact type; what a function or an operator computes is not seen."""
    if row.macs:
        if row.runs(*TRANSPOSED):
            return _transposed_by_output(row)
        return row.macs if row.runs(*CONVS, nn.Linear) else 0
    if row.runs(*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.SyncBatchNorm):
        return row.read * (4 if row.has("affine") or row.has("elementwise_affine") else 2)
    if row.runs(*ADAPTIVE_AVERAGE):
        return int((prod(row.in_shapes[0][2:]) / prod(row.out_shapes[0][2:]) + 1) * row.written)
    if row.runs(*AVERAGE_POOLS):
        return row.written
    if row.runs(nn.PReLU):
        return row.read
    if row.runs(nn.Softmax):
        features = row.in_shapes[0][getattr(row.module, "dim", -1)]
        return row.read // features * (3 * features - 1)
    if row.runs(nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d):
        return {"linear": 5, "bilinear": 11, "bicubic": 259}.get(str(getattr(row.module, "mode", "")), 1) * row.written
    return 0


def _transposed_by_output(row: Row) -> int:
    """Every output position as though the whole kernel reached it: the square of the stride too many."""
    kernel: Shape = getattr(row.module, "kernel_size", ())
    return row.written * (row.in_shapes[0][1] // int(getattr(row.module, "groups", 1))) * prod(kernel)


def ptflops(row: Row) -> int:
    """By a module's exact type, and again by each function of torch.nn.functional that the module calls."""
    if row.macs:
        if not row.runs(*CONVS, *TRANSPOSED, nn.Linear):
            return row.macs if row.kind == "matrix product" else 0
        return row.macs + (row.written if row.has("bias") else 0)
    if row.runs(*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm, nn.LayerNorm):
        return row.read * (2 if row.has("affine") else 1)
    if row.kind == "pool":
        return row.read * _ptflops_pool_times(row)
    if row.kind == "resample":
        return row.written * (2 if row.runs(nn.Upsample) else 1)
    if row.kind == "softmax":
        return row.read
    return row.read * _ptflops_activation_times(row)


def _ptflops_pool_times(row: Row) -> int:
    if row.runs(*AVERAGE_POOLS, *MAX_POOLS, *ADAPTIVE_AVERAGE, *ADAPTIVE_MAX):
        return 2
    return 0 if row.aten in ("mean", "sum", "amax") else 1


def _ptflops_activation_times(row: Row) -> int:
    if row.runs(nn.ReLU, nn.PReLU, nn.ELU, nn.GELU):
        return 2
    if row.runs(nn.ReLU6, nn.LeakyReLU, nn.SiLU):
        return 1
    return int(row.aten.rstrip("_") in ("relu", "elu", "gelu", "silu") and _is_users_own(row.module))


def _is_users_own(module: nn.Module | None) -> bool:
    """Whether a call inside this module is the user's: it is no leaf module of PyTorch."""
    return module is None or any(True for _ in module.children()) or not type(module).__module__.startswith("torch.nn.")


RULES: dict[str, Callable[[Row], int]] = {"fvcore": fvcore, "thop": thop, "ptflops": ptflops}

CONVENTIONS = {
    "fvcore": "fvcore calls its figure FLOPs but counts one a multiply-accumulate: compare it with MACs, not FLOPs",
    "thop": "thop calls its figure MACs: one a multiply-accumulate, and one or more an element of other layers",
    "ptflops": "ptflops calls its figure MACs: one a multiply-accumulate, and one or more an element of other layers",
}

_LAYER = "one more an output element for the bias; functional calls and subclasses are not seen"
_UNSEEN = "functional calls and subclasses are not seen"
WHY: dict[str, dict[str, str]] = {
    "fvcore": {
        "batch norm": "2 an element (1 without scale and shift)",
        "layer norm": "5 an element (4 without scale and shift)",
        "group norm": "5 an element (4 without scale and shift)",
        "pool": "adaptive average pools: 1 an element read",
        "resample": "1 (nearest) or 4 (bilinear) an element written",
        "attention": "does not see fused attention",
    },
    "thop": {
        "batch norm": "4 an element (2 without scale and shift), though it is folded when the network is used",
        "layer norm": "4 an element (2 without scale and shift)",
        "pool": "average pools: 1 an element written, adaptive ones 1 an element read and written",
        "activation": "PReLU: 1 an element",
        "softmax": "3 an element, less 1 a row",
        "resample": "1 to 259 an element written, by the mode",
        "transposed conv": "counts the whole kernel for every output position: stride squared times too many",
        "conv": _UNSEEN,
        "depthwise conv": _UNSEEN,
        "grouped conv": _UNSEEN,
        "linear": _UNSEEN,
    },
    "ptflops": {
        "batch norm": "2 an element (1 without scale and shift)",
        "layer norm": "1 an element",
        "group norm": "2 an element (1 without scale and shift)",
        "pool": "1 an element read, counted twice: for the module and for the function that the module calls",
        "activation": "1 an element; ReLU, PReLU, ELU and GELU twice: the module and the function that it calls",
        "softmax": "1 an element",
        "resample": "1 an element written, twice for the module",
        "conv": _LAYER,
        "depthwise conv": _LAYER,
        "grouped conv": _LAYER,
        "transposed conv": _LAYER,
        "linear": _LAYER,
    },
}
