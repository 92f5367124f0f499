"""The table of operators: what each one of the evaluation pass reads, makes and costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

import pandas as pd

from .pricing import is_counted
from .record import Side
from .tracer import Tracer


def operator_table(tracer: Tracer, values: list[int], parameters: Collection[str]) -> pd.DataFrame:
    """One row per operator at these symbol values; `parameters` are the names that count as parameters."""
    seen: set[str] = set()
    rows = []
    for op in tracer.ops[: tracer.eval_ops]:
        if op.is_view and not op.inputs:
            continue
        own = [w for w in op.weights if w in parameters and w not in seen]
        seen.update(own)
        ins = [
            _shape(sides, values)
            for sides, is_weight in zip(op.in_sides, op.reads_weight, strict=True)
            if not is_weight
        ]
        outs = [_shape(sides, values) for sides in op.out_sides]
        counted = is_counted(op)
        weights = sum(prod(_shape(tracer.parameter_sides[w], values)) for w in op.weights)
        macs = op.macs[0]
        for form in op.macs[1]:
            macs *= form.at(values)
        elements = [prod(s) for s in ins], [prod(s) for s in outs]
        rows.append({
            "name": op.path, "op": op.kind, "aten": op.name, "in_shapes": ins, "out_shapes": outs,
            "params": sum(prod(_shape(tracer.parameter_sides[w], values)) for w in own),
            "macs": int(macs), "flops": 2 * int(macs), "activations": elements[1][0] if counted else 0,
            "memory_access": sum(elements[0]) + elements[1][0] + weights if counted else 0,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _shape(sides: Sequence[int | Side], values: list[int]) -> tuple[int, ...]:
    return tuple(int(s.form.at(values)) if isinstance(s, Side) else s for s in sides)
