"""pocketzoo: say what you can afford and get the best compact vision network for it.

The public names are handed on lazily (PEP 562), so that importing pocketzoo never imports torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "zoo.registry": ["list_models"],
    "zoo.create": ["create_model", "load_weights"],
    "zoo.architecture": ["Architecture"],
    "graph.channel_graph": ["ChannelGraph", "trace"],
    "graph.costs": ["Costs"],
    "profiler.report": ["profile"],
    "profiler.advise": ["advise"],
    "profiler.calibration": ["calibrate"],
    "profiler.latency": ["latency_model"],
    "profiler.measure": ["measure"],
    "profiler.measurement": ["Measurement"],
    "profiler.runner": ["Protocol"],
    "leaderboards.pick": ["pick"],
    "compress.run": ["compress_model"],
    "search.budget": ["Budget"],
    "search.run": ["run_search"],
    "search.outcome": ["Study"],
    "search.shrink": ["Shrunk", "shrink"],
    "search.verdict": ["Verdict", "verdict"],
    "training.data": ["load_data"],
    "training.packed_file": ["load_packed"],
    "training.recipe": ["Recipe"],
    "training.result": ["Result"],
    "training.run": ["evaluate_run", "predict", "train"],
    "training.saved": ["load"],
    "errors": [
        "BudgetTooSmall",
        "CorruptFile",
        "DeviceFailed",
        "InvalidBudget",
        "InvalidData",
        "InvalidRun",
        "InvalidSetting",
        "InvalidWidths",
        "MissingExtra",
        "NothingFits",
        "OutsideCalibration",
        "PocketzooError",
        "UnknownDevice",
        "UnknownModel",
        "UntraceableModel",
        "WeightsMismatch",
    ],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pocketzoo' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
