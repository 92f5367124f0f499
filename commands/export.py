"""pocketzoo export: a run's model as files for other runtimes, each checked and timed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import AS_JSON, DATA, example, print_json, print_rich

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


@click.command(
    "export", epilog=example("pocketzoo export runs/first --to onnx-int8 --calibration entropy --data digits")
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "formats", metavar="FORMAT", multiple=True, required=True,
              help="onnx, onnx-int8, safetensors or pt2; once for each file.")  # fmt: skip
@DATA
@click.option("--calibration", metavar="METHOD", default="entropy", show_default=True,
              help="How an INT8 file's ranges are found: minmax, percentile or entropy.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Folder; beside the run's weights by default.")
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def export_command(
    run: Path,
    formats: Sequence[str],
    data: str,
    calibration: str,
    out: Path | None,
    trust: Sequence[str],
    as_json: bool,
) -> None:
    """Write a run's model, or a packed file's, for other runtimes; each file is held against PyTorch and timed."""
    from ..compress.export import export_model

    table = export_model(run, list(dict.fromkeys(formats)), data, out=out, calibration=calibration, trust=trust)
    if as_json:
        print_json(json.loads(table.to_json(orient="records")))
    else:
        print_rich(_shown(table))
        click.echo("\n".join(table["file"]))


def _shown(table: pd.DataFrame) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    shown = Table(title="on the validation images; a batch of 1 on one thread", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in ("format", "bytes", "accuracy", "PyTorch", "difference", "before", "ms", "runtime", "ms", "speedup"):
        shown.add_column(column, justify="left" if column in ("format", "before", "runtime") else "right")
    for row in table.to_dict("records"):
        shown.add_row(
            row["format"], f"{row['bytes']:,}", f"{row['accuracy']:.2%}", f"{row['pytorch_accuracy']:.2%}",
            f"{row['difference']:.1e}", row["before"], f"{row['before_ms']:.3g}", row["runtime"],
            f"{row['after_ms']:.3g}", f"{row['speedup']:.2f}x",
        )  # fmt: skip
    return shown
