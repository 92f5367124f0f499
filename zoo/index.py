"""The zoo's index: every model's counts as a table that is read without importing torch.

`python -m pocketzoo.zoo.index` writes zoo/index.json anew; a test fails when it is stale.
"""

from __future__ import annotations

import fnmatch
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def matching(pattern: str = "*") -> list[Row]:
    """Rows of the models whose names match a shell pattern: model, family, resolution, num_classes, params, macs."""
    rows: list[Row] = json.loads((files(__package__) / "index.json").read_text(encoding="utf-8"))
    return [row for row in rows if fnmatch.fnmatch(row["model"], pattern)]


def counted() -> list[Row]:
    """The rows as the code counts them now."""
    import torch

    from ..graph.channel_graph import trace
    from . import registry
    from .architecture import Architecture

    rows = []
    for name in registry.list_models():
        arch = Architecture.of(name)
        with torch.device("meta"):
            costs = trace(arch.build().eval(), arch.input_shape).price()
        rows.append({"model": name, "family": arch.family, "resolution": arch.resolution,
                     "num_classes": arch.num_classes, "params": costs.params, "macs": costs.macs})  # fmt: skip
    return rows


def main() -> None:
    """Write the index."""
    lines = ",\n".join(json.dumps(row) for row in counted())
    (Path(__file__).parent / "index.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
